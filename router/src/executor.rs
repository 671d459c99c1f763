//! Wills at work: told by shards, kept in the store before a CONNACK, published by the lane between two appends; and those of
//! gateways that are gone, also where no home was left to see it.
//!
//! A gateway is gone when the registry does not name it and no link of it lives. A router that has just begun gives links
//! and registry some time first.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use penstock_common::{
    epoch::Epoch,
    name::{PARTITIONS_MAX, PartitionKey},
    rendezvous,
    store::{AppendError, ChangedWills, StoreError, WillChange, WillChanges},
};
use penstock_proto::{
    link::{EndWills, EndedWill, Owner, WillEnd, WillsEnded, control_down as down},
    record::Record,
};
use prost::Message;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    home::{Home, lock},
    homes::Homes,
    link::Link,
    pace::Backoff,
    wills::{Attaching, Batch, Cause, End, Wills},
};

/// Part of a tenant's backlog that is kept for wills, which nobody could send again: one in so many.
const RESERVE: u64 = 16;
/// How long the gateway of an older connection is heard before its will is taken for due.
const HEARING: Duration = Duration::from_secs(1);
/// Between two tries to look for wills without a home.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What attaching owners means for wills.
#[derive(Debug, Default)]
pub(crate) struct Bequests {
    /// To wait for before the owners are confirmed.
    ticket: Option<u64>,
    /// Owners whose will can't be kept, by index.
    refused: Vec<u32>,
    /// Owners of clients with an older connection, whose gateway may yet say how that ended.
    deferred: Vec<(u32, Attaching)>,
}

fn end(ended: &EndedWill) -> End {
    match ended.end() {
        WillEnd::Drop | WillEnd::Unspecified => End::Drop,
        WillEnd::Fire => End::Fire(Cause::Connection),
        WillEnd::TakenOver => End::Fire(Cause::Takeover),
    }
}

impl Bequests {
    /// Nothing has to be waited for.
    pub(crate) fn is_empty(&self) -> bool {
        self.ticket.is_none() && self.deferred.is_empty()
    }

    /// Owners that are to be refused, by index.
    pub(crate) fn refused(self) -> Vec<u32> {
        self.refused
    }

    fn attach(&mut self, wills: &mut Wills, index: u32, owner: Attaching) {
        match wills.attach(owner) {
            Ok(ticket) => self.ticket = self.ticket.max(ticket),
            Err(_) => self.refused.push(index),
        }
    }
}

impl Home {
    /// An owner was attached over a link, and is the present one.
    pub(crate) fn bequeath(
        &self,
        bequests: &mut Bequests,
        wills: &mut Wills,
        (index, owner): (usize, &Owner),
        granted: bool,
        link: &Link,
    ) {
        let owner = Attaching {
            client: owner.client.clone(),
            epoch: Epoch(owner.epoch),
            granted,
            will_epoch: Epoch(owner.will_epoch),
            will: owner.will.clone(),
            gateway: link.shard.gateway,
        };
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        // What the shard itself had to say came before on this link.
        let before = wills.predecessor(&owner);
        if before.is_some_and(|gateway| self.homes.links.any_other(gateway, link.shard)) {
            bequests.deferred.push((index, owner));
        } else {
            bequests.attach(wills, index, owner);
        }
    }

    /// Waits until nothing is to be done to wills any more before owners are confirmed; returns those that are to be
    /// refused, None when the home is lost. A gateway that is linked is heard before the will of its older connection is
    /// taken for due: it may know of a DISCONNECT.
    pub(crate) async fn bequests_are_done(&self, link: &Link, mut bequests: Bequests) -> Option<Vec<u32>> {
        let deadline = Instant::now() + HEARING;
        let mut told = self.wills_told.subscribe();
        while !self.lost().is_cancelled() {
            told.borrow_and_update();
            if !self.hear(link, &mut bequests, Instant::now() >= deadline) {
                break;
            }
            tokio::select! {
                _ = told.changed() => {}
                () = tokio::time::sleep_until(deadline) => {}
                () = self.lost().cancelled() => {}
            }
        }
        self.wills_are_done(bequests.ticket).await.then_some(bequests.refused)
    }

    /// Attaches what was deferred and need not be any more; returns whether some still is.
    fn hear(&self, link: &Link, bequests: &mut Bequests, late: bool) -> bool {
        let deferred = std::mem::take(&mut bequests.deferred);
        if deferred.is_empty() {
            return false;
        }
        let mut inner = lock(&self.inner);
        for (index, owner) in deferred {
            // Otherwise a newer one is, and this one is being closed.
            if !inner.is_owner(&owner.client, owner.epoch) {
                continue;
            }
            let before = inner.wills.predecessor(&owner);
            if !late && before.is_some_and(|gateway| self.homes.links.any_other(gateway, link.shard)) {
                bequests.deferred.push((index, owner));
            } else {
                bequests.attach(&mut inner.wills, index, owner);
            }
        }
        drop(inner);
        self.wills_changed();
        !bequests.deferred.is_empty()
    }

    /// Lets the lane look at what is to be done to wills, and those who wait for what is done.
    pub(crate) fn wills_changed(&self) {
        let done = lock(&self.inner).wills.done();
        self.wills_done.send_if_modified(|known| std::mem::replace(known, done) != done);
        self.wake.notify_one();
    }

    /// Waits until changes of wills are done; false: the home is lost, and the next one is told again.
    pub(crate) async fn wills_are_done(&self, ticket: Option<u64>) -> bool {
        if let Some(ticket) = ticket {
            let mut done = self.wills_done.subscribe();
            tokio::select! {
                () = self.lost().cancelled() => {}
                _ = done.wait_for(|done| *done >= ticket) => {}
            }
        }
        !self.lost().is_cancelled()
    }

    /// Connections with wills have ended. Returns what to wait for before that is confirmed.
    pub(crate) fn end_wills(&self, ends: &EndWills) -> Option<u64> {
        let ticket = {
            let mut inner = lock(&self.inner);
            let wills = &mut inner.wills;
            let each = ends.ended.iter().map(|it| wills.end(&it.client, Epoch(it.epoch), end(it)));
            each.max().flatten()
        };
        self.wills_told.send_modify(|told| *told += 1);
        self.wills_changed();
        ticket
    }

    /// Confirms that wills have ended, when it is done.
    pub(crate) async fn confirm_ends(
        self: Arc<Self>,
        link: Arc<Link>,
        done: WillsEnded,
        ticket: Option<u64>,
    ) {
        if self.wills_are_done(ticket).await {
            link.tell(down::Kind::WillsEnded(done));
        }
    }

    /// Publishes the wills of gateways that are gone.
    pub(crate) fn fire_lost(&self) {
        let fired = {
            let mut inner = lock(&self.inner);
            let (presence, grace) = (&self.homes.presence, self.homes.grace());
            let gone: BTreeSet<u64> =
                inner.wills.gateways().into_iter().filter(|it| presence.is_gone(*it, grace)).collect();
            if gone.is_empty() {
                return;
            }
            inner.wills.fire_of(|gateway| gone.contains(&gateway))
        };
        info!(tenant = %self.key.tenant, partition = self.key.partition, wills = fired, "publishing wills of gateways that are gone");
        self.wills_changed();
    }

    /// Does what is next to be done to wills: the lane's, between two appends. False: nothing was.
    pub(crate) async fn execute(&self) -> bool {
        let Some(mut batch) = lock(&self.inner).wills.next_batch() else { return false };
        self.refuse_beyond_reserve(&mut batch);
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        while !self.lost().is_cancelled() {
            let now = self.homes.seams.now_ms();
            let received = Record { received_at: now, ..Record::default() };
            let changes = WillChanges {
                changes: batch.changes.clone(),
                before: self.totals(),
                received_at: now,
                suffix: received.encode_to_vec().into(),
            };
            match self.homes.store.change_wills(&self.key, self.term(), &changes).await {
                Ok(changed) => {
                    self.executed(&batch, &changed);
                    break;
                }
                Err(AppendError::Fenced) => self.lose("another router has taken the partition"),
                Err(AppendError::Refused(reason)) => {
                    warn!(tenant = %self.key.tenant, partition = self.key.partition, reason, "the store refuses");
                    backoff.pause(&self.homes.seams).await;
                }
                Err(AppendError::Retake) => self.take_again().await,
                Err(AppendError::Lost(reason)) => {
                    warn!(tenant = %self.key.tenant, partition = self.key.partition, reason, "a change of wills is in doubt");
                    self.take_again().await;
                }
            }
        }
        true
    }

    /// A backlog that is full, and its reserve too: what would be published is dropped and counted.
    fn refuse_beyond_reserve(&self, batch: &mut Batch) {
        let limit = self.homes.backlog_limit(&self.key);
        let full = lock(&self.inner).backlog_full(limit.saturating_add(limit / RESERVE));
        for change in batch.changes.iter_mut().filter(|_| full) {
            if let WillChange::Fire { client, epoch } = change {
                self.homes.metrics.wills_refused.inc();
                *change = WillChange::Drop { client: std::mem::take(client), epoch: *epoch };
            }
        }
    }

    fn executed(&self, batch: &Batch, changed: &ChangedWills) {
        for (cause, _) in batch.causes.iter().zip(&changed.fired).filter(|(_, fired)| **fired) {
            self.homes.metrics.will_fired(*cause);
        }
        if let Some((id, totals)) = changed.entry {
            // Readers get it from the store.
            lock(&self.tail).reset(id);
            let mut inner = lock(&self.inner);
            let before = std::mem::replace(&mut inner.lane.totals, totals);
            inner.appended_since_trim += 1;
            drop(inner);
            self.homes.metrics.appended_beside(totals.records - before.records, totals.bytes - before.bytes);
            self.is_last(id);
        }
        lock(&self.inner).wills.finished();
        self.wills_changed();
    }
}

/// Publishes what gateways that are gone left behind, until the router stops.
pub async fn follow(homes: Arc<Homes>, stop: CancellationToken) {
    let (grace, mut looked) = (homes.grace(), None);
    loop {
        let settled = homes.presence.has_followed(grace);
        let routers: Vec<u64> = homes.presence.members().routers.keys().copied().collect();
        if looked.as_ref() != Some(&routers) {
            looked = homes.adopt_orphans(&routers).await.is_ok().then_some(routers);
        }
        homes.all(None).iter().for_each(|home| home.fire_lost());
        let again = looked.is_none() || !settled;
        tokio::select! {
            () = homes.presence.news.notified() => {}
            () = tokio::time::sleep(LOOK_AGAIN.min(grace)), if again => {}
            () = stop.cancelled() => return,
        }
    }
}

impl Homes {
    fn grace(&self) -> Duration {
        Duration::from_millis(self.config.grace_ms.into())
    }

    /// Opens partitions that hold wills and have no living home: their routers died with the gateways, or first. Each router
    /// looks after those that it is the home of by the hash.
    async fn adopt_orphans(self: &Arc<Self>, routers: &[u64]) -> Result<(), StoreError> {
        let tenants = self.registry.definitions().borrow().clone();
        for (tenant, defined) in &tenants.tenants {
            for partition in 0..defined.tenant.partitions.min(PARTITIONS_MAX) {
                let key = PartitionKey { tenant: tenant.clone(), partition };
                let mine = rendezvous::home(&key, routers.iter().copied()) == Some(self.incarnation);
                if !mine || self.get(&key).is_some() || !self.store.any_wills(&key).await? {
                    continue;
                }
                let holder = self.store.holder(&key).await?.map(|(_, holder)| holder);
                if holder.is_none_or(|holder| holder == self.incarnation || !routers.contains(&holder)) {
                    self.open(&key).await?;
                }
            }
        }
        Ok(())
    }
}
