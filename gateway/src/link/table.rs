//! A shard's links: which routers are reached, and what waits to be written to each. The tasks that dial and read are in
//! [`super::dial`].

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap, VecDeque},
    rc::Rc,
};

use penstock_common::{name::PartitionKey, rendezvous};
use penstock_proto::link;
use slab::Slab;
use tokio::sync::Notify;

use crate::connection::table::ConnectionKey;

/// Names a link of a shard; never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct LinkKey {
    pub(crate) slot: u32,
    pub(crate) life: u32,
}

/// Most bytes that wait for a link's control stream beyond those that the shard's [`Told`] state takes; beyond, the link
/// is closed.
const CONTROL_BYTES: usize = 16 << 20;
/// Bytes that wait for it at which clients may not change their filters.
const BACKED_UP: usize = CONTROL_BYTES / 4;
/// Most bytes that a filter or an owner takes in a message beyond its names and its will.
const FRAME: usize = 40;
/// Most messages that wait for a link's data stream; beyond, the link is closed. Appends are bounded by credit.
const DATA_MESSAGES: usize = 65_536;

/// What waits to be written on one stream of a link. Filled by the shard, emptied by the stream's writer.
pub(crate) struct Outbox<T> {
    queue: RefCell<VecDeque<T>>,
    filled: Notify,
    closed: Cell<bool>,
}

impl<T> Outbox<T> {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { queue: RefCell::default(), filled: Notify::new(), closed: Cell::new(false) })
    }

    fn push(&self, message: T) {
        self.queue.borrow_mut().push_back(message);
        self.filled.notify_one();
    }

    pub(crate) fn pop(&self) -> Option<T> {
        self.queue.borrow_mut().pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.borrow().len()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    fn close(&self) {
        self.closed.set(true);
        self.filled.notify_one();
    }

    /// Waits until there may be something, or the outbox was closed.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }
}

/// Bytes that it takes to tell a router all filters and owners of the shard. A new link, or one that takes over another's
/// lanes, gets them in one turn, and so it does when all of them end: what may wait grows with them, and shrinks slowly.
#[derive(Clone, Default)]
pub(crate) struct Told {
    bytes: Rc<Cell<usize>>,
    high: Rc<Cell<usize>>,
}

impl Told {
    /// A filter or an owner with names, and a will, of this many bytes is there.
    pub(crate) fn add(&self, names: usize) {
        self.bytes.set(self.bytes.get() + names + FRAME);
        self.high.set(self.high.get().max(self.bytes.get()));
    }

    /// It is gone.
    pub(crate) fn remove(&self, names: usize) {
        self.bytes.set(self.bytes.get().saturating_sub(names + FRAME));
    }

    /// Time has passed: what ended may have been told.
    pub(crate) fn sink(&self) {
        self.high.set(self.bytes.get().max(self.high.get() / 8 * 7));
    }
}

/// A link that is up: Welcome has come.
pub(crate) struct Link {
    /// Incarnation of the router.
    pub(crate) router: u64,
    pub(crate) control: Rc<Outbox<link::ControlUp>>,
    pub(crate) data: Rc<Outbox<link::DataUp>>,
    control_bytes: Rc<Cell<usize>>,
    told: Told,
    /// The router drains: it is no home any more.
    pub(crate) leaving: bool,
    /// Attaches that are not confirmed, by number.
    pub(crate) attaches: HashMap<u64, Vec<ConnectionKey>>,
    /// Interest that is not confirmed: message number → version of the filters.
    pub(crate) interest: HashMap<u64, u64>,
    /// Versions that are not confirmed.
    pub(crate) unconfirmed: BTreeSet<u64>,
    /// The snapshot is not confirmed: messages of it that are open, and the version it holds.
    pub(crate) snapshot: Option<(BTreeSet<u64>, u64)>,
    /// View of the last Synced.
    pub(crate) synced: Option<u64>,
    numbers: u64,
    /// Unless through another router.
    pub(crate) channel: Option<tonic::transport::Channel>,
    /// Ends the link's task.
    pub(crate) stop: Rc<Notify>,
}

impl Link {
    pub(crate) fn new(
        router: u64,
        control: Rc<Outbox<link::ControlUp>>,
        data: Rc<Outbox<link::DataUp>>,
        control_bytes: Rc<Cell<usize>>,
        stop: Rc<Notify>,
    ) -> Self {
        Self {
            router,
            control,
            data,
            control_bytes,
            told: Told::default(),
            leaving: false,
            attaches: HashMap::new(),
            interest: HashMap::new(),
            unconfirmed: BTreeSet::new(),
            snapshot: None,
            synced: None,
            numbers: 0,
            channel: None,
            stop,
        }
    }

    /// A number that this link has not used.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Queues a control message. A link that can't keep up is closed.
    pub(crate) fn control(&self, kind: link::control_up::Kind) {
        let message = link::ControlUp { kind: Some(kind) };
        let bytes = self.control_bytes.get() + prost::Message::encoded_len(&message);
        self.control_bytes.set(bytes);
        if bytes > CONTROL_BYTES + self.told.high.get() {
            tracing::warn!(router = self.router, bytes, "closing a link whose control stream does not move");
            self.stop.notify_one();
        } else {
            self.control.push(message);
        }
    }

    /// Whether more waits for the control stream than a client's wishes may add to.
    fn is_backed_up(&self) -> bool {
        self.control_bytes.get() > BACKED_UP
    }

    /// Queues a data message. A link that can't keep up is closed.
    pub(crate) fn data(&self, kind: link::data_up::Kind) {
        if self.data.len() >= DATA_MESSAGES {
            tracing::warn!(router = self.router, "closing a link whose data stream does not move");
            self.stop.notify_one();
        } else {
            self.data.push(link::DataUp { kind: Some(kind) });
        }
    }

    /// Whether this version of the filters is known to the router.
    pub(crate) fn has_confirmed(&self, version: u64) -> bool {
        !self.unconfirmed.contains(&version) && self.snapshot.as_ref().is_none_or(|(_, held)| version > *held)
    }

    pub(crate) fn close(&self) {
        self.control.close();
        self.data.close();
        self.stop.notify_one();
    }
}

/// The links of a shard that are up.
#[derive(Default)]
pub(crate) struct Links {
    slab: Slab<(u32, Link)>,
    lives: u32,
    pub(crate) told: Told,
    /// Grows whenever a home may have changed.
    version: u64,
}

/// The home of one partition, computed once for each change of the links.
#[derive(Default)]
pub(crate) struct Home {
    version: u64,
    link: Option<LinkKey>,
}

impl Home {
    pub(crate) fn of(&mut self, partition: &PartitionKey, links: &Links) -> Option<LinkKey> {
        if self.version != links.version {
            (self.version, self.link) = (links.version, links.home(partition));
        }
        self.link
    }
}

impl Links {
    pub(crate) fn insert(&mut self, mut link: Link) -> LinkKey {
        link.told = self.told.clone();
        self.lives = self.lives.wrapping_add(1);
        self.version += 1;
        let slot = self.slab.insert((self.lives, link));
        LinkKey { slot: u32::try_from(slot).unwrap_or(u32::MAX), life: self.lives }
    }

    pub(crate) fn get(&self, key: LinkKey) -> Option<&Link> {
        self.slab.get(key.slot as usize).filter(|(life, _)| *life == key.life).map(|(_, link)| link)
    }

    pub(crate) fn get_mut(&mut self, key: LinkKey) -> Option<&mut Link> {
        self.slab.get_mut(key.slot as usize).filter(|(life, _)| *life == key.life).map(|(_, link)| link)
    }

    pub(crate) fn remove(&mut self, key: LinkKey) -> Option<Link> {
        self.get(key)?;
        self.version += 1;
        self.slab.try_remove(key.slot as usize).map(|(_, link)| link)
    }

    /// The router leaves: it is no home any more.
    pub(crate) fn leave(&mut self, key: LinkKey) -> Option<u64> {
        let link = self.get_mut(key)?;
        link.leaving = true;
        let router = link.router;
        self.version += 1;
        Some(router)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (LinkKey, &Link)> {
        let key = |slot: usize, life: u32| LinkKey { slot: u32::try_from(slot).unwrap_or(u32::MAX), life };
        self.slab.iter().map(move |(slot, (life, link))| (key(slot, *life), link))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        self.slab.iter_mut().map(|(_, (_, link))| link)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Whether any link has so much to tell that clients should not add to it.
    pub(crate) fn is_backed_up(&self) -> bool {
        self.slab.iter().any(|(_, (_, link))| link.is_backed_up())
    }

    pub(crate) fn keys(&self) -> Vec<LinkKey> {
        self.iter().map(|(key, _)| key).collect()
    }

    /// The home of a partition: a router with a live link that does not leave.
    pub(crate) fn home(&self, partition: &PartitionKey) -> Option<LinkKey> {
        self.in_order(partition).into_iter().next()
    }

    /// Links in the order in which their routers stand in for each other at a partition.
    pub(crate) fn in_order(&self, partition: &PartitionKey) -> Vec<LinkKey> {
        let candidates = self.iter().filter(|(_, link)| !link.leaving);
        let mut links: Vec<_> = candidates
            .map(|(key, link)| (rendezvous::weight(partition, link.router), link.router, key))
            .collect();
        links.sort_unstable_by(|a, b| b.cmp(a));
        links.into_iter().map(|(_, _, key)| key).collect()
    }

    /// Up to two routers for the owner's registration.
    pub(crate) fn two(&self) -> [u64; 2] {
        let mut routers = self.iter().map(|(_, link)| link.router);
        [routers.next().unwrap_or(0), routers.next().unwrap_or(0)]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use penstock_proto::link::{FilterChange, Interest, Owner};
    use prost::Message;

    use super::*;

    #[test]
    fn what_is_told_takes_no_more_bytes_than_were_added_for_it() {
        let (tenant, filter) = ("t".repeat(32), vec![b'f'; 65_535]);
        let names = tenant.len() + filter.len();
        let change = FilterChange { tenant, filter: filter.into(), present: true };
        let changes = vec![change; 2];
        let two = Interest { seq: 0, snapshot_end: false, changes }.encoded_len();
        assert!(two <= 2 * (names + FRAME), "{two}");
        let owner = Owner {
            client: vec![b'c'; 128].into(),
            epoch: u64::MAX,
            wipe: true,
            will_epoch: u64::MAX,
            will: vec![0; 66_000].into(),
        };
        let two = link::Attach { seq: 0, lane: 0, owners: vec![owner; 2] }.encoded_len();
        assert!(two <= 2 * (128 + 66_000 + FRAME), "{two}");
    }

    #[test]
    fn a_control_stream_that_does_not_move_is_bounded_by_what_there_is_to_tell() {
        let mut links = Links::default();
        let queued = Rc::new(Cell::new(0));
        let key = links.insert(Link::new(1, Outbox::new(), Outbox::new(), queued, Rc::default()));
        let password = bytes::Bytes::from(vec![0; 1 << 20]);
        let fill = |links: &Links| {
            let link = links.get(key).unwrap();
            for _ in 0..64 {
                let ask = link::Authenticate { password: password.clone(), ..link::Authenticate::default() };
                link.control(link::control_up::Kind::Authenticate(ask));
            }
            link.control.len()
        };
        links.told.add(16 << 20);
        assert_eq!(fill(&links), 31, "each is a little larger than one MiB");
        links.told.remove(16 << 20);
        assert_eq!(fill(&links), 31);
        assert!(links.is_backed_up());
        links.told.sink();
        assert!(links.told.high.get() < 16 << 20, "what may wait shrinks");
    }
}
