//! What the homes know of this shard's clients: who is attached under which epoch, who has gone, and when all is told.

use std::collections::HashSet;

use bytes::Bytes;
use penstock_common::{epoch::Epoch, name::ClientKey, rendezvous};
use penstock_proto::link::{self, control_up};

use super::lane::Route;
use crate::{connection::table::ConnectionKey, shard::Shard};

/// Owners in one message: a fraction of the 4 MiB that gRPC takes.
pub(super) const OWNERS: usize = 8_192;

impl Shard {
    /// Tells the home of ownerships gained and lost since the last turn.
    pub(super) fn tell_owners(&mut self, index: usize) {
        let Some(lane) = self.lanes.lanes.get_mut(index) else { return };
        let Route::Open { link: place, number, .. } = lane.route else { return };
        let (attach, detach) = (std::mem::take(&mut lane.attach), std::mem::take(&mut lane.detach));
        let Some(link) = self.links.get_mut(place) else { return };
        for keys in attach.chunks(OWNERS) {
            let owner = |key: &ConnectionKey| {
                let connection = self.connections.get(*key)?;
                let it = connection.identity.as_deref()?;
                let wipe = it.clean && !connection.admitted;
                Some((*key, link::Owner { client: it.client.clone(), epoch: it.attached.0, wipe }))
            };
            let (keys, owners): (Vec<_>, Vec<_>) = keys.iter().filter_map(owner).unzip();
            let seq = link.number();
            link.attaches.insert(seq, keys);
            link.control(control_up::Kind::Attach(link::Attach { seq, lane: number, owners }));
        }
        let mut ended: Vec<link::Ended> = std::mem::take(&mut lane.ended).into();
        for owners in detach.chunks(OWNERS) {
            let detach =
                link::Detach { lane: number, owners: owners.to_vec(), ended: std::mem::take(&mut ended) };
            link.control(control_up::Kind::Detach(detach));
        }
        if !ended.is_empty() {
            let detach = link::Detach { lane: number, owners: Vec::new(), ended };
            link.control(control_up::Kind::Detach(detach));
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

    pub(super) fn tell_renewals(&mut self, index: usize) {
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
        let bytes = self.connections.identity(key).map(|identity| identity.client.len());
        if let (Some(lane), Some(bytes)) = (self.lanes.get_mut(index), bytes) {
            if lane.owners.insert(key) {
                self.links.told.add(bytes);
            }
            lane.attach.push(key);
        }
        self.lanes.mark(index);
        self.want_end();
    }

    /// The connection is gone.
    pub(crate) fn detach(&mut self, key: ConnectionKey, index: usize, client: &Bytes, epoch: Epoch) {
        let Some(lane) = self.lanes.get_mut(index) else { return };
        lane.renewals.retain(|(_, renewed)| *renewed != key);
        if lane.owners.remove(&key) {
            self.links.told.remove(client.len());
            lane.attach.retain(|waiting| *waiting != key);
            lane.detach.push(link::Owner { client: client.clone(), epoch: epoch.0, wipe: false });
            self.lanes.mark(index);
            self.want_end();
        }
    }

    pub(super) fn tell_synced(&mut self) {
        let mut behind = HashSet::new();
        for lane in self.lanes.lanes.iter_mut().filter(|lane| lane.is_wanted()) {
            let home = lane.home.of(&lane.key, &self.links);
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
}
