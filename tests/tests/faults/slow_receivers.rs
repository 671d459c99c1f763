//! Receivers that don't keep up, one of each kind on one gateway: of QoS 0 the oldest go, a clean session that counts on QoS 1 is
//! closed, a persistent one is not and gets all of its mail when it reads again. Publishers and groups notice nothing.

use mqttbytes::{QoS, v4::Packet};
use penstock_tests::{cluster::Cluster, device::Device, load::Load, wait::alone};

use crate::under_load::RECOVERY;

/// Messages of 1 KiB for the persistent one: several times what its connection may hold.
const MAIL: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn slow_receivers_lose_only_what_they_may() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(0, 1).await;
    let gateway = cluster.gateway("gateway-0").flag("max-outbound", "64KiB").flag("socket-buffer", "16KiB");
    cluster.add(gateway).await;
    let tenant = cluster.tenant("acme").await;
    let target = cluster.targets().remove(0);
    let load = Load::start(cluster.client(&tenant), cluster.targets(), &tenant).await;

    let mut kept = Device::resume(&target, &tenant, "kept").await.unwrap();
    kept.subscribe("mail/#", QoS::AtLeastOnce).await;
    let mut zero = Device::connect(&target, &tenant, "zero").await.unwrap();
    zero.subscribe("load/#", QoS::AtMostOnce).await;
    let mut mute = Device::connect(&target, &tenant, "mute").await.unwrap();
    mute.subscribe("load/#", QoS::AtLeastOnce).await;
    let mut sender = Device::connect(&target, &tenant, "sender").await.unwrap();
    for number in 0..MAIL {
        sender.publish("mail/1", &format!("{number:01024}")).await.unwrap();
    }

    let gateway = &cluster.gateways[0];
    let overrun = "penstock_closes_total{reason=\"overrun\"}";
    gateway.metric_until(overrun, RECOVERY, |count| count >= 1.0).await;
    let dropped = "penstock_deliveries_total{result=\"dropped\"}";
    gateway.metric_until(dropped, RECOVERY, |count| count >= 100.0).await;
    assert_eq!(gateway.metric(overrun).await, Some(1.0), "nobody but the clean one with QoS 1");
    while mute.next().await.is_ok() {}
    for number in 0..MAIL {
        let message = kept.message().await;
        assert_eq!((&message.payload[..], message.dup), (format!("{number:01024}").as_bytes(), false));
    }
    load.balances().await;
    // What it reads now: a few old ones that were on their way, then the newest.
    let (mut read, mut last) = (0, None);
    zero.send("mail/2", "and now the end").await.unwrap();
    while let Ok(Packet::Publish(publish)) = zero.next().await {
        (read, last) = (read + 1, Some(publish));
    }
    assert!(read > 0 && last.is_some_and(|publish| publish.topic.starts_with("load/")));
    assert_eq!(gateway.metric("penstock_closes_total{reason=\"unread\"}").await, None);
}
