//! Many MQTT clients at once: publishers that stamp and enter what they send into a ledger, and subscribers that enter
//! what they see. They reconnect by themselves, to the next target, and send again what was not acknowledged.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::{
    ledger::{Ledger, ReaderId},
    publisher, subscriber,
};

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
    /// Client identifier; `{n}` is the publisher's number.
    pub client_id: String,
    /// Topic; `{n}` is the publisher's number.
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
            client_id: format!("{tenant}-{{n}}"),
            topic: "load/{n}".into(),
            payload_bytes: 64,
            qos: 1,
            inflight: 10,
            rate: None,
            messages: None,
            keep_alive: Duration::from_secs(4),
        }
    }
}

/// Counts while a fleet runs.
#[derive(Debug, Default)]
pub struct Counters {
    /// Clients with a connection now.
    pub connected: AtomicU64,
    /// Connections that broke.
    pub broken: AtomicU64,
    /// Connections that could not be made.
    pub refused: AtomicU64,
    /// PUBLISH packets sent, each time.
    pub published: AtomicU64,
    /// PUBACKs received for messages in flight.
    pub acked: AtomicU64,
    /// PUBACKs that did not come in the order of the publishes ([MQTT-4.6.0-2]).
    pub acked_out_of_order: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn subtract(counter: &AtomicU64) {
        counter.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a fleet did.
#[derive(Debug)]
pub struct FleetReport {
    /// From the first sending of a message to its PUBACK, microseconds.
    pub puback_micros: Histogram<u64>,
    /// QoS 1 messages that were never acknowledged.
    pub unacked: u64,
    /// Publishers that did not end in time.
    pub unfinished: u64,
}

/// Publishers at work. Dropping it cuts their connections.
#[derive(Debug)]
pub struct Fleet {
    tasks: JoinSet<publisher::Report>,
    stop: watch::Sender<bool>,
    counters: Arc<Counters>,
}

impl Fleet {
    /// Starts publishers. Needs a tokio runtime around it.
    pub fn start(config: FleetConfig, ledger: &Ledger) -> Self {
        let (stop, stopping) = watch::channel(false);
        let counters = Arc::new(Counters::default());
        let config = Arc::new(config);
        let mut tasks = JoinSet::new();
        for at in 0..config.publishers {
            let number = config.first_publisher + at;
            let (ledger, counters) = (ledger.clone(), Arc::clone(&counters));
            tasks.spawn(publisher::run(number, Arc::clone(&config), ledger, counters, stopping.clone()));
        }
        Self { tasks, stop, counters }
    }

    /// Live counts.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether a count has reached a number within a limit; for tests that wait for progress.
    pub async fn reached(&self, count: impl Fn(&Counters) -> u64, number: u64, limit: Duration) -> bool {
        let wait = async {
            while count(&self.counters) < number {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(limit, wait).await.is_ok()
    }

    /// Publishes nothing new, waits for what is in flight to be acknowledged, and ends.
    pub async fn stop(mut self, limit: Duration) -> FleetReport {
        self.stop.send_replace(true);
        self.report(limit).await
    }

    /// Waits until every publisher has sent its `messages`, and ends.
    pub async fn finish(mut self, limit: Duration) -> FleetReport {
        self.report(limit).await
    }

    async fn report(&mut self, limit: Duration) -> FleetReport {
        let mut report = FleetReport { puback_micros: publisher::histogram(), unacked: 0, unfinished: 0 };
        let collect = async {
            while let Some(ended) = self.tasks.join_next().await {
                match ended {
                    Ok(one) => {
                        report.unacked += one.unacked;
                        // Same bounds, so it always fits.
                        let _ = report.puback_micros.add(&one.puback_micros);
                    }
                    Err(_) => report.unfinished += 1,
                }
            }
        };
        let _ = timeout(limit, collect).await;
        report.unfinished += self.tasks.len() as u64;
        report
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
    subscribed: watch::Receiver<bool>,
    counters: Arc<Counters>,
}

impl Subscriber {
    /// Starts a subscriber that enters what it gets into a ledger. Needs a tokio runtime around it.
    pub fn start(config: SubscriberConfig, ledger: &Ledger, reader: ReaderId) -> Self {
        let (state, subscribed) = watch::channel(false);
        let counters = Arc::new(Counters::default());
        let mut task = JoinSet::new();
        task.spawn(subscriber::run(config, ledger.clone(), reader, Arc::clone(&counters), state));
        Self { task, subscribed, counters }
    }

    /// Whether all SUBACKs were in within a limit.
    pub async fn subscribed(&mut self, limit: Duration) -> bool {
        matches!(timeout(limit, self.subscribed.wait_for(|subscribed| *subscribed)).await, Ok(Ok(_)))
    }

    /// Live counts.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Cuts the connection.
    pub async fn stop(mut self) {
        self.task.shutdown().await;
    }
}
