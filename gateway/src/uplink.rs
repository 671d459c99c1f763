//! The way in, from sessions to links: publishes become records of their partition's batch, batches leave when their lane
//! has credit, settles come back as PUBACKs. Here is also which router a lane is opened at, and when it moves.
//!
//! What it does not do: it stores nothing, and it never decides that a record is lost; that is the home's to say.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bytes::Bytes;
use penstock_common::{
    epoch::Epoch,
    name::{ClientKey, PartitionKey, TenantName},
    rendezvous,
};
use penstock_mqtt::{
    packet::{Publish, QoS},
    session::{CloseReason, PublishToken, Settled},
};
use penstock_proto::link::{self, SettleResult, control_up, data_up};

use self::{
    lane::{Lane, Route},
    record::NewRecord,
};
use crate::{connection::table::ConnectionKey, link::table::LinkKey, shard::Shard};

pub(crate) mod batch;
pub(crate) mod lane;
pub(crate) mod record;

/// Owners in one message: a fraction of the 4 MiB that gRPC takes.
const OWNERS: usize = 8_192;
const BACKOFF: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The lanes of a shard. They stay for the shard's life, because they hold the producer's numbers: one for each partition
/// that ever had a client here.
#[derive(Default)]
pub(crate) struct Lanes {
    lanes: Vec<Lane>,
    by_key: HashMap<PartitionKey, usize>,
    by_opening: HashMap<(LinkKey, u32), usize>,
    openings: u32,
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

    /// Drops every record and route; returns how many records were dropped. Numbers begin anew.
    pub(crate) fn reset(&mut self) -> usize {
        self.by_opening.clear();
        self.lanes.iter_mut().map(Lane::reset).sum()
    }
}

impl Shard {
    /// Adds a publish of a connection to its partition's batch.
    pub(crate) fn publish(
        &mut self,
        key: ConnectionKey,
        publish: &Publish,
        token: Option<PublishToken>,
        will: bool,
    ) {
        let Some(identity) = self.connections.identity(key) else { return };
        let Some(lane) = self.lanes.get_mut(identity.lane) else { return };
        let index = identity.lane;
        if publish.qos == QoS::AtMostOnce && lane.is_full() {
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
            last_will: will,
        };
        lane.push(&record, key, token, self.micros);
        self.lanes.mark(index);
        self.want_end();
    }

    /// Whether publishes of this connection have to wait; remembers it until they don't.
    pub(crate) fn holds(&mut self, key: ConnectionKey) -> bool {
        let Some(index) = self.connections.identity(key).map(|identity| identity.lane) else { return false };
        let Some(lane) = self.lanes.get_mut(index).filter(|lane| lane.is_full()) else { return false };
        if !lane.held.contains(&key) {
            lane.held.push(key);
        }
        true
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
        if let Some(link) = lane.place().and_then(|(link, _)| self.links.get(link)) {
            while let Some(append) = lane.next_append() {
                link.data(data_up::Kind::Append(append));
            }
        }
        if !lane.is_full() {
            for key in std::mem::take(&mut lane.held) {
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.session.hold_publishes(false, self.now);
                    connection.wake();
                }
            }
        }
    }

    /// Tells the home of ownerships gained and lost since the last turn.
    fn tell_owners(&mut self, index: usize) {
        let Some(lane) = self.lanes.lanes.get_mut(index) else { return };
        let Route::Open { link: place, number, .. } = lane.route else { return };
        let (attach, detach) = (std::mem::take(&mut lane.attach), std::mem::take(&mut lane.detach));
        let Some(link) = self.links.get_mut(place) else { return };
        for keys in attach.chunks(OWNERS) {
            let named = keys.iter().filter_map(|key| self.connections.identity(*key).map(|it| (*key, it)));
            let (keys, owners): (Vec<_>, Vec<_>) = named
                .map(|(key, it)| (key, link::Owner { client: it.client.clone(), epoch: it.attached.0 }))
                .unzip();
            let seq = link.number();
            link.attaches.insert(seq, keys);
            link.control(control_up::Kind::Attach(link::Attach { seq, lane: number, owners }));
        }
        for owners in detach.chunks(OWNERS) {
            link.control(control_up::Kind::Detach(link::Detach { lane: number, owners: owners.to_vec() }));
        }
    }

    /// Brings a lane to where it belongs: opens it, or moves it once nothing of it is under way.
    pub(crate) fn steer(&mut self, index: usize) {
        let Some(lane) = self.lanes.lanes.get_mut(index) else { return };
        let home = self.links.home(&lane.key);
        let (wanted, may_move) = (lane.is_wanted(), lane.may_move());
        match &mut lane.route {
            Route::Closed if wanted => self.open_lane(index, home),
            Route::Waiting { until } if *until <= self.now => self.open_lane(index, home),
            Route::Closed | Route::Waiting { .. } => {}
            Route::Opening { link, .. } if Some(*link) != home => {
                self.leave_home(index);
                self.open_lane(index, home);
            }
            Route::Opening { .. } => {}
            Route::Open { link, moving, .. } => {
                *moving = home.is_some_and(|home| home != *link);
                if *moving && may_move {
                    self.leave_home(index);
                    self.open_lane(index, home);
                }
            }
        }
    }

    /// Steers every lane: the routers have changed.
    pub(crate) fn steer_all(&mut self) {
        for index in 0..self.lanes.lanes.len() {
            self.steer(index);
            self.lanes.mark(index);
        }
        self.lanes.sync = true;
        self.want_end();
    }

    fn leave_home(&mut self, index: usize) {
        let Some(lane) = self.lanes.lanes.get_mut(index) else { return };
        if let Some((key, number)) = lane.place() {
            self.lanes.by_opening.remove(&(key, number));
            if let Some(link) = self.links.get(key) {
                link.control(control_up::Kind::CloseLane(link::CloseLane { lane: number }));
            }
        }
        lane.lose(Route::Closed);
    }

    fn open_lane(&mut self, index: usize, home: Option<LinkKey>) {
        self.lanes.sync = true;
        let Some(lane) = self.lanes.lanes.get_mut(index) else { return };
        let Some((key, link)) = home.and_then(|key| self.links.get(key).map(|link| (key, link))) else {
            lane.route = Route::Closed;
            return;
        };
        self.lanes.openings = self.lanes.openings.wrapping_add(1);
        let number = self.lanes.openings;
        let renewed: HashSet<_> = lane.renewals.drain(..).map(|(_, key)| key).collect();
        let (mut keys, mut owners) = (Vec::new(), Vec::new());
        lane.attach.clear();
        for owner in &lane.owners {
            let Some(identity) = self.connections.identity_mut(*owner) else { continue };
            if renewed.contains(owner) && lane.is_settled() {
                identity.attached = identity.epoch;
            } else if renewed.contains(owner) {
                // Re-sent records carry the older epoch: it stays until they are settled.
                lane.renewals.push((lane.next_number(), *owner));
            }
            if owners.len() < OWNERS {
                owners.push(link::Owner { client: identity.client.clone(), epoch: identity.attached.0 });
                keys.push(*owner);
            } else {
                lane.attach.push(*owner);
            }
        }
        let open = link::OpenLane {
            lane: number,
            tenant: lane.key.tenant.as_str().to_owned(),
            partition: lane.key.partition,
            owners,
        };
        link.control(control_up::Kind::OpenLane(open));
        lane.route = Route::Opening { link: key, number, owners: keys };
        lane.detach.clear();
        self.lanes.by_opening.insert((key, number), index);
    }

    /// The home has answered.
    pub(crate) fn lane_opened(&mut self, link: LinkKey, opened: &link::LaneOpened) {
        let Some(index) = self.lanes.find(link, opened.lane) else { return };
        let Some(lane) = self.lanes.lanes.get_mut(index) else { return };
        let Route::Opening { owners, .. } = &mut lane.route else { return };
        let owners = std::mem::take(owners);
        lane.opened(link, opened.lane, opened.credit);
        let waiting = std::mem::take(&mut lane.attach);
        // Ownerships gained between OpenLane and its answer.
        lane.attach = waiting.into_iter().filter(|key| lane.owners.contains(key)).collect();
        for key in owners {
            self.attached(key);
        }
        self.lanes.mark(index);
        self.provision(index);
        self.want_end();
    }

    /// The home is none any more, or can't be reached: what is unsettled is sent to the present one.
    pub(crate) fn lane_lost(&mut self, index: usize, reason: &str) {
        let until = self.now + self.backoff(self.lanes.get(index).map_or(0, |lane| lane.failures));
        let Some(lane) = self.lanes.lanes.get_mut(index) else { return };
        tracing::debug!(lane = %lane.key, reason, "a lane is lost");
        if let Some(place) = lane.place() {
            self.lanes.by_opening.remove(&place);
        }
        lane.failures += 1;
        lane.lose(Route::Waiting { until });
        let (me, wait) = (self.me(), Duration::from_millis(until - self.now));
        tokio::task::spawn_local(async move {
            tokio::time::sleep(wait).await;
            if let Some(shard) = me.upgrade() {
                let mut shard = shard.borrow_mut();
                shard.turn();
                shard.lanes.mark(index);
                shard.want_end();
            }
        });
    }

    /// Half to whole of a time that doubles with each failure, milliseconds.
    pub(crate) fn backoff(&self, failures: u32) -> u64 {
        let full = BACKOFF.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX).as_millis() as u64;
        full / 2 + self.shared.seams.number() % (full / 2 + 1)
    }

    /// A link is gone: its lanes are lost.
    pub(crate) fn lanes_lost(&mut self, link: LinkKey) {
        let lost = |lane: &Lane| lane.place().is_some_and(|(place, _)| place == link);
        let indexes: Vec<_> =
            self.lanes.iter().enumerate().filter(|(_, lane)| lost(lane)).map(|(index, _)| index).collect();
        for index in indexes {
            self.lane_lost(index, "the link is gone");
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

    /// An ownership has a new epoch: records carry it from now on, and the home is told when all older ones are settled.
    pub(crate) fn renew(&mut self, client: &ClientKey, old: Epoch, new: Epoch) {
        let found = self.connections.of_client(&client.tenant, &client.client);
        let Some((key, _)) = found.into_iter().find(|(_, epoch)| *epoch == old) else {
            self.shared.registry.release(client.clone(), new);
            return;
        };
        let Some(identity) = self.connections.identity_mut(key) else { return };
        identity.epoch = new;
        let index = identity.lane;
        if let Some(lane) = self.lanes.get_mut(index) {
            lane.renewals.push((lane.next_number(), key));
        }
        self.tell_renewals(index);
    }

    fn tell_renewals(&mut self, index: usize) {
        let Some(lane) = self.lanes.lanes.get_mut(index) else { return };
        if lane.renewals.is_empty() {
            return;
        }
        let settled = lane.settled_below();
        let (due, later) = lane.renewals.drain(..).partition(|(number, _)| *number <= settled);
        lane.renewals = later;
        let due: Vec<(u64, ConnectionKey)> = due;
        for (_, key) in due {
            if let Some(identity) = self.connections.identity_mut(key) {
                identity.attached = identity.epoch;
                lane.attach.push(key);
            }
        }
        self.lanes.mark(index);
        self.want_end();
    }

    /// Makes the home of a connection's partition know it; `attached` follows.
    pub(crate) fn attach(&mut self, key: ConnectionKey, index: usize) {
        if let Some(lane) = self.lanes.get_mut(index) {
            lane.owners.insert(key);
            lane.attach.push(key);
        }
        self.lanes.mark(index);
        self.want_end();
    }

    /// The connection is gone.
    pub(crate) fn detach(&mut self, key: ConnectionKey, index: usize, client: &Bytes, epoch: Epoch) {
        let Some(lane) = self.lanes.get_mut(index) else { return };
        lane.held.retain(|held| *held != key);
        lane.renewals.retain(|(_, renewed)| *renewed != key);
        if lane.owners.remove(&key) {
            lane.attach.retain(|waiting| *waiting != key);
            lane.detach.push(link::Owner { client: client.clone(), epoch: epoch.0 });
            self.lanes.mark(index);
            self.want_end();
        }
    }

    fn tell_synced(&mut self) {
        let mut behind = HashSet::new();
        for lane in self.lanes.iter().filter(|lane| lane.is_wanted()) {
            let home = self.links.home(&lane.key);
            if home != lane.place().map(|(link, _)| link) {
                behind.extend(home);
            }
        }
        let view = rendezvous::view(self.members.routers.keys().copied());
        for key in self.links.keys() {
            let Some(link) = self.links.get_mut(key) else { continue };
            if behind.contains(&key) {
                link.synced = None;
            } else if link.synced != Some(view) {
                link.synced = Some(view);
                link.control(control_up::Kind::Synced(link::Synced { view }));
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
