//! `penstock` as a person tries it: mosquitto's clients on one side, `penstockctl` on the other, and a crash in between.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "standalone/letter.rs"]
mod letter;
#[path = "standalone/mapper.rs"]
mod mapper;

use std::time::Duration;

use penstock_tests::{
    binaries,
    child::Child,
    command::{Ran, ctl, mosquitto, run},
    device::Device,
    load::Load,
    standalone::Penstock,
    wait::{alone, eventually},
};
use serde_json::Value;

async fn app(penstock: &Penstock, arguments: &[&str]) -> Ran {
    let demo = penstock.demo();
    run("penstockctl", ctl(&penstock.server(), &demo.app(), &demo.password, arguments)).await
}

async fn publish(penstock: &Penstock, client: &str, topic: &str, payload: &str) {
    let arguments = ["-q", "1", "-t", topic, "-m", payload];
    let command = mosquitto("mosquitto_pub", &penstock.target(), &penstock.demo(), client, &arguments);
    run("mosquitto_pub", command).await.fine();
}

fn objects(lines: &[String]) -> Vec<Value> {
    lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_prints_what_devices_publish() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    app(&penstock, &["group", "create", "g", "--filter", "sensors/#"]).await.fine();
    publish(&penstock, "sensor-1", "sensors/1", "21.5").await;
    publish(&penstock, "sensor-1", "elsewhere", "not for the group").await;
    publish(&penstock, "sensor-1", "sensors/1", "22.0").await;
    let consume = ["consume", "--group", "g", "--json", "--count", "2", "--timeout", "20s"];
    let messages = objects(&app(&penstock, &consume).await.fine());
    let payloads: Vec<_> = messages.iter().map(|message| message["payload"].as_str().unwrap()).collect();
    assert_eq!(payloads, ["21.5", "22.0"]);
    for (key, expected) in
        [("tenant", "demo"), ("client_id", "sensor-1"), ("user", "device"), ("topic", "sensors/1")]
    {
        assert_eq!(messages[0][key], expected);
    }
    let more = app(&penstock, &["consume", "--group", "g", "--count", "1", "--timeout", "500ms"]).await;
    assert_eq!(more.code, Some(1), "what is acknowledged does not come again: {more:?}");
    let contradiction = app(&penstock, &["consume", "--group", "g", "--filter", "other/#"]).await;
    assert_eq!(contradiction.code, Some(1), "{contradiction:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_comes_back_too_often_is_a_dead_letter_until_it_is_driven_again() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    app(&penstock, &["group", "create", "g", "--max-deliveries", "1"]).await.fine();
    app(&penstock, &["group", "create", "other"]).await.fine();
    publish(&penstock, "sensor-1", "sensors/1", "poison").await;
    // It goes without an acknowledgement: the message was handed out once, and that was once too often.
    let leave = ["consume", "--group", "g", "--count", "1", "--timeout", "20s", "--no-ack"];
    app(&penstock, &leave).await.fine();
    let dead = eventually("the dead letter", Duration::from_secs(30), || {
        let penstock = &penstock;
        async move {
            let listed = app(penstock, &["group", "dead", "list", "g", "--json"]).await.fine();
            objects(&listed).pop()
        }
    })
    .await;
    assert_eq!((&dead["payload"], &dead["delivery_count"]), (&Value::from("poison"), &Value::from(1)));
    let show = async |group: &str| {
        objects(&app(&penstock, &["group", "show", group, "--json"]).await.fine()).remove(0)
    };
    let shown = show("g").await;
    assert_eq!((&shown["dead"], &shown["dead_letters"], &shown["lag"]), (&1.into(), &1.into(), &0.into()));
    let wrong = app(&penstock, &["group", "dead", "redrive", "g", "0/1"]).await;
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    app(&penstock, &["group", "set", "g", "--max-deliveries", "5"]).await.fine();
    let letter = dead["letter"].as_str().unwrap();
    app(&penstock, &["group", "dead", "redrive", "g", letter]).await.fine();
    let take = ["consume", "--group", "g", "--json", "--count", "1", "--timeout", "20s"];
    assert_eq!(objects(&app(&penstock, &take).await.fine())[0]["payload"], "poison");
    let other = ["consume", "--group", "other", "--count", "2", "--timeout", "1s"];
    let other = app(&penstock, &other).await;
    assert_eq!(
        (other.code, other.lines.len()),
        (Some(1), 1 + 1),
        "once, and why no second one came: {other:?}"
    );
    // From the beginning once more: both the message as published and as driven again.
    app(&penstock, &["group", "seek", "g", "--to", "earliest"]).await.fine();
    let both = ["consume", "--group", "g", "--json", "--count", "2", "--timeout", "20s"];
    assert_eq!(objects(&app(&penstock, &both).await.fine()).len(), 2);
    let shown = show("g").await;
    assert_eq!((&shown["appended"], &shown["acked"], &shown["lag"]), (&2.into(), &2.into(), &0.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_reaches_the_device_and_its_receipt_says_so() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    let subscribe = ["-q", "1", "-t", "commands/#", "-C", "1", "-v"];
    let command = mosquitto("mosquitto_sub", &penstock.target(), &penstock.demo(), "device-2", &subscribe);
    let mut device = Child::start("mosquitto_sub", command);
    let push =
        ["push", "--topic", "commands/1", "--client", "device-2", "--qos", "1", "--payload", "restart"];
    let pushed = eventually("the device is subscribed and reached", Duration::from_secs(30), || {
        let (penstock, push) = (&penstock, push);
        async move {
            let ran = app(penstock, &[&push[..], &["--wait", "--json"]].concat()).await;
            (ran.code == Some(0)).then_some(ran.lines)
        }
    })
    .await;
    assert_eq!(objects(&pushed)[0]["status"], "delivered");
    assert_eq!(device.exit(Duration::from_secs(20)).await, Some(0));
    assert_eq!(device.lines(), ["commands/1 restart"]);
    let nobody = ["push", "--topic", "commands/1", "--client", "nobody", "--qos", "1", "--payload", "x"];
    let refused = app(&penstock, &nobody).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loses_nothing_that_was_acknowledged_and_groups_go_on() {
    let _alone = alone().await;
    let mut penstock = Penstock::start().await;
    let load = Load::start(penstock.client(), vec![penstock.target()], &penstock.demo()).await;
    load.progress(500, Duration::from_secs(60)).await;
    penstock.crash_and_restart().await;
    load.all_connected(Duration::from_secs(60)).await;
    load.progress(500, Duration::from_secs(60)).await;
    load.balances().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_goes_on_where_it_was_after_a_drain() {
    let _alone = alone().await;
    let mut penstock = Penstock::start().await;
    app(&penstock, &["group", "create", "g"]).await.fine();
    for payload in ["1", "2", "3"] {
        publish(&penstock, "sensor-1", "sensors/1", payload).await;
    }
    let one = ["consume", "--group", "g", "--json", "--count", "1", "--timeout", "20s"];
    assert_eq!(objects(&app(&penstock, &one).await.fine())[0]["payload"], "1");
    penstock.program.drain().await;
    penstock.program.start().await;
    publish(&penstock, "sensor-1", "sensors/1", "4").await;
    let rest = ["consume", "--group", "g", "--json", "--count", "3", "--timeout", "20s"];
    let messages = objects(&app(&penstock, &rest).await.fine());
    let payloads: Vec<_> = messages.iter().map(|message| message["payload"].as_str().unwrap()).collect();
    assert_eq!(payloads, ["2", "3", "4"]);
    let shown = objects(&app(&penstock, &["group", "show", "g", "--json"]).await.fine());
    assert_eq!((&shown[0]["name"], &shown[0]["lag"]), (&Value::from("g"), &Value::from(0)), "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_refused_at_both_doors() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    let wrong = ["-q", "1", "-t", "t", "-m", "m", "-P", "wrong-password"];
    let command = mosquitto("mosquitto_pub", &penstock.target(), &penstock.demo(), "c", &wrong);
    let refused = run("mosquitto_pub", command).await;
    assert_eq!(refused.code, Some(5), "CONNACK 5: {refused:?}");
    let ran =
        run("penstockctl", ctl(&penstock.server(), "demo/app", "wrong-password", &["group", "list"])).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.lines.iter().any(|line| line.contains("password is wrong")), "{ran:?}");
    let device = penstock.demo();
    let command = ctl(&penstock.server(), &device.device(), &device.password, &["group", "list"]);
    assert_eq!(run("penstockctl", command).await.code, Some(1), "a device has no access to the doors");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_check_needs_no_user() {
    let _alone = alone().await;
    let mut penstock = Penstock::start().await;
    let admin = penstock.program.address("admin").to_string();
    let ready = |address: &str| {
        let mut command = tokio::process::Command::new(binaries::path("penstockctl"));
        command.args(["ready", address, "--timeout", "10s"]);
        run("penstockctl", command)
    };
    assert_eq!(ready(&admin).await.fine(), ["ready"]);
    let mqtt = ready(&penstock.target()).await;
    assert_eq!(mqtt.code, Some(1), "not an admin listener: {mqtt:?}");
    penstock.program.drain().await;
    let gone = ready(&admin).await;
    assert_eq!(gone.code, Some(1), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_a_client_and_closes_its_connection() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    let demo = penstock.demo();
    let admin = |arguments: &'static [&'static str]| {
        let command = ctl(&penstock.server(), "system/admin", &demo.password, arguments);
        async move { run("penstockctl", command).await }
    };
    let mut device = Device::connect(&penstock.target(), &demo, "sensor-1").await.unwrap();
    let listed = objects(&admin(&["client", "list", "demo", "--json"]).await.fine());
    assert_eq!((listed.len(), &listed[0]["client"]), (1, &Value::from("sensor-1")));
    admin(&["client", "disconnect", "demo", "sensor-1"]).await.fine();
    device.closed().await;
    let shown = admin(&["client", "show", "demo", "sensor-1"]).await.fine();
    assert!(shown.iter().any(|line| line.contains("administrative")), "{shown:?}");
    assert_eq!(admin(&["client", "list", "nobody"]).await.code, Some(1), "no such tenant");
}
