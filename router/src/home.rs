//! A home: this router holding the term of one partition. `append` drives its lane, `fanout` its fan-out; it remembers who
//! owns which client, and is what groups read from.
//!
//! Invariants: one append under way; after a lost answer nothing is appended before a new term was taken and the tail read
//! back; a home that was fenced tells every link that opened it, and is never used again.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use penstock_common::{
    epoch::Epoch,
    name::PartitionKey,
    position::{EntryId, Term},
    store::{CommitError, CursorChange, CursorStart, StoreError, StoredEntry, Took, Totals},
};
use penstock_proto::link::{LaneLost, Owner, data_down};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    append_own::OwnEntry,
    clients::Page,
    executor::Bequests,
    fan::{Fan, ShardId},
    homes::Homes,
    lane::{Batch, Flight, Lane, Screened},
    link::{LaneNumber, Link},
    owners::{Attached, Owners, Ownership},
    producers::Producers,
    sessions::Turns,
    tail::Tail,
    waiting::Waiting,
    wills::Wills,
};

/// Bytes of the log's end that tell a new home what producers stored last.
pub(crate) const READ_BACK: usize = 8 << 20;
/// Entries that trimming leaves for that purpose: fewer when they are large.
pub(crate) const KEEP_ENTRIES: u64 = 256;
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
    /// Held while the stored fan-out cursor is made or removed.
    pub(crate) fan_cursor: tokio::sync::Mutex<()>,
    /// The fan-out follows the log; otherwise `fan.head` is moved by appends.
    pub(crate) fan_active: AtomicBool,
    /// Entries up to here were stored under earlier terms: they may have been delivered before.
    pub(crate) repeat_until: Mutex<EntryId>,
    pub(crate) term: AtomicU64,
    pub(crate) inner: Mutex<Inner>,
    pub(crate) wake: Notify,
    pub(crate) last: watch::Sender<EntryId>,
    pub(crate) tail: Mutex<Tail>,
    born: Instant,
    /// Milliseconds after `born`.
    read_at: AtomicU64,
    pub(crate) cursors_moved: AtomicBool,
    pub(crate) lost: CancellationToken,
    /// Changes of wills up to this one are done.
    pub(crate) wills_done: watch::Sender<u64>,
    /// Counts what gateways said of ends of wills.
    pub(crate) wills_told: watch::Sender<u64>,
    /// What is done to sessions of one client is done one after the other.
    pub(crate) turns: Turns,
    /// Pushes that wait for clients.
    pub(crate) waiting: Waiting,
}

pub(crate) struct Inner {
    pub(crate) lane: Lane<Arc<Link>>,
    owners: Owners<Arc<Link>>,
    pub(crate) wills: Wills,
    /// Who opened it.
    opened: Vec<(Arc<Link>, LaneNumber)>,
    /// Totals before the first retained entry.
    pub(crate) trimmed: Totals,
    /// `Totals::bytes` where that begins which holds publishes up when it is too much; None: nothing does, or it is not
    /// known yet.
    pub(crate) held: Option<u64>,
    /// Entries for one group alone, to be appended between those of the lane.
    pub(crate) own: VecDeque<OwnEntry>,
    pub(crate) appended_since_trim: u64,
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
        let waiting = Waiting::new(homes.store.waiting_clients(key).await?);
        let wills = homes.store.wills(key).await?;
        // After the term was taken: whoever changes filters later finds this router as the holder, and asks it.
        homes.kept.follow(&*homes.store, &key.tenant).await?;
        let home = Arc::new(Self::new(
            homes,
            key,
            took,
            Producers::from_tail(&tail, took.trimmed == Totals::default()),
            (cursors.fan, Wills::new(wills)),
            waiting,
        ));
        if cursors.fan.is_none() && homes.any_filter(&key.tenant) {
            home.begin_fan_out().await.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        }
        info!(tenant = %key.tenant, partition = key.partition, term = took.term.0, previous = ?took.previous_holder,
            took_ms = started.elapsed().as_millis(), "took the partition");
        homes.metrics.homes_taken.inc();
        tokio::spawn(Arc::clone(&home).run_lane());
        tokio::spawn(Arc::clone(&home).run_fan_out());
        home.sweep_pushes();
        home.fire_lost();
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
        (fan, wills): (Option<EntryId>, Wills),
        waiting: Waiting,
    ) -> Self {
        let fan = Fan::new(fan, took.last);
        Self {
            key: key.clone(),
            homes: Arc::clone(homes),
            fan_active: AtomicBool::new(fan.stored.is_some()),
            fan: Mutex::new(fan),
            fan_wake: Notify::new(),
            fan_cursor: tokio::sync::Mutex::new(()),
            repeat_until: Mutex::new(took.last),
            term: AtomicU64::new(took.term.0),
            inner: Mutex::new(Inner {
                lane: Lane::new(producers, took.totals),
                owners: Owners::default(),
                wills,
                opened: Vec::new(),
                trimmed: took.trimmed,
                held: None,
                own: VecDeque::new(),
                appended_since_trim: KEEP_ENTRIES,
            }),
            wake: Notify::new(),
            last: watch::Sender::new(took.last),
            tail: Mutex::new(Tail::new(took.last)),
            born: Instant::now(),
            read_at: AtomicU64::new(0),
            cursors_moved: AtomicBool::new(false),
            lost: CancellationToken::new(),
            wills_done: watch::Sender::new(0),
            wills_told: watch::Sender::new(0),
            turns: Turns::default(),
            waiting,
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
        self.moved(outcome).await
    }

    /// Sets a group's cursor anew under the present term.
    pub async fn seek(&self, group: &str, to: CursorStart) -> Result<(), CommitError> {
        let outcome = self.homes.store.seek(&self.key, self.term(), group, to).await;
        self.moved(outcome).await
    }

    async fn moved(&self, outcome: Result<(), CommitError>) -> Result<(), CommitError> {
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
            // What made it full may have changed without an append or a cursor that moved: a policy, a group that is gone.
            self.cursors_moved.store(true, Ordering::Relaxed);
            self.homes.metrics.refused_backlog.inc_by(u64::from(batch.segment.count));
        }
        inner.lane.accept(batch);
        drop(inner);
        self.wake.notify_one();
    }

    /// A link opens the lane and tells its owners; None when the home is lost.
    pub(crate) fn opened(
        self: &Arc<Self>,
        link: &Arc<Link>,
        lane: LaneNumber,
        owners: &[Owner],
    ) -> Option<Bequests> {
        {
            let mut inner = lock(&self.inner);
            if self.lost.is_cancelled() {
                return None;
            }
            inner.opened.push((Arc::clone(link), lane));
        }
        Some(self.attach(link, owners))
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
    pub(crate) fn attach(&self, link: &Arc<Link>, owners: &[Owner]) -> Bequests {
        let now = Instant::now();
        let mut bequests = Bequests::default();
        for (index, owner) in owners.iter().enumerate() {
            let mut inner = lock(&self.inner);
            let granted = inner.owners.has_granted(&owner.client, Epoch(owner.epoch));
            let attached = inner.owners.attach(&owner.client, Epoch(owner.epoch), Arc::clone(link));
            if !matches!(attached, Attached::Void { .. }) {
                self.bequeath(&mut bequests, &mut inner.wills, (index, owner), granted, link);
            }
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
        if !bequests.is_empty() {
            self.wills_changed();
        }
        bequests
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

    /// Owned clients that may be on a page, no more than it has room for.
    pub(crate) fn owners_on(&self, page: &Page) -> Vec<(Bytes, Ownership<Arc<Link>>)> {
        let inner = lock(&self.inner);
        let on =
            inner.owners.iter().filter(|(client, own)| page.holds(client) && !own.link.closed.is_cancelled());
        let first = page.first(on.collect(), |(client, _)| client);
        first.into_iter().map(|(client, own)| (Bytes::copy_from_slice(client), own.clone())).collect()
    }

    /// A link is closed.
    pub fn link_closed(&self, link: &Link) {
        lock(&self.fan).leave_behind(link.shard, Instant::now());
        self.fan_wake.notify_one();
        let mut inner = lock(&self.inner);
        inner.opened.retain(|(own, _)| **own != *link);
        inner.owners.forget(|own| **own == *link);
    }

    /// Whether any link has the lane open, anybody reads, somebody is yet to be served, or has left a will.
    pub(crate) fn is_used(&self) -> bool {
        let followed = self.homes.any_filter(&self.key.tenant) || !lock(&self.fan).is_idle();
        let inner = lock(&self.inner);
        followed
            || !inner.opened.is_empty()
            || !inner.lane.is_empty()
            || !inner.wills.is_empty()
            || self.is_read()
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
        inner.own.clear();
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

    fn age(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn is_read(&self) -> bool {
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
    pub(crate) fn next(&mut self, screened: &mut Screened) -> Option<Flight<Arc<Link>>> {
        let Self { lane, owners, .. } = self;
        lane.next(
            |client, epoch| {
                owners.get(client).is_some_and(|own| own.epoch.revision().is_some() && own.epoch.0 > epoch)
            },
            screened,
        )
    }

    /// Whether the client has this owner now.
    pub(crate) fn is_owner(&self, client: &[u8], epoch: Epoch) -> bool {
        self.owners.get(client).is_some_and(|own| own.epoch == epoch)
    }

    pub(crate) fn backlog_full(&self, limit: u64) -> bool {
        self.held.is_some_and(|held| self.lane.totals.bytes.saturating_sub(held) > limit)
    }
}
