//! Clients with one identifier, on two gateways: two that take the connection from each other over and over, and many that
//! connect at once.

use std::{sync::atomic::Ordering, time::Duration};

use penstock_client::GroupSpec;
use penstock_loadtest::{
    fleet::{Fleet, FleetConfig},
    ledger::Ledger,
    readers::GroupReader,
    wire::WireError,
};
use penstock_tests::{
    cluster::Cluster,
    device::Device,
    tenant::TestTenant,
    wait::{alone, eventually},
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::under_load::RECOVERY;

/// Takeovers until it is enough.
const TAKEOVERS: u64 = 40;
/// Connections that are asked for at once, and how often.
const CONTENDERS: usize = 8;
const ROUNDS: usize = 12;
/// In which all connections but one have to be closed, on a busy machine.
const BOUND: Duration = Duration::from_secs(10);

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

/// Connects at all gateways at once, by turns with clean session 1 and 0. Who loses before its CONNACK is closed, not refused.
async fn contend(targets: &[String], tenant: &TestTenant) -> Vec<Device> {
    let mut contenders = JoinSet::new();
    for number in 0..CONTENDERS {
        let (target, tenant) = (targets[number % targets.len()].clone(), tenant.clone());
        contenders.spawn(async move {
            let connected = match number / 2 % 2 {
                0 => Device::connect(&target, &tenant, "one").await,
                _ => Device::resume(&target, &tenant, "one").await,
            };
            match connected {
                Ok(device) => Some(device),
                Err(WireError::Closed | WireError::Io(_)) => None,
                Err(other) => panic!("neither accepted nor closed: {other}"),
            }
        });
    }
    contenders.join_all().await.into_iter().flatten().collect()
}

/// Waits until all but one are closed.
async fn one_is_left(open: &mut Vec<Device>) {
    let end = Instant::now() + BOUND;
    while open.len() > 1 {
        for mut device in std::mem::take(open) {
            match timeout(Duration::from_millis(10), device.wait()).await {
                Err(_) => open.push(device),
                Ok(Err(WireError::Closed | WireError::Io(_))) => {}
                Ok(other) => panic!("neither open nor closed: {other:?}"),
            }
        }
        assert!(Instant::now() < end, "{} connections of one client are open after {BOUND:?}", open.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connect_at_once_over_and_over_and_each_time_one_stays() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let targets = cluster.targets();
    let (mut open, mut times) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        // The one that stayed in the round before has to go, too.
        open.extend(contend(&targets, &tenant).await);
        one_is_left(&mut open).await;
        times.push(began.elapsed());
        let stays = open.first_mut().expect("one stays");
        stays.publish("elsewhere", "alive").await.expect("it is alive");
    }
    times.sort();
    eprintln!(
        "{CONTENDERS} at once: one is left after {:?}, at most {:?}",
        times[ROUNDS / 2],
        times[ROUNDS - 1]
    );
    let mut timed = 0.0;
    for gateway in &cluster.gateways {
        timed += gateway.metric("penstock_takeover_seconds_count").await.unwrap_or_default();
    }
    assert!(timed > 0.0, "takeovers between gateways are measured");
}
