//! A gateway sleeps past its lease with clients connected and batches in its hands. They move to the other one, or leave a
//! will; when it wakes, it has no client any more and publishes and delivers nothing stale, no will a second time.

use mqttbytes::QoS;
use penstock_client::{Push, ReceiptStatus};
use penstock_tests::{
    cluster::LEASE,
    device::Device,
    wait::{alone, lasting},
};

use crate::{
    under_load::{RECOVERY, start},
    wills::Watch,
};

#[tokio::test(flavor = "multi_thread")]
async fn pause_a_gateway_past_its_lease_and_wake_it() {
    let _alone = alone().await;
    let (mut cluster, tenant, load) = start().await;
    let targets = cluster.targets();
    let watch = Watch::start(&cluster, &tenant, &targets[1]).await;
    let mortal = |client, will| Device::mortal(&targets[0], &tenant, client, true, ("wills/w", will));
    let mut old = mortal("mover", "of the mover").await.unwrap();
    let mut sleeper = mortal("sleeper", "of the sleeper").await.unwrap();
    old.subscribe("commands", QoS::AtLeastOnce).await;
    cluster.gateways[0].child().pause().await;
    // The kernel takes it; nobody else may.
    old.say("wills/stale", "stale").await.unwrap();
    lasting(LEASE + LEASE / 2).await;
    let mut new = Device::connect(&targets[1], &tenant, "mover").await.unwrap();
    new.subscribe("commands", QoS::AtLeastOnce).await;
    load.all_connected(RECOVERY).await;
    let wills = ["of the mover".to_owned(), "of the sleeper".to_owned()];
    watch.sees("the wills", &wills).await;
    cluster.gateways[0].child().wake();
    // Not two owners: the old connection ends, and what is pushed comes to the new one.
    old.closed().await;
    sleeper.closed().await;
    cluster.linked().await;
    let pusher = cluster.client(&tenant).pusher();
    let push = Push::new("commands", "after").client("mover").qos(1).wait(RECOVERY);
    let receipt = tokio::spawn(async move { pusher.send(push).await });
    assert_eq!(&new.message().await.payload[..], b"after");
    assert_eq!(receipt.await.unwrap().unwrap().status, ReceiptStatus::Delivered);
    load.progress(500, RECOVERY).await;
    watch.is_up_to_date(&targets[1], &tenant, "awake").await;
    watch.only("", &wills);
    assert!(!watch.has("stale"));
    load.balances().await;
}
