//! What the homes know of this shard's clients: who is attached under which epoch, who has gone, and when all is told.

use std::collections::HashSet;

use penstock_common::{epoch::Epoch, name::ClientKey, rendezvous};
use penstock_proto::link::{self, control_up};

use super::{
    lane::Route,
    wills::{testament, will_bytes},
};
use crate::{
    connection::table::{ConnectionKey, Identity},
    link::table::LinkKey,
    shard::Shard,
};

/// Owners in one message, and bytes of their wills: a fraction of the 4 MiB that gRPC takes.
pub(super) const OWNERS: usize = 8_192;
const WILL_BYTES: usize = 1 << 20;
/// Bytes of a will's record beside its names, topic and payload.
const RECORD: usize = 48;

impl Shard {
    /// Tells the home of ownerships gained and lost since the last turn.
    pub(super) fn tell_owners(&mut self, index: usize) {
        let Some(lane) = self.lanes.lanes.get_mut(index) else { return };
        let Route::Open { link: place, number, .. } = lane.route else { return };
        let (attach, detach) = (std::mem::take(&mut lane.attach), std::mem::take(&mut lane.detach));
        let mut ended: Vec<link::Ended> = std::mem::take(&mut lane.ended).into();
        let Some(link) = self.links.get(place) else { return };
        // What has ended first: a newer connection of the same client may be among those that are attached.
        for owners in detach.chunks(OWNERS) {
            let detach =
                link::Detach { lane: number, owners: owners.to_vec(), ended: std::mem::take(&mut ended) };
            link.control(control_up::Kind::Detach(detach));
        }
        if !ended.is_empty() {
            let detach = link::Detach { lane: number, owners: Vec::new(), ended };
            link.control(control_up::Kind::Detach(detach));
        }
        self.tell_endings(index);
        let (mut keys, mut owners, mut bytes) = (Vec::new(), Vec::new(), 0);
        for key in attach {
            let Some(owner) = self.ownership_of(key) else { continue };
            bytes += owner.will.len();
            keys.push(key);
            owners.push(owner);
            if owners.len() == OWNERS || bytes >= WILL_BYTES {
                self.tell_attach(place, number, std::mem::take(&mut keys), std::mem::take(&mut owners));
                bytes = 0;
            }
        }
        self.tell_attach(place, number, keys, owners);
    }

    fn tell_attach(&mut self, place: LinkKey, lane: u32, keys: Vec<ConnectionKey>, owners: Vec<link::Owner>) {
        let Some(link) = self.links.get_mut(place).filter(|_| !keys.is_empty()) else { return };
        let seq = link.number();
        link.attaches.insert(seq, keys);
        link.control(control_up::Kind::Attach(link::Attach { seq, lane, owners }));
    }

    /// What a home is told of a connection; its will, until it has its CONNACK.
    fn ownership_of(&mut self, key: ConnectionKey) -> Option<link::Owner> {
        let connection = self.connections.get_mut(key)?;
        let will = testament(connection);
        let waits = !connection.admitted;
        let it = connection.identity.as_deref_mut()?;
        if will.is_some() && it.will == Epoch::NONE {
            it.will = it.attached;
        }
        Some(link::Owner {
            client: it.client.clone(),
            epoch: it.attached.0,
            wipe: it.clean && waits,
            will_epoch: it.will.0,
            will: will.unwrap_or_default(),
        })
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
        let Some(connection) = self.connections.get_mut(key) else { return };
        let will = will_bytes(connection);
        let Some(identity) = connection.identity.as_deref_mut() else { return };
        let Some(lane) = self.lanes.get_mut(index) else { return };
        if lane.owners.insert(key) {
            let names = identity.client.len();
            // A will is a record, which names client and user.
            identity.told = names + if will > 0 { names + identity.user.len() + will + RECORD } else { 0 };
            self.links.told.add(identity.told);
        }
        lane.endings.settled(lane.settled_below());
        if lane.endings.waits_for(&identity.client) {
            // Its will is to follow what it published, and be there before this connection is.
            lane.renewals.push((lane.next_number(), key));
        } else {
            lane.attach.push(key);
        }
        self.lanes.mark(index);
        self.want_end();
    }

    /// The connection is gone.
    pub(crate) fn detach(&mut self, key: ConnectionKey, identity: &Identity) {
        let index = identity.lane;
        let Some(lane) = self.lanes.get_mut(index) else { return };
        lane.renewals.retain(|(_, renewed)| *renewed != key);
        if lane.owners.remove(&key) {
            self.links.told.remove(identity.told);
            lane.attach.retain(|waiting| *waiting != key);
            let (client, epoch) = (identity.client.clone(), identity.attached.0);
            lane.detach.push(link::Owner { client, epoch, ..link::Owner::default() });
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
