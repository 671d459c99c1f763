//! Two clients with one identifier, each taking the connection from the other over and over, on two gateways.

use std::{sync::atomic::Ordering, time::Duration};

use penstock_client::GroupSpec;
use penstock_loadtest::{
    fleet::{Fleet, FleetConfig},
    ledger::Ledger,
    readers::GroupReader,
};
use penstock_tests::{
    cluster::Cluster,
    wait::{alone, eventually},
};

use crate::under_load::RECOVERY;

/// Takeovers until it is enough.
const TAKEOVERS: u64 = 40;

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_fight_for_one_identifier() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let client = cluster.client(&tenant);
    let ledger = Ledger::new();
    let reader = ledger.reader("acme");
    client.create_group(&GroupSpec::new("g")).await.unwrap();
    let group = GroupReader::start(&client, "g", 1_000, &ledger, reader);
    let fighter = |number| {
        let config = FleetConfig {
            first_publisher: number,
            client_id: "one".into(),
            rate: Some(200.0),
            ..FleetConfig::new(cluster.targets(), "acme", &tenant.device(), &tenant.password)
        };
        Fleet::start(config, &ledger)
    };
    let (first, second) = (fighter(0), fighter(1));
    for fleet in [&first, &second] {
        let broken = |counters: &penstock_loadtest::fleet::Counters| counters.broken.load(Ordering::Relaxed);
        assert!(fleet.reached(broken, TAKEOVERS, RECOVERY * 2).await, "no fight: {:?}", fleet.counters());
    }
    for fleet in [first, second] {
        let report = fleet.stop(RECOVERY).await;
        assert_eq!(report.unacked + report.unfinished, 0, "the last one has peace");
    }
    eventually("the group has everything", Duration::from_secs(60), || {
        let ledger = &ledger;
        async move { ledger.complete(reader).then_some(()) }
    })
    .await;
    group.stop().await.unwrap();
    let verdict = ledger.verdict(reader);
    eprintln!("{verdict}");
    assert!(verdict.acked > 0 && verdict.balanced(), "{verdict}");
}
