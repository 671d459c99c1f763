//! The fan-out of one partition to live subscribers: reads the log, asks the interest which links want what, sends one
//! Deliver an entry and link, and stores the cursor once links have taken them. A router may so die between PUBACK and
//! delivery: the next home goes on from the cursor.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use penstock_common::{
    position::EntryId,
    store::{CommitError, CursorChange, StoreError, StoredEntry},
};
use penstock_proto::link::{Deliver, Overrun, data_down};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    batch,
    fan::ShardId,
    home::{Home, lock},
    link::{Link, select},
};

/// The stored cursor follows the real one at least this often.
const COMMIT_EVERY: Duration = Duration::from_millis(100);
/// While some shard is behind it is looked after this often.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Entries and bytes read at a time.
pub(crate) const READ_ENTRIES: usize = 128;
pub(crate) const READ_BYTES: usize = 4 << 20;

/// What one link wants of an entry.
struct Wanted {
    link: u64,
    ranges: Vec<Range<usize>>,
    last_index: usize,
}

impl Home {
    /// Makes the fan-out follow the log: from now on, what is stored reaches the filters that are known.
    pub(crate) async fn begin_fan_out(&self) -> Result<(), CommitError> {
        let _alone = self.fan_cursor.lock().await;
        let head = {
            let fan = lock(&self.fan);
            self.fan_active.store(true, Ordering::Release);
            if fan.stored.is_some() {
                return Ok(());
            }
            fan.cursor()
        };
        self.commit(vec![CursorChange::Fan(Some(head))]).await?;
        lock(&self.fan).stored.get_or_insert(head);
        Ok(())
    }

    /// The fan-out cursor is in the store: what is stored from now on reaches every filter that is known.
    pub(crate) fn fan_is_stored(&self) -> bool {
        lock(&self.fan).stored.is_some()
    }

    pub(crate) async fn run_fan_out(self: Arc<Self>) {
        let mut committed_at = Instant::now();
        while !self.lost().is_cancelled() {
            if let Err(error) = self.fan_turn(&mut committed_at).await {
                warn!(tenant = %self.key.tenant, partition = self.key.partition, %error, "fan-out waits for the store");
                tokio::time::sleep(COMMIT_EVERY).await;
                continue;
            }
            let pause = self.fan_pause(committed_at);
            tokio::select! {
                () = self.fan_wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = self.lost().cancelled() => {}
            }
        }
    }

    fn fan_pause(&self, committed_at: Instant) -> Duration {
        let fan = lock(&self.fan);
        let dirty = fan.stored.is_some_and(|stored| stored != fan.cursor());
        if dirty {
            COMMIT_EVERY.saturating_sub(committed_at.elapsed()).max(Duration::from_millis(1))
        } else if fan.is_idle() {
            Duration::from_secs(3_600)
        } else {
            LOOK_EVERY
        }
    }

    async fn fan_turn(self: &Arc<Self>, committed_at: &mut Instant) -> Result<(), StoreError> {
        self.observe_shards();
        let behind = lock(&self.fan).behind();
        for (shard, from) in behind {
            self.catch_up(shard, from).await?;
        }
        self.tell_abandoned();
        if self.fan_active.load(Ordering::Acquire) {
            self.follow_log().await?;
            self.follow_mail().await?;
        }
        self.settle_cursor(committed_at).await
    }

    fn observe_shards(&self) {
        let now = Instant::now();
        let shards = self.homes.presence.shards();
        let present = |shard: &ShardId| self.homes.links.shard(shard).is_some_and(|link| link.is_present());
        let mut fan = lock(&self.fan);
        fan.observe(present, &shards, now);
        let given_up = fan.give_up(now);
        drop(fan);
        if given_up > 0 {
            self.homes.metrics.abandoned.inc_by(given_up as u64);
            warn!(tenant = %self.key.tenant, partition = self.key.partition, shards = given_up,
                "fan-out goes on without shards that were not linked for too long");
        }
    }

    /// Shards that missed something close the sessions concerned: nothing is lost in silence.
    fn tell_abandoned(&self) {
        if !lock(&self.fan).any_abandoned() {
            return;
        }
        for link in self.homes.links.all() {
            if link.is_present() && lock(&self.fan).was_abandoned(&link.shard) {
                let overrun = Overrun { tenant: self.key.tenant.to_string(), topic: bytes::Bytes::new() };
                // A link that closes now is told by its next life: its sessions are gone then.
                let _ = link.data.send(data_down::Kind::Overrun(overrun));
            }
        }
    }

    /// Sends a shard that was behind what it has missed, if it can be sent now.
    async fn catch_up(self: &Arc<Self>, shard: ShardId, mut from: EntryId) -> Result<(), StoreError> {
        let Some(link) = self.homes.links.shard(&shard).filter(|link| link.is_present()) else {
            return Ok(());
        };
        let room = |link: &Link| link.untaken_bytes() < self.homes.config.deliver_bytes / 2;
        while room(&link) && !self.lost().is_cancelled() {
            let head = lock(&self.fan).head;
            let wanted =
                self.homes.interest.any(&self.key.tenant) && !self.homes.is_isolated(&self.key.tenant);
            if from >= head || !wanted {
                from = from.max(head);
                break;
            }
            let entries = self.read(from, READ_ENTRIES, READ_BYTES / 4).await?;
            if entries.is_empty() {
                from = head;
            }
            for entry in entries.iter().take_while(|entry| entry.id <= head) {
                if !self.fan_entry(entry, from, Some(&link)) {
                    lock(&self.fan).caught_up(shard, from);
                    return Ok(());
                }
                from = entry.id;
            }
            from = if entries.iter().any(|entry| entry.id > head) { head } else { from };
        }
        lock(&self.fan).caught_up(shard, from);
        Ok(())
    }

    async fn follow_log(self: &Arc<Self>) -> Result<(), StoreError> {
        loop {
            let head = lock(&self.fan).head;
            let last = *self.last().borrow();
            if head >= last || self.lost().is_cancelled() {
                return Ok(());
            }
            // Asked again here: a tenant of this name may have been one without isolation.
            if !self.homes.interest.any(&self.key.tenant) || self.homes.is_isolated(&self.key.tenant) {
                lock(&self.fan).head = last;
                return Ok(());
            }
            let entries = self.read(head, READ_ENTRIES, READ_BYTES).await?;
            let mut before = head;
            for entry in &entries {
                self.fan_entry(entry, before, None);
                before = entry.id;
                lock(&self.fan).head = entry.id;
            }
            if entries.is_empty() {
                // What lies between was trimmed: nobody could have been waiting for it.
                lock(&self.fan).head = last;
            }
        }
    }

    /// Sends an entry to the links that want records of it; false when `only` could not be sent to.
    fn fan_entry(
        self: &Arc<Self>,
        entry: &Arc<StoredEntry>,
        before: EntryId,
        only: Option<&Arc<Link>>,
    ) -> bool {
        let (wanted, records) = self.wanted(entry);
        for want in wanted {
            let link = match only {
                Some(only) if only.number == want.link => Arc::clone(only),
                Some(_) => continue,
                None => match self.homes.links.number(want.link) {
                    Some(link) => link,
                    None => continue,
                },
            };
            if only.is_none() && lock(&self.fan).is_behind(&link.shard) {
                continue;
            }
            let whole = want.ranges.len() == records;
            let deliver = Deliver {
                tenant: self.key.tenant.to_string(),
                partition: self.key.partition,
                term: entry.id.term.0,
                sequence: entry.id.sequence,
                repeat: only.is_some() || entry.id <= *lock(&self.repeat_until),
                delivery: 0,
                records: select(&entry.entry.records, &want.ranges, whole),
            };
            self.homes.metrics.delivered_bytes.inc_by(deliver.records.len() as u64);
            if link.untaken_bytes() > self.homes.config.deliver_bytes {
                lock(&self.fan).is_full(link.shard, before, Instant::now());
                if only.is_some() {
                    return false;
                }
                continue;
            }
            lock(&self.fan).sent(link.shard, before);
            if link.deliver(self, entry.id, deliver).is_err() {
                lock(&self.fan).leave_behind(link.shard, Instant::now());
                if only.is_some() {
                    return false;
                }
            }
        }
        true
    }

    fn wanted(&self, entry: &StoredEntry) -> (Vec<Wanted>, usize) {
        if entry.only_for().is_some() {
            return (Vec::new(), 0);
        }
        let mut topics = Vec::with_capacity(entry.entry.count as usize);
        let mut ranges = Vec::with_capacity(entry.entry.count as usize);
        for frame in batch::frames(&entry.entry.records).flatten() {
            topics.push(batch::head(frame.body).map(|head| head.topic).unwrap_or_default());
            ranges.push(frame.range);
        }
        let mut wanted: Vec<Wanted> = Vec::new();
        self.homes.interest.matches(&self.key.tenant, &topics, |index, link| {
            let Some(range) = ranges.get(index) else { return };
            match wanted.iter_mut().find(|wanted| wanted.link == link) {
                Some(own) if own.last_index == index => {}
                Some(own) => {
                    own.ranges.push(range.clone());
                    own.last_index = index;
                }
                None => wanted.push(Wanted { link, ranges: vec![range.clone()], last_index: index }),
            }
        });
        (wanted, ranges.len())
    }

    async fn settle_cursor(&self, committed_at: &mut Instant) -> Result<(), StoreError> {
        let (stored, cursor, idle) = {
            let fan = lock(&self.fan);
            (fan.stored, fan.cursor(), fan.is_idle())
        };
        let Some(stored) = stored else { return Ok(()) };
        if idle && !self.homes.any_filter(&self.key.tenant) {
            return self.end_fan_out().await;
        }
        if cursor == stored || committed_at.elapsed() < COMMIT_EVERY {
            return Ok(());
        }
        match self.commit(vec![CursorChange::Fan(Some(cursor))]).await {
            Ok(()) => {
                *committed_at = Instant::now();
                lock(&self.fan).stored = Some(cursor);
                Ok(())
            }
            Err(CommitError::Fenced) => Ok(()),
            Err(CommitError::Store(error)) => Err(error),
        }
    }

    /// The tenant has no filters any more: nothing is to be remembered. From here on interest that is told waits for the
    /// cursor to be stored again, so that no SUBACK overtakes its removal.
    async fn end_fan_out(&self) -> Result<(), StoreError> {
        let alone = self.fan_cursor.lock().await;
        let before = std::mem::take(&mut lock(&self.fan).stored);
        if self.homes.any_filter(&self.key.tenant) {
            lock(&self.fan).stored = before;
            return Ok(());
        }
        match self.commit(vec![CursorChange::Fan(None)]).await {
            Ok(()) if !self.homes.any_filter(&self.key.tenant) => {
                let mut fan = lock(&self.fan);
                self.fan_active.store(false, Ordering::Release);
                let last = *self.last().borrow();
                (fan.head, fan.mailed) = (last, last);
                Ok(())
            }
            Ok(()) => {
                drop(alone);
                self.begin_fan_out().await.map_err(|error| StoreError::Unavailable(error.to_string()))
            }
            // Whether it was removed is unknown: it is written again when it is needed, or removed at the next look.
            Err(CommitError::Fenced) => {
                lock(&self.fan).stored = before;
                Ok(())
            }
            Err(CommitError::Store(error)) => {
                drop(alone);
                if self.homes.any_filter(&self.key.tenant) {
                    return Err(error);
                }
                lock(&self.fan).stored = before;
                Err(error)
            }
        }
    }
}
