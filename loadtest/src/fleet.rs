//! Many MQTT clients at once: publishers that stamp and enter what they send into a ledger, and subscribers that enter
//! what they see. They reconnect by themselves, to the next target, and send again what was not acknowledged.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

pub use crate::tally::Counters;
use crate::{
    access::{Access, User},
    alarm::Alarm,
    clock::Clock,
    ledger::{Ledger, ReaderId},
    pace::{Pace, PhasePlan},
    publisher::{Orders, Publisher, Signal},
    subscriber::{self, Desk, Interest, Repeats},
    tally::{Latencies, Tally},
};

/// For connecting, and for the CONNACK.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// A publisher that fell behind its rate by more catches up no further: a pause is not followed by a flood.
const BEHIND_MAX: Duration = Duration::from_secs(1);
/// Until stopped.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

fn access(
    targets: Vec<String>,
    username: &str,
    password: &str,
    client_id: &str,
    keep_alive: Duration,
) -> Access {
    let users = vec![User { name: username.to_owned(), password: password.to_owned() }];
    let connecting = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
    let client_id = client_id.to_owned();
    Access { targets, sources: Vec::new(), users, client_id, keep_alive, limit: OPEN_TIMEOUT, connecting }
}

/// What publishers do.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// `host:port` of each broker; clients are spread over them, and go to the next when one fails.
    pub targets: Vec<String>,
    /// Tenant in the stamps.
    pub tenant: String,
    /// MQTT user name.
    pub username: String,
    /// Its password.
    pub password: String,
    /// Publishers.
    pub publishers: u64,
    /// Number of the first publisher: fleets that share a ledger have distinct numbers.
    pub first_publisher: u64,
    /// Client identifier; `{i}` is the publisher's number.
    pub client_id: String,
    /// Topic; `{i}` is the publisher's number.
    pub topic: String,
    /// Size of a payload, bytes; at least its stamp.
    pub payload_bytes: usize,
    /// 0 or 1.
    pub qos: u8,
    /// QoS 1 messages of one publisher without a PUBACK, at most.
    pub inflight: usize,
    /// Messages a second and publisher; None: as fast as PUBACKs come.
    pub rate: Option<f64>,
    /// Messages of each publisher; None: until stopped.
    pub messages: Option<u64>,
    /// MQTT keep-alive. A broker that is silent 1.5 times as long is left.
    pub keep_alive: Duration,
}

impl FleetConfig {
    /// One publisher, QoS 1, ten in flight, 64 bytes, as fast as it goes.
    pub fn new(targets: Vec<String>, tenant: &str, username: &str, password: &str) -> Self {
        Self {
            targets,
            tenant: tenant.into(),
            username: username.into(),
            password: password.into(),
            publishers: 1,
            first_publisher: 0,
            client_id: format!("{tenant}-{{i}}"),
            topic: "load/{i}".into(),
            payload_bytes: 64,
            qos: 1,
            inflight: 10,
            rate: None,
            messages: None,
            keep_alive: Duration::from_secs(4),
        }
    }

    fn orders(self) -> Orders {
        let rate = self.rate.filter(|rate| *rate > 0.0);
        let pace = rate.map_or(Pace::Max, |rate| Pace::steady(rate * self.publishers as f64));
        Orders {
            access: access(self.targets, &self.username, &self.password, &self.client_id, self.keep_alive),
            topic: self.topic,
            payload_bytes: self.payload_bytes,
            stamped: true,
            qos: self.qos,
            inflight: self.inflight,
            plan: vec![PhasePlan { start: Duration::ZERO, length: FOR_EVER, clients: self.publishers, pace }],
            messages: self.messages,
            one_more: 0,
            behind_max: Some(BEHIND_MAX),
            clock: Clock::now(),
        }
    }
}

/// What a fleet did.
#[derive(Debug)]
pub struct FleetReport {
    /// From when a message was due to its PUBACK.
    pub puback: Latencies,
    /// QoS 1 messages that were never acknowledged.
    pub unacked: u64,
    /// Publishers that did not end in time.
    pub unfinished: u64,
}

/// Publishers at work. Dropping it cuts their connections.
#[derive(Debug)]
pub struct Fleet {
    tasks: JoinSet<u64>,
    signal: watch::Sender<Signal>,
    tally: Arc<Tally>,
}

impl Fleet {
    /// Starts publishers. Needs a tokio runtime around it.
    ///
    /// # Panics
    /// When the system has no timer left.
    pub fn start(config: FleetConfig, ledger: &Ledger) -> Self {
        let signal = watch::Sender::new(Signal::Go(Instant::now()));
        let tally = Arc::new(Tally::default());
        let alarm = Alarm::start().unwrap_or_else(|error| panic!("no timer: {error}"));
        let (numbers, tenant) =
            (config.first_publisher..config.first_publisher + config.publishers, config.tenant.clone());
        let orders = Arc::new(config.orders());
        let mut tasks = JoinSet::new();
        for (place, number) in (0..).zip(numbers) {
            let entries = Some(ledger.publisher(number, &tenant));
            let (ticket, signal) = (alarm.ticket(), signal.subscribe());
            let publisher = Publisher::new(number, place, &orders, entries, &tally, ticket, signal);
            let alarm = alarm.clone();
            tasks.spawn(async move {
                let unacked = Box::pin(publisher.run()).await;
                drop(alarm);
                unacked
            });
        }
        Self { tasks, signal, tally }
    }

    /// Live counts.
    pub fn counters(&self) -> &Counters {
        &self.tally.counters
    }

    /// Whether a count has reached a number within a limit; for tests that wait for progress.
    pub async fn reached(&self, count: impl Fn(&Counters) -> u64, number: u64, limit: Duration) -> bool {
        let wait = async {
            while count(self.counters()) < number {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(limit, wait).await.is_ok()
    }

    /// Publishes nothing new, waits for what is in flight to be acknowledged, and ends.
    pub async fn stop(mut self, limit: Duration) -> FleetReport {
        self.signal.send_replace(Signal::Stop);
        self.report(limit).await
    }

    /// Waits until every publisher has sent its `messages`, and ends.
    pub async fn finish(mut self, limit: Duration) -> FleetReport {
        self.report(limit).await
    }

    async fn report(&mut self, limit: Duration) -> FleetReport {
        let (mut unacked, mut unfinished) = (0, 0);
        let collect = async {
            while let Some(ended) = self.tasks.join_next().await {
                match ended {
                    Ok(left) => unacked += left,
                    Err(_) => unfinished += 1,
                }
            }
        };
        let _ = timeout(limit, collect).await;
        unfinished += self.tasks.len() as u64;
        FleetReport { puback: self.tally.take().puback, unacked, unfinished }
    }
}

/// What a subscriber does.
#[derive(Debug, Clone)]
pub struct SubscriberConfig {
    /// `host:port` of each broker; the next one is taken when one fails.
    pub targets: Vec<String>,
    /// MQTT user name.
    pub username: String,
    /// Its password.
    pub password: String,
    /// Client identifier.
    pub client_id: String,
    /// MQTT filters.
    pub filters: Vec<String>,
    /// Requested QoS.
    pub qos: u8,
    /// MQTT keep-alive.
    pub keep_alive: Duration,
}

/// One subscriber at work. Dropping it cuts its connection.
#[derive(Debug)]
pub struct Subscriber {
    task: JoinSet<()>,
    tally: Arc<Tally>,
}

impl Subscriber {
    /// Starts a subscriber that enters what it gets into a ledger. Needs a tokio runtime around it.
    ///
    /// # Panics
    /// When the system has no timer left.
    pub fn start(config: SubscriberConfig, ledger: &Ledger, reader: ReaderId) -> Self {
        let tally = Arc::new(Tally::default());
        let alarm = Alarm::start().unwrap_or_else(|error| panic!("no timer: {error}"));
        let access =
            access(config.targets, &config.username, &config.password, &config.client_id, config.keep_alive);
        let interest = Interest {
            access,
            filters: config.filters,
            qos: config.qos,
            repeats: Repeats::MayCome,
            only_own: false,
            clock: Clock::now(),
        };
        let desk = Desk { ledger: ledger.clone(), reader };
        let subscriber =
            subscriber::Subscriber::new(0, &Arc::new(interest), Some(desk), &tally, alarm.ticket());
        let mut task = JoinSet::new();
        task.spawn(async move {
            Box::pin(subscriber.run()).await;
            drop(alarm);
        });
        Self { task, tally }
    }

    /// Whether all SUBACKs were in within a limit.
    pub async fn subscribed(&mut self, limit: Duration) -> bool {
        let wait = async {
            while Counters::get(&self.tally.counters.subscribed) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(limit, wait).await.is_ok()
    }

    /// Live counts.
    pub fn counters(&self) -> &Counters {
        &self.tally.counters
    }

    /// Cuts the connection.
    pub async fn stop(mut self) {
        self.task.shutdown().await;
    }
}
