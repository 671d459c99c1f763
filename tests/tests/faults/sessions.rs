//! Persistent sessions: what a client subscribed to waits for it, whatever dies meanwhile, and is there at any gateway.

use std::{collections::BTreeSet, time::Duration};

use mqttbytes::{QoS, v4::Publish};
use penstock_tests::{
    cluster::Cluster,
    device::Device,
    tenant::TestTenant,
    wait::{alone, eventually},
};

const SOON: Duration = Duration::from_secs(60);

fn text(publish: &Publish) -> String {
    String::from_utf8(publish.payload.to_vec()).unwrap()
}

/// Connects until it works: what was killed may not be missed yet.
async fn resumed(target: &str, tenant: &TestTenant, client: &str) -> Device {
    eventually("the session is resumed", SOON, || async { Device::resume(target, tenant, client).await.ok() })
        .await
}

/// Publishes numbers from a client of its own until each is acknowledged.
async fn publish(target: &str, tenant: &TestTenant, client: &str, numbers: std::ops::Range<u32>) {
    let mut device = None;
    for number in numbers {
        loop {
            let mut own = match device.take() {
                Some(device) => device,
                None => {
                    eventually("the publisher connects", SOON, || async {
                        Device::connect(target, tenant, client).await.ok()
                    })
                    .await
                }
            };
            if own.publish("a/x", &number.to_string()).await.is_ok() {
                device = Some(own);
                break;
            }
        }
    }
}

async fn expect(device: &mut Device, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let message = device.message().await;
        assert_eq!((text(&message), message.dup), (number.to_string(), false));
    }
}

/// New messages that the client leaves unacknowledged.
async fn received(device: &mut Device, numbers: std::ops::Range<u32>) -> Vec<(u16, String)> {
    let mut open = Vec::new();
    for number in numbers {
        let message = device.unacknowledged().await;
        assert_eq!((text(&message), message.dup), (number.to_string(), false));
        open.push((message.pkid, text(&message)));
    }
    open
}

/// They come again first, as they were.
async fn again(device: &mut Device, open: &[(u16, String)]) {
    for (id, number) in open {
        let message = device.message().await;
        assert_eq!((message.pkid, text(&message), message.dup), (*id, number.clone(), true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_its_gateway_the_routers_and_the_store() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let targets = cluster.targets();
    let mut keeper = Device::resume(&targets[0], &tenant, "keeper").await.unwrap();
    assert!(!keeper.session_present());
    keeper.subscribe("a/#", QoS::AtLeastOnce).await;
    publish(&targets[1], &tenant, "p", 0..3).await;
    let mut open = received(&mut keeper, 0..3).await;
    cluster.gateways[0].kill().await;
    publish(&targets[1], &tenant, "p", 3..13).await;

    let mut keeper = resumed(&targets[1], &tenant, "keeper").await;
    assert!(keeper.session_present());
    again(&mut keeper, &open).await;
    open = received(&mut keeper, 3..13).await;
    // Out of order, and not all.
    for at in [8, 4, 0] {
        keeper.acknowledge(open.remove(at).0).await.unwrap();
    }
    publish(&targets[1], &tenant, "p", 13..14).await;
    open.extend(received(&mut keeper, 13..14).await);
    drop(keeper);
    for at in [0, 1] {
        cluster.routers[at].kill().await;
        publish(&targets[1], &tenant, "p", 14 + at as u32..15 + at as u32).await;
        cluster.routers[at].start().await;
        cluster.linked_by(1).await;
    }
    cluster.redis.kill().await;
    cluster.redis.restart().await;

    let mut keeper = resumed(&targets[1], &tenant, "keeper").await;
    assert!(keeper.session_present());
    again(&mut keeper, &open).await;
    expect(&mut keeper, 14..16).await;
    publish(&targets[1], &tenant, "p", 16..17).await;
    expect(&mut keeper, 16..17).await;
    keeper.disconnect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_session_wipes_the_old_one_and_nothing_of_it_comes_again() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 1).await;
    let tenant = cluster.tenant("acme").await;
    let targets = cluster.targets();
    let mut keeper = Device::resume(&targets[0], &tenant, "keeper").await.unwrap();
    keeper.subscribe("a/#", QoS::AtLeastOnce).await;
    keeper.disconnect().await.unwrap();
    publish(&targets[1], &tenant, "p", 0..5).await;
    let clean = Device::connect(&targets[1], &tenant, "keeper").await.unwrap();
    assert!(!clean.session_present());
    // Takes the clean one over.
    let mut keeper = resumed(&targets[0], &tenant, "keeper").await;
    assert!(!keeper.session_present());
    publish(&targets[1], &tenant, "p", 5..7).await;
    keeper.subscribe("a/#", QoS::AtLeastOnce).await;
    publish(&targets[1], &tenant, "p", 7..9).await;
    expect(&mut keeper, 7..9).await;
    keeper.disconnect().await.unwrap();
    let again = resumed(&targets[1], &tenant, "keeper").await;
    assert!(again.session_present());
}

/// The publisher's home dies between PUBACK and fan-out, over and over.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_waits_while_routers_are_killed() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(1, 2).await;
    let tenant = cluster.tenant("acme").await;
    let target = cluster.targets().remove(0);
    let mut keeper = Device::resume(&target, &tenant, "keeper").await.unwrap();
    keeper.subscribe("a/#", QoS::AtLeastOnce).await;
    drop(keeper);
    let (to, own) = (target.clone(), tenant.clone());
    let publisher = tokio::spawn(async move { publish(&to, &own, "p", 0..800).await });
    for at in [0, 1, 0] {
        let appended = "penstock_mailbox_appended_total";
        let before = cluster.routers[1 - at].metric(appended).await.unwrap_or_default();
        cluster.routers[at].kill().await;
        let more = |now: f64| now > before + 20.0;
        if !publisher.is_finished() {
            cluster.routers[1 - at].metric_until(appended, SOON, more).await;
        }
        cluster.routers[at].start().await;
        cluster.linked().await;
    }
    publisher.await.unwrap();
    let mut keeper = resumed(&target, &tenant, "keeper").await;
    assert!(keeper.session_present());
    let mut seen = BTreeSet::new();
    while seen.len() < 800 {
        let number: u32 = text(&keeper.message().await).parse().unwrap();
        let new = seen.insert(number);
        assert!(!new || seen.last() == Some(&number), "{number} comes after a later one");
    }
}
