//! A home: this router holding the term of one partition. Drives the lane (`lane`) and the fan-out (`fanout`), remembers who
//! owns which client, and is what groups read from.
//!
//! Invariants: one append under way; after a lost answer nothing is appended before a new term was taken and the tail read
//! back; a home that was fenced tells every link that opened it, and is never used again.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use penstock_common::{
    epoch::Epoch,
    name::PartitionKey,
    position::{EntryId, Term},
    store::{AppendError, CommitError, CursorChange, Entry, Keep, StoreError, StoredEntry, Took, Totals},
    telemetry::batch_span,
};
use penstock_proto::link::{LaneLost, Owner, Settle, data_down};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, warn};

use crate::{
    fan::{Fan, ShardId},
    homes::Homes,
    lane::{Batch, Flight, Lane, Screened, Settled},
    link::{LaneNumber, Link},
    owners::{Attached, Owners, Ownership},
    pace::Backoff,
    producers::Producers,
    tail::Tail,
};

/// Bytes of the log's end that tell a new home what producers stored last.
const READ_BACK: usize = 8 << 20;
/// Entries that trimming leaves for that purpose: fewer when they are large.
const KEEP_ENTRIES: u64 = 256;
const KEEP_ENTRIES_LEAST: u64 = 16;
const KEEP_BYTES: u64 = 8 << 20;
/// Between two trims of a partition.
const TRIM_EVERY: Duration = Duration::from_secs(1);
/// A home that nobody uses for so long is given up.
const UNUSED_AFTER: Duration = Duration::from_secs(60);
/// How long after the last read entries are still kept in memory.
const TAIL_IDLE: Duration = Duration::from_secs(10);

/// See the module.
pub struct Home {
    /// Which partition.
    pub key: PartitionKey,
    /// What all homes of this router share.
    pub(crate) homes: Arc<Homes>,
    pub(crate) fan: Mutex<Fan>,
    pub(crate) fan_wake: Notify,
    /// The fan-out follows the log; otherwise `fan.head` is moved by appends.
    pub(crate) fan_active: AtomicBool,
    /// Entries up to here were stored under earlier terms: they may have been delivered before.
    pub(crate) repeat_until: Mutex<EntryId>,
    term: AtomicU64,
    inner: Mutex<Inner>,
    wake: Notify,
    last: watch::Sender<EntryId>,
    tail: Mutex<Tail>,
    born: Instant,
    /// Milliseconds after `born`.
    read_at: AtomicU64,
    cursors_moved: AtomicBool,
    lost: CancellationToken,
}

struct Inner {
    lane: Lane<Arc<Link>>,
    owners: Owners<Arc<Link>>,
    /// Who opened it.
    opened: Vec<(Arc<Link>, LaneNumber)>,
    /// Totals before the first retained entry.
    trimmed: Totals,
    appended_since_trim: u64,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Home {
    /// Takes the partition's term and starts to serve it.
    pub async fn open(homes: &Arc<Homes>, key: &PartitionKey) -> Result<Arc<Self>, StoreError> {
        let started = Instant::now();
        let took = homes.store.take(key, homes.incarnation).await?;
        let tail = homes.store.read_back(key, READ_BACK).await?;
        let cursors = homes.store.cursors(key).await?;
        let home = Arc::new(Self::new(homes, key, took, Producers::from_tail(&tail), cursors.fan));
        if cursors.fan.is_none() && homes.interest.any(&key.tenant) {
            home.begin_fan_out().await.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        }
        info!(tenant = %key.tenant, partition = key.partition, term = took.term.0, previous = ?took.previous_holder,
            took_ms = started.elapsed().as_millis(), "took the partition");
        homes.metrics.homes_taken.inc();
        tokio::spawn(Arc::clone(&home).run_lane());
        tokio::spawn(Arc::clone(&home).run_fan_out());
        if let Some(previous) = took.previous_holder.filter(|holder| *holder != homes.incarnation) {
            homes.tell_previous(previous, key, took.term);
        }
        Ok(home)
    }

    fn new(
        homes: &Arc<Homes>,
        key: &PartitionKey,
        took: Took,
        producers: Producers,
        fan: Option<EntryId>,
    ) -> Self {
        let fan = Fan::new(fan, took.last);
        Self {
            key: key.clone(),
            homes: Arc::clone(homes),
            fan_active: AtomicBool::new(fan.stored.is_some()),
            fan: Mutex::new(fan),
            fan_wake: Notify::new(),
            repeat_until: Mutex::new(took.last),
            term: AtomicU64::new(took.term.0),
            inner: Mutex::new(Inner {
                lane: Lane::new(producers, took.totals),
                owners: Owners::default(),
                opened: Vec::new(),
                trimmed: took.trimmed,
                appended_since_trim: KEEP_ENTRIES,
            }),
            wake: Notify::new(),
            last: watch::Sender::new(took.last),
            tail: Mutex::new(Tail::new(took.last)),
            born: Instant::now(),
            read_at: AtomicU64::new(0),
            cursors_moved: AtomicBool::new(false),
            lost: CancellationToken::new(),
        }
    }

    /// The present term.
    pub fn term(&self) -> Term {
        Term(self.term.load(Ordering::Acquire))
    }

    /// Id of the last stored entry; changes with every append.
    pub fn last(&self) -> watch::Receiver<EntryId> {
        self.last.subscribe()
    }

    /// Totals at the last stored entry.
    pub fn totals(&self) -> Totals {
        lock(&self.inner).lane.totals
    }

    /// Cancelled when this router is no longer the home.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Entries above `after`, from memory or the store.
    pub async fn read(
        &self,
        after: EntryId,
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Vec<Arc<StoredEntry>>, StoreError> {
        self.read_at.store(self.age(), Ordering::Relaxed);
        if let Some(entries) = lock(&self.tail).read(after, max_entries, max_bytes) {
            return Ok(entries);
        }
        let entries = self.homes.store.read(&self.key, after, max_entries, max_bytes).await?;
        Ok(entries.into_iter().map(Arc::new).collect())
    }

    /// Moves cursors under the present term.
    pub async fn commit(&self, changes: Vec<CursorChange>) -> Result<(), CommitError> {
        let outcome = self.homes.store.commit(&self.key, self.term(), &changes).await;
        match &outcome {
            Ok(()) => self.cursors_moved.store(true, Ordering::Relaxed),
            // A term that this router itself has raised meanwhile is no loss: the caller writes again.
            Err(CommitError::Fenced) => self.check_holder().await,
            Err(CommitError::Store(_)) => {}
        }
        outcome
    }

    /// Takes a batch from a link that has the lane open.
    pub fn accept(&self, mut batch: Batch<Arc<Link>>) {
        let mut inner = lock(&self.inner);
        if self.lost.is_cancelled() {
            return;
        }
        if inner.backlog_full(self.homes.backlog_limit(&self.key)) {
            batch.refused = true;
            self.homes.metrics.refused_backlog.inc_by(u64::from(batch.segment.count));
        }
        inner.lane.accept(batch);
        drop(inner);
        self.wake.notify_one();
    }

    /// A link opens the lane and tells its owners.
    pub fn opened(self: &Arc<Self>, link: &Arc<Link>, lane: LaneNumber, owners: &[Owner]) -> bool {
        {
            let mut inner = lock(&self.inner);
            if self.lost.is_cancelled() {
                return false;
            }
            inner.opened.push((Arc::clone(link), lane));
        }
        self.attach(link, owners);
        true
    }

    /// A link has moved the partition elsewhere.
    pub fn closed(&self, link: &Link, lane: LaneNumber) {
        let mut inner = lock(&self.inner);
        inner.opened.retain(|(own, number)| **own != *link || *number != lane);
        let still = inner.opened.iter().any(|(own, _)| **own == *link);
        if !still {
            inner.owners.forget(|own| **own == *link);
        }
    }

    /// Ownerships are told; losers are kicked, here and now.
    pub fn attach(&self, link: &Arc<Link>, owners: &[Owner]) {
        let now = Instant::now();
        for owner in owners {
            let mut inner = lock(&self.inner);
            let attached = inner.owners.attach(&owner.client, Epoch(owner.epoch), Arc::clone(link));
            match attached {
                Attached::Alone => {}
                Attached::Replaced(old) => {
                    inner.lane.void(&owner.client, old.epoch, now);
                    drop(inner);
                    self.kick(&owner.client, &old.link, Epoch(old.epoch.0 + 1));
                }
                Attached::Void { below } => {
                    inner.lane.void(&owner.client, Epoch(owner.epoch), now);
                    drop(inner);
                    self.homes.metrics.stale_epochs.inc();
                    self.kick(&owner.client, link, below);
                }
            }
        }
    }

    fn kick(&self, client: &bytes::Bytes, link: &Arc<Link>, below: Epoch) {
        let kick = penstock_proto::link::Kick {
            id: 0,
            tenant: self.key.tenant.to_string(),
            client: client.clone(),
            below: below.0,
            gateway: link.shard.gateway,
            shard: link.shard.shard,
        };
        link.kick(kick, None);
    }

    /// Ownerships end.
    pub fn detach(&self, owners: &[Owner]) {
        let mut inner = lock(&self.inner);
        for owner in owners {
            inner.owners.detach(&owner.client, Epoch(owner.epoch));
        }
    }

    /// Hands out a provisional epoch and names the one that it supersedes.
    pub fn grant(&self, client: &[u8]) -> (Epoch, Epoch) {
        lock(&self.inner).owners.grant(client, self.term())
    }

    /// The present owner of a client, if its link lives.
    pub fn owner(&self, client: &[u8]) -> Option<Ownership<Arc<Link>>> {
        let inner = lock(&self.inner);
        inner.owners.get(client).filter(|own| !own.link.closed.is_cancelled()).cloned()
    }

    /// Clients owned by linked shards.
    pub fn owners(&self) -> usize {
        lock(&self.inner).owners.count()
    }

    /// A link is closed.
    pub fn link_closed(&self, link: &Link) {
        lock(&self.fan).leave_behind(link.shard, Instant::now());
        self.fan_wake.notify_one();
        let mut inner = lock(&self.inner);
        inner.opened.retain(|(own, _)| **own != *link);
        inner.owners.forget(|own| **own == *link);
    }

    /// Whether any link has the lane open, anybody reads, or somebody is yet to be served.
    fn is_used(&self) -> bool {
        let followed = self.homes.interest.any(&self.key.tenant) || !lock(&self.fan).is_idle();
        let inner = lock(&self.inner);
        followed || !inner.opened.is_empty() || !inner.lane.is_empty() || self.is_read()
    }

    /// Another router holds the term, or this one gives it up: tells every link.
    pub fn lose(&self, reason: &str) {
        if self.lost.is_cancelled() {
            return;
        }
        self.lost.cancel();
        self.homes.forget(self);
        let mut inner = lock(&self.inner);
        inner.lane.abandon();
        let opened = std::mem::take(&mut inner.opened);
        inner.owners = Owners::default();
        drop(inner);
        info!(tenant = %self.key.tenant, partition = self.key.partition, reason, "gave the partition up");
        for (link, lane) in opened {
            link.close_lane(lane);
            // A closed link needs no word.
            let _ = link.data.send(data_down::Kind::LaneLost(LaneLost { lane, reason: reason.to_owned() }));
        }
    }

    /// Asks the store who holds the partition; gives it up unless it is this router.
    pub async fn check_holder(&self) {
        if let Ok(holder) = self.homes.store.holder(&self.key).await
            && holder.is_none_or(|(_, holder)| holder != self.homes.incarnation)
        {
            self.lose("another router has taken the partition");
        }
    }

    async fn run_lane(self: Arc<Self>) {
        let mut trimmed_at = Instant::now();
        while !self.lost.is_cancelled() {
            let mut screened = Screened::default();
            let flight = lock(&self.inner).next(&mut screened);
            self.homes.metrics.screened(screened);
            match flight {
                Some(flight) => self.fly(flight).await,
                None => self.idle().await,
            }
            if trimmed_at.elapsed() >= TRIM_EVERY {
                trimmed_at = Instant::now();
                lock(&self.inner).lane.stale.sweep(trimmed_at);
                self.trim().await;
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
        {
            let mut fan = lock(&self.fan);
            if self.fan_active.load(Ordering::Acquire) {
                self.fan_wake.notify_one();
            } else {
                fan.head = id;
            }
        }
        self.last.send_replace(id);
    }

    /// Takes a new term after a lost answer, and learns from the log what was stored.
    async fn take_again(&self) {
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
        inner.lane.producers = Producers::from_tail(&tail);
        inner.lane.totals = took.totals;
        inner.trimmed = took.trimmed;
        drop(inner);
        let known = *self.last.borrow();
        if known != took.last {
            lock(&self.tail).reset(took.last);
            let mut fan = lock(&self.fan);
            if self.fan_active.load(Ordering::Acquire) {
                self.fan_wake.notify_one();
            } else {
                fan.head = took.last;
            }
            drop(fan);
            self.last.send_replace(took.last);
        }
        Ok(took)
    }

    fn wants_trim(&self) -> bool {
        lock(&self.inner).appended_since_trim >= KEEP_ENTRIES_LEAST
            || self.cursors_moved.load(Ordering::Relaxed)
    }

    async fn trim(&self) {
        if !self.wants_trim() {
            return;
        }
        self.cursors_moved.store(false, Ordering::Relaxed);
        let keep = {
            let mut inner = lock(&self.inner);
            let entries = std::mem::take(&mut inner.appended_since_trim).max(1);
            let bytes = inner.lane.totals.bytes.saturating_sub(inner.trimmed.bytes);
            let average = (bytes / entries.max(KEEP_ENTRIES_LEAST)).max(1);
            (KEEP_BYTES / average).clamp(KEEP_ENTRIES_LEAST, KEEP_ENTRIES)
        };
        let keep = Keep { entries: keep, groups: self.homes.groups(&self.key.tenant) };
        match self.homes.store.trim(&self.key, self.term(), keep).await {
            Ok(trimmed) => lock(&self.inner).trimmed = trimmed,
            Err(CommitError::Fenced) => self.check_holder().await,
            // Trimming is tried again with the next appends.
            Err(CommitError::Store(_)) => {}
        }
    }

    fn age(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_read(&self) -> bool {
        let read_at = self.read_at.load(Ordering::Relaxed);
        read_at > 0 && self.age().saturating_sub(read_at) < TAIL_IDLE.as_millis() as u64
    }

    /// A shard has given an entry to its sessions.
    pub fn taken(&self, shard: ShardId, entry: EntryId) {
        lock(&self.fan).taken(shard, entry);
        self.fan_wake.notify_one();
    }
}

impl Inner {
    fn next(&mut self, screened: &mut Screened) -> Option<Flight<Arc<Link>>> {
        let Self { lane, owners, .. } = self;
        lane.next(
            |client, epoch| {
                owners.get(client).is_some_and(|own| own.epoch.revision().is_some() && own.epoch.0 > epoch)
            },
            screened,
        )
    }

    fn backlog_full(&self, limit: u64) -> bool {
        self.lane.totals.bytes.saturating_sub(self.trimmed.bytes) > limit
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
