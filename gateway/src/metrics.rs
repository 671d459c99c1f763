//! The gateway's numbers, with a handle for each label value: no lookup by label happens on the data path. A handle is
//! shared by all shards.

use penstock_mqtt::{
    packet::QoS,
    session::{CloseReason, Delivered},
};
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::config::transports::TransportKind;

type Labels = [(&'static str, &'static str); 1];

/// Handles of all metrics that the gateway feeds. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) connections: Connections,
    pub(crate) opening: Gauge,
    pub(crate) half_bytes: Gauge,
    pub(crate) received: [Counter; 2],
    pub(crate) refused: Refused,
    pub(crate) dropped_backpressure: Counter,
    pub(crate) dropped_paused: Counter,
    pub(crate) puback_seconds: Histogram,
    pub(crate) deliveries: Deliveries,
    pub(crate) takeovers: Counter,
    pub(crate) takeover_seconds: Histogram,
    pub(crate) stale_epochs: Counter,
    pub(crate) claim_seconds: Histogram,
    pub(crate) link_credit: Gauge,
    pub(crate) links: Gauge,
    pub(crate) pauses: Counter,
    pub(crate) subscriptions_refused: Counter,
    connects: Family<Labels, Counter>,
    closes: Family<Labels, Counter>,
    transport_failures: Family<[(&'static str, &'static str); 2], Counter>,
}

/// Connections with a CONNACK, by transport.
#[derive(Clone)]
pub(crate) struct Connections {
    gauges: [(TransportKind, Gauge); 4],
    other: Gauge,
}

impl Connections {
    fn register(registry: &mut Registry) -> Self {
        let family = Family::<Labels, Gauge>::default();
        let gauge = |kind: TransportKind| (kind, family.get_or_create_owned(&[("transport", kind.label())]));
        let connections = Self { gauges: TransportKind::ALL.map(gauge), other: Gauge::default() };
        registry.register("penstock_connections", "Connections with a CONNACK", family);
        connections
    }

    pub(crate) fn of(&self, kind: TransportKind) -> &Gauge {
        let found = self.gauges.iter().find(|(it, _)| *it == kind);
        found.map_or(&self.other, |(_, gauge)| gauge)
    }
}

/// Publishes that the routers refused, by reason.
#[derive(Clone)]
pub(crate) struct Refused {
    pub(crate) backlog: Counter,
    pub(crate) stale: Counter,
    pub(crate) tenant: Counter,
}

/// Deliveries to clients, by result.
#[derive(Clone)]
pub(crate) struct Deliveries {
    sent: Counter,
    queued: Counter,
    dropped: Counter,
    overrun: Counter,
    refused: Counter,
    other: Counter,
}

impl Deliveries {
    /// Of QoS 0, for newer ones to have room.
    pub(crate) fn displaced(&self, count: u32) {
        self.dropped.inc_by(count.into());
    }

    /// A push that a session has no room for.
    pub(crate) fn refuse(&self) {
        self.refused.inc();
    }

    pub(crate) fn count(&self, result: Delivered) {
        match result {
            Delivered::Sent => &self.sent,
            Delivered::Queued => &self.queued,
            Delivered::DroppedQos0 => &self.dropped,
            Delivered::Overrun => &self.overrun,
            Delivered::TooLarge | Delivered::NotOpen => &self.other,
        }
        .inc();
    }
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 18))
}

impl Metrics {
    /// Registers everything under `penstock_`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let connects = Family::<Labels, Counter>::default();
        let closes = Family::<Labels, Counter>::default();
        let transport_failures = Family::<[(&'static str, &'static str); 2], Counter>::default();
        let received = Family::<Labels, Counter>::default();
        let refused = Family::<Labels, Counter>::default();
        let dropped = Family::<Labels, Counter>::default();
        let deliveries = Family::<Labels, Counter>::default();
        let of = |family: &Family<Labels, Counter>, name, value| family.get_or_create_owned(&[(name, value)]);
        let metrics = Self {
            connections: Connections::register(registry),
            opening: Gauge::default(),
            half_bytes: Gauge::default(),
            received: [of(&received, "qos", "0"), of(&received, "qos", "1")],
            refused: Refused {
                backlog: of(&refused, "reason", "backlog"),
                stale: of(&refused, "reason", "stale"),
                tenant: of(&refused, "reason", "no_tenant"),
            },
            dropped_backpressure: of(&dropped, "reason", "backpressure"),
            dropped_paused: of(&dropped, "reason", "paused"),
            puback_seconds: seconds(),
            deliveries: Deliveries {
                sent: of(&deliveries, "result", "sent"),
                queued: of(&deliveries, "result", "queued"),
                dropped: of(&deliveries, "result", "dropped"),
                overrun: of(&deliveries, "result", "overrun"),
                refused: of(&deliveries, "result", "refused"),
                other: of(&deliveries, "result", "not_open"),
            },
            takeovers: Counter::default(),
            takeover_seconds: seconds(),
            stale_epochs: Counter::default(),
            claim_seconds: seconds(),
            link_credit: Gauge::default(),
            links: Gauge::default(),
            pauses: Counter::default(),
            subscriptions_refused: Counter::default(),
            connects: connects.clone(),
            closes: closes.clone(),
            transport_failures: transport_failures.clone(),
        };
        registry.register("penstock_connects", "CONNECTs by result", connects);
        registry.register("penstock_closes", "Connections that ended, by reason", closes);
        let help = "Connections that failed beneath MQTT, by transport and reason";
        registry.register("penstock_transport_failures", help, transport_failures);
        registry.register("penstock_publishes_received", "PUBLISH packets taken from clients", received);
        registry.register("penstock_publishes_refused", "Publishes that were not stored", refused);
        registry.register("penstock_publishes_dropped", "Publishes of QoS 0 that were dropped", dropped);
        registry.register("penstock_deliveries", "Deliveries to clients by result", deliveries);
        metrics.register_plain(registry);
        metrics
    }

    fn register_plain(&self, registry: &mut Registry) {
        let help = "Connections whose CONNECT has not come";
        registry.register("penstock_connections_opening", help, self.opening.clone());
        let help = "Bytes of packets that have not come whole";
        registry.register("penstock_half_packet_bytes", help, self.half_bytes.clone());
        registry.register("penstock_puback_seconds", "From PUBLISH to settled", self.puback_seconds.clone());
        registry.register("penstock_takeovers", "Connections closed by a newer one", self.takeovers.clone());
        let help = "From learning of an older connection to its end";
        registry.register("penstock_takeover_seconds", help, self.takeover_seconds.clone());
        let help = "Messages refused for an epoch that is not the present one";
        registry.register("penstock_stale_epochs", help, self.stale_epochs.clone());
        registry.register("penstock_claim_seconds", "Claims of clients", self.claim_seconds.clone());
        registry.register("penstock_link_credit", "Bytes that lanes may send now", self.link_credit.clone());
        registry.register("penstock_links", "Links to routers that are up", self.links.clone());
        registry.register(
            "penstock_subscriptions_refused",
            "Filters that a SUBACK refused: too many, too long, reserved",
            self.subscriptions_refused.clone(),
        );
        registry.register(
            "penstock_shard_pauses",
            "Shards that found themselves paused",
            self.pauses.clone(),
        );
    }

    /// Counts a CONNECT's end.
    pub(crate) fn connect(&self, result: &'static str) {
        self.connects.get_or_create(&[("result", result)]).inc();
    }

    /// Counts a connection's end.
    pub(crate) fn close(&self, reason: CloseReason) {
        self.closes.get_or_create(&[("reason", reason.label())]).inc();
    }

    /// Counts a connection whose transport failed.
    pub(crate) fn transport_failed(&self, kind: TransportKind, reason: &'static str) {
        self.transport_failures.get_or_create(&[("transport", kind.label()), ("reason", reason)]).inc();
    }

    /// Counts a publish from a client.
    pub(crate) fn received(&self, qos: QoS) {
        let [zero, one] = &self.received;
        if qos == QoS::AtMostOnce { zero } else { one }.inc();
    }
}
