//! What is done to a system: each scenario is one run of `penstock-loadtest`, and the figures that are read from its result.

use std::time::Duration;

use serde_json::Value;

/// A row or some rows of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Scenario {
    /// PUBLISH to PUBACK at 1,000/s.
    Latency,
    /// 10,000 connections, 200 at a time; then the memory that they take idle.
    Connect,
    /// 10,000 connections at once.
    Storm,
    /// Everybody connects again under the same names (a cluster: on another gateway).
    Takeover,
    /// Pushes to devices at 1,000/s.
    Push,
    Qos1Small,
    Qos1Medium,
    Qos1Large,
    Qos0,
    /// Everything that 100 publishers send, to one consumer, verified by the ledger.
    FanIn,
    /// What is stored of typical messages, at full load.
    Stored,
    /// … and one by one.
    StoredSlowly,
    /// A group of one consumer, or of eight, drains a backlog of 100 B or 1 KiB.
    GroupOneSmall,
    GroupEightSmall,
    GroupOneMedium,
    GroupEightMedium,
    /// As `Push`, by two through two routers.
    PushPair,
    /// As fast as receipts come.
    PushFlood,
}

/// In the order in which they run: what is idle and slow first, because floods leave memory behind; what may leave a broker
/// busy for long at the end.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::Latency,
    Scenario::Connect,
    Scenario::Push,
    Scenario::Qos1Small,
    Scenario::Qos1Medium,
    Scenario::Qos1Large,
    Scenario::Qos0,
    Scenario::FanIn,
    Scenario::StoredSlowly,
    Scenario::Stored,
    Scenario::GroupOneSmall,
    Scenario::GroupEightSmall,
    Scenario::GroupOneMedium,
    Scenario::GroupEightMedium,
    Scenario::PushPair,
    Scenario::PushFlood,
    Scenario::Storm,
    Scenario::Takeover,
];

/// Connections of `connect` and `storm`.
pub const MANY: u32 = 10_000;
/// Of `stored`: a typical topic, and identifier.
const STORED_TOPIC: &str = "plant/line-{i}/temperature";
const STORED_CLIENT: &str = "device-{i}";
/// Payload, topic and client identifier of a message of `stored`, bytes; publishers are 0 to 99.
pub fn stored_bytes() -> f64 {
    let plain = (STORED_TOPIC.len() + STORED_CLIENT.len() - 2 * "{i}".len()) as f64;
    let digits = (0..100_u32).map(|number| number.to_string().len() as f64).sum::<f64>() / 100.0;
    64.0 + plain + 2.0 * digits
}
/// How long they are held idle, seconds.
pub const HELD: u32 = 5;

impl Scenario {
    /// For the command line and the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Connect => "connect",
            Self::Storm => "storm",
            Self::Takeover => "takeover",
            Self::Push => "push",
            Self::Qos1Small => "qos1-64",
            Self::Qos1Medium => "qos1-1k",
            Self::Qos1Large => "qos1-64k",
            Self::Qos0 => "qos0-64",
            Self::FanIn => "fan-in",
            Self::Stored => "stored",
            Self::StoredSlowly => "stored-slowly",
            Self::GroupOneSmall => "group-1-100",
            Self::GroupEightSmall => "group-8-100",
            Self::GroupOneMedium => "group-1-1k",
            Self::GroupEightMedium => "group-8-1k",
            Self::PushPair => "push-pair",
            Self::PushFlood => "push-flood",
        }
    }

    /// Words for `penstock-loadtest`, without where and as whom; `seconds` is the length of a flood.
    pub fn arguments(self, seconds: u32) -> String {
        let flood = |payload: &str, inflight: u32, qos: u8| {
            format!(
                "ingest --clients 100 --payload {payload} --inflight {inflight} --qos {qos} --warmup 1s \
                 --duration {seconds}s --verify none"
            )
        };
        let group = |payload: &str, messages: u32, consumers: u32| {
            format!(
                "ingest --clients 100 --payload {payload} --inflight 16 --messages {messages} --duration 60s \
                 --backlog --consumers {consumers} --settle 60s"
            )
        };
        let stored = |how: &str| {
            format!(
                "ingest --clients 100 --topic {STORED_TOPIC} --client-id {STORED_CLIENT} --payload 64B {how} \
                 --verify none"
            )
        };
        match self {
            Self::Stored => stored("--inflight 16 --messages 300000 --duration 60s"),
            Self::StoredSlowly => stored("--rate 1000/s --duration 5s"),
            Self::GroupOneSmall => group("100B", 400_000, 1),
            Self::GroupEightSmall => group("100B", 400_000, 8),
            Self::GroupOneMedium => group("1KiB", 150_000, 1),
            Self::GroupEightMedium => group("1KiB", 150_000, 8),
            Self::PushPair => {
                format!("push --clients 100 --pushers 2 --rate 1000/s --warmup 1s --duration {seconds}s")
            }
            Self::PushFlood => {
                format!("push --clients 200 --pushers 4 --inflight 256 --warmup 1s --duration {seconds}s")
            }
            Self::Latency => format!(
                "ingest --clients 100 --payload 64B --rate 1000/s --warmup 1s --duration {seconds}s --verify none"
            ),
            Self::Connect => format!("connect --clients {MANY} --connecting 200 --hold {HELD}s"),
            Self::Storm => format!("storm --clients {MANY} --rounds 1"),
            Self::Takeover => "takeover --clients 5000".to_owned(),
            Self::Push => format!("push --clients 100 --rate 1000/s --warmup 1s --duration {seconds}s"),
            Self::Qos1Small => flood("64B", 16, 1),
            Self::Qos1Medium => flood("1KiB", 16, 1),
            Self::Qos1Large => flood("64KiB", 4, 1),
            Self::Qos0 => flood("64B", 16, 0),
            Self::FanIn => format!(
                "ingest --clients 100 --payload 64B --inflight 16 --duration {seconds}s --settle 60s \
                 --tolerate duplicated"
            ),
        }
    }

    /// Longest time that a run may take.
    pub fn limit(self, seconds: u32) -> Duration {
        let more = match self {
            Self::FanIn => 80,
            _ if self.keeps() => 130,
            Self::Connect | Self::Storm | Self::Takeover => 75,
            _ => 45,
        };
        Duration::from_secs(u64::from(seconds) + more)
    }

    /// The figures of a result: name and value. The names carry the units.
    pub fn figures(self, result: &Value) -> Vec<(&'static str, f64)> {
        let read = |path: &str| result.pointer(path).and_then(Value::as_f64);
        let wanted: &[(&'static str, &str)] = match self {
            Self::Latency => &[
                ("puback_p50_ms", "/latency_ms/puback/p50"),
                ("puback_p99_ms", "/latency_ms/puback/p99"),
                ("puback_p999_ms", "/latency_ms/puback/p999"),
            ],
            Self::Connect => &[("connects_per_second", "/rate/connects")],
            Self::Storm | Self::Takeover => &[("seconds", "/seconds")],
            Self::Push | Self::PushPair => &[
                ("receipt_p50_ms", "/latency_ms/receipt/p50"),
                ("receipt_p99_ms", "/latency_ms/receipt/p99"),
            ],
            Self::PushFlood => {
                &[("per_second", "/rate/acked"), ("receipt_p99_ms", "/latency_ms/receipt/p99")]
            }
            Self::GroupOneSmall | Self::GroupEightSmall | Self::GroupOneMedium | Self::GroupEightMedium => {
                &[("per_second", "/backlog/records_per_second")]
            }
            Self::Qos1Small | Self::Qos1Medium | Self::Qos1Large | Self::Stored | Self::StoredSlowly => {
                &[("per_second", "/rate/acked")]
            }
            Self::Qos0 => &[("per_second", "/rate/sent")],
            Self::FanIn => &[
                ("per_second", "/rate/received"),
                ("acked_per_second", "/rate/acked"),
                ("one_way_p99_ms", "/latency_ms/one_way/p99"),
            ],
        };
        wanted.iter().filter_map(|(name, path)| Some((*name, read(path)?))).collect()
    }

    /// Whether what it stores is looked at in Redis afterwards.
    pub fn keeps(self) -> bool {
        self.is_stored()
            || matches!(
                self,
                Self::GroupOneSmall | Self::GroupEightSmall | Self::GroupOneMedium | Self::GroupEightMedium
            )
    }

    /// Whether it asks for the memory of a message.
    pub fn is_stored(self) -> bool {
        matches!(self, Self::Stored | Self::StoredSlowly)
    }

    /// Whether it goes through the messaging door.
    pub fn takes_the_door(self) -> bool {
        matches!(self, Self::FanIn | Self::Push | Self::PushPair | Self::PushFlood)
            || self.keeps() && !self.is_stored()
    }

    /// Messages by which the CPU time of the whole run is divided; none where that says nothing.
    pub fn messages(self, result: &Value) -> Option<f64> {
        let path = match self {
            Self::Qos1Small | Self::Qos1Medium | Self::Qos1Large => "/messages/acked",
            Self::Qos0 => "/messages/sent",
            Self::FanIn => "/messages/received",
            _ => return None,
        };
        result.pointer(path).and_then(Value::as_f64).filter(|messages| *messages > 0.0)
    }
}
