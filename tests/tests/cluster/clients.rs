//! What an operator sees of clients with `penstockctl client`, at any router, and how a connection is closed.

use mqttbytes::QoS;
use penstock_tests::{
    cluster::Cluster,
    command::{Ran, ctl, run},
    device::Device,
    tenant::TestTenant,
    wait::{alone, eventually},
};
use serde_json::Value;

use crate::SOON;

const ADMIN: &str = "admin-password-0123456789";

async fn client(server: &str, arguments: &[&str]) -> Ran {
    let arguments = [&["client"], arguments, &["--json"]].concat();
    run("penstockctl", ctl(server, "system/admin", ADMIN, &arguments)).await
}

fn objects(ran: Ran) -> Vec<Value> {
    ran.fine().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn show(server: &str, name: &str) -> Value {
    objects(client(server, &["show", "acme", name]).await).remove(0)
}

fn names(objects: &[Value]) -> Vec<&str> {
    objects.iter().map(|object| object["client"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_finds_and_closes_any_client_from_any_router() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let (targets, servers) = (cluster.targets(), cluster.servers());
    let mut kept = Device::resume(&targets[0], &tenant, "kept").await.unwrap();
    kept.subscribe("a/#", QoS::AtLeastOnce).await;
    kept.subscribe("b", QoS::AtMostOnce).await;
    let mut devices = Vec::new();
    for number in 0..6 {
        let name = format!("sensor-{number}");
        devices.push(Device::connect(&targets[1], &tenant, &name).await.unwrap());
    }
    for server in &servers {
        let listed = objects(client(server, &["list", "acme"]).await);
        let all = ["kept", "sensor-0", "sensor-1", "sensor-2", "sensor-3", "sensor-4", "sensor-5"];
        assert_eq!(names(&listed), all);
        assert!(listed.iter().all(|it| it["state"] == "connected"), "{listed:?}");
        assert_eq!((&listed[0]["gateway"], &listed[0]["persistent"]), (&"gateway-0".into(), &true.into()));
        assert_eq!((&listed[1]["gateway"], &listed[1]["persistent"]), (&"gateway-1".into(), &false.into()));
        let some = objects(client(server, &["list", "acme", "--prefix", "sensor-", "--limit", "2"]).await);
        assert_eq!(names(&some), ["sensor-0", "sensor-1"]);
        let shown = show(server, "kept").await;
        let connection = &shown["connection"];
        assert_eq!(connection["gateway"], "gateway-0", "{shown}");
        assert_eq!((&connection["transport"], &connection["user"]), (&"mqtt".into(), &"device".into()));
        assert_eq!((&connection["clean"], &connection["subscriptions"]), (&false.into(), &2.into()));
        assert!(connection["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{shown}");
        assert_eq!(
            (&shown["session"]["subscriptions"], &shown["session"]["mailbox"]),
            (&2.into(), &0.into())
        );
    }
    pages(&cluster).await;
    comes_and_goes(&cluster, &tenant, kept).await;
    is_closed(&cluster, &mut devices).await;
    may_be_seen_by_their_administrators(&cluster, &tenant).await;
}

async fn pages(cluster: &Cluster) {
    let admin = cluster.admin().admin();
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let page = admin.clients("acme", "", &after, 3).await.unwrap();
        assert!(page.clients.len() <= 3 && page.silent_routers.is_empty());
        all.extend(page.clients.iter().map(|it| it.client.clone()));
        if !page.more {
            break;
        }
        after = all.last().unwrap().clone();
    }
    assert_eq!((all.len(), &all[0], &all[6]), (7, &"kept".into(), &"sensor-5".into()));
}

/// In flight while it is there; away with its mail; then back.
async fn comes_and_goes(cluster: &Cluster, tenant: &TestTenant, mut kept: Device) {
    let (targets, servers) = (cluster.targets(), cluster.servers());
    let mut other = Device::connect(&targets[1], tenant, "zz-publisher").await.unwrap();
    other.publish("a/1", "held").await.unwrap();
    kept.unacknowledged().await;
    let shown = show(&servers[1], "kept").await;
    assert_eq!((&shown["connection"]["in_flight"], &shown["session"]["in_flight"]), (&1.into(), &1.into()));
    kept.disconnect().await.unwrap();
    other.publish("a/2", "waits").await.unwrap();
    let shown = eventually("it is seen as away, with its mail", SOON, || async {
        let shown = show(&servers[0], "kept").await;
        (shown["connected"] == false && shown["session"]["mailbox"] == 2).then_some(shown)
    })
    .await;
    assert_eq!(
        (&shown["ends"][0]["reason"], &shown["ends"][0]["gateway"]),
        (&"disconnect".into(), &"gateway-0".into())
    );
    let listed = objects(client(&servers[1], &["list", "acme", "--limit", "1"]).await);
    assert_eq!((&listed[0]["client"], &listed[0]["state"]), (&"kept".into(), &"away".into()));
    drop(other);
}

async fn is_closed(cluster: &Cluster, devices: &mut [Device]) {
    let servers = cluster.servers();
    for (number, device) in devices.iter_mut().enumerate() {
        let name = format!("sensor-{number}");
        client(&servers[number % 2], &["disconnect", "acme", &name]).await.fine();
        device.closed().await;
        let shown = show(&servers[(number + 1) % 2], &name).await;
        assert_eq!(
            (&shown["connected"], &shown["ends"][0]["reason"]),
            (&false.into(), &"administrative".into())
        );
    }
    let closes = r#"penstock_closes_total{reason="administrative"} 6"#;
    let admin = cluster.gateways[1].address("admin");
    let metrics = penstock_tests::program::get(admin, "/metrics").await.unwrap().1;
    assert!(metrics.contains(closes), "{metrics}");
    let again = client(&servers[0], &["disconnect", "acme", "sensor-1"]).await;
    assert_eq!(again.code, Some(1), "it is not connected: {again:?}");
    let unknown = show(&servers[0], "nobody").await;
    assert_eq!((&unknown["connected"], &unknown["session"]), (&false.into(), &Value::Null));
}

async fn may_be_seen_by_their_administrators(cluster: &Cluster, tenant: &TestTenant) {
    let server = &cluster.servers()[0];
    cluster.tenant("other").await;
    for name in ["acme", "other"] {
        let added = cluster.admin().admin().add_user(name, "boss", "tenant-admin", &tenant.password).await;
        added.unwrap();
    }
    let list = |user: &'static str| {
        let command = ctl(server, user, &tenant.password, &["client", "list", "acme"]);
        async move { run("penstockctl", command).await.code }
    };
    assert_eq!(list("acme/boss").await, Some(0));
    assert_eq!(list("acme/app").await, Some(1), "a service sees no addresses of devices");
    assert_eq!(list("other/boss").await, Some(1));
}
