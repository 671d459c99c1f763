//! What a message and a connection cost, beside other brokers in the same run: everything that serves on core 0, the load
//! (`penstock-loadtest`) on core 1. Run with `make bench`; `make bench ONLY=--help` tells the rest. It builds release
//! programs, writes `target/bench/results.json` and, after a whole run, docs/performance.md and its picture.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bare;
mod budgets;
mod load;
mod machine;
mod options;
mod ours;
mod parts;
mod peers;
mod plot;
mod raw;
mod report;
mod results;
mod scenarios;
mod services;
mod systems;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, ensure};
use clap::Parser;
use options::Options;
use results::{Facts, Results, Run};
use systems::{KINDS, Kind, System};

/// Why a peer has no figures; it is not tried again.
const NO_START: &str = "it did not start";
/// Load of the machine above which figures are doubtful.
const QUIET: f64 = 0.7;

fn main() -> ExitCode {
    let options = Options::parse();
    let kinds = match options.kinds() {
        Ok(kinds) => kinds,
        Err(fault) => {
            eprintln!("{fault}");
            return ExitCode::from(2);
        }
    };
    match measure(&options, &kinds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options, kinds: &[Kind]) -> anyhow::Result<()> {
    if options.list {
        list(options);
        return Ok(());
    }
    let kept = target()?.join("bench/results.json");
    if options.render {
        return document(&Results::read(&kept)?);
    }
    match &options.programs {
        // Cargo runs this in its package; the reader is at the repository's top.
        Some(dir) => ours::programs_are_in(root().join(dir).canonicalize().context("--programs")?),
        None => build()?,
    }
    stay_on_the_load_core()?;
    let mut results = run(options, kinds)?;
    println!("{}", report::render(&results));
    if options.write && !options.is_whole() && kept.exists() {
        let mut older = Results::read(&kept)?;
        older.replace(results);
        results = older;
    }
    results.write(&kept)?;
    eprintln!("bench: results are in {}", kept.display());
    if options.is_whole() || options.write { document(&results) } else { Ok(()) }
}

fn list(options: &Options) {
    println!("systems:");
    for kind in KINDS {
        println!("  {:<14} {}", kind.name(), kind.missing().unwrap_or_else(|| kind.version()));
    }
    println!("scenarios:");
    for scenario in scenarios::SCENARIOS {
        println!("  {:<14} {}", scenario.name(), scenario.arguments(options.seconds));
    }
}

/// Rounds over all systems, so that what changes with time touches all of them alike; each system is started afresh.
fn run(options: &Options, kinds: &[Kind]) -> anyhow::Result<Results> {
    let mut results = Results {
        started_at: machine::now(),
        machine: machine::describe(),
        rounds: options.rounds,
        seconds: options.seconds,
        ..Results::default()
    };
    if machine::load() > QUIET {
        let load = machine::load();
        eprintln!("bench: the machine is busy (load {load:.1}): the figures will be worse than they are");
        results.machine.push(format!("**busy with other work when it began: load {load:.1}**"));
    }
    for round in 1..=options.rounds {
        for kind in kinds.iter().filter(|kind| round == 1 || !kind.once()) {
            if let Some(missing) = kind.missing() {
                if round == 1 {
                    eprintln!("bench: {} is left out: {missing}", kind.name());
                    let facts = Facts { missing: Some(missing), ..Facts::default() };
                    results.systems.insert(kind.name().to_owned(), facts);
                }
                continue;
            }
            one_system(options, *kind, round, &mut results)?;
        }
    }
    Ok(results)
}

fn one_system(options: &Options, kind: Kind, round: u32, results: &mut Results) -> anyhow::Result<()> {
    let scenarios: Vec<_> =
        options.scenarios().into_iter().filter(|scenario| kind.takes(*scenario)).collect();
    if scenarios.is_empty() {
        return Ok(());
    }
    let starts = |run: &Run| run.system != kind.name() || run.failure.as_deref() != Some(NO_START);
    if !results.runs.iter().all(starts) {
        return Ok(());
    }
    let mut system = match kind.start() {
        Ok(system) => system,
        Err(error) => return refused(kind, round, &error, &scenarios, results),
    };
    for scenario in scenarios {
        eprint!("bench: round {round}/{}: {}, {} …", options.rounds, kind.name(), scenario.name());
        let run = match kind {
            Kind::Redis => bare::run(&system, scenario, round, options.seconds)?,
            _ => load::run(kind, &mut system, scenario, round, options.seconds)?,
        };
        eprintln!(" {}", told(&run));
        results.runs.push(run);
    }
    remember(kind, &system, results);
    Ok(())
}

/// A peer that does not start is a line of the report; Penstock that does not start is an error.
fn refused(
    kind: Kind,
    round: u32,
    error: &anyhow::Error,
    scenarios: &[scenarios::Scenario],
    results: &mut Results,
) -> anyhow::Result<()> {
    ensure!(!kind.is_ours(), "{} does not start: {error:#}", kind.name());
    eprintln!("bench: {} does not start: {error:#}", kind.name());
    results.runs.extend(scenarios.iter().map(|scenario| {
        let mut run = Run::new(kind.name(), scenario.name(), round);
        run.failure = Some(NO_START.to_owned());
        run
    }));
    Ok(())
}

fn remember(kind: Kind, system: &System, results: &mut Results) {
    let facts = Facts { version: kind.version(), commands: system.commands(), missing: None };
    results.systems.insert(kind.name().to_owned(), facts);
}

fn told(run: &Run) -> String {
    if let Some(failure) = &run.failure {
        return format!("failed: {failure}");
    }
    let figures: Vec<String> =
        run.figures.iter().map(|(name, value)| format!("{name} {}", budgets::short(*value))).collect();
    let bound = if run.generator_bound.is_some() { " (the generator was the limit)" } else { "" };
    figures.join(", ") + bound
}

/// The repository's top.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Cargo's target directory: this program lies in <target>/release/deps.
fn target() -> anyhow::Result<PathBuf> {
    Ok(env::current_exe()?.ancestors().nth(3).context("no target directory")?.to_owned())
}

fn document(results: &Results) -> anyhow::Result<()> {
    report::write(&root().join("docs/performance.md"), results)?;
    fs::write(root().join("docs/performance.svg"), plot::render(results))?;
    eprintln!("bench: docs/performance.md and docs/performance.svg are written");
    Ok(())
}

/// Builds the programs, with the optimisation that this program has.
fn build() -> anyhow::Result<()> {
    let mut command = Command::new(env!("CARGO"));
    command.args([
        "build",
        "--release",
        "--bins",
        "--features",
        "penstock-gateway/cluster,penstock-router/cluster",
    ]);
    for package in ["penstock", "penstock-gateway", "penstock-router", "penstockctl", "penstock-loadtest"] {
        command.args(["-p", package]);
    }
    ensure!(command.current_dir(root()).status()?.success(), "the release build failed");
    ours::programs_are_in(target()?.join("release"));
    Ok(())
}

/// Nothing of this process disturbs the core that is measured.
fn stay_on_the_load_core() -> anyhow::Result<()> {
    let own = std::process::id().to_string();
    let output = Command::new("taskset").args(["-cp", load::LOAD_CORE, &own]).output().context("taskset")?;
    ensure!(
        output.status.success(),
        "taskset: {} (two cores are needed)",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
