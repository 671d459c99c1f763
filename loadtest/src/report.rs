//! The result of a run: figures, verdict, SLOs, and why it failed if it did. loadtest/README.md tells the fields.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    generator::GeneratorReport,
    settings::Settings,
    slo::{self, Slo},
    tally::{Latencies, Timings},
    verdict::Verdict,
};

/// Milliseconds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) min: f64,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Latency {
    pub(crate) fn of(latencies: &Latencies) -> Option<Self> {
        latencies.recorded().map(Self::from_histogram)
    }

    fn from_histogram(micros: &Histogram<u64>) -> Self {
        let millis = |micros: u64| micros as f64 / 1e3;
        let at = |quantile: f64| millis(micros.value_at_quantile(quantile));
        Self {
            count: micros.len(),
            min: millis(micros.min()),
            mean: (micros.mean()).round() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: millis(micros.max()),
        }
    }

    fn statistic(&self, name: &str) -> Option<f64> {
        match name {
            "min" => Some(self.min),
            "mean" => Some(self.mean),
            "p50" => Some(self.p50),
            "p90" => Some(self.p90),
            "p99" => Some(self.p99),
            "p999" => Some(self.p999),
            "max" => Some(self.max),
            _ => None,
        }
    }
}

/// Of what was timed.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct LatencyTable {
    pub(crate) puback: Option<Latency>,
    pub(crate) one_way: Option<Latency>,
    pub(crate) receipt: Option<Latency>,
    pub(crate) connect: Option<Latency>,
    pub(crate) takeover: Option<Latency>,
}

impl LatencyTable {
    pub(crate) fn of(timings: &Timings) -> Self {
        Self {
            puback: Latency::of(&timings.puback),
            one_way: Latency::of(&timings.one_way),
            receipt: Latency::of(&timings.receipt),
            connect: Latency::of(&timings.connect),
            takeover: Latency::of(&timings.takeover),
        }
    }

    /// Those that were measured, by name.
    pub(crate) fn measured(&self) -> impl Iterator<Item = (&'static str, &Latency)> {
        let all =
            [&self.puback, &self.one_way, &self.receipt, &self.connect, &self.takeover].map(Option::as_ref);
        slo::LATENCIES.into_iter().zip(all).filter_map(|(name, latency)| Some((name, latency?)))
    }
}

/// Over the whole run.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Messages {
    pub(crate) sent: u64,
    pub(crate) acked: u64,
    pub(crate) received: u64,
    pub(crate) unacked: u64,
    /// Due by the rate, and not sent when the time was over.
    pub(crate) unsent: u64,
}

/// In a measured time.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Counted {
    pub(crate) sent: u64,
    pub(crate) acked: u64,
    pub(crate) received: u64,
    pub(crate) connects: u64,
}

impl Counted {
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            sent: self.sent.saturating_sub(earlier.sent),
            acked: self.acked.saturating_sub(earlier.acked),
            received: self.received.saturating_sub(earlier.received),
            connects: self.connects.saturating_sub(earlier.connects),
        }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            acked: self.acked + other.acked,
            received: self.received + other.received,
            connects: self.connects + other.connects,
        }
    }

    pub(crate) fn per_second(self, seconds: f64) -> Rates {
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        Rates {
            sent: rate(self.sent),
            acked: rate(self.acked),
            received: rate(self.received),
            connects: rate(self.connects),
        }
    }
}

/// Per second.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Rates {
    pub(crate) sent: f64,
    pub(crate) acked: f64,
    pub(crate) received: f64,
    pub(crate) connects: f64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Connections {
    pub(crate) wanted: u64,
    pub(crate) connected: u64,
    pub(crate) refused: u64,
    pub(crate) broken: u64,
}

/// What the ledger says.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Judged {
    pub(crate) verified_by: &'static str,
    /// Readers had seen all that was acknowledged when the run ended.
    pub(crate) complete: bool,
    pub(crate) balanced: bool,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
}

/// What a group's consumers took of a backlog.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Drained {
    /// Of each group.
    pub(crate) consumers: u64,
    pub(crate) records: u64,
    /// From the first consumer's start until all was seen.
    pub(crate) seconds: f64,
    pub(crate) records_per_second: f64,
}

impl Drained {
    pub(crate) fn new(consumers: u64, records: u64, time: std::time::Duration) -> Self {
        let seconds = time.as_secs_f64();
        let records_per_second = if seconds > 0.0 { records as f64 / seconds } else { 0.0 };
        Self { consumers, records, seconds, records_per_second }
    }
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct SloResult {
    pub(crate) slo: String,
    /// None: it was not measured.
    pub(crate) actual: Option<f64>,
    pub(crate) held: bool,
}

impl SloResult {
    /// The figure, for people.
    pub(crate) fn shown(&self) -> String {
        self.actual.map_or_else(|| "not measured".to_owned(), |actual| format!("{actual:.3}"))
    }
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct PhaseReport {
    pub(crate) name: String,
    pub(crate) measured: bool,
    pub(crate) seconds: f64,
    pub(crate) messages: Counted,
    pub(crate) rate: Rates,
    pub(crate) latency_ms: LatencyTable,
}

/// One second.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) at_seconds: f64,
    /// Per second.
    pub(crate) sent: f64,
    /// Per second.
    pub(crate) acked: f64,
    /// Per second.
    pub(crate) received: f64,
    pub(crate) connected: u64,
    pub(crate) puback_p50_ms: Option<f64>,
    pub(crate) puback_p99_ms: Option<f64>,
    pub(crate) one_way_p99_ms: Option<f64>,
    /// In this second.
    pub(crate) errors: u64,
}

/// The result.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) command: &'static str,
    pub(crate) run: String,
    pub(crate) version: &'static str,
    pub(crate) started_at: String,
    pub(crate) targets: Vec<String>,
    pub(crate) parameters: serde_json::Map<String, serde_json::Value>,
    pub(crate) seconds: f64,
    pub(crate) messages: Messages,
    pub(crate) measured: Counted,
    pub(crate) rate: Rates,
    pub(crate) connections: Connections,
    pub(crate) latency_ms: LatencyTable,
    pub(crate) errors: BTreeMap<&'static str, u64>,
    pub(crate) verdict: Option<Judged>,
    /// None: it was consumed as it came.
    pub(crate) backlog: Option<Drained>,
    pub(crate) acked_out_of_order: u64,
    pub(crate) slo: Vec<SloResult>,
    pub(crate) phases: Vec<PhaseReport>,
    pub(crate) series: Vec<Sample>,
    pub(crate) rounds: Vec<f64>,
    pub(crate) generator_bound: bool,
    pub(crate) generator_bound_reason: Option<String>,
    pub(crate) generator: GeneratorReport,
    pub(crate) failures: Vec<String>,
    pub(crate) passed: bool,
    /// For the plot of percentiles.
    #[serde(skip)]
    pub(crate) timings: Timings,
}

impl Report {
    /// One without figures.
    pub(crate) fn new(settings: &Settings, started_at: String) -> Self {
        Self {
            command: settings.command,
            run: settings.run.clone(),
            version: env!("CARGO_PKG_VERSION"),
            started_at,
            targets: settings.targets.clone(),
            parameters: settings.shown(),
            seconds: 0.0,
            messages: Messages::default(),
            measured: Counted::default(),
            rate: Rates::default(),
            connections: Connections { wanted: settings.clients, ..Connections::default() },
            latency_ms: LatencyTable::default(),
            errors: BTreeMap::new(),
            verdict: None,
            backlog: None,
            acked_out_of_order: 0,
            slo: Vec::new(),
            phases: Vec::new(),
            series: Vec::new(),
            rounds: Vec::new(),
            generator_bound: false,
            generator_bound_reason: None,
            generator: GeneratorReport::default(),
            failures: Vec::new(),
            passed: false,
            timings: Timings::default(),
        }
    }

    /// The figure of an SLO, in milliseconds, per second, seconds or a count; None: not measured.
    fn figure(&self, metric: &str) -> Option<f64> {
        if let Some((name, statistic)) = metric.rsplit_once('_')
            && let Some((_, latency)) = self.latency_ms.measured().find(|(own, _)| *own == name)
        {
            return latency.statistic(statistic);
        }
        match metric {
            "seconds" => Some(self.seconds),
            "sent_rate" => Some(self.rate.sent),
            "acked_rate" => Some(self.rate.acked),
            "received_rate" => Some(self.rate.received),
            "connect_rate" => Some(self.rate.connects),
            "unacked" => Some(self.messages.unacked as f64),
            "unsent" => Some(self.messages.unsent as f64),
            "refused" => Some(self.connections.refused as f64),
            "broken" => Some(self.connections.broken as f64),
            "errors" => Some(self.errors.values().sum::<u64>() as f64),
            "acked_out_of_order" => Some(self.acked_out_of_order as f64),
            "redelivered" => Some(self.verdict.as_ref()?.verdict.redelivered as f64),
            "resent_duplicates" => Some(self.verdict.as_ref()?.verdict.resent_duplicates as f64),
            fault if slo::FAULTS.contains(&fault) => {
                let faults = self.verdict.as_ref()?.verdict.faults();
                let count = faults.into_iter().find(|(own, _)| *own == fault).map_or(0, |(_, count)| count);
                Some(count as f64)
            }
            _ => None,
        }
    }

    /// Judges the figures: SLOs, faults that are not tolerated, connections that are missing.
    pub(crate) fn judge(&mut self, settings: &Settings) {
        self.slo = settings.slos.iter().map(|slo| self.hold(slo)).collect();
        let mut faults = self.verdict.as_ref().map(|judged| judged.verdict.faults()).unwrap_or_default();
        if self.acked_out_of_order > 0 {
            faults.push(("acked_out_of_order", self.acked_out_of_order));
        }
        let tolerated = |kind: &str| settings.tolerate.iter().any(|own| own == kind);
        let faults = faults.into_iter().filter(|(kind, _)| !tolerated(kind));
        self.failures.extend(faults.map(|(kind, count)| format!("{kind}={count}")));
        for result in self.slo.iter().filter(|result| !result.held) {
            self.failures.push(format!("slo {}: {}", result.slo, result.shown()));
        }
        self.passed = self.failures.is_empty();
    }

    fn hold(&self, slo: &Slo) -> SloResult {
        let actual = self.figure(&slo.metric);
        SloResult { slo: slo.text.clone(), actual, held: actual.is_some_and(|actual| slo.holds(actual)) }
    }
}
