//! Pushes that wait for devices, pushes that are sent twice, and tenants whose clients receive nothing but pushes.

use std::time::Duration;

use mqttbytes::QoS;
use penstock_client::{GroupSpec, Limits, Push, Pusher, Receipt, ReceiptStatus, Start};
use penstock_tests::{
    cluster::Cluster,
    command::{ctl, run},
    device::Device,
    standalone::Penstock,
    tenant::TestTenant,
    wait::{alone, eventually},
};

use crate::{SOON, next};

const HOUR: Duration = Duration::from_secs(3_600);

fn to(client: &str, topic: &str, payload: &str) -> Push {
    Push::new(topic, payload.to_owned()).client(client).qos(1)
}

async fn status(pusher: &Pusher, push: Push) -> ReceiptStatus {
    pusher.send(push).await.unwrap().status
}

async fn text(device: &mut Device) -> String {
    String::from_utf8(device.message().await.payload.to_vec()).unwrap()
}

/// By one router, to be handed out by whichever is the home.
async fn queue(pusher: &Pusher, client: &str, numbers: std::ops::Range<u32>) {
    let mut receipts = Vec::new();
    for number in numbers {
        receipts.push(pusher.push(to(client, "cmd/x", &number.to_string()).ttl(HOUR)).await.unwrap());
    }
    for receipt in receipts {
        assert_eq!(receipt.await.unwrap().status, ReceiptStatus::Queued);
    }
}

async fn expect(device: &mut Device, numbers: std::ops::Range<u32>) {
    for number in numbers {
        assert_eq!(text(device).await, number.to_string());
    }
}

async fn wait_for(pusher: &Pusher, push: Push) -> tokio::task::JoinHandle<Receipt> {
    let pushed = pusher.push(push).await.unwrap();
    tokio::spawn(async move { pushed.await.unwrap() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_with_a_time_to_live_waits_for_its_device() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    for server in cluster.servers() {
        let pusher = tenant.client(&[server]).pusher();
        clean_sessions(&pusher, &tenant, &cluster.targets()).await;
        persistent_sessions(&pusher, &tenant, &cluster.targets()).await;
    }
    let receipts = r#"penstock_receipts_total{status="queued"}"#;
    for router in &cluster.routers {
        let metrics = penstock_tests::program::get(router.address("admin"), "/metrics").await.unwrap().1;
        let count = metrics.lines().find_map(|line| line.strip_prefix(receipts)).unwrap().trim();
        assert!(count.parse::<u64>().unwrap() > 100, "{count}");
    }
}

/// Never seen before; away; connected and not yet subscribed; connected; not acknowledging.
async fn clean_sessions(pusher: &Pusher, tenant: &TestTenant, targets: &[String]) {
    queue(pusher, "clean", 0..100).await;
    let mut device = Device::connect(&targets[0], tenant, "clean").await.unwrap();
    device.subscribe("other/#", QoS::AtLeastOnce).await;
    device.publish("elsewhere", "the other subscription brought nothing").await.unwrap();
    device.subscribe("cmd/+", QoS::AtLeastOnce).await;
    expect(&mut device, 0..100).await;
    queue(pusher, "clean", 100..120).await;
    expect(&mut device, 100..120).await;
    let waits = wait_for(pusher, to("clean", "cmd/y", "seen").ttl(HOUR).wait(SOON)).await;
    assert_eq!(text(&mut device).await, "seen");
    assert_eq!(waits.await.unwrap().status, ReceiptStatus::Delivered);
    let waits = wait_for(pusher, to("clean", "cmd/y", "not acknowledged").ttl(HOUR).wait(SOON)).await;
    assert_eq!(&device.unacknowledged().await.payload[..], b"not acknowledged");
    drop(device);
    // Elsewhere: what was not acknowledged comes again, as new to this session.
    let mut device = Device::connect(&targets[1], tenant, "clean").await.unwrap();
    device.subscribe("cmd/#", QoS::AtLeastOnce).await;
    let message = device.message().await;
    assert_eq!((&message.payload[..], message.dup), (&b"not acknowledged"[..], false));
    assert_eq!(waits.await.unwrap().status, ReceiptStatus::Delivered);
    device.disconnect().await.unwrap();
    let short = to("clean", "cmd/x", "too late").ttl(Duration::from_millis(200)).wait(SOON);
    assert_eq!(status(pusher, short).await, ReceiptStatus::Expired);
    let late = to("clean", "cmd/x", "away").ttl(HOUR).wait(Duration::from_millis(200));
    assert_eq!(status(pusher, late).await, ReceiptStatus::Queued);
    let mut device = Device::connect(&targets[0], tenant, "clean").await.unwrap();
    device.subscribe("cmd/#", QoS::AtMostOnce).await;
    let message = device.message().await;
    assert_eq!((&message.payload[..], message.qos), (&b"away"[..], QoS::AtMostOnce), "the granted QoS");
    device.publish("elsewhere", "a mark, so that what was handed out is told").await.unwrap();
    device.disconnect().await.unwrap();
}

/// Away with a session; then the session is wiped, and what was not acknowledged waits on.
async fn persistent_sessions(pusher: &Pusher, tenant: &TestTenant, targets: &[String]) {
    let mut device = Device::resume(&targets[0], tenant, "kept").await.unwrap();
    device.subscribe("cmd/#", QoS::AtLeastOnce).await;
    let unknown = to("kept", "elsewhere", "x").ttl(HOUR);
    assert_eq!(status(pusher, unknown).await, ReceiptStatus::NotSubscribed);
    device.disconnect().await.unwrap();
    queue(pusher, "kept", 0..3).await;
    let mut device = Device::resume(&targets[1], tenant, "kept").await.unwrap();
    let held = device.unacknowledged().await;
    assert_eq!((&held.payload[..], held.dup), (&b"0"[..], false));
    drop(device);
    let mut device = Device::resume(&targets[0], tenant, "kept").await.unwrap();
    let again = device.unacknowledged().await;
    assert_eq!((again.pkid, &again.payload[..], again.dup), (held.pkid, &b"0"[..], true));
    drop(device);
    let mut device = Device::connect(&targets[0], tenant, "kept").await.unwrap();
    assert!(!device.session_present());
    device.subscribe("cmd/#", QoS::AtLeastOnce).await;
    expect(&mut device, 0..3).await;
    device.publish("elsewhere", "a mark").await.unwrap();
    device.disconnect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_sent_again_is_done_once() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let pushers: Vec<Pusher> =
        cluster.servers().into_iter().map(|server| tenant.client(&[server]).pusher()).collect();
    let waiting = || to("device", "cmd/a", "once").ttl(HOUR).idempotency_key("k-1");
    for pusher in pushers.iter().chain(&pushers) {
        assert_eq!(status(pusher, waiting()).await, ReceiptStatus::Queued);
    }
    let other = to("device", "cmd/a", "another").ttl(HOUR).idempotency_key("k-1");
    let refused = pushers[0].send(other).await.unwrap();
    assert_eq!(refused.status, ReceiptStatus::Refused, "{refused:?}");
    let live = || to("device", "cmd/b", "live").wait(SOON).idempotency_key("k-2");
    assert_eq!(status(&pushers[0], live()).await, ReceiptStatus::NotConnected);
    let mut device = Device::connect(&cluster.targets()[0], &tenant, "device").await.unwrap();
    device.subscribe("cmd/#", QoS::AtLeastOnce).await;
    assert_eq!(text(&mut device).await, "once");
    eventually("its PUBACK is known", SOON, || async {
        (status(&pushers[1], waiting()).await == ReceiptStatus::Delivered).then_some(())
    })
    .await;
    // What had no effect is done; the second waits for the first; the third finds its outcome.
    let first = wait_for(&pushers[0], live()).await;
    let second = wait_for(&pushers[1], live()).await;
    assert_eq!(text(&mut device).await, "live");
    assert_eq!(first.await.unwrap().status, ReceiptStatus::Delivered);
    assert_eq!(second.await.unwrap().status, ReceiptStatus::Delivered);
    assert_eq!(status(&pushers[1], live()).await, ReceiptStatus::Delivered);
    device.publish("mark", "nothing came twice").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_that_wait_survive_a_crash_of_penstock() {
    let _alone = alone().await;
    let mut penstock = Penstock::start().await;
    let demo = penstock.demo();
    let arguments = [
        "push",
        "--topic",
        "cmd/1",
        "--client",
        "device",
        "--qos",
        "1",
        "--payload",
        "later",
        "--ttl",
        "1h",
        "--idempotency-key",
        "k",
        "--json",
    ];
    let push = |server: String| run("penstockctl", ctl(&server, &demo.app(), &demo.password, &arguments));
    let pushed = push(penstock.server()).await.fine();
    assert!(pushed[0].contains(r#""status":"queued""#), "{pushed:?}");
    penstock.crash_and_restart().await;
    push(penstock.server()).await.fine();
    let mut device = Device::connect(&penstock.target(), &demo, "device").await.unwrap();
    device.subscribe("cmd/#", QoS::AtLeastOnce).await;
    assert_eq!(text(&mut device).await, "later");
    device.publish("mark", "it came once").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_an_isolated_tenant_receive_only_pushes() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let admin = cluster.admin().admin();
    let tenant = TestTenant { name: "apart".into(), password: "apart-password-0123456789".into() };
    let created = admin.create_isolated_tenant("apart", 4, Limits::default()).await.unwrap();
    assert_eq!(created.isolation, "device");
    for (user, role) in [("device", "device"), ("app", "service")] {
        admin.add_user("apart", user, role, &tenant.password).await.unwrap();
    }
    let targets = cluster.targets();
    cluster.client(&tenant).create_group(&GroupSpec::new("g").start(Start::Earliest)).await.unwrap();
    let mut clean = Device::connect(&targets[0], &tenant, "clean").await.unwrap();
    let mut kept = Device::resume(&targets[1], &tenant, "kept").await.unwrap();
    for device in [&mut clean, &mut kept] {
        device.subscribe("#", QoS::AtLeastOnce).await;
    }
    let mut consumer = cluster.client(&tenant).consumer("g").start();
    for number in 0..8 {
        let name = format!("publisher-{number}");
        let mut publisher = Device::connect(&targets[number % 2], &tenant, &name).await.unwrap();
        publisher.subscribe("#", QoS::AtLeastOnce).await;
        publisher.publish("data/x", "for the group only").await.unwrap();
        // Its own neither: the PUBACK of a second one is all that comes.
        publisher.publish("data/x", "for the group only").await.unwrap();
    }
    for _ in 0..16 {
        assert_eq!(&next(&mut consumer).await.payload[..], b"for the group only");
    }
    consumer.close().await.unwrap();
    let pusher = cluster.client(&tenant).pusher();
    assert_eq!(status(&pusher, to("kept", "data/y", "own")).await, ReceiptStatus::Routed);
    assert_eq!(status(&pusher, to("clean", "data/y", "own").ttl(HOUR)).await, ReceiptStatus::Queued);
    for device in [&mut clean, &mut kept] {
        assert_eq!(text(device).await, "own");
    }
    let all = pusher.send(Push::new("news", "all").qos(1)).await.unwrap();
    // Publishers that have just gone may be among them.
    assert!(all.status == ReceiptStatus::Routed && all.clients >= 2, "{all:?}");
    for device in [&mut clean, &mut kept] {
        assert_eq!(text(device).await, "all");
    }
}
