//! A broker that does something wrong is found out, whatever it is; one that does not, passes.

use crate::{
    process::{Ran, run},
    standin::{StandIn, Wrong},
};

/// Two publishers of a tenant each, and a subscriber for each tenant.
async fn against(wrong: Wrong, more: &str) -> Ran {
    let broker = StandIn::start(wrong).await;
    let target = broker.target();
    run(&format!(
        "ingest --target {target} --user-template acme/device,other/device --clients 2 --messages 200 --inflight 4 \
         --duration 15s --settle 1s --json {more}"
    ))
    .await
}

/// The one kind of fault, once for each publisher.
async fn finds(wrong: Wrong, fault: &str) {
    let ran = against(wrong, "").await;
    let json = ran.json();
    assert_eq!(ran.code, Some(1), "{wrong:?}: {ran:?}");
    assert_eq!(json["failures"], serde_json::json!([format!("{fault}=2")]), "{wrong:?}: {ran:?}");
    assert_eq!(json["passed"], false);
}

#[tokio::test]
async fn an_honest_broker_passes() {
    let json = against(Wrong::Nothing, "").await.passed();
    for (count, expected) in [("sent", 200), ("acked", 200), ("received", 200), ("unacked", 0)] {
        assert_eq!(json["messages"][count], expected, "{count}: {json}");
    }
    assert_eq!(json["verdict"]["seen"], 200);
    assert_eq!((&json["verdict"]["balanced"], &json["verdict"]["complete"]), (&true.into(), &true.into()));
}

#[tokio::test]
async fn an_acknowledged_message_that_is_not_delivered_is_lost() {
    finds(Wrong::Loses, "lost").await;
}

#[tokio::test]
async fn a_message_that_is_delivered_twice_is_duplicated() {
    finds(Wrong::DeliversTwice, "duplicated").await;
}

#[tokio::test]
async fn a_message_that_overtakes_another_is_reordered() {
    finds(Wrong::Reorders, "reordered").await;
}

#[tokio::test]
async fn a_message_of_another_tenant_is_leaked() {
    finds(Wrong::Leaks, "leaked").await;
}

#[tokio::test]
async fn a_changed_payload_is_corrupt_and_its_message_lost() {
    let json = against(Wrong::Corrupts, "").await.json();
    assert_eq!(json["failures"], serde_json::json!(["lost=2", "corrupt=2"]), "{json}");
}

#[tokio::test]
async fn a_message_that_nobody_sent_is_invented() {
    finds(Wrong::Invents, "invented").await;
}

#[tokio::test]
async fn acknowledgements_out_of_order_are_a_fault() {
    finds(Wrong::AcksOutOfOrder, "acked_out_of_order").await;
}

#[tokio::test]
async fn an_acknowledgement_that_never_comes_is_a_fault() {
    finds(Wrong::ForgetsAnAck, "unacked").await;
}

#[tokio::test]
async fn a_fault_that_is_tolerated_is_told_and_does_not_fail() {
    let json = against(Wrong::DeliversTwice, "--tolerate duplicated").await.passed();
    assert_eq!(json["verdict"]["duplicated"], 2);
}

#[tokio::test]
async fn what_was_sent_again_after_a_cut_is_no_fault() {
    let json = against(Wrong::Cuts, "").await.passed();
    assert_eq!((&json["connections"]["broken"], &json["errors"]["closed"]), (&2.into(), &2.into()), "{json}");
    assert_eq!(json["messages"]["acked"], 200);
}

#[tokio::test]
async fn who_lets_nobody_in_is_told_so() {
    let ran = against(Wrong::Refuses, "--connect-timeout 300ms").await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("refused_code_5"), "{ran:?}");
}
