//! The door's figures.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

type Label = [(&'static str, &'static str); 1];

/// See the module. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct WebMetrics {
    sockets: Family<Label, Gauge>,
    refused: Family<Label, Counter>,
    messages: Family<Label, Counter>,
    /// Open WebSockets of consumers.
    pub consumers: Gauge,
    /// Open WebSockets of producers.
    pub producers: Gauge,
    /// Tokens made.
    pub tokens: Counter,
    /// Records sent to consumers.
    pub consumed: Counter,
    /// Records that came again and were not sent, because the client has not read the copy before.
    pub held: Counter,
    /// Records acknowledged by consumers.
    pub acked: Counter,
    /// Texts of consumers that are no ackId.
    pub unknown: Counter,
    /// Messages taken from producers.
    pub produced: Counter,
    /// Messages of producers that were not taken.
    pub refused_messages: Counter,
}

impl Default for WebMetrics {
    fn default() -> Self {
        let sockets = Family::<Label, Gauge>::default();
        let messages = Family::<Label, Counter>::default();
        let of = |result| messages.get_or_create_owned(&[("result", result)]);
        Self {
            consumers: sockets.get_or_create_owned(&[("kind", "consumer")]),
            producers: sockets.get_or_create_owned(&[("kind", "producer")]),
            consumed: of("consumed"),
            held: of("held"),
            acked: of("acked"),
            unknown: of("unknown"),
            produced: of("produced"),
            refused_messages: of("refused"),
            sockets,
            messages,
            refused: Family::default(),
            tokens: Counter::default(),
        }
    }
}

impl WebMetrics {
    /// Registers them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "penstock_web_sockets",
            "WebSockets of microservices, by kind",
            self.sockets.clone(),
        );
        registry.register(
            "penstock_web_messages",
            "Messages over WebSockets, by result",
            self.messages.clone(),
        );
        let help = "Requests to the WebSocket door that were refused, by reason";
        registry.register("penstock_web_refusals", help, self.refused.clone());
        registry.register("penstock_web_tokens", "Tokens made for the WebSocket door", self.tokens.clone());
    }

    /// Counts a refusal.
    pub fn refuse(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }
}

/// Counts one while it lives.
pub struct Counted(Gauge);

impl Counted {
    /// One more.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
