//! A shard's connections: a slab of them, and an index from (tenant, client) that may hold several for a moment, while a
//! newer one takes over. A key is never used again, so that a late answer can't reach the wrong connection.

use std::{hash::BuildHasher, task::Waker};

use bytes::{Bytes, BytesMut};
use hashbrown::{DefaultHashBuilder, HashTable};
use penstock_common::{clock::UnixMillis, epoch::Epoch, name::TenantName};
use penstock_mqtt::session::{Millis, Session};
use slab::Slab;

use crate::{admission::Admission, mailbox::Kept, tenants::Seat, transport::Transport};

/// Names a connection of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct ConnectionKey {
    pub(crate) slot: u32,
    pub(crate) life: u32,
}

/// Who a connection proved to be.
pub(crate) struct Identity {
    pub(crate) tenant: TenantName,
    pub(crate) client: Bytes,
    pub(crate) user: Bytes,
    /// Index of the lane of the client's partition.
    pub(crate) lane: usize,
    /// Present ownership; NONE before the claim is answered.
    pub(crate) epoch: Epoch,
    /// Epoch that the home is told: the older one, while records under it are unsettled.
    pub(crate) attached: Epoch,
    /// Names the will that a home was told: the epoch of that time. NONE: none was.
    pub(crate) will: Epoch,
    /// Bytes that it takes to tell a router of it.
    pub(crate) told: usize,
    /// Largest packet of the tenant, bytes.
    pub(crate) packet_bytes: u32,
    /// Clean session 1: nothing outlives the connection.
    pub(crate) clean: bool,
    /// When CONNACK was sent.
    pub(crate) since: UnixMillis,
    pub(crate) _seat: Seat,
}

/// One connection: its transport, session and place in the shard.
pub(crate) struct Connection {
    pub(crate) transport: Transport,
    pub(crate) session: Session,
    /// The task that waits for the transport.
    pub(crate) waker: Option<Waker>,
    /// The beginning of a packet whose rest has not come, or packets that have to wait.
    pub(crate) rest: BytesMut,
    pub(crate) admission: Option<Box<Admission>>,
    pub(crate) identity: Option<Box<Identity>>,
    /// What waits for the client at its home: a persistent session's mail, or pushes.
    pub(crate) kept: Option<Box<Kept>>,
    /// When the packet that has begun has to be complete; MAX: none has begun.
    pub(crate) half_until: Millis,
    /// Bytes of the packet that has begun, as the shard counts them.
    pub(crate) half_bytes: usize,
    /// When the client has to have read something; MAX: nothing waits.
    pub(crate) unread_until: Millis,
    /// Entry of the shard's timers that counts.
    pub(crate) scheduled: Millis,
    /// Has something for the end of the turn.
    pub(crate) dirty: bool,
    /// The transport took less than there was to write.
    pub(crate) blocked: bool,
    /// Its task waits for the transport to become readable.
    pub(crate) reading: bool,
    /// Its CONNECT has not come.
    pub(crate) opening: bool,
    /// CONNACK 0 was sent.
    pub(crate) admitted: bool,
    /// Its lane knows that it waits for room.
    pub(crate) held: bool,
    /// The shard knows that it waits until routers can be told of more filters.
    pub(crate) held_subscribes: bool,
    /// Was told to close once its publishes are settled.
    pub(crate) draining: bool,
}

impl Connection {
    pub(crate) fn new(transport: Transport, session: Session) -> Self {
        Self {
            transport,
            session,
            waker: None,
            rest: BytesMut::new(),
            admission: None,
            identity: None,
            kept: None,
            half_until: Millis::MAX,
            half_bytes: 0,
            unread_until: Millis::MAX,
            scheduled: Millis::MAX,
            dirty: false,
            blocked: false,
            reading: false,
            opening: true,
            admitted: false,
            held: false,
            held_subscribes: false,
            draining: false,
        }
    }

    /// Its session outlives it.
    pub(crate) fn is_persistent(&self) -> bool {
        self.kept.as_deref().is_some_and(|kept| kept.persistent)
    }

    /// When the shard has to look at it.
    pub(crate) fn deadline(&self, now: Millis) -> Option<Millis> {
        let admission = self.admission.as_ref().map(|admission| admission.deadline());
        let kept = self.kept.as_ref().and_then(|kept| kept.deadline(now));
        let patience = Some(self.half_until.min(self.unread_until)).filter(|until| *until < Millis::MAX);
        [self.session.deadline(), admission, kept, patience].into_iter().flatten().min()
    }

    pub(crate) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// All connections of a shard.
#[derive(Default)]
pub(crate) struct Connections {
    slab: Slab<(u32, Connection)>,
    by_client: HashTable<ConnectionKey>,
    hasher: DefaultHashBuilder,
    lives: u32,
}

impl Connections {
    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn insert(&mut self, connection: Connection) -> ConnectionKey {
        self.lives = self.lives.wrapping_add(1);
        let slot = self.slab.insert((self.lives, connection));
        ConnectionKey { slot: u32::try_from(slot).unwrap_or(u32::MAX), life: self.lives }
    }

    pub(crate) fn get(&self, key: ConnectionKey) -> Option<&Connection> {
        self.slab.get(key.slot as usize).filter(|(life, _)| *life == key.life).map(|(_, it)| it)
    }

    pub(crate) fn get_mut(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        self.slab.get_mut(key.slot as usize).filter(|(life, _)| *life == key.life).map(|(_, it)| it)
    }

    pub(crate) fn identity(&self, key: ConnectionKey) -> Option<&Identity> {
        self.get(key).and_then(|connection| connection.identity.as_deref())
    }

    pub(crate) fn identity_mut(&mut self, key: ConnectionKey) -> Option<&mut Identity> {
        self.get_mut(key).and_then(|connection| connection.identity.as_deref_mut())
    }

    /// Removes a connection with its place in the index.
    pub(crate) fn remove(&mut self, key: ConnectionKey) -> Option<Connection> {
        if let Some(identity) = self.identity(key) {
            let hash = self.hash(&identity.tenant, &identity.client);
            if let Ok(entry) = self.by_client.find_entry(hash, |it| *it == key) {
                entry.remove();
            }
        }
        self.get(key)?;
        self.slab.try_remove(key.slot as usize).map(|(_, connection)| connection)
    }

    /// Gives a connection its identity and makes it findable by it.
    pub(crate) fn identify(&mut self, key: ConnectionKey, identity: Identity) {
        let hash = self.hash(&identity.tenant, &identity.client);
        if let Some(connection) = self.get_mut(key) {
            connection.identity = Some(Box::new(identity));
            let (slab, hasher) = (&self.slab, &self.hasher);
            self.by_client.insert_unique(hash, key, |it| {
                let identity = slab.get(it.slot as usize).and_then(|(_, it)| it.identity.as_deref());
                identity.map_or(0, |it| hasher.hash_one((&it.tenant, &it.client)))
            });
        }
    }

    /// Connections of a client: none, one, or several while one takes over.
    pub(crate) fn of_client(&self, tenant: &TenantName, client: &Bytes) -> Vec<(ConnectionKey, Epoch)> {
        let found = self.by_client.iter_hash(self.hash(tenant, client));
        found
            .filter_map(|key| self.identity(*key).map(|identity| (*key, identity)))
            .filter(|(_, identity)| identity.tenant == *tenant && identity.client == *client)
            .map(|(key, identity)| (key, identity.epoch))
            .collect()
    }

    /// The connection of a client under an epoch that its home knows.
    pub(crate) fn owned(&self, tenant: &TenantName, client: &Bytes, epoch: Epoch) -> Option<ConnectionKey> {
        // While a renewed epoch is not told, the home knows the older one.
        let meant = |key: &ConnectionKey| {
            self.identity(*key).is_some_and(|it| [it.epoch, it.attached].contains(&epoch))
        };
        self.of_client(tenant, client).into_iter().map(|(key, _)| key).find(meant)
    }

    /// Connections of a tenant. Looks at every connection of the shard.
    pub(crate) fn of_tenant(&self, tenant: &TenantName) -> impl Iterator<Item = ConnectionKey> {
        let of = |key: &ConnectionKey| self.identity(*key).is_some_and(|it| it.tenant == *tenant);
        self.keys().into_iter().filter(of)
    }

    /// Keys of all connections.
    pub(crate) fn keys(&self) -> Vec<ConnectionKey> {
        let key = |(slot, (life, _)): (usize, &(u32, Connection))| ConnectionKey {
            slot: u32::try_from(slot).unwrap_or(u32::MAX),
            life: *life,
        };
        self.slab.iter().map(key).collect()
    }

    fn hash(&self, tenant: &TenantName, client: &Bytes) -> u64 {
        self.hasher.hash_one((tenant, client))
    }
}
