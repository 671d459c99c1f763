//! The lane at work: joins what waits, appends it to the store, settles it, and trims what everybody is done with.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use penstock_common::{
    position::EntryId,
    store::{AppendError, CommitError, Entry, StoreError, StoredEntry, Took},
    telemetry::batch_span,
};
use penstock_proto::link::Settle;
use tokio::time::Instant;
use tracing::{Instrument, info, warn};

use crate::{
    home::{Home, KEEP_ENTRIES, READ_BACK, lock},
    lane::{Flight, Screened, Settled},
    link::Link,
    pace::Backoff,
    producers::Producers,
};

const KEEP_ENTRIES_LEAST: u64 = 16;
const KEEP_BYTES: u64 = 8 << 20;
/// Between two trims of a partition.
const TRIM_EVERY: Duration = Duration::from_secs(1);
/// Between two of a partition where nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A home that nobody uses for so long is given up.
const UNUSED_AFTER: Duration = Duration::from_secs(60);

impl Home {
    pub(crate) async fn run_lane(self: Arc<Self>) {
        let (mut trimmed_at, mut looked_at) = (None::<Instant>, None::<Instant>);
        while !self.lost.is_cancelled() {
            let executed = self.execute().await;
            let mut screened = Screened::default();
            let flight = lock(&self.inner).next(&mut screened);
            self.homes.metrics.screened(screened);
            match flight {
                Some(flight) => self.fly(flight).await,
                None if self.fly_own().await => {}
                None if executed => {}
                None => self.idle().await,
            }
            let now = Instant::now();
            if trimmed_at.is_none_or(|at| now - at >= TRIM_EVERY) {
                trimmed_at = Some(now);
                lock(&self.inner).lane.stale.sweep(now);
                // What is too old goes although nothing has moved.
                if self.wants_trim() || looked_at.is_none_or(|at| now - at >= LOOK_EVERY) {
                    looked_at = Some(now);
                    self.trim().await;
                }
            }
        }
    }

    async fn idle(&self) {
        let trims = self.wants_trim();
        let pause = if trims { TRIM_EVERY } else { UNUSED_AFTER };
        tokio::select! {
            () = self.wake.notified() => {}
            () = self.lost.cancelled() => {}
            () = tokio::time::sleep(pause) => if !trims && !self.is_used() {
                self.lose("unused");
            }
        }
    }

    async fn fly(&self, flight: Flight<Arc<Link>>) {
        let Some(entry) = flight.entry.clone() else {
            let settled = lock(&self.inner).lane.stored(flight, None);
            return settle(settled);
        };
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            let started = Instant::now();
            let span = batch_span("append");
            span.record("records", entry.count).record("bytes", entry.records.len());
            match self.homes.store.append(&self.key, self.term(), &entry).instrument(span).await {
                Ok(id) => {
                    self.homes.metrics.appended(started.elapsed(), &entry);
                    return self.stored(flight, entry, id);
                }
                Err(AppendError::Fenced) => return self.lose("another router has taken the partition"),
                Err(AppendError::Refused(reason)) => {
                    warn!(tenant = %self.key.tenant, partition = self.key.partition, reason, "the store refuses");
                    backoff.pause(&self.homes.seams).await;
                }
                Err(AppendError::Retake) => {
                    lock(&self.inner).lane.not_sent(flight);
                    return self.take_again().await;
                }
                Err(AppendError::Lost(reason)) => {
                    warn!(tenant = %self.key.tenant, partition = self.key.partition, reason, "an append is in doubt");
                    lock(&self.inner).lane.in_doubt(flight);
                    return self.take_again().await;
                }
            }
            if self.lost.is_cancelled() {
                return;
            }
        }
    }

    fn stored(&self, flight: Flight<Arc<Link>>, entry: Entry, id: EntryId) {
        if self.is_read() || self.fan_active.load(Ordering::Acquire) {
            lock(&self.tail).push(Arc::new(StoredEntry { id, entry }));
        } else {
            lock(&self.tail).reset(id);
        }
        let mut inner = lock(&self.inner);
        inner.appended_since_trim += 1;
        let settled = inner.lane.stored(flight, Some(id));
        drop(inner);
        settle(settled);
        self.is_last(id);
    }

    /// The log ends here now: readers and the fan-out see the id before they are woken.
    pub(crate) fn is_last(&self, id: EntryId) {
        self.last.send_replace(id);
        let mut fan = lock(&self.fan);
        if self.fan_active.load(Ordering::Acquire) {
            self.fan_wake.notify_one();
        } else {
            (fan.head, fan.mailed) = (id, id);
        }
    }

    /// Takes a new term after a lost answer, and learns from the log what was stored.
    pub(crate) async fn take_again(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        while !self.lost.is_cancelled() {
            match self.take_once().await {
                Ok(took) if took.previous_holder == Some(self.homes.incarnation) => {
                    info!(tenant = %self.key.tenant, partition = self.key.partition, term = took.term.0, "took the partition again");
                    return;
                }
                Ok(_) => return self.lose("another router had taken the partition"),
                Err(_) => backoff.pause(&self.homes.seams).await,
            }
        }
    }

    async fn take_once(&self) -> Result<Took, StoreError> {
        let took = self.homes.store.take(&self.key, self.homes.incarnation).await?;
        let tail = self.homes.store.read_back(&self.key, READ_BACK).await?;
        self.term.store(took.term.0, Ordering::Release);
        let mut inner = lock(&self.inner);
        if took.previous_holder == Some(self.homes.incarnation) {
            inner.lane.producers.learn(&tail);
        } else {
            inner.lane.producers = Producers::from_tail(&tail, false);
        }
        inner.lane.totals = took.totals;
        inner.trimmed = took.trimmed;
        drop(inner);
        let known = *self.last.borrow();
        if known != took.last {
            lock(&self.tail).reset(took.last);
            self.is_last(took.last);
        }
        Ok(took)
    }

    fn wants_trim(&self) -> bool {
        lock(&self.inner).appended_since_trim >= KEEP_ENTRIES_LEAST
            || self.cursors_moved.load(Ordering::Relaxed)
    }

    async fn trim(&self) {
        self.cursors_moved.store(false, Ordering::Relaxed);
        let keep = {
            let mut inner = lock(&self.inner);
            let entries = std::mem::take(&mut inner.appended_since_trim).max(1);
            let bytes = inner.lane.totals.bytes.saturating_sub(inner.trimmed.bytes);
            let average = (bytes / entries.max(KEEP_ENTRIES_LEAST)).max(1);
            (KEEP_BYTES / average).clamp(KEEP_ENTRIES_LEAST, KEEP_ENTRIES)
        };
        let keep = self.homes.keep(&self.key, keep);
        match self.homes.store.trim(&self.key, self.term(), &keep).await {
            Ok(trimmed) => {
                self.homes.metrics.trimmed(&trimmed);
                let mut inner = lock(&self.inner);
                (inner.trimmed, inner.held) = (trimmed.totals, trimmed.held);
            }
            Err(CommitError::Fenced) => self.check_holder().await,
            // Trimming is tried again with the next appends.
            Err(CommitError::Store(_)) => {}
        }
    }
}

/// Tells the links what became of their records: one lock of an outbox for each run of the same link.
fn settle(settled: Vec<Settled<Arc<Link>>>) {
    let as_settle = |settled: &Settled<Arc<Link>>| Settle {
        lane: settled.lane,
        first: settled.first,
        count: settled.count,
        result: settled.result.into(),
        credit: settled.credit,
    };
    for run in settled.chunk_by(|a, b| a.link == b.link) {
        if let Some(first) = run.first() {
            first.link.settle(run.iter().map(as_settle));
        }
    }
}
