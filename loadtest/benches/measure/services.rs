//! The side of the services, one run each: groups that consume a backlog beside Redis read directly, pushes through two
//! routers to devices on two gateways, and what a stored message takes of Redis. A table of its own: no peer has these.

use std::fmt::Write;

use crate::{
    budgets::short,
    results::Results,
    scenarios::Scenario::{
        self, GroupEightMedium, GroupEightSmall, GroupOneMedium, GroupOneSmall, Latency, PushFlood, PushPair,
        Qos1Small, Stored, StoredSlowly,
    },
    systems::Kind::{self, Backlog, Cluster, Pair},
};

struct Row {
    what: &'static str,
    kind: Kind,
    scenario: Scenario,
    figure: &'static str,
    /// At most; none: no limit is set.
    limit: Option<f64>,
}

const fn row(what: &'static str, kind: Kind, scenario: Scenario, figure: &'static str) -> Row {
    Row { what, kind, scenario, figure, limit: None }
}

const fn within(limit: f64, what: &'static str, kind: Kind, scenario: Scenario, figure: &'static str) -> Row {
    Row { what, kind, scenario, figure, limit: Some(limit) }
}

const RATE: &str = "per_second";
const XRANGE: &str = "xrange_per_second";
const SHARE: &str = "of_xrange";
const BYTES: &str = "bytes_per_message";
const RATIO: &str = "of_payload_topic_client";

const ROWS: &[Row] = &[
    row("group, one consumer, 100 B, records/s", Backlog, GroupOneSmall, RATE),
    row("… XRANGE of the same logs, records/s", Backlog, GroupOneSmall, XRANGE),
    row("… of XRANGE", Backlog, GroupOneSmall, SHARE),
    row("group, eight consumers, 100 B, records/s", Backlog, GroupEightSmall, RATE),
    row("… XRANGE of the same logs, records/s", Backlog, GroupEightSmall, XRANGE),
    row("… of XRANGE", Backlog, GroupEightSmall, SHARE),
    row("group, one consumer, 1 KiB, records/s", Backlog, GroupOneMedium, RATE),
    row("… XRANGE of the same logs, records/s", Backlog, GroupOneMedium, XRANGE),
    row("… of XRANGE", Backlog, GroupOneMedium, SHARE),
    row("group, eight consumers, 1 KiB, records/s", Backlog, GroupEightMedium, RATE),
    row("… XRANGE of the same logs, records/s", Backlog, GroupEightMedium, XRANGE),
    row("… of XRANGE", Backlog, GroupEightMedium, SHARE),
    within(2.0, "push to the device's PUBACK at 1,000/s, p50 ms", Pair, PushPair, "receipt_p50_ms"),
    within(5.0, "… p99 ms", Pair, PushPair, "receipt_p99_ms"),
    row("pushes with PUBACK as fast as they go, pushes/s", Pair, PushFlood, RATE),
    row("… p99 ms", Pair, PushFlood, "receipt_p99_ms"),
    within(1.05, "XADD a stored message at 1,000/s", Cluster, Latency, "appends_per_message"),
    row("… all commands", Cluster, Latency, "commands_per_message"),
    within(0.05, "XADD a stored message at full load", Cluster, Qos1Small, "appends_per_message"),
    row("… all commands", Cluster, Qos1Small, "commands_per_message"),
    row("memory of a stored message, 64 B, at full load, B", Backlog, Stored, BYTES),
    within(1.6, "… of payload, topic and client identifier", Backlog, Stored, RATIO),
    row("memory of a stored message, 64 B, at 1,000/s, B", Backlog, StoredSlowly, BYTES),
    row("… of payload, topic and client identifier", Backlog, StoredSlowly, RATIO),
];

/// The table; nothing where nothing of it was measured.
pub fn render(out: &mut String, results: &Results) -> std::fmt::Result {
    let known = |row: &&Row| results.runs.iter().any(|run| run.system == row.kind.name() && row.kind.once());
    if !ROWS.iter().any(|row| known(&row)) {
        return Ok(());
    }
    writeln!(out, "### Groups, pushes, and what a stored message takes\n")?;
    writeln!(
        out,
        "One run each. \"Group\": a backlog is stored, then consumed and acknowledged, the ledger exact; XRANGE: one \
         connection reads the same logs from Redis itself, {} entries at once. Pushes: two routers, two gateways.\n",
        crate::raw::PAGE
    )?;
    writeln!(out, "| | measured | needed | |\n|---|--:|--:|---|")?;
    for row in ROWS {
        let needed = row.limit.map_or_else(|| "–".to_owned(), |limit| format!("≤ {}", short(limit)));
        let value = results.median(row.kind, row.scenario, row.figure);
        let failed = results.failure(row.kind, row.scenario).is_some();
        let verdict = match (value, row.limit) {
            _ if failed => "**failed**".to_owned(),
            (None, _) => "not measured".to_owned(),
            (Some(_), None) => "no limit".to_owned(),
            (Some(value), Some(limit)) if value <= limit => "reached".to_owned(),
            (Some(value), Some(limit)) => format!("**missed by {:.0} %**", (value / limit - 1.0) * 100.0),
        };
        // Of a group's run, the generator's core tells of the storing.
        let is_bound = row.scenario == PushFlood && results.is_generator_bound(row.kind, row.scenario);
        let bound = if is_bound { " (the load generator's core was full)" } else { "" };
        let shown = value.map_or_else(|| "–".to_owned(), |value| format!("{}{bound}", short(value)));
        writeln!(out, "| {} | {shown} | {needed} | {verdict} |", row.what)?;
    }
    writeln!(out)
}

/// What is asked of Redis beside a scenario. Commands are counted by `INFO commandstats` before and after.
pub fn commands(out: &mut String, scenario: Scenario) -> std::fmt::Result {
    if !scenario.keeps() {
        return Ok(());
    }
    writeln!(
        out,
        "# … of its logs afterwards; penstockctl --user bench/app group create keep: nothing is trimmed"
    )?;
    if scenario.is_stored() {
        writeln!(out, "redis-cli MEMORY USAGE ps:{{bench/N}}:log SAMPLES 0")
    } else {
        writeln!(out, "redis-cli XRANGE ps:{{bench/N}}:log '(LAST' + COUNT {}", crate::raw::PAGE)
    }
}
