//! Load on a cluster, judged by the ledger.

use std::time::Duration;

use penstock_client::{Client, GroupSpec};
use penstock_loadtest::{
    fleet::{Fleet, FleetConfig, Subscriber, SubscriberConfig},
    ledger::{Ledger, ReaderId},
    readers::GroupReader,
    verdict::Verdict,
};

use crate::{tenant::TestTenant, wait::eventually};

/// The group that is judged.
pub const GROUP: &str = "ledger";
/// For all publishers to be under way, on a busy machine with password hashing.
const UNDER_WAY: Duration = Duration::from_secs(60);

/// Publishers, and a group that reads everything of the tenant.
pub struct Load {
    /// What is sent and seen.
    pub ledger: Ledger,
    /// The group in the ledger.
    pub reader: ReaderId,
    fleet: Fleet,
    group: GroupReader,
    client: Client,
    publishers: u64,
    watcher: Option<(Subscriber, ReaderId)>,
}

impl Load {
    /// As `start`, with a subscriber of QoS 1 that must see everything, too. For faults that devices don't see: a clean
    /// session that reconnects has missed what came meanwhile.
    pub async fn watched(client: Client, targets: Vec<String>, tenant: &TestTenant) -> Self {
        let ledger = Ledger::new();
        let reader = ledger.reader(&tenant.name);
        let subscriber = SubscriberConfig {
            targets: targets.clone(),
            username: tenant.device(),
            password: tenant.password.clone(),
            client_id: "watcher".into(),
            filters: vec!["load/#".into()],
            qos: 1,
            keep_alive: Duration::from_secs(60),
        };
        let mut subscriber = Subscriber::start(subscriber, &ledger, reader);
        assert!(subscriber.subscribed(UNDER_WAY).await, "no SUBACK: {:?}", subscriber.counters());
        let mut own = Self::over(client, Self::config(targets, tenant), &ledger).await;
        own.watcher = Some((subscriber, reader));
        own
    }

    fn config(targets: Vec<String>, tenant: &TestTenant) -> FleetConfig {
        let mut config = FleetConfig::new(targets, &tenant.name, &tenant.device(), &tenant.password);
        config.publishers = 20;
        config.rate = Some(50.0);
        config
    }

    /// Starts, and waits until every publisher is connected and messages are acknowledged.
    pub async fn start(client: Client, targets: Vec<String>, tenant: &TestTenant) -> Self {
        Self::with(client, Self::config(targets, tenant)).await
    }

    /// With publishers of the test's own.
    pub async fn with(client: Client, config: FleetConfig) -> Self {
        Self::over(client, config, &Ledger::new()).await
    }

    /// With a ledger that has more readers.
    pub async fn over(client: Client, config: FleetConfig, ledger: &Ledger) -> Self {
        let ledger = ledger.clone();
        let reader = ledger.reader(&config.tenant);
        client.create_group(&GroupSpec::new(GROUP).filter("load/#")).await.expect("the group is created");
        let group = GroupReader::start(&client, GROUP, 1_000, &ledger, reader);
        let publishers = config.publishers;
        let fleet = Fleet::start(config, &ledger);
        let load = Self { ledger, reader, fleet, group, client, publishers, watcher: None };
        load.all_connected(UNDER_WAY).await;
        load.progress(publishers, UNDER_WAY).await;
        load
    }

    /// Live counts of the publishers.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Waits until every publisher has a connection.
    pub async fn all_connected(&self, limit: Duration) {
        let connected = |counters: &penstock_loadtest::fleet::Counters| load(&counters.connected);
        let all = self.fleet.reached(connected, self.publishers, limit).await;
        assert!(all, "not all publishers connected within {limit:?}: {:?}", self.fleet.counters());
    }

    /// Connections of publishers that broke so far.
    pub fn broken(&self) -> u64 {
        load(&self.fleet.counters().broken)
    }

    /// Waits until so many messages more are acknowledged.
    pub async fn progress(&self, messages: u64, limit: Duration) {
        let goal = load(&self.fleet.counters().acked) + messages;
        let reached = self.fleet.reached(|counters| load(&counters.acked), goal, limit).await;
        assert!(reached, "no progress within {limit:?}: {:?}", self.fleet.counters());
    }

    /// Stops publishing, waits until all that was acknowledged is seen, and judges.
    pub async fn settle(self, limit: Duration) -> Verdict {
        let out_of_order = load(&self.fleet.counters().acked_out_of_order);
        let report = self.fleet.stop(limit).await;
        let (ledger, reader) = (&self.ledger, self.reader);
        let complete = tokio::time::timeout(
            limit,
            eventually("all is seen", limit * 2, || async move { ledger.complete(reader).then_some(()) }),
        );
        let complete = complete.await.is_ok();
        if let Some((subscriber, watcher)) = &self.watcher {
            let (watcher, broken) = (*watcher, load(&subscriber.counters().broken));
            let all = eventually("the subscriber has everything", limit * 2, || async move {
                ledger.complete(watcher).then_some(())
            });
            let complete = tokio::time::timeout(limit, all).await.is_ok();
            let verdict = ledger.verdict(watcher);
            eprintln!("subscriber: {verdict}");
            assert!(complete && verdict.balanced(), "subscriber (broken {broken} times): {verdict}");
        }
        let lag = self.client.group(GROUP).await.map(|status| status.lag());
        self.group.stop().await.expect("the group's consumer ends well");
        let verdict = self.ledger.verdict(self.reader);
        let times = report.puback.recorded().map(|micros| (micros.value_at_quantile(0.99), micros.max()));
        eprintln!("{verdict} unacked={} p99 and max in µs: {times:?} lag={lag:?}", report.unacked);
        assert_eq!(report.unfinished + report.unacked, 0, "publishers did not end; {verdict}");
        assert!(complete, "the group does not catch up: {verdict}, lag {lag:?}");
        assert_eq!(out_of_order, 0, "PUBACKs out of order [MQTT-4.6.0-2]");
        verdict
    }

    /// As `settle`, and everything must be as it should.
    ///
    /// # Panics
    /// When the ledger finds a fault.
    pub async fn balances(self) {
        let verdict = self.settle(Duration::from_secs(60)).await;
        assert!(verdict.acked > 0 && verdict.balanced(), "{verdict}");
    }
}

fn load(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(std::sync::atomic::Ordering::Relaxed)
}
