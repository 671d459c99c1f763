//! Pushes of which something is stored: those with a time to live wait in the client's mailbox, whoever holds its connection
//! and whether it has a session; those with a key are done once. Only the home that holds the term does either.
//!
//! A push that waits is handed out by the steps of the client's owner (`sessions`). The home remembers for whom pushes may
//! wait, so that an owner without a session is told to take a step, and who waits for a PUBACK; the first is read anew
//! when a term is taken, the second is lost with the home, and the receipt then says that the push waits.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use penstock_common::{
    clock::UnixMillis,
    name::{PartitionKey, TenantName, partition_of},
    store::{Begun, NewPush, PushKey, PushRefused, PushStep, Queued, SessionError, SteppedMail, StoreError},
};
use penstock_mqtt::topic;
use penstock_proto::{
    link::{Doorbell, Owner, data_down},
    messaging::{PushRequest, ReceiptStatus},
    record::Record,
};
use prost::Message as _;
use tokio::{sync::oneshot, time::Instant};
use tracing::debug;

use crate::{
    home::{Home, lock},
    homes::Homes,
    intake::Handed,
    link::Link,
    mail::limits,
    pace::Backoff,
    push::MOVING,
    route::{Outcome, refused},
};

/// How long the store is asked again for a push that can be repeated.
const STORE_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks at what became of a push with the same key.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Longest pause between two looks for pushes whose time is over.
const SWEEP_MOST: Duration = Duration::from_secs(60);

/// Client, and number of the message in its mailbox.
type Message = (Box<[u8]>, u64);

/// For whom pushes may wait at a home, and who waits for their PUBACKs.
#[derive(Default)]
pub(crate) struct Waiting {
    /// When the time of the last push is over.
    clients: Mutex<HashMap<Box<[u8]>, UnixMillis>>,
    /// Bounded by the pushes under way.
    receipts: Mutex<HashMap<Message, oneshot::Sender<()>>>,
    sweeping: AtomicBool,
}

impl Waiting {
    /// As the store has it.
    pub(crate) fn new(clients: Vec<(Bytes, UnixMillis)>) -> Self {
        let clients = clients.into_iter().map(|(client, until)| (client.as_ref().into(), until)).collect();
        Self { clients: Mutex::new(clients), ..Self::default() }
    }

    fn add(&self, client: &[u8], until: UnixMillis) {
        let mut clients = lock(&self.clients);
        let known = clients.entry(client.into()).or_default();
        *known = until.max(*known);
    }

    /// A PUBACK was seen for these.
    pub(crate) fn acknowledged(&self, client: &[u8], numbers: &[u64]) {
        let mut receipts = lock(&self.receipts);
        if receipts.is_empty() {
            return;
        }
        for number in numbers {
            if let Some(waits) = receipts.remove(&(client.into(), *number)) {
                // Whoever waited may have given up.
                let _ = waits.send(());
            }
        }
    }

    fn wait_for(&self, client: &[u8], number: u64) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut receipts = lock(&self.receipts);
        receipts.retain(|_, waits| !waits.is_closed());
        receipts.insert((client.into(), number), sender);
        receiver
    }

    /// When the next client has nothing waiting any more.
    fn next(&self) -> Option<UnixMillis> {
        lock(&self.clients).values().min().copied()
    }
}

/// What is told of a key that is known.
fn outcome_text(outcome: &Outcome) -> String {
    format!("done {} {}", outcome.0 as i32, outcome.1)
}

/// A push as its home does it.
struct Doing {
    home: Arc<Home>,
    client: Bytes,
    wait: Duration,
}

impl Homes {
    /// Does a push with a time to live or a key.
    pub(crate) async fn push_stored(
        self: &Arc<Self>,
        tenant: &TenantName,
        request: PushRequest,
        wait: Duration,
        handed: &Handed,
    ) -> Outcome {
        let Some(defined) = self.tenant(tenant) else { return refused("the tenant does not exist") };
        let client = Bytes::copy_from_slice(request.client.as_bytes());
        let partition = partition_of(&client, defined.tenant.partitions);
        let key = PartitionKey { tenant: tenant.clone(), partition };
        let home = match self.home_for_push(&key).await {
            Ok(Some(home)) => home,
            Ok(None) => return refused(MOVING),
            Err(error) => return of_store(&error),
        };
        let doing = Doing { home, client, wait };
        let named = (!request.idempotency_key.is_empty()).then(|| key_of(&request));
        if request.ttl_ms > 0 {
            let limits = limits(&defined.tenant.limits);
            let record = record(&request, self.seams.now_ms()).into();
            let push = NewPush { record, ttl_ms: request.ttl_ms, key: named, limits };
            return doing.queue(&request.topic, push, handed).await;
        }
        match named {
            Some(named) => doing.once(tenant, request, named, handed).await,
            None => self.push_to_client(tenant, request, wait, handed).await,
        }
    }

    /// The home of the partition on this router, taken now if rendezvous names this one (the holder, if it lives, may have no
    /// reason to let go by itself); None: it is elsewhere.
    async fn home_for_push(self: &Arc<Self>, key: &PartitionKey) -> Result<Option<Arc<Home>>, StoreError> {
        if let Some(home) = self.get(key) {
            return Ok(Some(home));
        }
        if self.is_named_elsewhere(key) {
            return Ok(None);
        }
        self.open(key).await.map(Some)
    }
}

fn key_of(request: &PushRequest) -> PushKey {
    let what = [request.topic.as_bytes(), &[u8::from(request.qos > 0)], &request.payload[..]];
    PushKey::new(request.idempotency_key.clone(), &what)
}

fn record(request: &PushRequest, now: UnixMillis) -> Vec<u8> {
    let record = Record {
        topic: Bytes::copy_from_slice(request.topic.as_bytes()),
        payload: request.payload.clone(),
        qos: 1,
        received_at: now,
        ..Record::default()
    };
    record.encode_to_vec()
}

fn of_store(error: &StoreError) -> Outcome {
    debug!(%error, "a push was not stored");
    refused("the store does not answer, or refuses: try again")
}

fn of_refusal(why: PushRefused) -> Outcome {
    refused(match why {
        PushRefused::MailboxFull => "the client's mailbox is full",
        PushRefused::KeyUsed => "the idempotency key is another push's",
        PushRefused::TooManyKeys => "too many idempotency keys are remembered: try again in some minutes",
    })
}

fn in_doubt() -> Outcome {
    let reason = "it was begun before, and what became of it is not known";
    (ReceiptStatus::Expired, 0, reason.to_owned())
}

impl Doing {
    /// Writes until the store has answered. What can be repeated is; else a lost answer is told.
    async fn until_stored<T, F: Future<Output = Result<T, SessionError>>>(
        &self,
        repeatable: bool,
        mut write: impl FnMut() -> F,
    ) -> Result<T, Outcome> {
        let deadline = Instant::now() + STORE_WITHIN;
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        loop {
            if self.home.lost().is_cancelled() {
                return Err(refused(MOVING));
            }
            match write().await {
                Ok(done) => return Ok(done),
                // A term that this router itself has raised meanwhile is no loss.
                Err(SessionError::Fenced | SessionError::Gone) => self.home.check_holder().await,
                Err(SessionError::Store(error)) if Instant::now() >= deadline || !repeatable => {
                    debug!(%error, "a push may be stored or not");
                    return Err(refused(
                        "the store did not answer: the push may wait or not; use an idempotency key",
                    ));
                }
                Err(SessionError::Store(error)) => debug!(%error, "a push waits for the store"),
            }
            backoff.pause(&self.home.homes.seams).await;
        }
    }

    /// Puts a push into the client's mailbox and has it fetched.
    async fn queue(&self, topic: &str, push: NewPush, handed: &Handed) -> Outcome {
        let home = &self.home;
        if let Some(session) = home.homes.kept.of(&home.key.tenant, &self.client)
            && !session.filters.iter().any(|it| it.qos > 0 && topic::matches(&it.filter, topic.as_bytes()))
        {
            return (ReceiptStatus::NotSubscribed, 0, String::new());
        }
        let store = &home.homes.store;
        let write = || store.queue_push(&home.key, home.term(), &self.client, &push);
        let queued = match self.until_stored(push.key.is_some(), write).await {
            Ok(queued) => queued,
            Err(outcome) => return outcome,
        };
        handed.over();
        match queued {
            Queued::Stored { number, expires_at } => {
                home.waiting.add(&self.client, expires_at);
                home.sweep_pushes();
                if let Some(owner) = home.owner(&self.client) {
                    home.ring_for_pushes(&owner.link, vec![self.client.clone()]);
                }
                self.fate(number, expires_at).await
            }
            Queued::Repeated(outcome) => self.repeated(&outcome).await,
            Queued::Refused(why) => of_refusal(why),
        }
    }

    /// What becomes of a push that waits, as far as that is waited for.
    async fn fate(&self, number: u64, expires_at: UnixMillis) -> Outcome {
        let queued = (ReceiptStatus::Queued, 0, String::new());
        if self.wait.is_zero() {
            return queued;
        }
        let home = &self.home;
        let acknowledged = home.waiting.wait_for(&self.client, number);
        let left = Duration::from_millis(expires_at.saturating_sub(home.homes.seams.now_ms()));
        // It may have been acknowledged before it was waited for.
        match home.homes.store.waits(&home.key, &self.client, number).await {
            Ok(false) if !left.is_zero() => return (ReceiptStatus::Delivered, 1, String::new()),
            _ => {}
        }
        tokio::select! {
            seen = acknowledged => match seen {
                Ok(()) => (ReceiptStatus::Delivered, 1, String::new()),
                Err(_) => queued,
            },
            () = tokio::time::sleep(left.min(self.wait)) => {
                if left <= self.wait {
                    (ReceiptStatus::Expired, 0, "no PUBACK was seen in its time".to_owned())
                } else {
                    (ReceiptStatus::Queued, 0, "no PUBACK was seen yet".to_owned())
                }
            }
            () = home.lost().cancelled() => queued,
        }
    }

    /// What is known of a push whose key has come again.
    async fn repeated(&self, known: &str) -> Outcome {
        let mut words = known.split(' ');
        let kind = words.next().unwrap_or_default();
        let numbers =
            (words.next().and_then(|it| it.parse().ok()), words.next().and_then(|it| it.parse().ok()));
        let (Some(first), Some(second)): (Option<u64>, Option<u64>) = numbers else { return in_doubt() };
        let (home, now) = (&self.home, self.home.homes.seams.now_ms());
        match kind {
            "done" => {
                let status = i32::try_from(first).ok().and_then(|it| ReceiptStatus::try_from(it).ok());
                let clients = u32::try_from(second).unwrap_or(u32::MAX);
                status.map_or_else(in_doubt, |status| (status, clients, String::new()))
            }
            "queued" => match home.homes.store.waits(&home.key, &self.client, first).await {
                Ok(true) if now < second => self.fate(first, second).await,
                Ok(true) => (ReceiptStatus::Expired, 0, String::new()),
                Ok(false) if now < second => (ReceiptStatus::Delivered, 1, String::new()),
                Ok(false) => in_doubt(),
                Err(error) => of_store(&error),
            },
            _ => in_doubt(),
        }
    }

    /// Does a push that does not wait, unless its key says that it was done. What had no effect frees the key.
    async fn once(
        &self,
        tenant: &TenantName,
        request: PushRequest,
        named: PushKey,
        handed: &Handed,
    ) -> Outcome {
        let (home, homes) = (&self.home, &self.home.homes);
        let deadline = Instant::now() + self.wait + STORE_WITHIN;
        loop {
            let write = || homes.store.begin_push(&home.key, home.term(), &self.client, &named);
            // A lost answer leaves a key without an outcome: the push was not done, and is not known to be.
            match self.until_stored(false, write).await {
                Ok(Begun::New) => break,
                // It is under way, here or with whoever asked first.
                Ok(Begun::Repeated(known)) if known.is_empty() && Instant::now() < deadline => {
                    handed.over();
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Ok(Begun::Repeated(known)) => return self.repeated(&known).await,
                Ok(Begun::Refused(why)) => return of_refusal(why),
                Err(outcome) => return outcome,
            }
        }
        let outcome = homes.push_to_client(tenant, request, self.wait, handed).await;
        let told = match outcome.0 {
            ReceiptStatus::Routed | ReceiptStatus::Delivered | ReceiptStatus::Expired => {
                Some(outcome_text(&outcome))
            }
            _ => None,
        };
        let write = || homes.store.end_push(&home.key, home.term(), &self.client, &named, told.as_deref());
        // Not written: who asks again is told that it is not known.
        let _ = self.until_stored(true, write).await;
        outcome
    }
}

impl Home {
    /// Tells a shard that pushes wait for those of these clients that it has attached.
    pub(crate) fn ring_waiting(&self, link: &Arc<Link>, owners: &[Owner]) {
        let clients: Vec<Bytes> = {
            let waiting = lock(&self.waiting.clients);
            if waiting.is_empty() {
                return;
            }
            let own = owners.iter().filter(|owner| waiting.contains_key(&owner.client[..]));
            own.map(|owner| owner.client.clone()).collect()
        };
        if !clients.is_empty() {
            self.ring_for_pushes(link, clients);
        }
    }

    fn ring_for_pushes(&self, link: &Link, clients: Vec<Bytes>) {
        let bell = Doorbell { tenant: self.key.tenant.to_string(), clients };
        // A link that closes now: the shard is told again when it attaches anew.
        let _ = link.data.send(data_down::Kind::Doorbell(bell));
    }

    /// A step of an owner without a session.
    pub(crate) async fn step_clean(
        &self,
        client: &Bytes,
        step: &PushStep,
    ) -> Result<SteppedMail, SessionError> {
        match self.homes.store.step_pushes(&self.key, self.term(), client, step).await {
            // Another connection of the client has a session now: this one is being kicked.
            Err(SessionError::Gone) => Ok(SteppedMail::default()),
            stepped => stepped,
        }
    }

    /// Makes sure that pushes whose time is over are removed.
    pub(crate) fn sweep_pushes(self: &Arc<Self>) {
        if self.waiting.next().is_some() && !self.waiting.sweeping.swap(true, Ordering::AcqRel) {
            tokio::spawn(Arc::clone(self).run_sweeps());
        }
    }

    async fn run_sweeps(self: Arc<Self>) {
        while let Some(next) = self.waiting.next() {
            // A little later, so that the store's clock agrees.
            let left = next.saturating_sub(self.homes.seams.now_ms()).saturating_add(1_000);
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(left).min(SWEEP_MOST)) => {}
                () = self.lost().cancelled() => return,
            }
            if self.waiting.next().is_none_or(|next| next > self.homes.seams.now_ms()) {
                continue;
            }
            match self.homes.store.expire_pushes(&self.key, self.term()).await {
                Ok((expired, clients)) => {
                    self.homes.metrics.mail_expired.inc_by(expired);
                    let now = self.homes.seams.now_ms();
                    let mut waiting = lock(&self.waiting.clients);
                    for client in clients {
                        // One that came meanwhile has a later time.
                        if waiting.get(&client[..]).is_some_and(|until| *until <= now) {
                            waiting.remove(&client[..]);
                        }
                    }
                }
                Err(SessionError::Fenced) => self.check_holder().await,
                Err(error) => debug!(%error, "pushes whose time is over stay a little longer"),
            }
        }
        self.waiting.sweeping.store(false, Ordering::Release);
        // One that came just now did not start another sweep.
        self.sweep_pushes();
    }
}
