//! Kinds of load against a broker that does nothing wrong.

use crate::{
    process::{run, run_with, start},
    standin::{StandIn, Wrong},
};

#[tokio::test]
async fn every_subscriber_of_a_fan_out_is_judged() {
    let broker = StandIn::start(Wrong::Nothing).await;
    let target = broker.target();
    let ran = run(&format!(
        "fanout --target {target} --clients 5 --publishers 3 --messages 40 --duration 60s --json"
    ))
    .await;
    let json = ran.passed();
    assert_eq!((&json["messages"]["sent"], &json["messages"]["received"]), (&40.into(), &200.into()));
    assert_eq!((&json["verdict"]["sent"], &json["verdict"]["seen"]), (&40.into(), &200.into()));

    let broker = StandIn::start(Wrong::Loses).await;
    let target = broker.target();
    let arguments =
        format!("fanout --target {target} --clients 5 --messages 40 --duration 60s --settle 1s --json");
    let ran = run(&arguments).await;
    assert_eq!((ran.code, &ran.json()["verdict"]["lost"]), (Some(1), &5.into()), "{ran:?}");
}

#[tokio::test]
async fn connections_are_held_from_several_addresses() {
    let broker = StandIn::start(Wrong::Nothing).await;
    let target = broker.target();
    let ran = run(&format!(
        "connect --target {target} --clients 40 --source-ips 127.0.0.2-127.0.0.5 --hold 200ms --json"
    ))
    .await;
    let json = ran.passed();
    assert_eq!(
        (&json["connections"]["connected"], &json["latency_ms"]["connect"]["count"]),
        (&40.into(), &40.into())
    );
    assert_eq!(broker.peers(), 4);
}

#[tokio::test]
async fn an_idle_connection_costs_less_than_four_kib() {
    let broker = StandIn::start(Wrong::Nothing).await;
    let target = broker.target();
    let json = run(&format!("connect --target {target} --clients 1500 --threads 1 --json")).await.passed();
    let bytes = json["generator"]["rss_bytes_per_connection"].as_f64().unwrap();
    assert!(bytes < 4_096.0, "{bytes} bytes for each connection");
}

#[tokio::test]
async fn who_breaks_off_is_told_what_was_measured() {
    let broker = StandIn::start(Wrong::Nothing).await;
    let target = broker.target();
    let running = start(&format!(
        "ingest --target {target} --clients 2 --rate 100/s --duration 1h --settle 20s --json"
    ));
    broker.published(20).await;
    running.terminate();
    let ran = running.end().await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let json = ran.json();
    assert_eq!(json["failures"], serde_json::json!(["it was interrupted"]));
    assert!(json["messages"]["acked"].as_u64().unwrap() >= 20 && json["seconds"].as_f64().unwrap() < 120.0);
}

#[tokio::test]
async fn a_storm_has_rounds() {
    let broker = StandIn::start(Wrong::Nothing).await;
    let target = broker.target();
    let json = run(&format!("storm --target {target} --clients 50 --rounds 3 --json")).await.passed();
    assert_eq!(json["rounds"].as_array().unwrap().len(), 3);
    assert_eq!(json["measured"]["connects"], 150);
    let refusing = StandIn::start(Wrong::Refuses).await;
    let target = refusing.target();
    let ran = run(&format!("storm --target {target} --clients 5 --connect-timeout 300ms --json")).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.json()["errors"]["refused_code_5"].as_u64().unwrap() >= 5, "{ran:?}");
}

#[tokio::test]
async fn a_takeover_that_nobody_does_fails() {
    // The stand-in lets two clients have the same identifier.
    let broker = StandIn::start(Wrong::Nothing).await;
    let target = broker.target();
    let ran = run(&format!("takeover --target {target} --clients 5 --connect-timeout 500ms --json")).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.json()["failures"][0].as_str().unwrap().contains("0 of 5 old connections"), "{ran:?}");
}

#[tokio::test]
async fn a_scenario_passes_through_its_phases() {
    let broker = StandIn::start(Wrong::Nothing).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.toml");
    let scenario = r#"
        name = "small"
        subscribers = 2
        payload = "100B"
        slo = "lost=0,acked_rate>1/s"
        [[phases]]
        name = "calm"
        duration = "300ms"
        publishers = 2
        rate = "100/s"
        measured = false
        [[phases]]
        name = "up"
        duration = "1s"
        publishers = 6
        rate = "0/s..400/s"
    "#;
    std::fs::write(&path, scenario).unwrap();
    let target = broker.target();
    let json = run_with(&["run", path.to_str().unwrap(), "--target", &target, "--json"]).await.passed();
    let sent = |phase: usize| json["phases"][phase]["messages"]["sent"].as_u64().unwrap();
    // What is due at the very end of a phase may leave in the next one, or not at all.
    assert!((20..=40).contains(&sent(0)) && (100..=211).contains(&sent(1)), "{json:#}");
    assert_eq!((&json["phases"][0]["name"], &json["phases"][1]["name"]), (&"calm".into(), &"up".into()));
    assert_eq!(json["measured"]["sent"].as_u64().unwrap(), sent(1), "only what is measured");
    assert_eq!(json["parameters"]["payload_bytes"], 100);
    assert_eq!(json["connections"]["connected"], 8);
    assert_eq!(json["slo"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_generator_that_can_do_no_more_says_so() {
    // A broker that does nothing with what it gets is faster than any generator.
    let broker = StandIn::start(Wrong::Swallows).await;
    let target = broker.target();
    let ran = run(&format!(
        "ingest --target {target} --clients 4 --qos 0 --verify none --threads 1 --duration 2s --json"
    ))
    .await;
    let json = ran.passed();
    assert_eq!(json["generator_bound"], true, "{json:#}");
    assert!(json["generator_bound_reason"].as_str().unwrap().contains("thread"), "{json:#}");
    assert!(json["generator"]["cpu_seconds"].as_f64().unwrap() > 0.0);
}
