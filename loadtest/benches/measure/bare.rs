//! What Redis alone takes at 64 KiB: XADD by `redis-benchmark` on the load core, as many under way as the publishers of the
//! scenario have. The log is trimmed to as much as the tenant of the scenario keeps.

use std::process::Command;

use anyhow::{Context, ensure};

use crate::{load::LOAD_CORE, parts::find, results::Run, scenarios::Scenario, systems::System};

const PAYLOAD: usize = 64 << 10;

/// One run; as many requests as `seconds` take on a slow machine.
pub fn run(system: &System, scenario: Scenario, round: u32, seconds: u32) -> anyhow::Result<Run> {
    let mut run = Run::new("redis", scenario.name(), round);
    let program =
        find("PENSTOCK_BENCH_REDIS_BENCHMARK", "redis-benchmark").context("redis-benchmark is not here")?;
    let output = Command::new("taskset")
        .args(["-c", LOAD_CORE])
        .arg(program)
        .args(["-p", &system.target.port().to_string(), "-c", "100", "-P", "4", "--csv"])
        .args(["-n", &(seconds * 2_000).to_string()])
        .args(["XADD", "log", "MAXLEN", "~", "4000", "*", "b", &"x".repeat(PAYLOAD)])
        .output()?;
    ensure!(output.status.success(), "redis-benchmark: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    // The first column is the command itself, the second requests a second.
    let rate = text
        .lines()
        .last()
        .and_then(|line| line.rsplit("\",\"").nth(6)?.trim_matches('"').parse::<f64>().ok());
    match rate {
        Some(rate) => run.figures.insert("per_second".to_owned(), rate),
        None => {
            run.failure = Some("redis-benchmark printed no rate".to_owned());
            None
        }
    };
    Ok(run)
}
