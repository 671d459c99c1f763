//! A link: one shard of a gateway, as this router sees it. Everything that talks to a shard goes through here; nothing here
//! blocks, and every queue has a limit: a shard that does not keep up with control messages loses the link.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hashbrown::HashMap;
use penstock_common::position::EntryId;
use penstock_proto::link::{
    ControlDown, Deliver, Inspected, Push, PushResult, Settle, control_down, control_up, data_down,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    fan::ShardId,
    home::Home,
    outbox::{Closed, Outbox},
};

/// Control messages that may wait for one shard.
pub const CONTROL_QUEUE: usize = 16_384;
/// Pushes that may wait for their result on one link.
const PUSHES: usize = 65_536;
/// Bytes that may wait for a link before pushes to it are refused.
const PUSH_BYTES: usize = 16 << 20;
/// Kicks that may wait to be confirmed by one link.
const KICKS: usize = 65_536;
/// Control messages that may wait for one lane to open.
const OPENING: usize = 4_096;

/// The shard's number for its opening of a lane.
pub type LaneNumber = u32;

/// A lane as the link sees it.
pub enum LaneSlot {
    /// The term is being taken; what came for the lane meanwhile.
    Opening(Vec<control_up::Kind>),
    /// Open.
    Open(Arc<Home>),
}

/// A Deliver that the shard has not taken.
struct Untaken {
    delivery: u64,
    home: Arc<Home>,
    entry: EntryId,
    bytes: usize,
}

#[derive(Default)]
struct Deliveries {
    next: u64,
    untaken: VecDeque<Untaken>,
    bytes: usize,
}

/// One shard's link.
pub struct Link {
    /// Unique in this router's life.
    pub number: u64,
    /// Whose.
    pub shard: ShardId,
    /// Who numbers the records.
    pub producer: u64,
    /// For logs.
    pub node_id: String,
    /// The number that the shard chose, which its data stream names.
    pub chosen: u64,
    /// The data stream.
    pub data: Arc<Outbox>,
    /// Cancelled when either stream ended, the shard was silent, or a limit was passed.
    pub closed: CancellationToken,
    /// The snapshot of filters is in.
    pub snapshot: AtomicBool,
    /// The view of routers for which the shard has sent all its owners.
    pub synced: AtomicU64,
    control: mpsc::Sender<Result<ControlDown, Status>>,
    /// Milliseconds after `born`.
    heard: AtomicU64,
    born: Instant,
    lanes: Mutex<HashMap<LaneNumber, LaneSlot>>,
    deliveries: Mutex<Deliveries>,
    pushes: Mutex<HashMap<u64, oneshot::Sender<PushResult>>>,
    kicks: Mutex<HashMap<u64, (Weak<Link>, u64)>>,
    pub(crate) inspections: Mutex<HashMap<u64, oneshot::Sender<Inspected>>>,
    next_id: AtomicU64,
    /// Bytes of records that came and are not settled.
    unsettled: AtomicU64,
    data_open: AtomicBool,
    shut: AtomicBool,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link {} of {:x}/{}", self.number, self.shard.gateway, self.shard.shard)
    }
}

impl PartialEq for Link {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// A link whose shard has said hello.
    pub fn new(
        number: u64,
        shard: ShardId,
        producer: u64,
        node_id: String,
        chosen: u64,
        control: mpsc::Sender<Result<ControlDown, Status>>,
    ) -> Self {
        Self {
            number,
            shard,
            producer,
            node_id,
            chosen,
            data: Arc::default(),
            closed: CancellationToken::new(),
            snapshot: AtomicBool::new(false),
            synced: AtomicU64::new(0),
            control,
            heard: AtomicU64::new(0),
            born: Instant::now(),
            lanes: Mutex::default(),
            deliveries: Mutex::default(),
            pushes: Mutex::default(),
            kicks: Mutex::default(),
            inspections: Mutex::default(),
            next_id: AtomicU64::new(1),
            unsettled: AtomicU64::new(0),
            data_open: AtomicBool::new(false),
            shut: AtomicBool::new(false),
        }
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Something came from the shard.
    pub fn heard(&self) {
        let millis = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(millis, Ordering::Relaxed);
    }

    /// How long nothing came.
    pub fn silent(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.heard.load(Ordering::Relaxed)))
    }

    /// Sends a control message; a shard whose queue is full loses the link.
    pub fn tell(&self, kind: control_down::Kind) {
        if self.control.try_send(Ok(ControlDown { kind: Some(kind) })).is_err() {
            self.closed.cancel();
        }
    }

    /// Records came; None when more than `limit` bytes would be unsettled. What is returned gives them back when dropped.
    pub fn came(self: &Arc<Self>, bytes: u64, limit: u64) -> Option<Unsettled> {
        let before = self.unsettled.fetch_add(bytes, Ordering::AcqRel);
        let own = Unsettled { link: Arc::clone(self), bytes };
        (before < limit).then_some(own)
    }

    /// Tells the shard what became of its records.
    pub fn settle(&self, settles: impl Iterator<Item = Settle>) {
        self.data.settle(settles);
    }

    /// The link is usable for fan-out: open, with its snapshot.
    pub fn is_present(&self) -> bool {
        self.snapshot.load(Ordering::Acquire) && !self.closed.is_cancelled()
    }

    /// Bytes of Delivers that the shard has not taken.
    pub fn untaken_bytes(&self) -> usize {
        lock(&self.deliveries).bytes
    }

    /// Sends records of an entry.
    pub fn deliver(&self, home: &Arc<Home>, entry: EntryId, mut deliver: Deliver) -> Result<(), Closed> {
        let mut deliveries = lock(&self.deliveries);
        if self.closed.is_cancelled() {
            return Err(Closed);
        }
        deliveries.next += 1;
        deliver.delivery = deliveries.next;
        let bytes = deliver.records.len();
        deliveries.bytes += bytes;
        let untaken = Untaken { delivery: deliver.delivery, home: Arc::clone(home), entry, bytes };
        deliveries.untaken.push_back(untaken);
        self.data.send(data_down::Kind::Deliver(deliver))
    }

    /// The shard has taken every Deliver up to this one.
    pub fn taken(&self, delivery: u64) {
        let mut deliveries = lock(&self.deliveries);
        let mut taken: Vec<(Arc<Home>, EntryId)> = Vec::new();
        while deliveries.untaken.front().is_some_and(|first| first.delivery <= delivery) {
            let Some(first) = deliveries.untaken.pop_front() else { break };
            deliveries.bytes -= first.bytes;
            taken.push((first.home, first.entry));
        }
        drop(deliveries);
        for (home, entry) in taken {
            home.taken(self.shard, entry);
        }
    }

    /// Sends a push; the receiver gets its result, or an error when the link closes.
    pub fn push(&self, mut push: Push) -> Result<oneshot::Receiver<PushResult>, Closed> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let mut pushes = lock(&self.pushes);
        let full = pushes.len() >= PUSHES || self.data.waiting() > PUSH_BYTES;
        if self.closed.is_cancelled() || full {
            return Err(Closed);
        }
        pushes.insert(id, sender);
        drop(pushes);
        push.id = id;
        self.data.send(data_down::Kind::Push(push))?;
        Ok(receiver)
    }

    /// A push has its result.
    pub fn pushed(&self, result: PushResult) {
        if let Some(sender) = lock(&self.pushes).remove(&result.id) {
            // The caller may have given up waiting.
            let _ = sender.send(result);
        }
    }

    /// Pushes whose caller gave up are forgotten.
    pub fn sweep_pushes(&self) {
        lock(&self.pushes).retain(|_, sender| !sender.is_closed());
    }

    /// Passes a kick on to this shard; its confirmation goes back to `origin`, unless this router asks by itself.
    pub fn kick(&self, mut kick: penstock_proto::link::Kick, origin: Option<&Arc<Self>>) {
        if let Some(origin) = origin {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let mut kicks = lock(&self.kicks);
            if kicks.len() >= KICKS {
                kicks.clear();
            }
            kicks.insert(id, (Arc::downgrade(origin), kick.id));
            kick.id = id;
        } else {
            kick.id = 0;
        }
        self.tell(control_down::Kind::Kick(kick));
    }

    /// The shard confirms a kick.
    pub fn kicked(&self, id: u64) {
        let Some((origin, id)) = lock(&self.kicks).remove(&id) else { return };
        if let Some(origin) = origin.upgrade() {
            origin.tell(control_down::Kind::Kicked(penstock_proto::link::Kicked { id, gone: false }));
        }
    }

    /// A lane begins to open; false when the number is in use.
    pub fn opening(&self, lane: LaneNumber) -> bool {
        lock(&self.lanes).try_insert_opening(lane)
    }

    /// The lane is open: returns what came for it meanwhile.
    pub fn opened(&self, lane: LaneNumber, home: &Arc<Home>) -> Vec<control_up::Kind> {
        match lock(&self.lanes).insert(lane, LaneSlot::Open(Arc::clone(home))) {
            Some(LaneSlot::Opening(queued)) => queued,
            _ => Vec::new(),
        }
    }

    /// The home of an open lane, with the message for it. A message for a lane that is opening is kept until it is open;
    /// one for a lane that is closed or lost is dropped.
    pub fn route(
        &self,
        lane: LaneNumber,
        message: control_up::Kind,
    ) -> Option<(Arc<Home>, control_up::Kind)> {
        match lock(&self.lanes).get_mut(&lane)? {
            LaneSlot::Open(home) => Some((Arc::clone(home), message)),
            LaneSlot::Opening(queue) if queue.len() < OPENING => {
                queue.push(message);
                None
            }
            LaneSlot::Opening(_) => {
                self.closed.cancel();
                None
            }
        }
    }

    /// The lane's term is being taken.
    pub fn is_opening(&self, lane: LaneNumber) -> bool {
        matches!(lock(&self.lanes).get(&lane), Some(LaneSlot::Opening(_)))
    }

    /// The home of an open lane.
    pub fn lane(&self, lane: LaneNumber) -> Option<Arc<Home>> {
        match lock(&self.lanes).get(&lane) {
            Some(LaneSlot::Open(home)) => Some(Arc::clone(home)),
            _ => None,
        }
    }

    /// The data stream begins; false when there was one already.
    pub fn begin_data(&self) -> bool {
        !self.data_open.swap(true, Ordering::AcqRel)
    }

    /// The lane is closed or lost.
    pub fn close_lane(&self, lane: LaneNumber) -> Option<Arc<Home>> {
        match lock(&self.lanes).remove(&lane) {
            Some(LaneSlot::Open(home)) => Some(home),
            _ => None,
        }
    }

    /// Whether any lane is being opened: its owners are not known yet.
    pub fn opens_lanes(&self) -> bool {
        lock(&self.lanes).values().any(|slot| matches!(slot, LaneSlot::Opening(_)))
    }

    /// How many lanes are open or opening.
    pub fn lanes(&self) -> usize {
        lock(&self.lanes).len()
    }

    /// Ends everything; false when that was done before.
    pub fn shut(&self) -> bool {
        self.closed.cancel();
        if self.shut.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.data.close();
        lock(&self.pushes).clear();
        lock(&self.kicks).clear();
        lock(&self.inspections).clear();
        // Homes and links name each other: both let go.
        *lock(&self.deliveries) = Deliveries::default();
        lock(&self.lanes).clear();
        true
    }
}

/// Bytes that came on a link and are not settled.
pub struct Unsettled {
    link: Arc<Link>,
    bytes: u64,
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.link.unsettled.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

trait Opening {
    fn try_insert_opening(&mut self, lane: LaneNumber) -> bool;
}

impl Opening for HashMap<LaneNumber, LaneSlot> {
    fn try_insert_opening(&mut self, lane: LaneNumber) -> bool {
        let fresh = !self.contains_key(&lane);
        if fresh {
            self.insert(lane, LaneSlot::Opening(Vec::new()));
        }
        fresh
    }
}

/// Records are copied out of this many bytes of an entry at most when a link wants only some of them.
pub fn select(records: &Bytes, wanted: &[std::ops::Range<usize>], whole: bool) -> Bytes {
    if whole {
        return records.clone();
    }
    let bytes = wanted.iter().map(std::ops::Range::len).sum();
    let mut selected = Vec::with_capacity(bytes);
    for range in wanted {
        selected.extend_from_slice(records.get(range.clone()).unwrap_or_default());
    }
    selected.into()
}
