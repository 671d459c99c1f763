//! Pushes judged by the ledger: devices that stay connected, and pushers that send a push again, with the same key, until its
//! receipt settles it. The account of a device numbers what is pushed to it; it has one push under way at a time, because the
//! order of a push that failed and later ones is nobody's promise.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mqttbytes::{QoS, v4::Packet};
use penstock_client::{Client, Push, PushError, Pusher, ReceiptStatus};
use penstock_loadtest::{
    ledger::{Ledger, ReaderId},
    stamp::Stamp,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{device::Device, tenant::TestTenant, wait::eventually};

/// What devices subscribe to.
const FILTER: &str = "cmd/#";
/// Where pushes go.
pub const TOPIC: &str = "cmd/x";
/// Between two pushes to a device, those that are sent again included.
const PACE: Duration = Duration::from_millis(20);
const TTL: Duration = Duration::from_secs(3_600);
/// For a PUBACK, also while partitions move.
const WAIT: Duration = Duration::from_secs(20);
/// Of each device, to be sent once more in the end.
const REMEMBERED: usize = 20;

/// Client identifier of a device.
pub fn client(number: u64) -> String {
    format!("pushed-{number}")
}

/// A message for a device.
pub fn stamp(tenant: &TestTenant, device: u64, sequence: u64, connection: u32) -> Stamp {
    Stamp { tenant: tenant.name.clone(), publisher: device, sequence, connection, sent_at: 0 }
}

/// Devices that are connected and subscribed, and enter what they get.
pub struct Receivers {
    tasks: JoinSet<()>,
    broken: Arc<AtomicU64>,
}

impl Receivers {
    /// So many, spread over the targets, each second one with clean session 0.
    ///
    /// # Panics
    /// When one can't connect.
    pub async fn connect(
        targets: &[String],
        tenant: &TestTenant,
        devices: u64,
        ledger: &Ledger,
        reader: ReaderId,
    ) -> Self {
        let mut own = Self { tasks: JoinSet::new(), broken: Arc::default() };
        for (number, target) in (0..devices).zip(targets.iter().flat_map(|target| [target; 2]).cycle()) {
            let client = client(number);
            let device = match number % 2 {
                0 => Device::connect(target, tenant, &client).await,
                _ => Device::resume(target, tenant, &client).await,
            };
            let mut device = device.expect("a device connects");
            device.subscribe(FILTER, QoS::AtLeastOnce).await;
            let (ledger, broken) = (ledger.clone(), Arc::clone(&own.broken));
            own.tasks.spawn(async move {
                while let Ok(packet) = device.wait().await {
                    let Packet::Publish(publish) = packet else { continue };
                    ledger.delivered(reader, &publish.payload, Some(number), publish.dup);
                    if device.acknowledge(publish.pkid).await.is_err() {
                        break;
                    }
                }
                broken.fetch_add(1, Ordering::Relaxed);
            });
        }
        own
    }

    /// Connections that have ended.
    pub fn broken(&self) -> u64 {
        self.broken.load(Ordering::Relaxed)
    }
}

/// How often each thing was answered.
pub type Answers = BTreeMap<String, u64>;

#[derive(Default)]
struct Counts {
    settled: AtomicU64,
    answers: Mutex<Answers>,
}

/// Pushers at work, each device served by one.
pub struct Pushing {
    tasks: JoinSet<One>,
    stop: watch::Sender<bool>,
    counts: Arc<Counts>,
}

/// What is pushed to one device.
struct One {
    tenant: TestTenant,
    device: u64,
    pusher: Pusher,
    ledger: Ledger,
    counts: Arc<Counts>,
    sequence: u64,
    last: Vec<Push>,
}

impl Pushing {
    /// Devices are dealt out to the clients.
    pub fn start(clients: &[Client], tenant: &TestTenant, devices: u64, ledger: &Ledger) -> Self {
        let (stop, counts) = (watch::Sender::new(false), Arc::<Counts>::default());
        let pushers: Vec<Pusher> = clients.iter().map(Client::pusher).collect();
        let mut tasks = JoinSet::new();
        // Both kinds of sessions at both gateways have each of them.
        let dealt = pushers.iter().flat_map(|pusher| [pusher; 4]).cycle();
        for (device, pusher) in (0..devices).zip(dealt) {
            ledger.publisher(device, &tenant.name);
            let one = One {
                tenant: tenant.clone(),
                device,
                pusher: pusher.clone(),
                ledger: ledger.clone(),
                counts: Arc::clone(&counts),
                sequence: 0,
                last: Vec::new(),
            };
            tasks.spawn(one.run(stop.subscribe()));
        }
        Self { tasks, stop, counts }
    }

    /// Waits until so many pushes more are settled.
    ///
    /// # Panics
    /// When the limit is over.
    pub async fn progress(&self, pushes: u64, limit: Duration) {
        let goal = self.counts.settled.load(Ordering::Relaxed) + pushes;
        let settled = || async { (self.counts.settled.load(Ordering::Relaxed) >= goal).then_some(()) };
        eventually(&format!("{pushes} pushes more: {:?}", self.answers()), limit, settled).await;
    }

    /// What was answered so far, errors included.
    pub fn answers(&self) -> Answers {
        self.counts.answers.lock().expect("not poisoned").clone()
    }

    /// Pushes nothing new, settles what is under way, and asks once more, with their keys, what became of the last ones: each
    /// must have been delivered.
    ///
    /// # Panics
    /// When the limit is over, or one was not.
    pub async fn stop(mut self, limit: Duration) -> Answers {
        self.stop.send_replace(true);
        loop {
            let ended = timeout(limit, self.tasks.join_next()).await;
            let Some(ended) = ended.unwrap_or_else(|_| panic!("pushes don't end: {:?}", self.answers()))
            else {
                break;
            };
            let one = ended.expect("no pusher panics");
            for push in &one.last {
                eventually("a push is known to be delivered", limit, || async {
                    let receipt = one.pusher.send(push.clone()).await.ok()?;
                    assert_ne!(receipt.status, ReceiptStatus::Expired, "{receipt:?}");
                    (receipt.status == ReceiptStatus::Delivered).then_some(())
                })
                .await;
            }
        }
        self.answers()
    }
}

impl One {
    async fn run(mut self, stop: watch::Receiver<bool>) -> Self {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*stop.borrow() {
            let stamp = stamp(&self.tenant, self.device, self.sequence, 1);
            self.ledger.sent(&stamp);
            let key = format!("{}-{}", self.device, self.sequence);
            let push = Push::new(TOPIC, stamp.encode(64)).client(client(self.device)).qos(1).ttl(TTL);
            let push = push.idempotency_key(key);
            // Some pushers wait for the PUBACK, some are content with the promise.
            let push = if self.device.is_multiple_of(3) { push } else { push.wait(WAIT) };
            loop {
                pace.tick().await;
                if self.settles(push.clone()).await {
                    break;
                }
            }
            self.ledger.acked(self.device, self.sequence);
            self.counts.settled.fetch_add(1, Ordering::Relaxed);
            self.sequence += 1;
            self.last.push(push);
            if self.last.len() > REMEMBERED {
                self.last.remove(0);
            }
        }
        self
    }

    /// Whether the push has been taken; otherwise it is to be sent again.
    async fn settles(&self, push: Push) -> bool {
        let (answer, settled) = match self.pusher.send(push).await {
            Ok(receipt) => match receipt.status {
                ReceiptStatus::Queued | ReceiptStatus::Delivered => (format!("{:?}", receipt.status), true),
                ReceiptStatus::Refused => (format!("Refused {}", receipt.reason), false),
                _ => panic!("a push that waits for a connected device ends in {receipt:?}"),
            },
            Err(PushError::InDoubt(_)) => ("InDoubt".to_owned(), false),
            Err(PushError::Unavailable(_)) => ("Unavailable".to_owned(), false),
            Err(error) => panic!("{error}"),
        };
        *self.counts.answers.lock().expect("not poisoned").entry(answer).or_default() += 1;
        settled
    }
}
