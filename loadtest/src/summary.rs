//! The result as a person reads it in a terminal.

use std::fmt::Write;

use crate::report::Report;

/// Some lines, the verdict last.
pub(crate) fn text(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<12} {text}");
    };
    let connections = &report.connections;
    line(
        report.command,
        format!("run {} on {}, {:.2} s", report.run, report.targets.join(", "), report.seconds),
    );
    line(
        "connections",
        format!(
            "{} of {}, refused {}, broken {}",
            connections.connected, connections.wanted, connections.refused, connections.broken
        ),
    );
    let (messages, rate) = (&report.messages, &report.rate);
    if messages.sent > 0 {
        line(
            "messages",
            format!(
                "sent {} ({:.0}/s), acked {} ({:.0}/s), received {} ({:.0}/s), never acked {}",
                messages.sent,
                rate.sent,
                messages.acked,
                rate.acked,
                messages.received,
                rate.received,
                messages.unacked
            ),
        );
    } else {
        line("connects", format!("{} ({:.0}/s)", report.measured.connects, rate.connects));
    }
    for (at, seconds) in (1..).zip(&report.rounds) {
        line("round", format!("{at}: all in after {seconds:.3} s"));
    }
    for (name, latency) in report.latency_ms.measured() {
        line(
            name,
            format!(
                "p50 {:.3} ms, p90 {:.3}, p99 {:.3}, p99.9 {:.3}, max {:.3}",
                latency.p50, latency.p90, latency.p99, latency.p999, latency.max
            ),
        );
    }
    for (kind, count) in &report.errors {
        line("error", format!("{kind}: {count} times"));
    }
    let generator = &report.generator;
    line(
        "generator",
        format!("{:.2} CPU s, busiest thread {:.0} %", generator.cpu_seconds, generator.busy * 100.0),
    );
    if let Some(bytes) = generator.rss_bytes_per_connection {
        line("", format!("{bytes:.0} B of this process for each connection"));
    }
    if let Some(reason) = &report.generator_bound_reason {
        line("", format!("THE GENERATOR WAS THE BOTTLENECK: {reason}"));
    }
    for slo in &report.slo {
        let actual = slo.actual.map_or_else(|| "not measured".to_owned(), |actual| format!("{actual:.3}"));
        line("slo", format!("{} {}: {actual}", if slo.held { "held" } else { "BROKEN" }, slo.slo));
    }
    if let Some(judged) = &report.verdict {
        line("ledger", format!("{} (verified by {})", judged.verdict, judged.verified_by));
    }
    let verdict =
        if report.passed { "passed".to_owned() } else { format!("FAILED: {}", report.failures.join(", ")) };
    line("verdict", verdict);
    out
}
