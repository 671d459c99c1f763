//! The way in, from sessions to links: publishes become records of their partition's batch, batches leave when their lane
//! has credit, settles come back as PUBACKs. Which router that goes to is in [`homes`], who is attached there in [`owners`],
//! what becomes of wills in [`wills`].
//!
//! What it does not do: it stores nothing, and it never decides that a record is lost; that is the home's to say.

use std::collections::{HashMap, HashSet};

use penstock_common::name::{PartitionKey, TenantName};
use penstock_mqtt::{
    packet::{Publish, QoS},
    session::{CloseReason, PublishToken, Settled},
};
use penstock_proto::link::{self, SettleResult, data_up};

use self::{lane::Lane, record::NewRecord};
use crate::{connection::table::ConnectionKey, link::table::LinkKey, shard::Shard};

pub(crate) mod batch;
mod homes;
pub(crate) mod lane;
mod owners;
pub(crate) mod record;
pub(crate) mod wills;

/// The lanes of a shard. They stay for the shard's life, because they hold the producer's numbers: one for each partition
/// that ever had a client here, and all partitions of tenants that ever had a subscription here.
#[derive(Default)]
pub(crate) struct Lanes {
    lanes: Vec<Lane>,
    by_key: HashMap<PartitionKey, usize>,
    by_opening: HashMap<(LinkKey, u32), usize>,
    openings: u32,
    /// Bytes of all lanes' records that were not sent yet.
    waiting_bytes: usize,
    /// Publishers of every lane wait.
    full: bool,
    /// Lanes with something for the end of the turn.
    pub(crate) dirty: Vec<usize>,
    /// Routers may have to be told that all is told.
    sync: bool,
    /// Part of the credit metric that is this shard's.
    credit_shown: i64,
}

impl Lanes {
    pub(crate) fn get(&self, index: usize) -> Option<&Lane> {
        self.lanes.get(index)
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut Lane> {
        self.lanes.get_mut(index)
    }

    /// The lane of a partition.
    pub(crate) fn of(&mut self, key: &PartitionKey) -> usize {
        if let Some(index) = self.by_key.get(key) {
            return *index;
        }
        let index = self.lanes.len();
        self.lanes.push(Lane::new(key.clone()));
        self.by_key.insert(key.clone(), index);
        index
    }

    pub(crate) fn mark(&mut self, index: usize) {
        if let Some(lane) = self.lanes.get_mut(index)
            && !lane.dirty
        {
            lane.dirty = true;
            self.dirty.push(index);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.iter()
    }

    pub(crate) fn find(&self, link: LinkKey, number: u32) -> Option<usize> {
        self.by_opening.get(&(link, number)).copied()
    }

    /// What a lane holds has changed from `before` bytes; true: there is room again where there was none.
    fn account(&mut self, index: usize, before: usize, limit: usize) -> bool {
        let now = self.lanes.get(index).map_or(0, Lane::waiting_bytes);
        self.waiting_bytes = (self.waiting_bytes + now).saturating_sub(before);
        let was = std::mem::replace(&mut self.full, self.waiting_bytes >= limit);
        was && !self.full
    }

    /// Drops every record and route; returns how many records were dropped. Numbers begin anew.
    pub(crate) fn reset(&mut self) -> usize {
        self.by_opening.clear();
        (self.waiting_bytes, self.full) = (0, false);
        self.lanes.iter_mut().map(Lane::reset).sum()
    }
}

impl Shard {
    /// Adds a publish of a connection to its partition's batch.
    pub(crate) fn publish(&mut self, key: ConnectionKey, publish: &Publish, token: Option<PublishToken>) {
        let Some(identity) = self.connections.identity(key) else { return };
        let (index, full) = (identity.lane, self.lanes.full);
        let Some(lane) = self.lanes.get_mut(index) else { return };
        let before = lane.waiting_bytes();
        if publish.qos == QoS::AtMostOnce && (lane.is_full() || full) {
            self.shared.metrics.dropped_backpressure.inc();
            return;
        }
        let record = NewRecord {
            client: &identity.client,
            epoch: identity.epoch.0,
            topic: &publish.topic,
            payload: &publish.payload,
            qos: publish.qos.number(),
            user: &identity.user,
            received_at: self.wall,
            last_will: false,
        };
        lane.push(&record, key, token, self.micros);
        self.lanes.account(index, before, self.shared.config.limits.waiting_bytes);
        self.lanes.mark(index);
        self.want_end();
    }

    /// Whether publishes of this connection have to wait; remembers it until they don't.
    pub(crate) fn holds(&mut self, key: ConnectionKey) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        let Some(index) = connection.identity.as_ref().map(|identity| identity.lane) else { return false };
        let full = self.lanes.full;
        let Some(lane) = self.lanes.get_mut(index).filter(|lane| full || lane.is_full()) else {
            return false;
        };
        if !connection.held {
            connection.held = true;
            lane.held.push(key);
        }
        true
    }

    /// Whether a publish that this connection sends now would have to wait.
    pub(crate) fn has_no_room(&self, key: ConnectionKey) -> bool {
        let lane = self.connections.identity(key).and_then(|identity| self.lanes.get(identity.lane));
        self.lanes.full || lane.is_some_and(Lane::is_full)
    }

    /// Sends what lanes may send.
    pub(crate) fn flush_lanes(&mut self) {
        for index in std::mem::take(&mut self.lanes.dirty) {
            if let Some(lane) = self.lanes.get_mut(index) {
                lane.dirty = false;
            }
            self.steer(index);
            self.flush_lane(index);
        }
        if std::mem::take(&mut self.lanes.sync) {
            self.tell_synced();
        }
    }

    fn flush_lane(&mut self, index: usize) {
        self.tell_owners(index);
        let Some(lane) = self.lanes.lanes.get_mut(index) else { return };
        let before = lane.waiting_bytes();
        if let Some(link) = lane.place().and_then(|(link, _)| self.links.get(link)) {
            while let Some(append) = lane.next_append() {
                link.data(data_up::Kind::Append(append));
            }
        }
        self.make_room(index, before);
        self.resume(index);
    }

    /// A lane holds less than `before` bytes: publishers that waited because of the whole shard may go on.
    fn make_room(&mut self, index: usize, before: usize) {
        if self.lanes.account(index, before, self.shared.config.limits.waiting_bytes) {
            let held = |(index, lane): (usize, &Lane)| (!lane.held.is_empty()).then_some(index);
            let waiting: Vec<usize> = self.lanes.iter().enumerate().filter_map(held).collect();
            waiting.into_iter().for_each(|index| self.lanes.mark(index));
        }
    }

    /// Lets publishers go on when there is room.
    fn resume(&mut self, index: usize) {
        let full = self.lanes.full;
        let Some(lane) = self.lanes.get_mut(index).filter(|lane| !full && !lane.is_full()) else { return };
        for key in std::mem::take(&mut lane.held) {
            if let Some(connection) = self.connections.get_mut(key) {
                connection.held = false;
                connection.session.hold_publishes(false, self.now);
                connection.wake();
            }
        }
    }

    /// The store's answers, as PUBACKs to be.
    pub(crate) fn settle(&mut self, link: LinkKey, settle: &link::Settle) {
        let Some(index) = self.lanes.find(link, settle.lane) else { return };
        let Self { lanes, connections, shared, dirty, micros, .. } = self;
        let Some(lane) = lanes.lanes.get_mut(index) else { return };
        let outcome = outcome(settle.result(), settle.count, &shared.metrics);
        let result = lane.settle(settle, |receipt, since| {
            let Some(token) = receipt.token else { return };
            shared.metrics.puback_seconds.observe((*micros - since.min(*micros)) as f64 / 1e6);
            if let Some(connection) = connections.get_mut(receipt.connection) {
                connection.session.settle(token, outcome);
                if !connection.dirty {
                    connection.dirty = true;
                    dirty.push(receipt.connection);
                }
            }
        });
        lanes.mark(index);
        self.want_end();
        match result {
            Ok(()) => self.tell_renewals(index),
            Err(error) => {
                tracing::warn!(%error, "a router settles out of order");
                self.leave_home(index);
                self.lane_lost(index, "settled out of order");
            }
        }
    }

    /// Closes connections whose publishes wait for the store too long, spread over a quarter of the time.
    pub(crate) fn close_overdue(&mut self) {
        let limit = self.shared.config.timeouts.store_ms * 1_000;
        let mut late: HashSet<ConnectionKey> = HashSet::new();
        for lane in self.lanes.iter() {
            let Some(age) = lane.oldest().map(|since| self.micros.saturating_sub(since)) else { continue };
            if age < limit {
                continue;
            }
            let spread = |key: ConnectionKey| u64::from(key.life.wrapping_mul(0x9e37_79b9)) % (limit / 4 + 1);
            let overdue = lane.overdue(self.micros.saturating_sub(limit)).filter(|it| it.token.is_some());
            late.extend(overdue.map(|it| it.connection).filter(|key| age >= limit + spread(*key)));
        }
        for key in late {
            self.close(key, CloseReason::StoreTimeout);
        }
    }

    /// Shows this shard's part of the credit.
    pub(crate) fn show_credit(&mut self) {
        let credit: u64 = self.lanes.iter().map(Lane::credit).sum();
        let credit = i64::try_from(credit).unwrap_or(i64::MAX);
        self.shared.metrics.link_credit.inc_by(credit - self.lanes.credit_shown);
        self.lanes.credit_shown = credit;
    }

    /// The partition of a client, if the tenant is defined.
    pub(crate) fn partition(&self, tenant: &TenantName, client: &[u8]) -> Option<PartitionKey> {
        let partitions = self.definitions.tenants.get(tenant)?.tenant.partitions;
        let partition = penstock_common::name::partition_of(client, partitions);
        Some(PartitionKey { tenant: tenant.clone(), partition })
    }
}

/// What a Settle means for a session.
fn outcome(result: SettleResult, count: u32, metrics: &crate::metrics::Metrics) -> Settled {
    let count = u64::from(count);
    match result {
        SettleResult::Stored => Settled::Stored,
        SettleResult::BacklogFull => {
            metrics.refused.backlog.inc_by(count);
            Settled::Refused(CloseReason::PublishQuota)
        }
        SettleResult::Stale => {
            metrics.refused.stale.inc_by(count);
            metrics.stale_epochs.inc_by(count);
            Settled::Refused(CloseReason::Superseded)
        }
        SettleResult::NoTenant => {
            metrics.refused.tenant.inc_by(count);
            Settled::Refused(CloseReason::Administrative)
        }
        SettleResult::Unspecified => Settled::Refused(CloseReason::StoreUnavailable),
    }
}
