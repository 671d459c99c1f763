//! The result as a person reads it in a terminal.

use std::fmt::Write;

use crate::report::Report;

/// Lines with a name each.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, text: impl std::fmt::Display) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "{name:<12} {text}");
    }
}

/// Some lines, the verdict last.
pub(crate) fn text(report: &Report) -> String {
    let mut lines = Lines::default();
    let (run, targets) = (&report.run, report.targets.join(", "));
    lines.add(report.command, format!("run {run} on {targets}, {:.2} s", report.seconds));
    counts(&mut lines, report);
    times(&mut lines, report);
    for (kind, count) in &report.errors {
        lines.add("error", format!("{kind}: {count} times"));
    }
    generator(&mut lines, report);
    for slo in &report.slo {
        let word = if slo.held { "held" } else { "BROKEN" };
        lines.add("slo", format!("{word} {}: {}", slo.slo, slo.shown()));
    }
    if let Some(drained) = &report.backlog {
        let (records, seconds) = (drained.records, drained.seconds);
        let (consumers, rate) = (drained.consumers, drained.records_per_second);
        let text = format!("{records} records in {seconds:.2} s ({rate:.0}/s) by {consumers} consumers");
        lines.add("backlog", text);
    }
    if let Some(judged) = &report.verdict {
        lines.add("ledger", format!("{} (verified by {})", judged.verdict, judged.verified_by));
    }
    let failed = || format!("FAILED: {}", report.failures.join(", "));
    lines.add("verdict", if report.passed { "passed".to_owned() } else { failed() });
    lines.0
}

fn counts(lines: &mut Lines, report: &Report) {
    let (connections, messages, rate) = (&report.connections, &report.messages, &report.rate);
    let (connected, wanted) = (connections.connected, connections.wanted);
    let (refused, broken) = (connections.refused, connections.broken);
    lines.add("connections", format!("{connected} of {wanted}, refused {refused}, broken {broken}"));
    if messages.sent == 0 {
        lines.add("connects", format!("{} ({:.0}/s)", report.measured.connects, rate.connects));
        return;
    }
    let unsent =
        if messages.unsent > 0 { format!(", {} more were due", messages.unsent) } else { String::new() };
    lines.add("sent", format!("{} ({:.0}/s){unsent}", messages.sent, rate.sent));
    if messages.acked + messages.unacked > 0 {
        let unacked = messages.unacked;
        lines.add("acked", format!("{} ({:.0}/s), never {unacked}", messages.acked, rate.acked));
    }
    if messages.received > 0 {
        lines.add("received", format!("{} ({:.0}/s)", messages.received, rate.received));
    }
}

fn times(lines: &mut Lines, report: &Report) {
    for (at, seconds) in (1..).zip(&report.rounds) {
        lines.add("round", format!("{at}: all in after {seconds:.3} s"));
    }
    for (name, latency) in report.latency_ms.measured() {
        let (p50, p90, p99) = (latency.p50, latency.p90, latency.p99);
        let (p999, max) = (latency.p999, latency.max);
        lines
            .add(name, format!("p50 {p50:.3} ms, p90 {p90:.3}, p99 {p99:.3}, p99.9 {p999:.3}, max {max:.3}"));
    }
}

fn generator(lines: &mut Lines, report: &Report) {
    let generator = &report.generator;
    let busy = generator.busy * 100.0;
    lines.add("generator", format!("{:.2} CPU s, busiest thread {busy:.0} %", generator.cpu_seconds));
    if let Some(bytes) = generator.rss_bytes_per_connection {
        lines.add("", format!("{bytes:.0} B of this process for each connection"));
    }
    if let Some(reason) = &report.generator_bound_reason {
        lines.add("", format!("THE GENERATOR WAS THE BOTTLENECK: {reason}"));
    }
}
