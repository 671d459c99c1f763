//! The router's metrics. Handles are made once and kept: looking one up by label costs more than counting.

use std::time::Duration;

use penstock_common::store::{Entry, Trimmed};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{lane::Screened, wills::Cause};

/// All of them.
pub struct Metrics {
    /// `penstock_links`.
    pub links: Gauge,
    /// `penstock_stale_epochs_total`.
    pub stale_epochs: Counter,
    /// `penstock_publishes_refused_total{reason="backlog"}`.
    pub refused_backlog: Counter,
    /// `penstock_append_overruns_total`: a shard sent more than its credit.
    pub overruns: Counter,
    /// `penstock_fan_out_abandoned_total`.
    pub abandoned: Counter,
    /// `penstock_deliver_bytes_total`.
    pub delivered_bytes: Counter,
    /// `penstock_homes_taken_total`.
    pub homes_taken: Counter,
    /// `penstock_mailbox_appended_total`.
    pub mail_appended: Counter,
    /// `penstock_mailbox_dropped_total`.
    pub mail_dropped: Counter,
    /// `penstock_mailbox_expired_total`.
    pub mail_expired: Counter,
    /// `penstock_sessions_opened_total`.
    pub sessions_opened: Counter,
    /// `penstock_wills_refused_total`.
    pub wills_refused: Counter,
    /// By `Cause`.
    wills_fired: [Counter; 3],
    append_seconds: Histogram,
    append_records: Histogram,
    appended_records: Counter,
    appended_bytes: Counter,
    duplicates: Counter,
    in_doubt: Counter,
    dropped_in_doubt: Counter,
    dropped: Family<[(&'static str, &'static str); 1], Counter>,
}

/// Upper bounds in seconds for what should take well below a millisecond and may take seconds.
const SECONDS: [f64; 14] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];
const RECORDS: [f64; 8] = [1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0];

impl Metrics {
    /// Registers all metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let fired = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let causes = ["connection", "takeover", "gateway_lost"]
            .map(|cause| fired.get_or_create_owned(&[("cause", cause)]));
        let metrics = Self {
            links: Gauge::default(),
            stale_epochs: Counter::default(),
            refused_backlog: Counter::default(),
            overruns: Counter::default(),
            abandoned: Counter::default(),
            delivered_bytes: Counter::default(),
            homes_taken: Counter::default(),
            mail_appended: Counter::default(),
            mail_dropped: Counter::default(),
            mail_expired: Counter::default(),
            sessions_opened: Counter::default(),
            wills_refused: Counter::default(),
            wills_fired: causes,
            append_seconds: Histogram::new(SECONDS),
            append_records: Histogram::new(RECORDS),
            appended_records: Counter::default(),
            appended_bytes: Counter::default(),
            duplicates: Counter::default(),
            in_doubt: Counter::default(),
            dropped_in_doubt: Counter::default(),
            dropped: Family::default(),
        };
        metrics.register_counts(registry);
        registry.register(
            "penstock_backlog_dropped_records",
            "Records removed before a group was done with them, by what they were too much of",
            metrics.dropped.clone(),
        );
        registry.register("penstock_wills_fired", "Wills that were published, by cause", fired);
        registry.register("penstock_links", "Links to shards of gateways", metrics.links.clone());
        registry.register(
            "penstock_append_seconds",
            "Time from an append to the store's answer",
            metrics.append_seconds.clone(),
        );
        registry.register(
            "penstock_append_records",
            "Records stored with one append",
            metrics.append_records.clone(),
        );
        metrics
    }

    fn register_counts(&self, registry: &mut Registry) {
        let counts = [
            ("penstock_stale_epochs", "Ownerships and records refused for a void epoch", &self.stale_epochs),
            (
                "penstock_backlog_refused_records",
                "Records refused because a backlog is full",
                &self.refused_backlog,
            ),
            (
                "penstock_append_overruns",
                "Links closed because a shard sent more than its credit",
                &self.overruns,
            ),
            ("penstock_fan_out_abandoned", "Shards that fan-out went on without", &self.abandoned),
            (
                "penstock_deliver_bytes",
                "Bytes of records sent to links for subscribers",
                &self.delivered_bytes,
            ),
            ("penstock_homes_taken", "Partitions taken", &self.homes_taken),
            ("penstock_mailbox_appended", "Messages put into mailboxes", &self.mail_appended),
            ("penstock_mailbox_dropped", "Messages that a full mailbox did not take", &self.mail_dropped),
            ("penstock_mailbox_expired", "Messages that waited too long in a mailbox", &self.mail_expired),
            ("penstock_sessions_opened", "Persistent sessions opened or created", &self.sessions_opened),
            ("penstock_wills_refused", "Wills that a full backlog did not take", &self.wills_refused),
            ("penstock_appended_records", "Records stored", &self.appended_records),
            ("penstock_appended_bytes", "Bytes of records stored", &self.appended_bytes),
            (
                "penstock_resent_records",
                "Records that were sent again and were stored already",
                &self.duplicates,
            ),
            (
                "penstock_in_doubt_records",
                "Records stored though they may have been stored before",
                &self.in_doubt,
            ),
            (
                "penstock_in_doubt_dropped_records",
                "QoS 0 records dropped because they may have been stored before",
                &self.dropped_in_doubt,
            ),
        ];
        for (name, help, counter) in counts {
            registry.register(name, help, counter.clone());
        }
    }

    /// A will is published.
    pub fn will_fired(&self, cause: Option<Cause>) {
        let [connection, takeover, gateway_lost] = &self.wills_fired;
        match cause {
            Some(Cause::Connection) | None => connection,
            Some(Cause::Takeover) => takeover,
            Some(Cause::GatewayLost) => gateway_lost,
        }
        .inc();
    }

    /// Records are stored that no shard appended.
    pub fn appended_beside(&self, records: u64, bytes: u64) {
        self.appended_records.inc_by(records);
        self.appended_bytes.inc_by(bytes);
    }

    /// An entry is stored.
    pub fn appended(&self, took: Duration, entry: &Entry) {
        self.append_seconds.observe(took.as_secs_f64());
        self.append_records.observe(f64::from(entry.count));
        self.appended_records.inc_by(u64::from(entry.count));
        self.appended_bytes.inc_by(entry.records.len() as u64);
    }

    /// A log was trimmed.
    pub fn trimmed(&self, trimmed: &Trimmed) {
        if trimmed.lost > 0 {
            let reason = if trimmed.aged { "age" } else { "bytes" };
            self.dropped.get_or_create(&[("reason", reason)]).inc_by(trimmed.lost);
        }
    }

    /// What was found while batches were joined.
    pub fn screened(&self, screened: Screened) {
        if screened == Screened::default() {
            return;
        }
        self.duplicates.inc_by(screened.duplicates);
        self.stale_epochs.inc_by(screened.stale);
        self.in_doubt.inc_by(screened.undecided_stored);
        self.dropped_in_doubt.inc_by(screened.undecided_dropped);
    }
}
