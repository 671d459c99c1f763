//! Results as tables: the part of docs/performance.md between two marks, written anew by each whole run; what people wrote
//! around it stays.

use std::{fmt::Write, fs, path::Path};

use anyhow::Context;

use crate::{
    budgets::{BUDGETS, short},
    load,
    results::Results,
    scenarios::{SCENARIOS, Scenario},
    services,
    systems::{KINDS, Kind},
};

const BEGIN: &str = "<!-- measured: everything down to the next mark is written by make bench -->";
const END: &str = "<!-- measured: end -->";

/// A row of the table: a figure of a scenario, divided by `unit`.
struct Row {
    what: &'static str,
    scenario: Scenario,
    figure: &'static str,
    unit: f64,
}

const fn row(what: &'static str, scenario: Scenario, figure: &'static str, unit: f64) -> Row {
    Row { what, scenario, figure, unit }
}

const ROWS: &[Row] = &[
    row("QoS 1, 64 B, k/s", Scenario::Qos1Small, "per_second", 1e3),
    row("… CPU s a million", Scenario::Qos1Small, "cpu_seconds_per_million", 1.0),
    row("QoS 1, 1 KiB, k/s", Scenario::Qos1Medium, "per_second", 1e3),
    row("… CPU s a million", Scenario::Qos1Medium, "cpu_seconds_per_million", 1.0),
    row("QoS 1, 64 KiB, k/s", Scenario::Qos1Large, "per_second", 1e3),
    row("QoS 0, 64 B, k/s", Scenario::Qos0, "per_second", 1e3),
    row("one consumer, delivered k/s", Scenario::FanIn, "per_second", 1e3),
    row("… one way p99, ms", Scenario::FanIn, "one_way_p99_ms", 1.0),
    row("PUBACK at 1,000/s, p50 ms", Scenario::Latency, "puback_p50_ms", 1.0),
    row("… p99 ms", Scenario::Latency, "puback_p99_ms", 1.0),
    row("push at 1,000/s, receipt p50 ms", Scenario::Push, "receipt_p50_ms", 1.0),
    row("… p99 ms", Scenario::Push, "receipt_p99_ms", 1.0),
    row("idle connection, KiB", Scenario::Connect, "idle_bytes", 1024.0),
    row("CONNECT/s", Scenario::Connect, "connects_per_second", 1.0),
    row("storm of 10,000, s", Scenario::Storm, "seconds", 1.0),
    row("takeover of 5,000, s", Scenario::Takeover, "seconds", 1.0),
    row("XADD a message at 1,000/s", Scenario::Latency, "appends_per_message", 1.0),
    row("XADD a message at full load", Scenario::Qos1Small, "appends_per_message", 1.0),
];

/// The whole measured part.
pub fn render(results: &Results) -> String {
    let kinds: Vec<Kind> =
        KINDS.iter().copied().filter(|kind| measured(results, *kind) && !kind.once()).collect();
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = facts(&mut out, results);
    let _ = table(&mut out, results, &kinds);
    let all: Vec<Kind> = KINDS.iter().copied().filter(|kind| measured(results, *kind)).collect();
    let _ = remarks(&mut out, results, &all);
    let _ = budgets(&mut out, results);
    let _ = services::render(&mut out, results);
    let _ = costs(&mut out, results, &kinds);
    let _ = commands(&mut out, results);
    out
}

fn measured(results: &Results, kind: Kind) -> bool {
    results.runs.iter().any(|run| run.system == kind.name())
}

fn facts(out: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(
        out,
        "{}; median of {} rounds, floods of {} s. {}.\n",
        results.started_at,
        results.rounds,
        results.seconds,
        results.machine.join(" · ")
    )
}

fn table(out: &mut String, results: &Results, kinds: &[Kind]) -> std::fmt::Result {
    let titles: Vec<&str> = kinds.iter().map(|kind| kind.title()).collect();
    writeln!(out, "| | {} |\n|---{}|", titles.join(" | "), "|--:".repeat(kinds.len()))?;
    let stored: Vec<&str> = kinds.iter().map(|kind| kind.stored()).collect();
    writeln!(out, "| stored before PUBACK | {} |", stored.join(" | "))?;
    for row in ROWS {
        let cells: Vec<String> = kinds.iter().map(|kind| cell(results, *kind, row)).collect();
        if cells.iter().any(|cell| cell != "–") {
            writeln!(out, "| {} | {} |", row.what, cells.join(" | "))?;
        }
    }
    writeln!(out)
}

fn cell(results: &Results, kind: Kind, row: &Row) -> String {
    if results.failure(kind, row.scenario).is_some() {
        return "failed".to_owned();
    }
    // A full generator says nothing against what the system spent meanwhile.
    let is_own = matches!(row.figure, "cpu_seconds_per_million" | "idle_bytes" | "appends_per_message");
    let bound = if !is_own && results.is_generator_bound(kind, row.scenario) { " ᵍ" } else { "" };
    let value = results.median(kind, row.scenario, row.figure);
    value.map_or_else(|| "–".to_owned(), |value| format!("{}{bound}", short(value / row.unit)))
}

/// What the cells can't hold.
fn remarks(out: &mut String, results: &Results, kinds: &[Kind]) -> std::fmt::Result {
    let bound = |kind: &Kind| {
        !kind.once() && SCENARIOS.iter().any(|scenario| results.is_generator_bound(*kind, *scenario))
    };
    if kinds.iter().any(bound) {
        writeln!(out, "ᵍ the load generator's core was full: the system can do more.\n")?;
    }
    for kind in kinds {
        for scenario in SCENARIOS {
            if let Some(failure) = results.failure(*kind, *scenario) {
                writeln!(out, "* {}, {}: failed: {failure}", kind.title(), scenario.name())?;
            }
        }
    }
    for (name, facts) in &results.systems {
        if let Some(missing) = &facts.missing {
            writeln!(out, "* {name} was not measured: {missing}")?;
        }
    }
    writeln!(out)
}

fn budgets(out: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(out, "### Budgets\n\n| | needed | measured | |\n|---|--:|--:|---|")?;
    for budget in BUDGETS {
        let judged = budget.judge(results);
        let measured = judged.measured.as_deref().unwrap_or("–");
        writeln!(out, "| {} | {} | {measured} | {} |", judged.what, judged.needed, judged.verdict)?;
    }
    writeln!(out)
}

/// Where the CPU time goes.
fn costs(out: &mut String, results: &Results, kinds: &[Kind]) -> std::fmt::Result {
    writeln!(out, "### CPU seconds a million messages, by part\n\n| | | |\n|---|---|---|")?;
    for kind in kinds.iter().filter(|kind| kind.is_ours()) {
        for scenario in SCENARIOS {
            let parts = results.parts(*kind, *scenario);
            let parts: Vec<String> =
                parts.iter().map(|(name, cost)| format!("{name} {}", short(*cost))).collect();
            if !parts.is_empty() {
                writeln!(out, "| {} | {} | {} |", kind.title(), scenario.name(), parts.join(", "))?;
            }
        }
    }
    writeln!(out)
}

fn commands(out: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(out, "### Versions and commands\n\n```")?;
    for scenario in SCENARIOS {
        writeln!(out, "# {}\n{}", scenario.name(), load::command(*scenario, results.seconds))?;
        services::commands(out, *scenario)?;
    }
    for kind in KINDS {
        let Some(facts) = results.systems.get(kind.name()).filter(|facts| facts.missing.is_none()) else {
            continue;
        };
        writeln!(out, "# {}: {}", kind.name(), facts.version)?;
        facts.commands.iter().try_for_each(|command| writeln!(out, "{command}"))?;
    }
    writeln!(out, "```")
}

/// Puts the measured part into the page.
pub fn write(page: &Path, results: &Results) -> anyhow::Result<()> {
    let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let (before, rest) =
        text.split_once(BEGIN).with_context(|| format!("{} has no mark: {BEGIN}", page.display()))?;
    let (_, after) =
        rest.split_once(END).with_context(|| format!("{} has no mark: {END}", page.display()))?;
    fs::write(page, format!("{before}{BEGIN}\n\n{}\n{END}{after}", render(results)))?;
    Ok(())
}
