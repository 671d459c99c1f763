//! One shard: a thread with its own connections, sessions, lanes and links. Everything that happens to it is a method that
//! runs to its end without waiting; what it wants done is queued and leaves at the end of the turn. This file holds the
//! state and the turn; the verbs are in the files of the way that they belong to.
//!
//! Invariants: nothing here is shared with another thread but what [`Shared`] holds; the clock is looked at before
//! anything that came from a socket is handled (see [`Shard::turn`]).

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    rc::{Rc, Weak},
    sync::{Arc, atomic::AtomicU64},
};

use bytes::BytesMut;
use penstock_common::{
    clock::{Seams, UnixMillis},
    epoch::Epoch,
    name::{ClientKey, TenantName},
    registry::{Claim, ClaimError, Definitions, Members, OwnershipEvent, Registry},
};
use penstock_mqtt::{
    reserved::Reserved,
    session::{Millis, SessionLimits},
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::AbortHandle,
    time::Instant,
};

use crate::{
    certificates::Certificates,
    claims::Claims,
    config::GatewayConfig,
    connection::table::{ConnectionKey, Connections},
    credentials::Verdicts,
    deliver::Fanout,
    interest::Interest,
    kicks::Kicks,
    link::{dial::Dialled, table::Links},
    mailbox::Mailboxes,
    metrics::Metrics,
    push::Pushes,
    tenants::Seats,
    transport::Scratch,
    uplink::Lanes,
    voice::Voice,
};

pub(crate) mod run;

/// Mails that a shard's mailbox holds; senders wait, or say it again later.
pub(crate) const MAILBOX: usize = 4_096;
/// Bytes of the buffer that all connections of a shard read into.
pub(crate) const READ_BYTES: usize = 64 * 1_024;

/// What all shards see.
pub(crate) struct Shared {
    pub(crate) config: GatewayConfig,
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) seams: Seams,
    pub(crate) metrics: Metrics,
    /// This gateway's life.
    pub(crate) incarnation: u64,
    /// Where calls of the registry run.
    pub(crate) control: tokio::runtime::Handle,
    pub(crate) mailboxes: Vec<mpsc::Sender<Mail>>,
    pub(crate) seats: Seats,
    pub(crate) link_numbers: AtomicU64,
    pub(crate) session_limits: Arc<SessionLimits>,
    pub(crate) reserved: Arc<Reserved>,
    /// Links that are up, by shard.
    pub(crate) linked: watch::Sender<Vec<usize>>,
    /// For listeners with TLS.
    pub(crate) certificates: Option<Arc<Certificates>>,
    /// Path of MQTT over WebSocket.
    pub(crate) web_path: Arc<str>,
}

/// What reaches a shard from other threads.
pub(crate) enum Mail {
    /// Answer to a claim.
    Claimed { id: u64, result: Result<Claim, ClaimError> },
    /// The registry says something about an ownership of this shard.
    Ownership(OwnershipEvent),
    /// Another shard's connection took the client over.
    Kick { client: ClientKey, below: Epoch, shard: u32, id: u64 },
    /// Answer to a kick.
    Kicked { id: u64 },
    /// Close everything in good order within this time, then say so.
    Drain { within: Millis, done: oneshot::Sender<()> },
    /// End at once.
    Stop,
}

/// The drain that is under way.
pub(crate) struct Drain {
    pub(crate) began: Millis,
    pub(crate) until: Millis,
    pub(crate) connections: usize,
    pub(crate) asked: usize,
    pub(crate) done: Option<oneshot::Sender<()>>,
}

/// The state of a shard.
pub(crate) struct Shard {
    pub(crate) shared: Arc<Shared>,
    pub(crate) number: u32,
    /// Numberer of this shard's records; a new one after a pause.
    pub(crate) producer: u64,
    me: Weak<RefCell<Self>>,
    origin: Instant,
    /// Shard clock of this turn, microseconds.
    pub(crate) micros: u64,
    /// Shard clock of this turn, milliseconds.
    pub(crate) now: Millis,
    /// Wall time of this turn.
    pub(crate) wall: UnixMillis,
    pub(crate) buffer: BytesMut,
    pub(crate) scratch: Scratch,
    pub(crate) connections: Connections,
    pub(crate) timers: BinaryHeap<Reverse<(Millis, ConnectionKey)>>,
    /// Connections whose CONNECT has not come.
    pub(crate) openings: usize,
    /// They and some others, in the order in which they were accepted.
    pub(crate) unopened: VecDeque<ConnectionKey>,
    /// Bytes of packets that are here in part.
    pub(crate) half_bytes: usize,
    /// Connections whose SUBSCRIBEs wait for links.
    pub(crate) held_subscribes: Vec<ConnectionKey>,
    pub(crate) voice: Voice,
    pub(crate) admissions: usize,
    pub(crate) lanes: Lanes,
    pub(crate) links: Links,
    pub(crate) dialled: Dialled,
    pub(crate) interest: Interest,
    pub(crate) fanout: HashMap<TenantName, Fanout>,
    pub(crate) claims: Claims,
    pub(crate) kicks: Kicks,
    pub(crate) verdicts: Verdicts,
    pub(crate) pushes: Pushes,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) members: Arc<Members>,
    pub(crate) definitions: Arc<Definitions>,
    pub(crate) drain: Option<Drain>,
    pub(crate) accepting: Vec<AbortHandle>,
    /// Connections with something for the end of the turn.
    pub(crate) dirty: Vec<ConnectionKey>,
    turn_ends: Rc<Notify>,
    turn_open: bool,
}

/// A shard as its tasks hold it. Never borrowed across a wait.
pub(crate) type ShardCell = Rc<RefCell<Shard>>;

impl Shard {
    /// An empty shard. `turn_ends` wakes the task that calls [`Shard::end_turn`].
    pub(crate) fn new(shared: Arc<Shared>, number: u32, turn_ends: Rc<Notify>) -> ShardCell {
        let members = shared.registry.members().borrow().clone();
        let definitions = shared.registry.definitions().borrow().clone();
        Rc::new_cyclic(|me| {
            RefCell::new(Self {
                producer: shared.seams.number(),
                number,
                me: Weak::clone(me),
                origin: Instant::now(),
                micros: 0,
                now: 0,
                wall: shared.seams.now_ms(),
                buffer: BytesMut::new(),
                scratch: Scratch::default(),
                connections: Connections::default(),
                timers: BinaryHeap::new(),
                openings: 0,
                unopened: VecDeque::new(),
                half_bytes: 0,
                held_subscribes: Vec::new(),
                voice: Voice::default(),
                admissions: 0,
                lanes: Lanes::default(),
                links: Links::default(),
                dialled: Dialled::default(),
                interest: Interest::default(),
                fanout: HashMap::new(),
                claims: Claims::default(),
                kicks: Kicks::default(),
                verdicts: Verdicts::new(&shared.seams, shared.config.limits.verdicts),
                pushes: Pushes::default(),
                mailboxes: Mailboxes::default(),
                members,
                definitions,
                drain: None,
                accepting: Vec::new(),
                dirty: Vec::new(),
                turn_ends,
                turn_open: false,
                shared,
            })
        })
    }

    /// The shard, for a task that it starts.
    pub(crate) fn me(&self) -> Weak<RefCell<Self>> {
        Weak::clone(&self.me)
    }

    /// Looks at the clock: every task's first act when it was woken, and again after each read. If the shard was paused
    /// past the limit, everything it held is dropped, so that keys the caller holds find nothing.
    pub(crate) fn turn(&mut self) {
        let micros = u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let jumped = micros.saturating_sub(self.micros) / 1_000 > self.shared.config.timeouts.pause_ms;
        self.micros = micros;
        self.now = micros / 1_000;
        self.wall = self.shared.seams.now_ms();
        if jumped {
            self.drop_stale();
        }
    }

    /// Remembers to do something for a connection at the end of the turn.
    pub(crate) fn touch(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.get_mut(key)
            && !connection.dirty
        {
            connection.dirty = true;
            self.dirty.push(key);
        }
        self.want_end();
    }

    /// Makes sure that the turn has an end.
    pub(crate) fn want_end(&mut self) {
        if !self.turn_open {
            self.turn_open = true;
            self.turn_ends.notify_one();
        }
    }

    /// The end of a turn, after every task that was ready has run: batches leave, then what clients have to be told, one
    /// write a connection.
    pub(crate) fn end_turn(&mut self) {
        self.turn();
        self.turn_open = false;
        self.flush_lanes();
        for key in std::mem::take(&mut self.dirty) {
            self.serve(key);
        }
        if !self.lanes.dirty.is_empty() {
            self.want_end();
        }
    }

    /// The client of a connection for logs.
    pub(crate) fn name_of(&self, key: ConnectionKey) -> String {
        let named = self.connections.identity(key);
        named.map_or_else(
            || "?".to_owned(),
            |it| format!("{}/{}", it.tenant, String::from_utf8_lossy(&it.client)),
        )
    }
}
