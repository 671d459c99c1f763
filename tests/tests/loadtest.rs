//! `penstock-loadtest` against Penstock itself, as a user would run it: a group verifies every message.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use penstock_tests::{binaries, command, standalone::Penstock};
use serde_json::Value;
use tokio::process::Command;

/// Runs it as tenant `demo`, and gives its JSON result. It must pass.
async fn passes(penstock: &Penstock, arguments: &str) -> Value {
    let mut program = Command::new(binaries::path("penstock-loadtest"));
    let target = format!("mqtt://{}", penstock.target());
    program.args(arguments.split_whitespace()).args(["--target", &target, "--user-template", "demo/device"]);
    program.arg("--json").env("PENSTOCK_PASSWORD", &penstock.demo().password);
    let lines = command::run("penstock-loadtest", program).await.fine();
    let json: Value = serde_json::from_str(lines.last().expect("a result")).expect("JSON");
    assert_eq!((&json["passed"], &json["failures"]), (&true.into(), &Value::Array(vec![])), "{json:#}");
    json
}

#[tokio::test]
async fn a_group_verifies_what_is_ingested() {
    let penstock = Penstock::start().await;
    let server = penstock.server();
    let json = passes(
        &penstock,
        &format!("ingest --messaging {server} --clients 20 --messages 5000 --duration 60s --slo lost=0,duplicated=0"),
    )
    .await;
    assert_eq!((&json["verdict"]["seen"], &json["verdict"]["verified_by"]), (&5_000.into(), &"group".into()));
    let json = passes(&penstock, "ingest --qos 0 --clients 5 --rate 100/s --duration 1s").await;
    assert_eq!(json["verdict"]["verified_by"], "subscriber");
    let groups = penstock.client().groups().await.unwrap();
    assert_eq!(groups, [], "the program deletes its group");
}

#[tokio::test]
async fn pushes_reach_the_devices_that_they_are_for() {
    let penstock = Penstock::start().await;
    let server = penstock.server();
    let json = passes(
        &penstock,
        &format!("push --messaging {server} --clients 20 --rate 200/s --messages 400 --duration 60s"),
    )
    .await;
    assert_eq!((&json["verdict"]["seen"], &json["verdict"]["verified_by"]), (&400.into(), &"device".into()));
    assert_eq!(json["latency_ms"]["receipt"]["count"], 400);
}

#[tokio::test]
async fn eight_consumers_drain_a_backlog_and_the_ledger_is_exact() {
    let penstock = Penstock::start().await;
    let server = penstock.server();
    let json = passes(
        &penstock,
        &format!(
            "ingest --messaging {server} --clients 20 --messages 5000 --duration 60s --backlog --consumers 8 \
             --slo lost=0,duplicated=0,reordered=0,redelivered=0"
        ),
    )
    .await;
    assert_eq!((&json["verdict"]["seen"], &json["parameters"]["consumers"]), (&5_000.into(), &8.into()));
    // Nothing was consumed while it was stored.
    let backlog = &json["backlog"];
    assert_eq!((&backlog["records"], &backlog["consumers"]), (&5_000.into(), &8.into()), "{json:#}");
    assert_eq!(json["measured"]["received"], 0, "{json:#}");
    assert!(backlog["records_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(penstock.client().groups().await.unwrap(), [], "the program deletes its group");
}

#[tokio::test]
async fn several_pushers_share_devices_messages_and_pace() {
    let penstock = Penstock::start().await;
    let server = penstock.server();
    // 7 devices and 500 messages are no multiples of 3.
    let json = passes(
        &penstock,
        &format!(
            "push --messaging {server} --clients 7 --pushers 3 --inflight 8 --messages 500 --duration 60s \
             --slo lost=0,duplicated=0,reordered=0,misrouted=0"
        ),
    )
    .await;
    assert_eq!((&json["verdict"]["seen"], &json["messages"]["sent"]), (&500.into(), &500.into()));
    let json = passes(
        &penstock,
        &format!("push --messaging {server} --clients 7 --pushers 3 --rate 200/s --duration 1s"),
    )
    .await;
    assert_eq!(
        (&json["messages"]["sent"], &json["messages"]["unsent"]),
        (&200.into(), &0.into()),
        "{json:#}"
    );
}

#[tokio::test]
async fn a_fan_out_reaches_every_subscriber() {
    let penstock = Penstock::start().await;
    let json = passes(&penstock, "fanout --clients 20 --publishers 2 --messages 200 --duration 60s").await;
    assert_eq!(json["messages"]["received"], 4_000);
}

#[tokio::test]
async fn storms_and_takeovers_end_with_everybody_in() {
    let penstock = Penstock::start().await;
    let json = passes(&penstock, "storm --clients 100 --rounds 2").await;
    assert_eq!(json["measured"]["connects"].as_u64().map(|made| made >= 200), Some(true), "{json:#}");
    let json = passes(&penstock, "takeover --clients 50").await;
    assert_eq!(json["latency_ms"]["takeover"]["count"], 50);
    let json = passes(&penstock, "connect --clients 100 --hold 200ms").await;
    assert_eq!(json["connections"]["connected"], 100);
}
