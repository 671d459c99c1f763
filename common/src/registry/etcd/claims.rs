//! Ownerships of this process in etcd: claims, adoptions, renewals and releases, committed in groups by a few lanes. It
//! closes no connections: what became of an ownership is told as an [`OwnershipEvent`].
//!
//! Invariants:
//! * Operations of one client are carried out one at a time, in the order in which they were asked.
//! * An operation whose outcome is unknown stays with its lane, repeated, until its outcome is known; so at most
//!   `LANES × OPERATIONS_MAX` claims can be there without anybody knowing, and each of those is resolved before its
//!   client's next operation: a claim that nobody waits for any more is removed.
//! * Waiting claims are bounded; everything else that waits belongs to an ownership of this process, of which there is
//!   one a connection.

mod commit;
mod holdings;
mod queue;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue};
use tokio::{
    sync::{Mutex as AsyncMutex, Notify, Semaphore, mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    commit::Item,
    holdings::{Held, Holdings},
    queue::Queue,
};
use super::{
    connection::{CALL_DEADLINE, CallError, Connection, kv_client},
    keys::Keys,
    leases::Leases,
};
use crate::{
    epoch::Epoch,
    name::ClientKey,
    registry::{Claim, ClaimError, Owner, OwnershipEvent, RegistryError},
};

/// Claims that may wait at a time.
const CLAIMS_MAX: usize = 16_384;
/// Transactions in flight at a time: with fewer, each carries more claims, and a transaction costs etcd as much as some ten
/// claims do; with one, a claim would wait for two of them.
const LANES: usize = 2;
/// Etcd allows 128 operations a transaction, counting levels: 126, one conditional each, one more in its other branch.
const OPERATIONS_MAX: usize = 126;
/// Operations that nobody wants any more are swept out when there are this many.
const DEAD_MAX: usize = 1_024;
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// What is to be done with a client's key.
enum Op {
    /// Put, whatever is there.
    Claim { owner: Owner, reply: oneshot::Sender<Result<Claim, ClaimError>> },
    /// Put if nothing is there, or exactly `superseded`.
    Adopt { owner: Owner, provisional: Epoch, superseded: Option<Epoch> },
    /// Put again after the lease was lost, if nothing is there, or still this.
    Renew { epoch: Epoch },
    /// Delete if it is still this.
    Release { epoch: Epoch },
    /// Delete what an abandoned claim may have put.
    Forget,
}

struct State {
    queue: Queue<Op>,
    holdings: Holdings,
    /// Adoptions that are still wanted.
    adopts: HashSet<(ClientKey, Epoch)>,
    dead: usize,
}

/// What the claims need.
pub(super) struct ClaimsConfig {
    pub connection: Arc<Connection>,
    pub leases: Arc<Leases>,
    pub keys: Keys,
    /// Keys on one lease.
    pub lease_block: u32,
    pub stop: CancellationToken,
    /// Where the numbers start that make each written value unique.
    pub nonce: u64,
}

/// The ownerships of this process.
pub(super) struct Claims {
    config: ClaimsConfig,
    state: Mutex<State>,
    wake: Notify,
    waiting: Semaphore,
    granting: AsyncMutex<()>,
    nonce: AtomicU64,
    /// Lowered when an etcd is set up to allow fewer.
    operations_max: AtomicUsize,
    events: mpsc::Sender<OwnershipEvent>,
    listener: Mutex<Option<mpsc::Receiver<OwnershipEvent>>>,
}

/// Events that may wait to be taken; more hold up the lanes.
const EVENTS_MAX: usize = 1_024;

impl Claims {
    /// Starts the lanes and the renewal of leases; they end with `stop`.
    pub fn start(config: ClaimsConfig) -> Arc<Self> {
        let (events, listener) = mpsc::channel(EVENTS_MAX);
        let state = State {
            queue: Queue::default(),
            holdings: Holdings::new(config.lease_block),
            adopts: HashSet::new(),
            dead: 0,
        };
        let claims = Arc::new(Self {
            nonce: AtomicU64::new(config.nonce),
            config,
            state: Mutex::new(state),
            wake: Notify::new(),
            waiting: Semaphore::new(CLAIMS_MAX),
            granting: AsyncMutex::new(()),
            operations_max: AtomicUsize::new(OPERATIONS_MAX),
            events,
            listener: Mutex::new(Some(listener)),
        });
        for _ in 0..LANES {
            claims.spawn(|claims| async move { claims.work().await });
        }
        claims.spawn(|claims| async move { claims.renew_leases().await });
        claims
    }

    fn spawn<F: Future<Output = ()> + Send>(
        self: &Arc<Self>,
        task: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) {
        let (claims, stop) = (self.clone(), self.config.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task(claims) => {}
            }
        });
    }

    /// The receiver of events, once.
    pub fn events(&self) -> Option<mpsc::Receiver<OwnershipEvent>> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub async fn claim(&self, client: ClientKey, owner: Owner) -> Result<Claim, ClaimError> {
        let Ok(_permit) = self.waiting.try_acquire() else { return Err(ClaimError::Busy) };
        let (reply, answer) = oneshot::channel();
        self.push(client, Op::Claim { owner, reply });
        let gone = || ClaimError::Unavailable("this process is leaving".to_owned());
        let outcome = tokio::select! {
            outcome = timeout(CALL_DEADLINE, answer) => outcome,
            () = self.config.stop.cancelled() => return Err(gone()),
        };
        match outcome {
            Ok(answer) => answer.unwrap_or_else(|_| Err(gone())),
            Err(_) => {
                self.died();
                Err(ClaimError::Unavailable(format!("no answer within {CALL_DEADLINE:?}")))
            }
        }
    }

    pub fn adopt(&self, client: ClientKey, owner: Owner, provisional: Epoch, superseded: Option<Epoch>) {
        self.state().adopts.insert((client.clone(), provisional));
        self.push(client, Op::Adopt { owner, provisional, superseded });
    }

    pub fn release(&self, client: ClientKey, epoch: Epoch) {
        let held = {
            let mut state = self.state();
            let wanted = (client.clone(), epoch);
            if state.adopts.remove(&wanted) {
                drop(state);
                self.died();
                return;
            }
            state.holdings.get(&client).is_some_and(|held| held.is(epoch))
        };
        if held {
            self.push(client, Op::Release { epoch });
        }
    }

    /// The present owner, read with a quorum.
    pub async fn owner(&self, client: &ClientKey) -> Result<Option<(Owner, Epoch)>, RegistryError> {
        let key = self.config.keys.owner(client);
        let key = key.as_str();
        let read = |client| async move { kv_client(&client).get(key, None).await };
        let found =
            self.config.connection.call(read).await.map_err(|error| super::unavailable(&error))?.value;
        let Some(kv) = found.kvs().first() else { return Ok(None) };
        let owner = serde_json::from_slice(kv.value())
            .map_err(|error| RegistryError::Corrupt(format!("owner of {client:?}: {error}")))?;
        Ok(Some((owner, epoch_of(kv.mod_revision()))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, client: ClientKey, op: Op) {
        self.state().push(client, op);
        self.wake.notify_one();
    }

    /// One more operation that waits for nobody.
    fn died(&self) {
        let mut state = self.state();
        state.dead += 1;
        // Each sweep takes out what died since the last, so its cost is spread over many.
        if state.dead >= DEAD_MAX.max(state.queue.len() / 2) {
            let State { queue, adopts, dead, .. } = &mut *state;
            queue.retain(|client, op| match op {
                Op::Claim { reply, .. } => !reply.is_closed(),
                Op::Adopt { provisional, .. } => adopts.contains(&(client.clone(), *provisional)),
                _ => true,
            });
            *dead = 0;
        }
    }

    async fn work(&self) {
        loop {
            let batch = self.next().await;
            self.commit(batch).await;
        }
    }

    /// What comes next, at most one operation a client.
    async fn next(&self) -> Vec<Item> {
        loop {
            let notified = self.wake.notified();
            let batch = {
                let mut state = self.state();
                let batch = state.queue.take(self.operations_max.load(Ordering::Relaxed));
                if state.queue.is_ready() {
                    self.wake.notify_one();
                }
                batch
            };
            if !batch.is_empty() {
                return batch.into_iter().map(|(client, op)| Item::new(client, op)).collect();
            }
            notified.await;
        }
    }

    /// Carries a batch out, however long that takes.
    async fn commit(&self, mut batch: Vec<Item>) {
        let mut pause = PAUSE_MIN;
        loop {
            self.prepare(&mut batch);
            if batch.is_empty() {
                return;
            }
            match self.attempt(&mut batch).await {
                Ok(()) => return,
                Err(CallError::LeaseGone) => {}
                Err(error) if error.is_size() => return self.refused(batch, &error.to_string()),
                Err(error) => {
                    tracing::debug!(%error, operations = batch.len(), "ownerships not committed yet");
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    async fn attempt(&self, batch: &mut Vec<Item>) -> Result<(), CallError> {
        let puts = batch.iter().filter(|item| item.puts()).count();
        let lease = if puts == 0 { 0 } else { self.reserve(puts).await? };
        let txn = commit::transaction(&self.config.keys, batch, lease);
        let send = |client| {
            let txn = txn.clone();
            async move { kv_client(&client).txn(txn).await }
        };
        let outcome = self.config.connection.call(send).await;
        match outcome {
            Ok(answer) => {
                batch.iter_mut().for_each(|item| item.doubtful |= answer.doubted);
                let outcome = self.apply(batch, &answer.value, lease).await;
                self.state().holdings.unreserve(lease, puts);
                outcome
            }
            Err(error) => {
                self.state().holdings.unreserve(lease, puts);
                match error {
                    CallError::LeaseGone => self.lost(&HashSet::from([lease])),
                    CallError::Unavailable(_) => batch.iter_mut().for_each(|item| item.doubtful = true),
                    CallError::Refused(_) => {}
                }
                Err(error)
            }
        }
    }

    /// A lease with room for so many more keys.
    async fn reserve(&self, keys: usize) -> Result<i64, CallError> {
        if let Some(lease) = self.state().holdings.reserve(keys) {
            return Ok(lease);
        }
        let _one = self.granting.lock().await;
        if let Some(lease) = self.state().holdings.reserve(keys) {
            return Ok(lease);
        }
        let lease = self.config.leases.grant().await?;
        Ok(self.state().holdings.open(lease, keys))
    }

    /// Etcd refuses the whole transaction: try with fewer, down to one, which then fails.
    fn refused(&self, batch: Vec<Item>, reason: &str) {
        let fewer = batch.len() / 2;
        if fewer > 0 {
            tracing::warn!(reason, fewer, "etcd refuses a transaction of this size");
            self.operations_max.store(fewer, Ordering::Relaxed);
        }
        let mut state = self.state();
        for item in batch {
            if fewer > 0 {
                state.queue.put_back(item.client, item.op);
                continue;
            }
            tracing::error!(client = ?item.client, reason, "etcd refuses an ownership");
            if let Op::Adopt { provisional, .. } = item.op {
                state.adopts.remove(&(item.client.clone(), provisional));
            } else if let Op::Claim { reply, .. } = item.op {
                let _ = reply.send(Err(ClaimError::Unavailable(reason.to_owned())));
            }
            state.queue.done(&item.client);
        }
        drop(state);
        self.wake.notify_one();
    }

    async fn renew_leases(&self) {
        loop {
            sleep(self.config.leases.interval()).await;
            let leases = self.state().holdings.leases();
            let lost = self.config.leases.renew_all(leases).await;
            if !lost.is_empty() {
                tracing::warn!(leases = lost.len(), "ownership leases lost; registering again");
                self.lost(&lost);
            }
        }
    }

    /// Everything that hung on these leases is to be registered again, unless another claimed it meanwhile.
    fn lost(&self, leases: &HashSet<i64>) {
        leases.iter().for_each(|lease| self.config.leases.forget(*lease));
        let mut state = self.state();
        for (client, epoch) in state.holdings.lose(leases) {
            state.push(client, Op::Renew { epoch });
        }
        for lease in state.holdings.drained() {
            self.config.leases.forget(lease);
        }
        drop(state);
        self.wake.notify_one();
    }
}

impl State {
    fn push(&mut self, client: ClientKey, op: Op) {
        // A device that waits for its CONNACK goes before renewals of many.
        let urgent = !matches!(op, Op::Renew { .. });
        self.queue.push(client, op, urgent);
    }
}

fn epoch_of(revision: i64) -> Epoch {
    Epoch::real(u64::try_from(revision).unwrap_or(0))
}

fn revision_of(epoch: Epoch) -> Option<i64> {
    epoch.revision().and_then(|revision| i64::try_from(revision).ok())
}
