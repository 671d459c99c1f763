//! What happens between us and Redis, counted.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Handles of the counters.
#[derive(Clone, Default)]
pub(super) struct Counts {
    /// Connections to a primary that were given up.
    pub(super) lost: Counter,
    /// Entries and takes that too few replicas confirmed in time.
    pub(super) unconfirmed: Counter,
    redirects: Family<Reason, Counter>,
}

impl Counts {
    /// A node of a cluster pointed elsewhere or asked for patience: first word of its answer.
    pub(super) fn redirected(&self, code: &str) {
        let reason = match code {
            "MOVED" => "moved",
            "ASK" => "ask",
            "TRYAGAIN" => "try_again",
            _ => "cluster_down",
        };
        self.redirects.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "penstock_store_connections_lost",
            "Connections to a Redis primary that were given up",
            self.lost.clone(),
        );
        registry.register(
            "penstock_store_unconfirmed",
            "Entries and takes that too few replicas confirmed in time: in doubt, not acknowledged",
            self.unconfirmed.clone(),
        );
        registry.register(
            "penstock_store_redirects",
            "Answers of Redis Cluster that a slot is elsewhere, on the move, or down",
            self.redirects.clone(),
        );
    }
}
