//! One transaction of ownership operations: what goes in, and what its answer means.
//!
//! Every value that is put carries a number that no other put has. So a put whose outcome was unknown is recognised when
//! it turns out to be there, and is neither taken for somebody else's ownership nor for a takeover.

use etcd_client::{DeleteOptions, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};

use super::*;

/// An owner as stored.
#[derive(serde::Serialize, serde::Deserialize)]
struct Stored {
    #[serde(flatten)]
    owner: Owner,
    nonce: u64,
}

/// An operation that a lane has taken.
pub(super) struct Item {
    pub client: ClientKey,
    pub op: Op,
    /// Tried before, with an unknown outcome.
    pub doubtful: bool,
    /// What is put, or what a `Forget` removes.
    value: Vec<u8>,
    /// The revision to delete, or to put over.
    revision: Option<i64>,
}

impl Item {
    pub fn new(client: ClientKey, op: Op) -> Self {
        Self { client, op, doubtful: false, value: Vec::new(), revision: None }
    }

    /// Whether it needs a lease.
    pub fn puts(&self) -> bool {
        matches!(self.op, Op::Claim { .. } | Op::Adopt { .. } | Op::Renew { .. })
    }

    /// What it puts if it puts on a condition, so that an attempt that was carried out keeps later ones from it.
    fn puts_once(&self) -> Option<&[u8]> {
        matches!(self.op, Op::Adopt { .. } | Op::Renew { .. }).then_some(self.value.as_slice())
    }
}

/// The transaction; `lease` is for what it puts.
pub(super) fn transaction(keys: &Keys, batch: &[Item], lease: i64) -> Txn {
    let operations: Vec<TxnOp> = batch.iter().map(|item| operation(keys, item, lease)).collect();
    Txn::new().and_then(operations)
}

fn operation(keys: &Keys, item: &Item, lease: i64) -> TxnOp {
    let key = keys.owner(&item.client);
    let key = key.as_str();
    let options = PutOptions::new().with_lease(lease);
    let put = || TxnOp::put(key, item.value.clone(), Some(options.clone()));
    let delete = || TxnOp::delete(key, None::<DeleteOptions>);
    let at = |revision| Compare::mod_revision(key, CompareOp::Equal, revision);
    match &item.op {
        Op::Claim { .. } => TxnOp::put(key, item.value.clone(), Some(options.with_prev_key())),
        Op::Adopt { .. } | Op::Renew { .. } => {
            let create = Txn::new()
                .when([Compare::create_revision(key, CompareOp::Equal, 0)])
                .and_then([put()])
                .or_else([TxnOp::get(key, None::<GetOptions>)]);
            match item.revision {
                None => TxnOp::txn(create),
                Some(revision) => TxnOp::txn(
                    Txn::new().when([at(revision)]).and_then([put()]).or_else([TxnOp::txn(create)]),
                ),
            }
        }
        // No key has a revision below 0: without a revision nothing is deleted.
        Op::Release { .. } => {
            TxnOp::txn(Txn::new().when([at(item.revision.unwrap_or(-1))]).and_then([delete()]))
        }
        Op::Forget => {
            let ours = Compare::value(key, CompareOp::Equal, item.value.clone());
            TxnOp::txn(Txn::new().when([ours]).and_then([delete()]))
        }
    }
}

impl Claims {
    /// Drops what nobody wants any more, and completes the rest from what is held now.
    pub(super) fn prepare(&self, batch: &mut Vec<Item>) {
        let mut state = self.state();
        batch.retain_mut(|item| {
            let keep = self.complete(&state, item);
            if !keep {
                state.queue.done(&item.client);
            }
            keep
        });
        let ready = state.queue.is_ready();
        drop(state);
        if ready {
            self.wake.notify_one();
        }
    }

    fn complete(&self, state: &State, item: &mut Item) -> bool {
        let held = state.holdings.get(&item.client);
        let wanted = match &item.op {
            Op::Claim { owner, reply } => (!reply.is_closed()).then_some(*owner),
            Op::Adopt { owner, provisional, superseded } => {
                item.revision = item.revision.or(superseded.and_then(revision_of));
                let wanted = state.adopts.contains(&(item.client.clone(), *provisional));
                wanted.then_some(*owner)
            }
            Op::Renew { epoch } => {
                item.revision = item.revision.or(revision_of(*epoch));
                held.filter(|held| held.epoch == *epoch).map(|held| held.owner)
            }
            Op::Release { epoch } => {
                let held = held.filter(|held| held.is(*epoch));
                item.revision = held.and_then(|held| revision_of(held.epoch));
                return item.revision.is_some();
            }
            Op::Forget => return true,
        };
        match wanted {
            Some(owner) => {
                if item.value.is_empty() {
                    let stored = Stored { owner, nonce: self.nonce.fetch_add(1, Ordering::Relaxed) };
                    // Numbers and a list: this can't fail.
                    item.value = serde_json::to_vec(&stored).unwrap_or_default();
                }
                true
            }
            None if item.doubtful => {
                item.op = Op::Forget;
                true
            }
            None => false,
        }
    }

    /// Takes in an answer. An error leaves in `batch` what is to be tried again.
    pub(super) async fn apply(
        &self,
        batch: &mut Vec<Item>,
        response: &TxnResponse,
        lease: i64,
    ) -> Result<(), CallError> {
        let epoch = epoch_of(response.header().map_or(0, etcd_client::ResponseHeader::revision));
        let answers = response.op_responses();
        if answers.len() != batch.len() {
            batch.iter_mut().for_each(|item| item.doubtful = true);
            return Err(CallError::Unavailable("an answer of another length than its question".to_owned()));
        }
        let mut again = Vec::new();
        for (mut item, answer) in batch.drain(..).zip(answers) {
            if let Some(revision) = item.puts_once().and_then(|value| stale(&answer, value, lease)) {
                item.revision = Some(revision);
                again.push(item);
                continue;
            }
            let client = item.client.clone();
            // Before the client's next operation begins, so that events of one client are in order.
            if let Some(event) = self.decide(item, &answer, epoch, lease).await {
                self.tell(event).await;
            }
            self.state().queue.done(&client);
        }
        self.settle();
        *batch = again;
        // What is left is under a lease that may be gone.
        if batch.is_empty() { Ok(()) } else { Err(CallError::LeaseGone) }
    }

    /// What an operation came to.
    async fn decide(
        &self,
        item: Item,
        answer: &TxnOpResponse,
        epoch: Epoch,
        lease: i64,
    ) -> Option<OwnershipEvent> {
        let Item { client, op, value, .. } = item;
        match op {
            Op::Claim { owner, reply } => {
                let previous = match answer {
                    TxnOpResponse::Put(put) => self.previous(&client, put.prev_key()).await,
                    _ => None,
                };
                let held = Held { owner, epoch, since: epoch, lease };
                self.hold(&client, held, || reply.send(Ok(Claim { epoch, previous })).is_ok());
                None
            }
            Op::Adopt { owner, provisional, .. } => {
                let won = won(answer, &value, epoch);
                self.adopted(client, owner, provisional, won, lease)
            }
            Op::Renew { epoch: old } => self.renewed(client, old, won(answer, &value, epoch), lease),
            Op::Release { .. } => {
                self.state().holdings.remove(&client);
                None
            }
            Op::Forget => None,
        }
    }

    /// An ownership was won. If nobody `takes` it, it is given up again.
    fn hold(&self, client: &ClientKey, mut held: Held, takes: impl FnOnce() -> bool) -> bool {
        let epoch = held.epoch;
        let mut state = self.state();
        let lost = !state.holdings.has(held.lease);
        if lost {
            held.lease = 0;
        }
        state.holdings.insert(client.clone(), held);
        drop(state);
        let taken = takes();
        let mut state = self.state();
        if !taken {
            state.push(client.clone(), Op::Release { epoch });
        } else if lost {
            state.push(client.clone(), Op::Renew { epoch });
        }
        taken
    }

    /// An adoption is decided; whether it was still wanted.
    fn unlist(&self, client: &ClientKey, provisional: Epoch) -> bool {
        self.state().adopts.remove(&(client.clone(), provisional))
    }

    fn adopted(
        &self,
        client: ClientKey,
        owner: Owner,
        old: Epoch,
        won: Option<Epoch>,
        lease: i64,
    ) -> Option<OwnershipEvent> {
        let shard = owner.shard;
        let Some(new) = won else {
            let wanted = self.unlist(&client, old);
            return wanted.then_some(OwnershipEvent::Superseded { shard, client, old });
        };
        let held = Held { owner, epoch: new, since: old, lease };
        let wanted = self.hold(&client, held, || self.unlist(&client, old));
        wanted.then_some(OwnershipEvent::Renewed { shard, client, old, new })
    }

    fn renewed(
        &self,
        client: ClientKey,
        old: Epoch,
        won: Option<Epoch>,
        lease: i64,
    ) -> Option<OwnershipEvent> {
        let held = *self.state().holdings.get(&client)?;
        let shard = held.owner.shard;
        let Some(new) = won else {
            self.state().holdings.remove(&client);
            return Some(OwnershipEvent::Superseded { shard, client, old });
        };
        self.hold(&client, Held { epoch: new, lease, ..held }, || true);
        Some(OwnershipEvent::Renewed { shard, client, old, new })
    }

    async fn tell(&self, event: OwnershipEvent) {
        let heard = self.listener.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        if heard {
            // Fails only when the listener is gone, and then nobody wants it.
            let _ = self.events.send(event).await;
        }
    }

    fn settle(&self) {
        let mut state = self.state();
        for lease in state.holdings.drained() {
            self.config.leases.forget(lease);
        }
        if state.queue.is_ready() {
            self.wake.notify_one();
        }
    }

    /// The ownership that a claim replaced. What it replaced may be a claim of this process's that was doubtful: then the
    /// one before that is meant.
    async fn previous(&self, client: &ClientKey, replaced: Option<&KeyValue>) -> Option<(Owner, Epoch)> {
        let replaced = replaced?;
        let (owner, nonce) = read(replaced)?;
        let epoch = epoch_of(replaced.mod_revision());
        let held = self.state().holdings.get(client).is_some_and(|held| held.epoch == epoch);
        let made_here = (self.config.nonce..self.nonce.load(Ordering::Relaxed)).contains(&nonce);
        if held || !made_here {
            return Some((owner, epoch));
        }
        let key = self.config.keys.owner(client);
        let (key, before) = (key.as_str(), replaced.mod_revision() - 1);
        let read_before = |client| async move {
            kv_client(&client).get(key, Some(GetOptions::new().with_revision(before))).await
        };
        match self.config.connection.call(read_before).await {
            Ok(answer) => {
                let kv = answer.value.kvs().first()?.clone();
                Some((read(&kv)?.0, epoch_of(kv.mod_revision())))
            }
            Err(error) => {
                tracing::warn!(?client, %error, "whom a doubtful claim replaced can't be read");
                None
            }
        }
    }
}

fn read(kv: &KeyValue) -> Option<(Owner, u64)> {
    match serde_json::from_slice::<Stored>(kv.value()) {
        Ok(stored) => Some((stored.owner, stored.nonce)),
        Err(error) => {
            tracing::warn!(%error, "etcd holds an unreadable owner; it is passed over");
            None
        }
    }
}

/// The epoch that a conditional put won: by this transaction, or by an attempt before it.
fn won(answer: &TxnOpResponse, value: &[u8], epoch: Epoch) -> Option<Epoch> {
    match answer {
        TxnOpResponse::Put(_) => Some(epoch),
        // Levels: over what was superseded, else created, else what is there.
        TxnOpResponse::Txn(inner) => won(inner.op_responses().first()?, value, epoch),
        TxnOpResponse::Get(get) => {
            let ours = get.kvs().first().filter(|kv| kv.value() == value);
            ours.map(|kv| epoch_of(kv.mod_revision()))
        }
        TxnOpResponse::Delete(_) => None,
    }
}

/// The revision of what an earlier attempt put under another lease, which may be gone: to be put over.
fn stale(answer: &TxnOpResponse, value: &[u8], lease: i64) -> Option<i64> {
    match answer {
        TxnOpResponse::Txn(inner) => stale(inner.op_responses().first()?, value, lease),
        TxnOpResponse::Get(get) => {
            let ours = get.kvs().first().filter(|kv| kv.value() == value && kv.lease() != lease);
            ours.map(KeyValue::mod_revision)
        }
        _ => None,
    }
}
