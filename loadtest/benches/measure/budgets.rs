//! What a message and a connection may cost, as ratios to peers in the same run: the judge of the table. Budgets that this
//! benchmark does not measure are not here.

use crate::{
    results::Results,
    scenarios::Scenario::{
        self, Connect, FanIn, Latency, Push, Qos0, Qos1Large, Qos1Medium, Qos1Small, Storm, Takeover,
    },
    systems::Kind::{
        self, Cluster, ClusterFsync, Mosquitto, Nats, NatsFsync, Redis, Rmqtt, Rumqttd, Standalone,
    },
};

/// Where a figure is.
type At = (Kind, Scenario, &'static str);

/// A limit of a figure of ours: absolute, or as a multiple of another figure.
pub struct Budget {
    what: &'static str,
    ours: At,
    least: bool,
    limit: f64,
    of: Option<At>,
}

const fn at_least(what: &'static str, ours: At, limit: f64, of: At) -> Budget {
    Budget { what, ours, least: true, limit, of: Some(of) }
}

const fn at_most(what: &'static str, ours: At, limit: f64, of: At) -> Budget {
    Budget { what, ours, least: false, limit, of: Some(of) }
}

const fn below(what: &'static str, ours: At, limit: f64) -> Budget {
    Budget { what, ours, least: false, limit, of: None }
}

const RATE: &str = "per_second";

/// In the order of the design's page.
pub const BUDGETS: &[Budget] = &[
    at_least("QoS 1, 64 B, of NATS", (Cluster, Qos1Small, RATE), 4.0, (Nats, Qos1Small, RATE)),
    at_least("QoS 1, 64 B, of mosquitto", (Cluster, Qos1Small, RATE), 3.0, (Mosquitto, Qos1Small, RATE)),
    at_least("QoS 1, 64 B, of rumqttd", (Cluster, Qos1Small, RATE), 0.8, (Rumqttd, Qos1Small, RATE)),
    below("QoS 1, 64 B, CPU s a million, all parts", (Cluster, Qos1Small, "cpu_seconds_per_million"), 3.5),
    at_least("QoS 1, 1 KiB, of NATS", (Cluster, Qos1Medium, RATE), 2.5, (Nats, Qos1Medium, RATE)),
    at_least("QoS 1, 64 KiB, of bare Redis", (Cluster, Qos1Large, RATE), 0.75, (Redis, Qos1Large, RATE)),
    at_least(
        "fsync, QoS 1, 64 B, of NATS fsync",
        (ClusterFsync, Qos1Small, RATE),
        100.0,
        (NatsFsync, Qos1Small, RATE),
    ),
    at_least("QoS 0, 64 B, of mosquitto", (Cluster, Qos0, RATE), 1.0, (Mosquitto, Qos0, RATE)),
    at_least("one consumer, of NATS", (Cluster, FanIn, RATE), 4.0, (Nats, FanIn, RATE)),
    at_most(
        "PUBACK p50 at 1,000/s, of NATS",
        (Cluster, Latency, "puback_p50_ms"),
        1.5,
        (Nats, Latency, "puback_p50_ms"),
    ),
    at_most(
        "PUBACK p99 at 1,000/s, of NATS",
        (Cluster, Latency, "puback_p99_ms"),
        1.2,
        (Nats, Latency, "puback_p99_ms"),
    ),
    below("push to the device's PUBACK, p50 ms", (Cluster, Push, "receipt_p50_ms"), 2.0),
    below("push to the device's PUBACK, p99 ms", (Cluster, Push, "receipt_p99_ms"), 5.0),
    below("idle connection, bytes", (Cluster, Connect, "idle_bytes"), 3_072.0),
    at_most("idle connection, of NATS", (Cluster, Connect, "idle_bytes"), 0.1, (Nats, Connect, "idle_bytes")),
    at_most(
        "idle connection, of rmqtt",
        (Cluster, Connect, "idle_bytes"),
        0.2,
        (Rmqtt, Connect, "idle_bytes"),
    ),
    at_least(
        "CONNECT/s, of rmqtt",
        (Cluster, Connect, "connects_per_second"),
        1.0,
        (Rmqtt, Connect, "connects_per_second"),
    ),
    at_least(
        "CONNECT/s, of NATS",
        (Cluster, Connect, "connects_per_second"),
        2.0,
        (Nats, Connect, "connects_per_second"),
    ),
    at_most("storm of 10,000, of rmqtt", (Cluster, Storm, "seconds"), 0.8, (Rmqtt, Storm, "seconds")),
    at_most(
        "takeover of 5,000, two gateways, of rmqtt",
        (Cluster, Takeover, "seconds"),
        1.0,
        (Rmqtt, Takeover, "seconds"),
    ),
    below("XADD a stored message, at 1,000/s", (Cluster, Latency, "appends_per_message"), 1.05),
    below("XADD a stored message, at full load", (Cluster, Qos1Small, "appends_per_message"), 0.05),
    at_least(
        "`penstock`, QoS 1, 64 B, of the cluster with fsync",
        (Standalone, Qos1Small, RATE),
        1.0,
        (ClusterFsync, Qos1Small, RATE),
    ),
];

/// A budget beside what was measured.
pub struct Judged {
    /// The budget's name.
    pub what: &'static str,
    /// `≥ 4 ×`.
    pub needed: String,
    /// `2.7 ×`; none: not measured.
    pub measured: Option<String>,
    /// `reached`, `missed by 33 %`.
    pub verdict: String,
}

impl Budget {
    /// Compares.
    pub fn judge(&self, results: &Results) -> Judged {
        let read = |(kind, scenario, figure): At| results.median(kind, scenario, figure);
        let (sign, times) = (if self.least { "≥" } else { "≤" }, if self.of.is_some() { " ×" } else { "" });
        let needed = format!("{sign} {}{times}", short(self.limit));
        let base = self.of.map_or(Some(1.0), |of| read(of).filter(|value| *value > 0.0));
        let (Some(own), Some(base)) = (read(self.ours), base) else {
            return Judged { what: self.what, needed, measured: None, verdict: "not measured".to_owned() };
        };
        let ratio = own / base;
        let reached = if self.least { ratio >= self.limit } else { ratio <= self.limit };
        let far = (ratio / self.limit - 1.0).abs() * 100.0;
        let verdict = if reached { "reached".to_owned() } else { format!("**missed by {far:.0} %**") };
        Judged { what: self.what, needed, measured: Some(format!("{}{times}", short(ratio))), verdict }
    }
}

/// Three digits, no more.
pub fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        v if v >= 1.0 => format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        _ => format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}
