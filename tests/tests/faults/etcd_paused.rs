//! etcd hangs past the TTL of all leases, which expires every registration and ownership at once when it wakes. That must
//! not empty the cluster.

use mqttbytes::QoS;
use penstock_client::{Push, ReceiptStatus};
use penstock_tests::{
    cluster::LEASE,
    device::Device,
    wait::{alone, lasting},
};

use crate::under_load::{RECOVERY, start_watched};

#[tokio::test(flavor = "multi_thread")]
async fn pause_etcd_past_the_leases_while_publishing_and_connecting() {
    let _alone = alone().await;
    let (mut cluster, tenant, load) = start_watched().await;
    cluster.etcd.pause().await;
    let targets = cluster.targets();
    let mut late = Device::connect(&targets[0], &tenant, "late").await.unwrap();
    late.publish("late", "hello").await.unwrap();
    // Taking over works meanwhile, too: by the home, with provisional epochs.
    let mut fought = Device::connect(&targets[0], &tenant, "fought").await.unwrap();
    let mut winner = Device::connect(&targets[1], &tenant, "fought").await.unwrap();
    fought.closed().await;
    lasting(LEASE + LEASE / 2).await;
    load.progress(200, RECOVERY).await;
    cluster.etcd.wake().await;
    load.progress(500, RECOVERY).await;
    cluster.linked().await;
    late.publish("late", "still here").await.unwrap();
    winner.publish("late", "still here").await.unwrap();
    late.subscribe("commands", QoS::AtLeastOnce).await;
    let pusher = cluster.client(&tenant).pusher();
    let push = Push::new("commands", "x").client("late").qos(1).wait(RECOVERY);
    let receipt = tokio::spawn(async move { pusher.send(push).await });
    assert_eq!(&late.message().await.payload[..], b"x");
    assert_eq!(receipt.await.unwrap().unwrap().status, ReceiptStatus::Delivered);
    // The provisional ownership became a real one: taking over works as ever.
    let _taker = Device::connect(&targets[1], &tenant, "late").await.unwrap();
    late.closed().await;
    assert_eq!(load.broken(), 0, "devices see nothing");
    load.balances().await;
}
