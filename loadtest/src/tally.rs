//! What clients count and time while they run. One for each thread of clients, so that they share nothing with others; a
//! report adds them up.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use hdrhistogram::Histogram;
use tokio::time::Instant;

/// Counts while clients run.
#[derive(Debug, Default)]
pub struct Counters {
    /// Clients with a connection now.
    pub connected: AtomicU64,
    /// The most of them at a time.
    pub most: AtomicU64,
    /// Connections made.
    pub connects: AtomicU64,
    /// Connections that broke.
    pub broken: AtomicU64,
    /// Connections that could not be made.
    pub refused: AtomicU64,
    /// Messages published (or pushed), each once.
    pub published: AtomicU64,
    /// PUBACKs received for messages in flight (or receipts).
    pub acked: AtomicU64,
    /// PUBACKs that did not come in the order of the publishes ([MQTT-4.6.0-2]).
    pub acked_out_of_order: AtomicU64,
    /// Messages that readers were handed, each time.
    pub received: AtomicU64,
    /// Subscribers with all their SUBACKs.
    pub subscribed: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_many(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }

    pub(crate) fn subtract(counter: &AtomicU64) {
        counter.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Up to ten minutes in microseconds, three digits; memory only once something is recorded.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    micros: Option<Box<Histogram<u64>>>,
}

impl Latencies {
    fn histogram(&mut self) -> &mut Histogram<u64> {
        self.micros.get_or_insert_with(|| {
            let bounds = Histogram::new_with_bounds(1, 600_000_000, 3);
            Box::new(bounds.unwrap_or_else(|_| unreachable!("constant bounds, and valid ones")))
        })
    }

    /// Records a latency, microseconds.
    pub fn record(&mut self, micros: u64) {
        self.histogram().saturating_record(micros.max(1));
    }

    /// Records the time since then.
    pub(crate) fn record_since(&mut self, then: Instant, now: Instant) {
        let micros = now.saturating_duration_since(then).as_micros();
        self.record(u64::try_from(micros).unwrap_or(u64::MAX));
    }

    /// Adds those of another.
    pub fn add(&mut self, other: &Self) {
        if let Some(other) = &other.micros {
            // Same bounds, so it always fits.
            let _ = self.histogram().add(other.as_ref());
        }
    }

    /// None: nothing was recorded.
    pub fn recorded(&self) -> Option<&Histogram<u64>> {
        self.micros.as_deref().filter(|micros| !micros.is_empty())
    }
}

/// What clients time, and what went wrong.
#[derive(Debug, Clone, Default)]
pub struct Timings {
    /// From when a message was due to its PUBACK.
    pub puback: Latencies,
    /// From when a message was due to a reader.
    pub one_way: Latencies,
    /// From when a push was due to its receipt.
    pub receipt: Latencies,
    /// From the first SYN to the CONNACK.
    pub connect: Latencies,
    /// From a second CONNECT to the end of the first connection.
    pub takeover: Latencies,
    /// From when a message was due to its sending, where nothing but the generator was in the way.
    pub send_lag: Latencies,
    /// Errors by kind.
    pub errors: BTreeMap<&'static str, u64>,
}

impl Timings {
    /// Adds those of another.
    pub fn add(&mut self, other: &Self) {
        self.puback.add(&other.puback);
        self.one_way.add(&other.one_way);
        self.receipt.add(&other.receipt);
        self.connect.add(&other.connect);
        self.takeover.add(&other.takeover);
        self.send_lag.add(&other.send_lag);
        self.add_errors(other);
    }

    pub(crate) fn add_errors(&mut self, other: &Self) {
        for (kind, count) in &other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
    }

    pub(crate) fn error(&mut self, kind: &'static str) {
        *self.errors.entry(kind).or_default() += 1;
    }
}

/// Counters and timings of one thread of clients.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) counters: Counters,
    timings: Mutex<Timings>,
}

impl Tally {
    /// Once a turn, not once a message.
    pub(crate) fn timings(&self) -> MutexGuard<'_, Timings> {
        self.timings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was timed since the last time.
    pub(crate) fn take(&self) -> Timings {
        std::mem::take(&mut self.timings())
    }
}

/// Counts a client as connected as long as it lives.
#[derive(Debug)]
pub(crate) struct Presence(Arc<Tally>);

impl Presence {
    pub(crate) fn new(tally: &Arc<Tally>) -> Self {
        let now = tally.counters.connected.fetch_add(1, Ordering::Relaxed) + 1;
        tally.counters.most.fetch_max(now, Ordering::Relaxed);
        Self(Arc::clone(tally))
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        Counters::subtract(&self.0.counters.connected);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn latencies_up_to_minutes_are_kept_apart() {
        let mut latencies = Latencies::default();
        assert!(latencies.recorded().is_none());
        for micros in [150, 90_000_000] {
            latencies.record(micros);
        }
        let mut sum = Latencies::default();
        sum.add(&latencies);
        let histogram = sum.recorded().unwrap();
        assert_eq!(histogram.value_at_quantile(0.5), 150);
        assert!(histogram.max() >= 90_000_000);
    }
}
