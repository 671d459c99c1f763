//! Two gateways and two routers on etcd and Redis, without faults: any client on any gateway, any consumer on any router.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "cluster/clients.rs"]
mod clients;
#[path = "cluster/pushes.rs"]
mod pushes;

use std::time::Duration;

use mqttbytes::{QoS, v4::ConnectReturnCode};
use penstock_client::{
    BacklogPolicy, CallError, Consumer, GroupChange, GroupSpec, Limits, Message, Push, ReceiptStatus, Start,
};
use penstock_loadtest::{
    fleet::{FleetConfig, Subscriber, SubscriberConfig},
    ledger::Ledger,
};
use penstock_tests::{
    cluster::Cluster, command::ctl, command::run, device::Device, load::Load, tenant::TestTenant,
    wait::alone, wait::eventually,
};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(30);

async fn next(consumer: &mut Consumer) -> Message {
    let message = timeout(SOON, consumer.next()).await.expect("a message in time").expect("a message");
    consumer.ack(&message);
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn any_client_on_any_gateway_reaches_any_consumer_on_any_router() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    cluster.client(&tenant).create_group(&GroupSpec::new("g").filter("data/#")).await.unwrap();
    for (at, target) in cluster.targets().iter().enumerate() {
        // Enough clients for every partition, so that both routers are homes.
        for client in 0..12 {
            let mut device = Device::connect(target, &tenant, &format!("d-{at}-{client}")).await.unwrap();
            device.publish(&format!("data/{at}/{client}"), "hello").await.unwrap();
        }
    }
    for server in cluster.servers() {
        let client = tenant.client(&[server]);
        let mut consumer = client.consumer("g").credit(12).start();
        let mut seen: Vec<String> = Vec::new();
        for _ in 0..12 {
            seen.push(next(&mut consumer).await.topic);
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 12);
        consumer.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn load_over_all_gateways_balances_for_groups_and_subscribers() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let config = FleetConfig {
        publishers: 20,
        rate: Some(50.0),
        ..FleetConfig::new(cluster.targets(), "acme", &tenant.device(), &tenant.password)
    };
    let ledger = Ledger::new();
    let reader = ledger.reader("acme");
    let subscriber = SubscriberConfig {
        targets: cluster.targets(),
        username: tenant.device(),
        password: tenant.password.clone(),
        client_id: "listener".into(),
        filters: vec!["load/#".into()],
        qos: 1,
        keep_alive: Duration::from_secs(10),
    };
    let mut subscriber = Subscriber::start(subscriber, &ledger, reader);
    assert!(subscriber.subscribed(SOON).await);
    let load = Load::over(cluster.client(&tenant), config, &ledger).await;
    load.progress(3_000, SOON * 2).await;
    load.balances().await;
    eventually("the subscriber has everything", SOON, || {
        let ledger = &ledger;
        async move { ledger.complete(reader).then_some(()) }
    })
    .await;
    let verdict = ledger.verdict(reader);
    assert!(verdict.balanced(), "subscriber: {verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_finds_the_device_from_any_router() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    for target in cluster.targets() {
        let mut device = Device::connect(&target, &tenant, "device").await.unwrap();
        device.subscribe("commands/#", QoS::AtLeastOnce).await;
        for (at, server) in cluster.servers().into_iter().enumerate() {
            let pusher = tenant.client(&[server]).pusher();
            let push = Push::new("commands/x", format!("{at}")).client("device").qos(1).wait(SOON);
            let receipt = tokio::spawn(async move { pusher.send(push).await });
            let message = device.message().await;
            assert_eq!(
                (message.topic.as_str(), &message.payload[..]),
                ("commands/x", format!("{at}").as_bytes())
            );
            assert_eq!(receipt.await.unwrap().unwrap().status, ReceiptStatus::Delivered);
        }
    }
    let pusher = cluster.client(&tenant).pusher();
    let absent = Push::new("commands/x", "x").client("nobody").qos(1);
    assert_eq!(pusher.send(absent).await.unwrap().status, ReceiptStatus::NotConnected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_to_all_reaches_every_subscriber_once() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let mut devices = Vec::new();
    for (at, target) in cluster.targets().iter().enumerate() {
        let mut device = Device::connect(target, &tenant, &format!("d{at}")).await.unwrap();
        device.subscribe("news", QoS::AtLeastOnce).await;
        device.subscribe("#", QoS::AtMostOnce).await;
        devices.push(device);
    }
    let push = Push::new("news", "all").qos(1);
    let receipt = cluster.client(&tenant).pusher().send(push).await.unwrap();
    assert_eq!((receipt.status, receipt.clients), (ReceiptStatus::Routed, 2));
    let mut other = Device::connect(&cluster.targets()[0], &tenant, "other").await.unwrap();
    other.publish("other", "mark").await.unwrap();
    for device in &mut devices {
        assert_eq!(&device.message().await.payload[..], b"all");
        assert_eq!(&device.message().await.payload[..], b"mark", "overlapping filters: one delivery");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_do_not_meet() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let tenants = [cluster.tenant("red").await, cluster.tenant("blue").await];
    let targets = cluster.targets();
    let mut devices = Vec::new();
    for (tenant, target) in tenants.iter().zip(&targets) {
        cluster.client(tenant).create_group(&GroupSpec::new("g").start(Start::Earliest)).await.unwrap();
        // The same client identifier and topic in both tenants.
        let mut device = Device::connect(target, tenant, "device").await.unwrap();
        device.subscribe("#", QoS::AtLeastOnce).await;
        devices.push(device);
    }
    for (tenant, device) in tenants.iter().zip(&mut devices) {
        let mut publisher = Device::connect(&targets[0], tenant, "publisher").await.unwrap();
        publisher.publish("topic", &tenant.name).await.unwrap();
        assert_eq!(&device.message().await.payload[..], tenant.name.as_bytes());
        let mut consumer = cluster.client(tenant).consumer("g").start();
        assert_eq!(&next(&mut consumer).await.payload[..], tenant.name.as_bytes());
        consumer.close().await.unwrap();
    }
    let foreign =
        cluster.servers().into_iter().fold(penstock_client::Client::builder(), |b, url| b.server(url));
    let foreign = foreign.credentials("red/app", &tenants[1].password).connect_lazy().unwrap();
    assert_eq!(foreign.groups().await.unwrap_err(), CallError::Unauthorized);
    let own = cluster.client(&tenants[0]).admin();
    assert!(matches!(own.users("blue").await, Err(CallError::Forbidden(_))), "a service sees no users");
    let code = Device::refused(&targets[0], "red/device", &tenants[1].password, "x").await;
    assert_eq!(code, ConnectReturnCode::NotAuthorized);
}

/// Publishes until it is refused, or 300 times. Returns how many were taken.
async fn flood(target: &str, tenant: &TestTenant) -> usize {
    let payload = "x".repeat(8 << 10);
    let mut device = Device::connect(target, tenant, "flood").await.unwrap();
    for taken in 0..300 {
        if device.publish("flood", &payload).await.is_err() {
            return taken;
        }
    }
    300
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_group_stops_its_own_tenant_by_its_policy_and_no_other() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let (red, blue) = (cluster.tenant("red").await, cluster.tenant("blue").await);
    // A quarter of it a partition.
    let limits = Limits { backlog_bytes: 1 << 20, ..Limits::default() };
    cluster.admin().admin().set_limits("red", limits).await.unwrap();
    let (client, target) = (cluster.client(&red), cluster.targets()[0].clone());
    let load = Load::start(cluster.client(&blue), cluster.targets(), &blue).await;
    load.progress(200, SOON * 2).await;
    client.create_group(&GroupSpec::new("abandoned")).await.unwrap();
    let before = flood(&target, &red).await;
    assert!((20..100).contains(&before), "256 KiB and what came before the next look: {before}");
    load.progress(1_000, SOON * 2).await;
    // With another policy its devices go on, and what they drop is counted.
    for policy in [BacklogPolicy::DropOldest, BacklogPolicy::Detach] {
        client.set_group("abandoned", GroupChange::default().backlog(policy)).await.unwrap();
        eventually("devices are not stopped", SOON * 2, || async {
            (flood(&target, &red).await == 300).then_some(())
        })
        .await;
        let status = eventually("what was dropped is shown", SOON, || async {
            let status = client.group("abandoned").await.unwrap();
            let detached = status.partitions.iter().any(|partition| partition.detached);
            let shown = status.sum(|partition| partition.dropped) > 0
                && (policy == BacklogPolicy::DropOldest || detached);
            // The newest 256 entries stay under any limit; a look comes once a second.
            (shown && status.lag() < 300).then_some(status)
        })
        .await;
        let done = status.sum(|own| own.filtered + own.acked + own.dead + own.dropped);
        assert_eq!(status.sum(|own| own.appended), done + status.lag(), "{status:?}");
    }
    // Whoever consumes it gets what is left, and attaches it again.
    let mut consumer = client.consumer("abandoned").start();
    next(&mut consumer).await;
    consumer.close().await.unwrap();
    let status = client.group("abandoned").await.unwrap();
    assert!(!status.partitions.iter().any(|partition| partition.detached), "{status:?}");
    load.progress(1_000, SOON * 2).await;
    load.balances().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_connection_takes_the_client_over_from_another_gateway() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let targets = cluster.targets();
    let mut first = Device::connect(&targets[0], &tenant, "device").await.unwrap();
    first.subscribe("t", QoS::AtLeastOnce).await;
    let mut second = Device::connect(&targets[1], &tenant, "device").await.unwrap();
    first.closed().await;
    second.publish("elsewhere", "alive").await.unwrap();
    let mut third = Device::connect(&targets[1], &tenant, "device").await.unwrap();
    second.closed().await;
    third.publish("elsewhere", "alive").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_sees_and_changes_it_with_penstockctl() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let server = cluster.servers()[1].clone();
    let admin = |arguments: &'static [&'static str]| {
        let command = ctl(&server, "system/admin", "admin-password-0123456789", arguments);
        async move { run("penstockctl", command).await }
    };
    let shown = admin(&["cluster", "--json"]).await.fine().join("");
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["members"].as_array().unwrap().len(), 4, "{shown}");
    admin(&["tenant", "create", "acme", "--connections", "1"]).await.fine();
    assert_eq!(admin(&["tenant", "create", "acme"]).await.code, Some(1));
    admin(&["tenant", "create", "acme", "--if-not-exists"]).await.fine();
    assert_eq!(admin(&["tenant", "create", "Not-A-Name"]).await.code, Some(1));
    admin(&["tenant", "set", "acme", "--connections", "7"]).await.fine();
    let listed = admin(&["tenant", "show", "acme", "--json"]).await.fine().join("");
    assert!(listed.contains(r#""connections":7"#), "{listed}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a-long-new-password\n").unwrap();
    let path = file.path().to_str().unwrap();
    let add = ["user", "add", "acme/device", "--role", "device", "--new-password-file", path];
    run("penstockctl", ctl(&server, "system/admin", "admin-password-0123456789", &add)).await.fine();
    std::fs::write(file.path(), "another-password\n").unwrap();
    let again = |role| {
        let name =
            ["user", "add", "acme/device", "--role", role, "--new-password-file", path, "--if-not-exists"];
        let command = ctl(&server, "system/admin", "admin-password-0123456789", &name);
        async move { run("penstockctl", command).await }
    };
    again("device").await.fine();
    assert_eq!(again("service").await.code, Some(1), "it has another role");
    // With the first password: the user was left as it was.
    let acme = TestTenant { name: "acme".into(), password: "a-long-new-password".into() };
    let target = cluster.targets()[0].clone();
    drop(Device::connect(&target, &acme, "d").await.unwrap());
    admin(&["user", "delete", "acme/device"]).await.fine();
    eventually("the deleted user is refused", SOON, || async {
        Device::connect(&target, &acme, "d").await.is_err().then_some(())
    })
    .await;
    admin(&["tenant", "delete", "acme"]).await.fine();
    assert_eq!(admin(&["tenant", "show", "acme"]).await.code, Some(1));
}
