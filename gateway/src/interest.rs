//! Which filters the routers know: the first use of a filter on this shard and the end of its last one are told to every
//! link, a new link gets a snapshot first. A SUBACK waits until every linked router matches with its filters.
//!
//! Versions: each change of the shard's filters has one; a link confirms versions one by one, so that a router that is
//! slow for one tenant does not hold up the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use penstock_common::name::TenantName;
use penstock_mqtt::session::{CloseReason, Millis};
use penstock_proto::link::{self, control_up};

use crate::{
    connection::table::ConnectionKey,
    link::table::{Link, LinkKey},
    shard::Shard,
};

/// Bytes of filters in one message of a snapshot.
const SNAPSHOT_BYTES: usize = 256 * 1_024;

/// A filter that sessions of this shard use.
struct Used {
    sessions: u32,
    version: u64,
}

/// A SUBSCRIBE whose filters are not yet known to every linked router.
struct Waiting {
    /// None: the filters of a session that was resumed.
    packet_id: Option<u16>,
    codes: Vec<u8>,
    versions: BTreeSet<u64>,
    until: Millis,
}

/// The filters of a shard, and who waits for them to be known.
#[derive(Default)]
pub(crate) struct Interest {
    tenants: HashMap<TenantName, HashMap<Bytes, Used>>,
    version: u64,
    /// Versions that are not known to all linked routers, with the connections that wait for them.
    open: BTreeMap<u64, Vec<ConnectionKey>>,
    /// In the order of the packets.
    waiting: HashMap<ConnectionKey, Vec<Waiting>>,
}

impl Shard {
    /// Counts `new` filters of a session as used (`known` ones are counted already), tells the routers of those that nobody
    /// used, and answers the SUBSCRIBE when all of them are known everywhere.
    pub(crate) fn want_filters(
        &mut self,
        key: ConnectionKey,
        tenant: &TenantName,
        new: &[Bytes],
        known: &[Bytes],
        packet_id: Option<u16>,
        codes: Vec<u8>,
    ) {
        let version = self.interest.version + 1;
        let used = self.interest.tenants.entry(tenant.clone()).or_default();
        let (mut versions, mut changes) = (BTreeSet::new(), Vec::new());
        for filter in new {
            let entry = used.entry(filter.clone()).or_insert_with(|| {
                self.links.told.add(tenant.as_str().len() + filter.len());
                changes.push(change(tenant, filter, true));
                Used { sessions: 0, version }
            });
            entry.sessions += 1;
            versions.insert(entry.version);
        }
        versions.extend(known.iter().filter_map(|filter| used.get(filter)).map(|it| it.version));
        let first = !changes.is_empty() && used.len() == changes.len();
        self.tell(changes, true);
        if first {
            self.watch(tenant, true);
        }
        self.wait_for(key, versions, packet_id, codes);
    }

    fn wait_for(
        &mut self,
        key: ConnectionKey,
        versions: BTreeSet<u64>,
        packet_id: Option<u16>,
        codes: Vec<u8>,
    ) {
        let open: BTreeSet<u64> =
            versions.into_iter().filter(|version| self.interest.open.contains_key(version)).collect();
        let queue = self.interest.waiting.entry(key).or_default();
        for version in &open {
            self.interest.open.entry(*version).or_default().push(key);
        }
        let until = self.now + self.shared.config.timeouts.store_ms;
        queue.push(Waiting { packet_id, codes, versions: open, until });
        self.answer_subscribes(key);
    }

    /// Sends SUBACKs that have nothing to wait for any more.
    fn answer_subscribes(&mut self, key: ConnectionKey) {
        let Some(queue) = self.interest.waiting.get_mut(&key) else { return };
        let Some(connection) = self.connections.get_mut(key) else {
            self.interest.waiting.remove(&key);
            return;
        };
        let (mut resumed, mut granted) = (false, false);
        queue.retain(|waiting| {
            let ready = waiting.versions.is_empty();
            match waiting.packet_id {
                Some(packet_id) if ready => {
                    connection.session.subscribed(packet_id, &waiting.codes);
                    granted = true;
                }
                None if ready => resumed = true,
                _ => {}
            }
            !ready
        });
        if queue.is_empty() {
            self.interest.waiting.remove(&key);
        }
        if granted {
            self.look_for_pushes(key);
        }
        if resumed {
            // What was appended before did not ring.
            self.ring(key);
        }
        self.touch(key);
    }

    /// One session less uses these filters; those without any are taken back.
    pub(crate) fn drop_filters(&mut self, tenant: &TenantName, filters: &[Bytes]) {
        let Some(used) = self.interest.tenants.get_mut(tenant) else { return };
        let mut changes = Vec::new();
        for filter in filters {
            let Some(entry) = used.get_mut(filter) else { continue };
            entry.sessions -= 1;
            if entry.sessions == 0 {
                used.remove(filter);
                self.links.told.remove(tenant.as_str().len() + filter.len());
                changes.push(change(tenant, filter, false));
            }
        }
        let last = used.is_empty();
        self.tell(changes, false);
        if last {
            self.interest.tenants.remove(tenant);
            self.watch(tenant, false);
        }
    }

    /// Nobody waits for the SUBACKs of this connection any more.
    pub(crate) fn forget_subscribes(&mut self, key: ConnectionKey) {
        self.interest.waiting.remove(&key);
    }

    fn tell(&mut self, changes: Vec<link::FilterChange>, awaited: bool) {
        if changes.is_empty() {
            return;
        }
        self.interest.version += 1;
        let version = self.interest.version;
        if awaited {
            self.interest.open.insert(version, Vec::new());
        }
        for link in self.links.iter_mut() {
            send(link, version, changes.clone());
        }
    }

    /// Sends a new link everything that is used.
    pub(crate) fn tell_snapshot(&mut self, key: LinkKey) {
        let version = self.interest.version;
        let Some(link) = self.links.get_mut(key) else { return };
        let filters =
            self.interest.tenants.iter().flat_map(|(tenant, used)| used.keys().map(move |f| (tenant, f)));
        let (mut messages, mut changes, mut bytes) = (BTreeSet::new(), Vec::new(), 0);
        for (tenant, filter) in filters {
            bytes += filter.len() + tenant.as_str().len();
            changes.push(change(tenant, filter, true));
            if bytes >= SNAPSHOT_BYTES {
                bytes = 0;
                messages.insert(send_part(link, std::mem::take(&mut changes), false));
            }
        }
        messages.insert(send_part(link, changes, true));
        link.snapshot = Some((messages, version));
    }

    /// A router matches with what a message said.
    pub(crate) fn interest_confirmed(&mut self, key: LinkKey, seq: u64) {
        let Some(link) = self.links.get_mut(key) else { return };
        if let Some((messages, _)) = &mut link.snapshot {
            messages.remove(&seq);
            if messages.is_empty() {
                link.snapshot = None;
                self.ring_all();
                return self.known();
            }
        }
        if let Some(version) = link.interest.remove(&seq) {
            link.unconfirmed.remove(&version);
            self.known_version(version);
        }
    }

    /// Links have changed: perhaps nobody has to be waited for any more.
    pub(crate) fn known(&mut self) {
        let open: Vec<u64> = self.interest.open.keys().copied().collect();
        open.into_iter().for_each(|version| self.known_version(version));
    }

    fn known_version(&mut self, version: u64) {
        // Without a linked router nothing would be matched: the SUBACK waits.
        if self.links.is_empty() || !self.links.iter().all(|(_, link)| link.has_confirmed(version)) {
            return;
        }
        for key in self.interest.open.remove(&version).unwrap_or_default() {
            for waiting in self.interest.waiting.get_mut(&key).into_iter().flatten() {
                waiting.versions.remove(&version);
            }
            self.answer_subscribes(key);
        }
    }

    /// Closes connections whose SUBSCRIBE waits too long.
    pub(crate) fn tick_interest(&mut self) {
        let now = self.now;
        let late = |queue: &Vec<Waiting>| queue.first().is_some_and(|waiting| waiting.until <= now);
        let keys: Vec<_> =
            self.interest.waiting.iter().filter(|(_, queue)| late(queue)).map(|(key, _)| *key).collect();
        for key in keys {
            self.interest.waiting.remove(&key);
            self.close(key, CloseReason::LinkLost);
        }
    }
}

fn change(tenant: &TenantName, filter: &Bytes, present: bool) -> link::FilterChange {
    link::FilterChange { tenant: tenant.as_str().to_owned(), filter: filter.clone(), present }
}

fn send(link: &mut Link, version: u64, changes: Vec<link::FilterChange>) {
    let seq = link.number();
    link.interest.insert(seq, version);
    link.unconfirmed.insert(version);
    link.control(control_up::Kind::Interest(link::Interest { seq, snapshot_end: false, changes }));
}

fn send_part(link: &mut Link, changes: Vec<link::FilterChange>, last: bool) -> u64 {
    let seq = link.number();
    link.control(control_up::Kind::Interest(link::Interest { seq, snapshot_end: last, changes }));
    seq
}
