//! A router is killed in the middle of pushes with a time to live and a key, which are sent again until they are settled: each
//! comes once, in order, to devices that notice nothing.

use penstock_loadtest::ledger::Ledger;
use penstock_tests::{
    cluster::Cluster,
    pushing::{Pushing, Receivers},
    wait::{alone, eventually},
};

use crate::under_load::RECOVERY;

const DEVICES: u64 = 24;

#[tokio::test(flavor = "multi_thread")]
async fn pushes_with_keys_come_once_and_in_order() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let ledger = Ledger::new();
    let reader = ledger.reader("acme");
    let receivers = Receivers::connect(&cluster.targets(), &tenant, DEVICES, &ledger, reader).await;
    let mut servers = cluster.servers();
    let one = tenant.client(&servers);
    servers.reverse();
    let pushing = Pushing::start(&[one, tenant.client(&servers)], &tenant, DEVICES, &ledger);
    pushing.progress(300, RECOVERY).await;
    for at in [0, 1] {
        cluster.routers[at].kill().await;
        pushing.progress(500, RECOVERY).await;
        cluster.routers[at].start().await;
        cluster.linked().await;
        pushing.progress(500, RECOVERY).await;
    }
    let answers = pushing.stop(RECOVERY).await;
    eventually("all that was promised has come", RECOVERY, || async {
        ledger.complete(reader).then_some(())
    })
    .await;
    let verdict = ledger.verdict(reader);
    eprintln!("{verdict} {answers:?}");
    assert_eq!(receivers.broken(), 0, "devices see nothing");
    assert!(verdict.balanced() && verdict.redelivered == 0, "{verdict} {answers:?}");
    let again = |answer: &String| answer.starts_with("Refused") || answer == "InDoubt";
    assert!(answers.keys().any(again), "no push was under way when a router died: {answers:?}");
}
