//! What clients that mean harm cost a gateway and their neighbours, kind by kind: memory, and the waits of a well-behaved client
//! before and meanwhile. Each kind gets a gateway of its own with the limits of the defaults; etcd, Redis and one router stay.
//!
//! `cargo bench -p penstock-tests --bench hostile -- --clients 2000`; prints a table. It judges nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use clap::Parser;
use penstock_tests::{
    cluster::Cluster,
    hostile::{Attack, Kind, Waits},
    wait::lasting,
};

/// For the attackers to be where they do their harm; those who are not by then are held up by each other.
const UNDER_WAY: Duration = Duration::from_secs(10);

/// What hostile clients cost.
#[derive(Debug, Parser)]
struct Arguments {
    /// Attackers of a kind
    #[arg(long, default_value_t = 2_000)]
    clients: usize,
    /// Seconds that the neighbour is measured for, before and meanwhile
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only kinds with this in their name
    #[arg(long, default_value = "")]
    only: String,
    /// What cargo says to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(&arguments));
}

async fn run(arguments: &Arguments) {
    let mut cluster = Cluster::start(0, 1).await;
    let (hostile, peaceful) = (cluster.tenant("hostile").await, cluster.tenant("peaceful").await);
    println!(
        "| what {} clients do | RSS | kernel | PUBACK p50, p99 | alone | CONNACK p99 | alone |",
        arguments.clients
    );
    println!("|---|--:|--:|--:|--:|--:|--:|");
    for kind in Kind::ALL.into_iter().filter(|kind| kind.name().contains(&arguments.only)) {
        let gateway = cluster.gateway("gateway-0");
        cluster.add(gateway).await;
        let (target, time) = (cluster.targets().remove(0), Duration::from_secs(arguments.seconds));
        let alone = Waits::measure(&target, &peaceful, time).await;
        let gateway = &cluster.gateways[0];
        let (before, kernel) = (gateway.resident_bytes(), socket_bytes());
        let attack = Attack::start(kind, arguments.clients, &target, &hostile);
        lasting(UNDER_WAY).await;
        let meanwhile = Waits::measure(&target, &peaceful, time).await;
        println!(
            "| {} | +{} MiB | +{} MiB | {}, {} | {}, {} | {} | {} |",
            format_args!("{} ({} times)", kind.name(), attack.turns()),
            gateway.resident_bytes().saturating_sub(before) >> 20,
            socket_bytes().saturating_sub(kernel) >> 20,
            shown(&meanwhile.puback, 50),
            shown(&meanwhile.puback, 99),
            shown(&alone.puback, 50),
            shown(&alone.puback, 99),
            shown(&meanwhile.connack, 99),
            shown(&alone.connack, 99),
        );
        cluster.gateways.remove(0).kill().await;
    }
}

fn shown(waits: &[Duration], percent: usize) -> String {
    format!("{:.1} ms", Waits::percentile(waits, percent).as_secs_f64() * 1e3)
}

/// What the kernel holds for all TCP sockets of the machine, both ends of each connection.
fn socket_bytes() -> u64 {
    let stat = std::fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let pages =
        stat.lines().find_map(|line| line.strip_prefix("TCP:")?.split_once(" mem ")?.1.parse::<u64>().ok());
    pages.unwrap_or(0) * 4_096
}
