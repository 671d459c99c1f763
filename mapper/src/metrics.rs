//! What the mapper counts.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::outgoing::Kind;

type By<const N: usize> = Family<[(&'static str, &'static str); N], Counter>;

/// What becomes of a message, and why one is kept as a dead letter: shown from the start, because an alert on the growth of a
/// counter does not see the first count of one that was not there.
const RESULTS: [&str; 6] = ["sent", "skipped", "unmatched", "dead", "returned", "repeated"];
const REASONS: [&str; 5] = ["payload", "program", "output", "device", "refused"];

const SECONDS: [f64; 12] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const BATCH: [f64; 8] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1_000.0];

/// All of it.
#[derive(Debug)]
pub struct Metrics {
    messages: By<1>,
    dead: By<1>,
    requests: By<2>,
    identities: By<1>,
    seconds: Histogram,
    batch: Histogram,
    /// Messages in this process's hands.
    pub held: Gauge,
    /// Whether the API answered when it was last asked.
    pub api_up: Gauge,
    /// Dead letters that could not be kept: their messages come again.
    pub unkept: Counter,
}

impl Metrics {
    /// Registers all.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            messages: By::default(),
            dead: By::default(),
            requests: By::default(),
            identities: By::default(),
            seconds: Histogram::new(SECONDS),
            batch: Histogram::new(BATCH),
            held: Gauge::default(),
            api_up: Gauge::default(),
            unkept: Counter::default(),
        };
        let m = &metrics;
        for result in RESULTS {
            drop(m.messages.get_or_create(&[("result", result)]));
        }
        for reason in REASONS {
            drop(m.dead.get_or_create(&[("reason", reason)]));
        }
        registry.register("penstock_mapper_messages", "Messages by what became of them", m.messages.clone());
        registry.register(
            "penstock_mapper_dead_letters",
            "Messages kept as dead letters, by reason",
            m.dead.clone(),
        );
        registry.register("penstock_mapper_requests", "Requests to the API by result", m.requests.clone());
        registry.register(
            "penstock_mapper_identities",
            "Devices by how their identifier was had",
            m.identities.clone(),
        );
        registry.register(
            "penstock_mapper_request_seconds",
            "From a request to its answer",
            m.seconds.clone(),
        );
        registry.register(
            "penstock_mapper_batch_measurements",
            "Measurements in one request",
            m.batch.clone(),
        );
        registry.register(
            "penstock_mapper_held_messages",
            "Messages in this process's hands",
            m.held.clone(),
        );
        registry.register(
            "penstock_mapper_api_up",
            "Whether the API answered when it was last asked",
            m.api_up.clone(),
        );
        registry.register(
            "penstock_mapper_dead_letters_unkept",
            "Dead letters without a place",
            m.unkept.clone(),
        );
        metrics
    }

    /// `sent`, `skipped` (no output), `unmatched` (no route), `dead`, `returned`, `repeated` (already held).
    pub fn message(&self, result: &'static str) {
        self.messages.get_or_create(&[("result", result)]).inc();
    }

    /// A message became a dead letter.
    pub fn dead_letter(&self, reason: &'static str) {
        self.dead.get_or_create(&[("reason", reason)]).inc();
    }

    /// A request has an answer, or none.
    pub fn request(&self, kind: Kind, result: &'static str, took: Duration) {
        self.requests.get_or_create(&[("kind", kind.label()), ("result", result)]).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// Measurements that were sent together.
    pub fn batched(&self, measurements: usize) {
        self.batch.observe(measurements as f64);
    }

    /// `cached`, `found`, `created`.
    pub fn identity(&self, how: &'static str) {
        self.identities.get_or_create(&[("result", how)]).inc();
    }
}
