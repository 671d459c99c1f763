//! Watches a run while it goes: a sample a second for the plots, one line for whoever sits before a terminal.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::{
    engine::Engine,
    interrupt::Interrupt,
    report::{Counted, Latency, Sample},
    tally::{Counters, Latencies, Tally, Timings},
};

/// Between two samples.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);
/// Samples that are kept: a day. Later ones are shown only.
const SAMPLES: usize = 86_400;

/// Looks at an engine once a second.
pub(crate) struct Observer<'a> {
    engine: &'a Engine,
    line: ProgressBar,
    begun: Instant,
    last: (Instant, Counted),
    series: Vec<Sample>,
    /// Who watches can break it off.
    pub(crate) interrupt: Interrupt,
}

/// All counts now.
pub(crate) fn counted(engine: &Engine) -> Counted {
    let count = |which: fn(&Tally) -> u64| engine.count(which);
    Counted {
        sent: count(|tally| Counters::get(&tally.counters.published)),
        acked: count(|tally| Counters::get(&tally.counters.acked)),
        received: count(|tally| Counters::get(&tally.counters.received)),
        connects: count(|tally| Counters::get(&tally.counters.connects)),
    }
}

pub(crate) fn connected(engine: &Engine) -> u64 {
    engine.count(|tally| Counters::get(&tally.counters.connected))
}

impl<'a> Observer<'a> {
    pub(crate) fn new(engine: &'a Engine, interrupt: &Interrupt) -> Self {
        let line =
            if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {msg}") {
            line.set_style(style);
        }
        let now = Instant::now();
        let interrupt = interrupt.clone();
        Self { engine, line, begun: now, last: (now, counted(engine)), series: Vec::new(), interrupt }
    }

    /// The load begins: samples count from here. What was timed before it is given.
    pub(crate) fn begin(&mut self, at: Instant) -> Timings {
        self.begun = at;
        self.last = (at, counted(self.engine));
        self.engine.take()
    }

    /// Tells what is waited for.
    pub(crate) fn say(&self, what: &str) {
        self.line.set_message(what.to_owned());
        self.line.tick();
    }

    /// Takes a sample, and gives what was timed since the last one.
    pub(crate) fn sample(&mut self, phase: &str) -> Timings {
        let (now, counted) = (Instant::now(), counted(self.engine));
        let (before, earlier) = std::mem::replace(&mut self.last, (now, counted));
        let timings = self.engine.take();
        let seconds = now.saturating_duration_since(before).as_secs_f64();
        let rate = counted.since(earlier).per_second(seconds);
        let latency = |latencies: &Latencies| Latency::of(latencies);
        let (puback, one_way) = (latency(&timings.puback), latency(&timings.one_way));
        let sample = Sample {
            at_seconds: now.saturating_duration_since(self.begun).as_secs_f64(),
            sent: rate.sent,
            acked: rate.acked,
            received: rate.received,
            connected: connected(self.engine),
            puback_p50_ms: puback.as_ref().map(|puback| puback.p50),
            puback_p99_ms: puback.as_ref().map(|puback| puback.p99),
            one_way_p99_ms: one_way.as_ref().map(|one_way| one_way.p99),
            errors: timings.errors.values().sum(),
        };
        self.show(phase, &sample, latency(&timings.receipt).as_ref());
        if self.series.len() < SAMPLES && seconds > 0.0 {
            self.series.push(sample);
        }
        timings
    }

    fn show(&self, phase: &str, sample: &Sample, receipt: Option<&Latency>) {
        if self.line.is_hidden() {
            return;
        }
        let mut text = format!("{phase}: {} connected", sample.connected);
        let mut part = |part: String| text.push_str(&part);
        if sample.sent > 0.0 {
            part(format!(", {:.0}/s sent, {:.0}/s acked", sample.sent, sample.acked));
        }
        if sample.received > 0.0 {
            part(format!(", {:.0}/s received", sample.received));
        }
        if let (Some(p50), Some(p99)) = (sample.puback_p50_ms, sample.puback_p99_ms) {
            part(format!(", PUBACK p50 {p50:.2} ms p99 {p99:.2} ms"));
        }
        if let Some(receipt) = receipt {
            part(format!(", receipt p50 {:.2} ms p99 {:.2} ms", receipt.p50, receipt.p99));
        }
        if sample.errors > 0 {
            part(format!(", {} errors", sample.errors));
        }
        self.line.set_message(text);
        self.line.tick();
    }

    /// Ends the line, and gives the samples.
    pub(crate) fn finish(self) -> Vec<Sample> {
        self.line.finish_and_clear();
        self.series
    }
}
