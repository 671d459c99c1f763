//! What a message and a connection cost, beside mosquitto in the same run: everything that serves on core 0, the load on
//! core 1. Run with `make bench`; it builds release binaries, takes some minutes and prints a table.
#![allow(clippy::print_stdout, clippy::indexing_slicing)]

mod load;
mod parts;
mod systems;

use std::{env, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, ensure};
use load::Ingest;
use penstock_client::{Client, GroupSpec, Start};
use systems::System;
use tokio::time::Instant;

/// One line of the table.
struct Row {
    what: String,
    value: String,
}

fn main() -> anyhow::Result<()> {
    let bin = build()?;
    // The load is one thread on its own core.
    ensure!(
        Command::new("taskset")
            .args(["-cp", "1", &std::process::id().to_string()])
            .output()?
            .status
            .success()
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let wanted: Vec<String> = env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    for name in ["mosquitto", "cluster", "fsync", "standalone"] {
        if !wanted.is_empty() && !wanted.iter().any(|own| own == name) {
            continue;
        }
        let system = match name {
            "mosquitto" => systems::mosquitto()?,
            "cluster" => systems::cluster(&bin, "everysec")?,
            "fsync" => systems::cluster(&bin, "always")?,
            _ => systems::standalone(&bin)?,
        };
        systems::prepare(&bin, &system)?;
        let rows = runtime.block_on(measure(&system))?;
        println!("\n{}", system.name);
        for row in rows {
            println!("  {:<44} {}", row.what, row.value);
        }
    }
    Ok(())
}

fn build() -> anyhow::Result<PathBuf> {
    let packages = ["-p", "penstock", "-p", "penstock-gateway", "-p", "penstock-router", "-p", "penstockctl"];
    let features = ["--features", "penstock-gateway/cluster,penstock-router/cluster"];
    let status =
        Command::new(env!("CARGO")).args(["build", "--release"]).args(packages).args(features).status()?;
    ensure!(status.success(), "the release build failed");
    let exe = env::current_exe()?;
    let target = exe.ancestors().nth(3).context("no target directory")?;
    Ok(target.join("release"))
}

async fn measure(system: &System) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut row = |what: &str, value: String| rows.push(Row { what: what.to_owned(), value });
    // What is idle and slow first: floods leave memory and work behind.
    let times = load::latency(&system.target, 100, 1_000, Duration::from_secs(8)).await?;
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] * 1e3;
    row(
        "PUBACK at 1,000/s, p50 / p99 / p99.9 ms",
        format!("{:.2} / {:.2} / {:.2}", at(0.5), at(0.99), at(0.999)),
    );
    let before = system.rss(&["gateway", "router", "penstock", "mosquitto"]);
    let (held, took) = load::connect_all(&system.target, 10_000, 200).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = system.rss(&["gateway", "router", "penstock", "mosquitto"]);
    row("CONNECT/s (10,000, 200 at a time)", format!("{:.0}", held.len() as f64 / took));
    let each = after.saturating_sub(before) as f64 / held.len() as f64 / 1024.0;
    row("memory of an idle connection (10,000)", format!("{each:.2} KiB"));
    drop(held);
    let seconds = Duration::from_secs(8);
    for (what, payload, window, qos) in
        [("QoS 1, 64 B", 64, 16, 1), ("QoS 1, 1 KiB", 1_024, 16, 1), ("QoS 0, 64 B", 64, 64, 0)]
    {
        let warm = Ingest { clients: 100, window, payload, duration: Duration::from_secs(1) };
        load::ingest(&system.target, warm, 1).await?;
        let (before, each) = (system.cpu(), system.cpu_each());
        let done = load::ingest(&system.target, Ingest { duration: seconds, ..warm }, qos).await?;
        let million = done.messages as f64 / 1e6;
        let parts: Vec<String> = system
            .cpu_each()
            .iter()
            .zip(&each)
            .map(|((name, now), (_, then))| format!("{name} {:.2}", (now - then) / million))
            .collect();
        row(
            what,
            format!(
                "{:.0} k/s, {:.2} CPU s/1M ({})",
                done.messages as f64 / done.seconds / 1e3,
                (system.cpu() - before) / million,
                parts.join(", ")
            ),
        );
    }
    if system.door.is_some() {
        row("one group consumer, 64 B, handed out and acked", consume(system).await?);
    }
    Ok(rows)
}

/// A backlog of a million records, read and acknowledged by one consumer.
async fn consume(system: &System) -> anyhow::Result<String> {
    let (door, user, password) = system.door.as_ref().context("no door")?;
    let client = Client::builder().server(door).credentials(user, password).connect_lazy()?;
    client.create_group(&GroupSpec::new("measure").start(Start::Latest)).await?;
    let shape = Ingest { clients: 100, window: 16, payload: 64, duration: Duration::from_secs(4) };
    let stored = load::ingest(&system.target, shape, 1).await?.messages;
    let mut consumer = client.consumer("measure").credit(50_000).start();
    let started = Instant::now();
    let cpu = system.cpu();
    let mut seen = 0u64;
    while seen < stored {
        let batch = tokio::time::timeout(Duration::from_secs(20), consumer.next_batch())
            .await
            .context("nothing came")??;
        seen += batch.decode()?.len() as u64;
        consumer.ack_batch(&batch)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let cost = (system.cpu() - cpu) / (seen as f64 / 1e6);
    consumer.close().await?;
    client.delete_group("measure").await?;
    Ok(format!("{:.0} k/s, {cost:.2} CPU s/1M", seen as f64 / seconds / 1e3))
}
