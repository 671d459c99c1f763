//! `make cluster` as a person uses it: commands as they are printed, Ctrl-C, and nothing left behind.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{net::TcpListener, time::Duration};

use penstock_tests::{
    binaries,
    child::Child,
    command::run,
    ports,
    wait::{alone, eventually},
};
use tokio::process::Command;

const START: Duration = Duration::from_secs(120);

fn command(arguments: &[&str]) -> Command {
    // It looks for the other programs beside itself.
    binaries::path("penstock-router");
    let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-cluster"));
    command.args(arguments);
    command
}

/// The printed command that holds this text, as a shell runs it.
fn printed(lines: &[String], holding: &str) -> Command {
    let line = lines.iter().find(|line| line.starts_with("  ") && line.contains(holding));
    let line = line.unwrap_or_else(|| panic!("no command with {holding}: {lines:#?}"));
    let mut command = Command::new("bash");
    command.args(["-c", &format!("exec env {}", line.trim())]);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_prints_works_and_ctrl_c_stops_everything() {
    let _alone = alone().await;
    let (mqtt, grpc) = ([ports::free(), ports::free()], [ports::free(), ports::free()]);
    let list = |ports: [u16; 2]| format!("{},{}", ports[0], ports[1]);
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().to_str().unwrap();
    let arguments = ["--mqtt", &list(mqtt), "--grpc", &list(grpc), "--dir", place];
    for round in ["first", "again"] {
        let mut cluster = Child::start("penstock-cluster", command(&arguments));
        cluster.line("where logs are", START, |line| line.starts_with("Logs: ").then_some(())).await;
        let lines = cluster.lines();
        run("mosquitto_pub", printed(&lines, "mosquitto_pub")).await.fine();
        let mut consumer = Child::start("consumer", printed(&lines, " consume "));
        let message = |line: &str| line.contains("21.5").then_some(());
        consumer.line(&format!("the message, {round}"), START, message).await;
        let mut mapper = Child::start("mapper", printed(&lines, " --dry-run"));
        let request = |line: &str| line.contains("/measurement/measurements").then_some(());
        mapper.line(&format!("the request, {round}"), START, request).await;
        mapper.kill().await;
        let mut listener = Child::start("mosquitto_sub", printed(&lines, "mosquitto_sub"));
        eventually("the push is delivered", START, || async {
            (run("push", printed(&lines, " push ")).await.code == Some(0)).then_some(())
        })
        .await;
        listener.kill().await;
        consumer.kill().await;
        let members = run("cluster", printed(&lines, " cluster")).await.fine().join("\n");
        assert_eq!(members.matches("registered").count(), 4, "{members}");
        cluster.interrupt();
        assert_eq!(cluster.exit(START).await, Some(0), "{}", cluster.tail());
        for port in mqtt.iter().chain(&grpc) {
            TcpListener::bind(("127.0.0.1", *port)).expect("nobody listens any more");
        }
    }
}

#[tokio::test]
async fn a_taken_port_is_told_before_anything_is_started() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    let ran = run("penstock-cluster", command(&["--mqtt", &port, "--grpc", &port])).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let said = ran.lines.join("\n");
    assert!(said.contains(&port) && said.contains("--mqtt") && !said.contains("starting"), "{said}");
}
