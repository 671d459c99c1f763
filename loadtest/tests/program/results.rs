//! What a run leaves behind: JSON that programs rely on, a page that opens without network, and no line in a pipe.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    process::{run, run_with},
    standin::{StandIn, Wrong},
};

/// Every field, as `a.b`; of arrays those of the first element.
fn fields(value: &Value, at: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                fields(value, &format!("{at}.{name}"), into);
            }
        }
        Value::Array(array) if array.first().is_some_and(Value::is_object) => {
            fields(&array[0], &format!("{at}[]"), into);
        }
        _ => drop(into.insert(at.trim_start_matches('.').to_owned())),
    }
}

#[tokio::test]
async fn the_json_result_has_the_fields_that_were_promised() {
    let broker = StandIn::start(Wrong::Nothing).await;
    let target = broker.target();
    let json = run(&format!(
        "ingest --target {target} --clients 3 --rate 200/s --duration 1s --slo puback_p99<60s --json"
    ))
    .await
    .passed();
    let mut found = BTreeSet::new();
    fields(&json, "", &mut found);
    let promised: BTreeSet<String> =
        include_str!("fields.txt").lines().map(str::to_owned).filter(|line| !line.is_empty()).collect();
    let missing: Vec<_> = promised.difference(&found).collect();
    let new: Vec<_> = found.difference(&promised).collect();
    assert!(missing.is_empty() && new.is_empty(), "missing: {missing:#?}, new: {new:#?}");
    assert_eq!(json["slo"][0]["held"], true);
    let one_way = json["latency_ms"]["one_way"]["p50"].as_f64().unwrap();
    assert!(one_way > 0.0 && one_way < 60_000.0, "{one_way}");
}

#[tokio::test]
async fn an_slo_that_does_not_hold_fails_and_one_that_was_not_measured_too() {
    let broker = StandIn::start(Wrong::Nothing).await;
    let target = broker.target();
    let load = format!("ingest --target {target} --clients 2 --messages 20 --duration 60s --json --slo");
    let ran = run(&format!("{load} puback_p99<1us,receipt_p99<1s,lost=0")).await;
    assert_eq!(ran.code, Some(1));
    let held: Vec<_> = ran.json()["slo"].as_array().unwrap().iter().map(|slo| slo["held"].clone()).collect();
    assert_eq!(held, [false, false, true]);
    assert_eq!(ran.json()["failures"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn the_page_opens_without_network() {
    let broker = StandIn::start(Wrong::Nothing).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let (target, file) = (broker.target(), path.to_str().unwrap());
    let arguments =
        ["ingest", "--target", &target, "--clients", "3", "--rate", "200/s", "--duration", "2500ms"];
    let ran = run_with(&[&arguments[..], &["--html", file]].concat()).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let page = std::fs::read_to_string(&path).unwrap();
    for outside in ["http://", "https://", "//cdn", "src=", "<link", "@import", "url(", "fetch("] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
    assert!(page.matches("<svg").count() >= 3 && page.contains("Ledger"), "plots are missing");
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
}

#[tokio::test]
async fn a_pipe_gets_the_result_and_nothing_else() {
    let broker = StandIn::start(Wrong::Nothing).await;
    let target = broker.target();
    let ran = run(&format!("ingest --target {target} --clients 2 --rate 50/s --duration 1500ms")).await;
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert!(ran.out.lines().last().unwrap().ends_with("passed"), "{}", ran.out);
    assert!(!ran.out.contains('\u{1b}') && !ran.out.contains('\r'));
}
