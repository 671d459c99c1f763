//! At which router a lane is open: opened at the partition's home, moved when there is a better one and nothing is under
//! way, opened again when it was lost and is still wanted. Which home is right is not decided here; the term decides.

use std::{collections::HashSet, time::Duration};

use penstock_common::name::{PARTITIONS_MAX, PartitionKey, TenantName};
use penstock_proto::link::{self, control_up};

use super::{
    lane::{Lane, Route},
    owners::OWNERS,
    wills::testament,
};
use crate::{link::table::LinkKey, shard::Shard};

const BACKOFF: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A lane that was open this long has not failed in a row.
const STABLE_MS: u64 = 5_000;

impl Shard {
    /// Brings a lane to where it belongs: opens it, or moves it once nothing of it is under way.
    pub(crate) fn steer(&mut self, index: usize) {
        let Some(lane) = self.lanes.lanes.get_mut(index) else { return };
        let home = lane.home.of(&lane.key, &self.links);
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

    /// Sessions here have begun, or ended, to want what the tenant's partitions hold. All of them need a home meanwhile,
    /// also those without a publisher here: when a home dies between PUBACK and delivery, only the next one resumes the
    /// fan-out, and the publisher's shard may have died with it.
    pub(crate) fn watch(&mut self, tenant: &TenantName, watched: bool) {
        let defined = self.definitions.tenants.get(tenant).map_or(0, |it| it.tenant.partitions);
        let partitions = if watched { defined.min(PARTITIONS_MAX) } else { PARTITIONS_MAX };
        for partition in 0..partitions {
            let key = PartitionKey { tenant: tenant.clone(), partition };
            let index =
                if watched { Some(self.lanes.of(&key)) } else { self.lanes.by_key.get(&key).copied() };
            let Some(index) = index else { continue };
            if let Some(lane) = self.lanes.lanes.get_mut(index) {
                lane.watched = watched;
            }
            self.lanes.mark(index);
        }
        self.want_end();
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

    pub(super) fn leave_home(&mut self, index: usize) {
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
        let home = home.filter(|_| lane.is_wanted());
        let Some((key, link)) = home.and_then(|key| self.links.get(key).map(|link| (key, link))) else {
            lane.route = Route::Closed;
            return;
        };
        self.lanes.openings = self.lanes.openings.wrapping_add(1);
        let number = self.lanes.openings;
        let renewed: HashSet<_> = lane.renewals.drain(..).map(|(_, key)| key).collect();
        let (mut keys, mut owners) = (Vec::new(), Vec::new());
        lane.attach.clear();
        let ending = lane.endings.clients();
        for owner in &lane.owners {
            let Some(identity) = self.connections.identity_mut(*owner) else { continue };
            if renewed.contains(owner) && lane.is_settled() {
                identity.attached = identity.epoch;
            } else if renewed.contains(owner) {
                // Re-sent records carry the older epoch: it stays until they are settled.
                lane.renewals.push((lane.next_number(), *owner));
            }
            // Where an older will of the client is ending, the home has to be told that first.
            if owners.len() < OWNERS && !ending.contains(&identity.client) {
                let (client, epoch, clean) = (identity.client.clone(), identity.attached.0, identity.clean);
                let will_epoch = identity.will.0;
                let connection = self.connections.get(*owner);
                let wipe = clean && connection.is_some_and(|it| !it.admitted);
                owners.push(link::Owner { client, epoch, wipe, will_epoch, ..link::Owner::default() });
                // With a will that is not kept it is confirmed by an Attach of its own, which brings the will.
                let untold = connection.and_then(testament).is_some();
                let to = if untold { &mut lane.attach } else { &mut keys };
                to.push(*owner);
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
        lane.opened_at = self.now;
        let waiting = std::mem::take(&mut lane.attach);
        // Ownerships gained between OpenLane and its answer.
        lane.attach = waiting.into_iter().filter(|key| lane.owners.contains(key)).collect();
        for key in owners {
            self.attached(key);
        }
        self.tell_owners(index);
        self.ask_again(index);
        self.lanes.mark(index);
        self.provision(index);
        self.want_end();
    }

    /// The home is none any more, or can't be reached: what is unsettled is sent to the present one.
    pub(crate) fn lane_lost(&mut self, index: usize, reason: &str) {
        if let Some(lane) = self.lanes.get_mut(index)
            && lane.is_open()
            && self.now > lane.opened_at + STABLE_MS
        {
            lane.failures = 0;
        }
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

    /// Drops what lanes of tenants that are no more hold: their connections are closed, and no home will open them. The
    /// numbers go on, because a tenant of the same name may come again and find this producer in its log.
    pub(crate) fn abandon_lanes(&mut self) {
        let gone = |lane: &Lane| !self.definitions.tenants.contains_key(&lane.key.tenant);
        let indexes: Vec<_> =
            self.lanes.iter().enumerate().filter(|(_, lane)| gone(lane)).map(|(index, _)| index).collect();
        for index in indexes {
            self.leave_home(index);
            let Some(lane) = self.lanes.lanes.get_mut(index) else { continue };
            let before = lane.waiting_bytes();
            let dropped = lane.abandon();
            self.shared.metrics.refused.tenant.inc_by(dropped as u64);
            self.make_room(index, before);
        }
        self.lanes.sync = true;
        self.want_end();
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
}
