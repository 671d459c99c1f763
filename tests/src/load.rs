//! Load on a cluster, judged by the ledger.

use std::time::Duration;

use penstock_client::{Client, GroupSpec};
use penstock_loadtest::{
    fleet::{Fleet, FleetConfig},
    ledger::{Ledger, ReaderId},
    readers::GroupReader,
    verdict::Verdict,
};

use crate::{tenant::TestTenant, wait::eventually};

const GROUP: &str = "ledger";
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
}

impl Load {
    /// Starts, and waits until every publisher is connected and messages are acknowledged.
    pub async fn start(client: Client, targets: Vec<String>, tenant: &TestTenant) -> Self {
        let mut config = FleetConfig::new(targets, &tenant.name, &tenant.device(), &tenant.password);
        config.publishers = 20;
        config.rate = Some(50.0);
        Self::with(client, config).await
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
        let load = Self { ledger, reader, fleet, group, client, publishers };
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
        let lag = self.client.group(GROUP).await.map(|status| status.lag());
        self.group.stop().await.expect("the group's consumer ends well");
        let verdict = self.ledger.verdict(self.reader);
        eprintln!(
            "{verdict} unacked={} p99={}µs max={}µs lag={lag:?}",
            report.unacked,
            report.puback_micros.value_at_quantile(0.99),
            report.puback_micros.max()
        );
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
