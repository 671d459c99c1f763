//! Clients that others wrote: mosquitto's and paho's. They find what our own clients agree with us about, wrongly.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use penstock_tests::{
    child::Child,
    cluster::Cluster,
    command::{ctl, mosquitto, run},
    paho::{self, Microservice},
    standalone::Penstock,
    wait::alone,
};

#[tokio::test(flavor = "multi_thread")]
async fn mosquitto_clients_talk_to_each_other_and_to_a_group() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    let (target, demo) = (penstock.target(), penstock.demo());
    let ctl = |arguments: &[&str]| ctl(&penstock.server(), &demo.app(), &demo.password, arguments);
    run("penstockctl", ctl(&["group", "create", "g"])).await.fine();
    let subscribe = ["-q", "1", "-t", "a/+/c", "-t", "a/#", "-C", "3", "-v", "-d"];
    let mut listener =
        Child::start("mosquitto_sub", mosquitto("mosquitto_sub", &target, &demo, "listener", &subscribe));
    listener
        .line("the SUBACK", Duration::from_secs(20), |line| {
            (line.contains("SUBACK") || line.starts_with("Subscribed")).then_some(())
        })
        .await;
    for (topic, qos) in [("a/b/c", "0"), ("a/b/c", "1"), ("a/x", "1")] {
        let publish = ["-q", qos, "-t", topic, "-m", "hello"];
        run("mosquitto_pub", mosquitto("mosquitto_pub", &target, &demo, "speaker", &publish)).await.fine();
    }
    assert_eq!(listener.exit(Duration::from_secs(20)).await, Some(0));
    let got: Vec<String> = listener.lines().into_iter().filter(|line| line.starts_with("a/")).collect();
    assert_eq!(got, ["a/b/c hello", "a/b/c hello", "a/x hello"], "overlapping filters: one delivery each");
    let consumed = run("penstockctl", ctl(&["consume", "--group", "g", "--count", "3", "--timeout", "20s"]));
    assert_eq!(consumed.await.fine().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mosquitto_session_outlives_a_crash() {
    let _alone = alone().await;
    let mut penstock = Penstock::start().await;
    let (target, demo) = (penstock.target(), penstock.demo());
    let keeper = |more: &[&str]| {
        let arguments = [&["-c", "-q", "1", "-t", "a/#"], more].concat();
        mosquitto("mosquitto_sub", &target, &demo, "keeper", &arguments)
    };
    run("mosquitto_sub", keeper(&["-E"])).await.fine();
    for (at, message) in ["one", "two", "three", "four"].into_iter().enumerate() {
        let publish = ["-q", "1", "-t", "a/b", "-m", message];
        run("mosquitto_pub", mosquitto("mosquitto_pub", &target, &demo, "speaker", &publish)).await.fine();
        if at == 2 {
            penstock.crash_and_restart().await;
        }
    }
    let got = run("mosquitto_sub", keeper(&["-C", "4", "-W", "30"])).await.fine();
    assert_eq!(got, ["one", "two", "three", "four"]);
    let none = run("mosquitto_sub", keeper(&["-W", "1"])).await;
    assert!(!none.lines.iter().any(|line| line.len() < 6), "what was acknowledged comes again: {none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_will_of_a_killed_mosquitto_client_is_published() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    let (target, demo) = (penstock.target(), penstock.demo());
    let ctl = |arguments: &[&str]| ctl(&penstock.server(), &demo.app(), &demo.password, arguments);
    run("penstockctl", ctl(&["group", "create", "wills", "--filter", "wills/#"])).await.fine();
    let subscribe = ["-t", "x", "-d", "--will-topic", "wills/1", "--will-payload", "gone", "--will-qos", "1"];
    let mut dying =
        Child::start("mosquitto_sub", mosquitto("mosquitto_sub", &target, &demo, "dying", &subscribe));
    dying.line("the CONNACK", Duration::from_secs(20), |line| line.contains("CONNACK").then_some(())).await;
    dying.kill().await;
    let consume = ["consume", "--group", "wills", "--json", "--count", "1", "--timeout", "30s"];
    let lines = run("penstockctl", ctl(&consume)).await.fine().join("");
    assert!(lines.contains(r#""last_will":true"#) && lines.contains(r#""payload":"gone""#), "{lines}");
}

#[tokio::test(flavor = "multi_thread")]
async fn paho_publishes_subscribes_and_leaves_a_will() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    let directory = tempfile::tempdir().unwrap();
    let python = paho::python(directory.path()).await;
    let paho = paho::device(&python, &penstock.target(), &penstock.demo(), None, false);
    let ran = run("paho", paho).await;
    assert_eq!(ran.fine(), ["fine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_microservice_with_websockets_and_avro_is_served_by_one_process() {
    let _alone = alone().await;
    let penstock =
        Penstock::start_with(&[], &[("http-ack-timeout", "3s"), ("avro-generation", "older")]).await;
    let directory = tempfile::tempdir().unwrap();
    let python = paho::python_of_microservice(directory.path()).await;
    let microservice = Microservice {
        doors: vec![penstock.program.address("http")],
        targets: vec![penstock.target()],
        tenant: &penstock.demo(),
        generation: "older",
        keys: Some(penstock.directory.path().join("data/signing-keys.json")),
    };
    assert_eq!(run("microservice", microservice.command(&python)).await.fine(), ["fine"]);
    let messages = penstock.program.metric("penstock_web_messages_total").await;
    assert!(messages.is_some_and(|messages| messages > 0.0), "{messages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_microservice_with_websockets_and_avro_is_served_by_a_cluster() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let directory = tempfile::tempdir().unwrap();
    let python = paho::python_of_microservice(directory.path()).await;
    let microservice = Microservice {
        doors: cluster.routers.iter().map(|router| router.address("http")).collect(),
        targets: cluster.targets(),
        tenant: &tenant,
        generation: "newer",
        keys: None,
    };
    assert_eq!(run("microservice", microservice.command(&python)).await.fine(), ["fine"]);
}
