//! The result as one page that opens without network: figures, verdict and plots. Everything is in the file.

use std::fmt::Write;

use crate::{
    plot::{Line, Plot, escape, short},
    report::{LatencyTable, Report, Sample},
    slo,
    tally::Latencies,
};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.15rem .8rem .15rem 0;text-align:right;font-variant-numeric:tabular-nums}
td:first-child,th:first-child{text-align:left}th{font-weight:600;border-bottom:1px solid #bbb}
.good{color:#006b3c}.bad{color:#b00020;font-weight:600}figure{margin:1.2rem 0}figcaption{font-weight:600}
svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#555}.legend{margin:.1rem 0;font-size:.85rem}
details{margin-top:2rem}pre{white-space:pre-wrap;font-size:.8rem}";

/// One file, nothing from outside.
pub(crate) fn page(report: &Report) -> String {
    let title = format!("penstock-loadtest {} {}", report.command, report.run);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head><body>\n",
        title = escape(&title),
    );
    out.push_str(&head(report));
    out.push_str(&verdict(report));
    out.push_str(&figures(report));
    out.push_str(&latencies(&report.latency_ms));
    out.push_str(&phases(report));
    out.push_str(&plots(report));
    let json = serde_json::to_string_pretty(&report.parameters).unwrap_or_default();
    // Writing to a String does not fail.
    let _ = write!(
        out,
        "<details><summary>Parameters</summary><pre>{}</pre></details>\n</body></html>\n",
        escape(&json)
    );
    out
}

fn head(report: &Report) -> String {
    let (class, word) = if report.passed { ("good", "passed") } else { ("bad", "FAILED") };
    let mut out = format!(
        "<h1>{} <span class=\"{class}\">{word}</span></h1><p>{}, run {}, {} on {}</p>\n",
        escape(report.command),
        escape(&report.started_at),
        escape(&report.run),
        escape(&format!("{:.2} s", report.seconds)),
        escape(&report.targets.join(", ")),
    );
    for failure in &report.failures {
        let _ = writeln!(out, "<p class=\"bad\">{}</p>", escape(failure));
    }
    if let Some(reason) = &report.generator_bound_reason {
        let _ = writeln!(out, "<p class=\"bad\">The generator was the bottleneck: {}</p>", escape(reason));
    }
    out
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let cells = |tag: &str, cells: &mut dyn Iterator<Item = String>| {
        cells.map(|cell| format!("<{tag}>{cell}</{tag}>")).collect::<String>()
    };
    let head = cells("th", &mut head.iter().map(|cell| escape(cell)));
    let rows =
        rows.iter().map(|row| format!("<tr>{}</tr>", cells("td", &mut row.iter().map(|cell| escape(cell)))));
    format!("<table><tr>{head}</tr>{}</table>\n", rows.collect::<String>())
}

fn verdict(report: &Report) -> String {
    let mut out = String::new();
    if let Some(judged) = &report.verdict {
        let verdict = &judged.verdict;
        let mut rows: Vec<Vec<String>> = [
            ("sent", verdict.sent),
            ("acknowledged", verdict.acked),
            ("seen", verdict.seen),
            ("redelivered", verdict.redelivered),
            ("stored again after a reconnect", verdict.resent_duplicates),
        ]
        .map(|(name, count)| vec![name.to_owned(), count.to_string()])
        .into();
        rows.extend(slo::FAULTS.iter().filter(|kind| **kind != "acked_out_of_order").map(|kind| {
            let found = verdict.faults().into_iter().find(|(own, _)| own == kind);
            vec![(*kind).to_owned(), found.map_or(0, |(_, count)| count).to_string()]
        }));
        let _ = write!(out, "<h2>Ledger</h2><p>Verified by {}.</p>", escape(judged.verified_by));
        out.push_str(&table(&["messages", "count"], &rows));
    }
    let rows = report.slo.iter().map(|result| {
        vec![result.slo.clone(), result.shown(), if result.held { "held" } else { "broken" }.to_owned()]
    });
    let rows: Vec<_> = rows.collect();
    if !rows.is_empty() {
        out.push_str("<h2>SLOs</h2>");
        out.push_str(&table(&["SLO", "actual", ""], &rows));
    }
    out
}

fn figures(report: &Report) -> String {
    let (measured, rate) = (&report.measured, &report.rate);
    let rows = [
        ("sent", report.messages.sent, measured.sent, rate.sent),
        ("acknowledged", report.messages.acked, measured.acked, rate.acked),
        ("received", report.messages.received, measured.received, rate.received),
        ("connects", measured.connects, measured.connects, rate.connects),
    ];
    let rows = rows.into_iter().filter(|(_, all, ..)| *all > 0).map(|(name, all, measured, rate)| {
        vec![name.to_owned(), all.to_string(), measured.to_string(), format!("{}/s", short(rate))]
    });
    let mut out = "<h2>Figures</h2>".to_owned();
    out.push_str(&table(&["", "in all", "measured", "rate"], &rows.collect::<Vec<_>>()));
    let connections = &report.connections;
    let _ = write!(
        out,
        "<p>{} of {} clients connected, {} connections refused, {} broken. Generator: {:.2} CPU s, busiest thread {:.0} %.</p>",
        connections.connected,
        connections.wanted,
        connections.refused,
        connections.broken,
        report.generator.cpu_seconds,
        report.generator.busy * 100.0,
    );
    let rows: Vec<_> =
        report.errors.iter().map(|(kind, count)| vec![(*kind).to_owned(), count.to_string()]).collect();
    out.push_str(&table(&["error", "times"], &rows));
    out
}

fn latencies(all: &LatencyTable) -> String {
    let rows = all.measured().map(|(name, latency)| {
        let millis =
            [latency.min, latency.mean, latency.p50, latency.p90, latency.p99, latency.p999, latency.max];
        let figures = millis.iter().map(|millis| format!("{millis:.3}"));
        [name.to_owned(), latency.count.to_string()].into_iter().chain(figures).collect()
    });
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        return String::new();
    }
    let head = ["ms", "count", "min", "mean", "p50", "p90", "p99", "p99.9", "max"];
    format!("<h2>Latencies</h2>{}", table(&head, &rows))
}

fn phases(report: &Report) -> String {
    if report.phases.len() < 2 {
        return String::new();
    }
    let rows = report.phases.iter().map(|phase| {
        let p99 = |latency: &Option<crate::report::Latency>| {
            latency.as_ref().map_or_else(String::new, |latency| format!("{:.3}", latency.p99))
        };
        vec![
            if phase.measured { phase.name.clone() } else { format!("{} (not measured)", phase.name) },
            format!("{:.1}", phase.seconds),
            format!("{}/s", short(phase.rate.sent)),
            format!("{}/s", short(phase.rate.acked)),
            p99(&phase.latency_ms.puback),
            p99(&phase.latency_ms.one_way),
        ]
    });
    let head = ["phase", "s", "sent", "acked", "PUBACK p99 ms", "one way p99 ms"];
    format!("<h2>Phases</h2>{}", table(&head, &rows.collect::<Vec<_>>()))
}

fn plots(report: &Report) -> String {
    let series = &report.series;
    let last = series.last().map_or(0.0, |sample| sample.at_seconds);
    let over_time = |title, unit, lines| Plot { title, unit, ticks: Plot::seconds(last), lines }.svg();
    let line = |name, value: fn(&Sample) -> Option<f64>| Line {
        name,
        points: series.iter().filter_map(|sample| Some((sample.at_seconds, value(sample)?))).collect(),
    };
    let mut out = String::new();
    if report.messages.sent > 0 {
        let lines = vec![
            line("sent", |sample| Some(sample.sent)),
            line("acknowledged", |sample| Some(sample.acked)),
            line("received", |sample| Some(sample.received)),
        ];
        out.push_str(&over_time("Messages a second", "/s", lines));
        let lines = vec![
            line("PUBACK p50", |sample| sample.puback_p50_ms),
            line("PUBACK p99", |sample| sample.puback_p99_ms),
            line("one way p99", |sample| sample.one_way_p99_ms),
        ];
        out.push_str(&over_time("Latency", "ms", lines));
    }
    let lines = vec![line("connected", |sample| Some(sample.connected as f64))];
    out.push_str(&over_time("Connections", "", lines));
    out.push_str(&percentiles(report));
    if out.is_empty() { out } else { format!("<h2>Plots</h2>{out}") }
}

/// Nines to the right: 90 %, 99 %, 99.9 %.
fn percentiles(report: &Report) -> String {
    let timings = &report.timings;
    let all = [
        ("PUBACK", &timings.puback),
        ("one way", &timings.one_way),
        ("receipt", &timings.receipt),
        ("connect", &timings.connect),
    ];
    let lines = all.into_iter().map(|(name, latencies)| Line { name, points: nines(latencies) }).collect();
    let labels = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"];
    let ticks = (0..).zip(labels).map(|(at, label)| (f64::from(at), label.to_owned())).collect();
    Plot { title: "Latency by percentile", unit: "ms", ticks, lines }.svg()
}

fn nines(latencies: &Latencies) -> Vec<(f64, f64)> {
    let Some(micros) = latencies.recorded() else { return Vec::new() };
    // Beyond one in so many there is nothing to see.
    let last = (micros.len() as f64).log10().min(5.0);
    let at = |nines: f64| (nines, micros.value_at_quantile(1.0 - 10f64.powf(-nines)) as f64 / 1e3);
    (0..=100).map(|step| f64::from(step) / 20.0).take_while(|nines| *nines <= last).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_stays_text() {
        let shown = table(&["a"], &[vec!["<script>\"&".to_owned()]]);
        assert!(shown.contains("&lt;script&gt;&quot;&amp;") && !shown.contains("<script"));
    }

    #[test]
    fn percentiles_end_where_the_data_ends() {
        let mut latencies = Latencies::default();
        (1..=1_000).for_each(|millis| latencies.record(millis * 1_000));
        let points = nines(&latencies);
        assert!(points.last().is_some_and(|(nines, millis)| *nines <= 3.0 && *millis >= 990.0), "{points:?}");
    }
}
