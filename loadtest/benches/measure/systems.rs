//! What is measured: a name, where to reach it, and the processes that make it. [`crate::ours`] and [`crate::peers`] start
//! them; every start is a fresh one on an empty directory.

use std::{net::SocketAddr, path::PathBuf};

use tempfile::TempDir;

use crate::{ours, parts::Part, peers, scenarios::Scenario};

/// A system that can be started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// etcd, Redis (everysec), router, gateway.
    Cluster,
    /// The same with fsync before PUBACK.
    ClusterFsync,
    /// `penstock`, synced before PUBACK.
    Standalone,
    Mosquitto,
    /// JetStream in files, synced now and then.
    Nats,
    /// JetStream in files, synced before PUBACK.
    NatsFsync,
    Rumqttd,
    Rmqtt,
    Rabbitmq,
    /// The cluster again, fresh, for what is looked at in its Redis.
    Backlog,
    /// Two routers and two gateways.
    Pair,
    /// Only its log: what the store itself takes.
    Redis,
}

/// In the order of the table.
pub const KINDS: &[Kind] = &[
    Kind::Cluster,
    Kind::ClusterFsync,
    Kind::Standalone,
    Kind::Mosquitto,
    Kind::Nats,
    Kind::NatsFsync,
    Kind::Rumqttd,
    Kind::Rmqtt,
    Kind::Rabbitmq,
    Kind::Redis,
    Kind::Backlog,
    Kind::Pair,
];

/// A user and where their password is.
#[derive(Clone)]
pub struct Login {
    /// MQTT user name.
    pub user: String,
    /// File with the password.
    pub password_file: PathBuf,
}

/// A running system.
pub struct System {
    /// Where clients connect.
    pub target: SocketAddr,
    /// For brokers that ask.
    pub login: Option<Login>,
    /// Penstock's gRPC door.
    pub door: Option<SocketAddr>,
    /// Its Redis.
    pub redis: Option<SocketAddr>,
    /// Everything that serves.
    pub parts: Vec<Part>,
    /// Names of the parts whose memory a connection takes; all when empty.
    pub holders: &'static [&'static str],
    /// A second gateway and a second router's door.
    pub second: Option<(SocketAddr, SocketAddr)>,
    /// Starts another place to connect to, for a takeover across two.
    pub another: Option<ours::Gateway>,
    /// Removed at the end, after the parts.
    pub dir: TempDir,
}

impl System {
    /// CPU seconds of each part.
    pub fn cpu_each(&self) -> Vec<(String, f64)> {
        self.parts.iter().map(|part| (part.name.clone(), part.cpu())).collect()
    }

    /// Resident bytes of the parts that hold connections.
    pub fn rss(&self) -> u64 {
        let holds = |part: &&Part| self.holders.is_empty() || self.holders.contains(&part.name.as_str());
        self.parts.iter().filter(holds).map(Part::rss).sum()
    }

    /// The commands that made it.
    pub fn commands(&self) -> Vec<String> {
        self.parts.iter().map(|part| part.command.clone()).collect()
    }
}

impl Kind {
    /// For the command line and the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::ClusterFsync => "cluster-fsync",
            Self::Standalone => "standalone",
            Self::Mosquitto => "mosquitto",
            Self::Nats => "nats",
            Self::NatsFsync => "nats-fsync",
            Self::Rumqttd => "rumqttd",
            Self::Rmqtt => "rmqtt",
            Self::Rabbitmq => "rabbitmq",
            Self::Redis => "redis",
            Self::Backlog => "cluster-backlog",
            Self::Pair => "cluster-pair",
        }
    }

    /// For the table's head.
    pub fn title(self) -> &'static str {
        match self {
            Self::Cluster => "Penstock cluster",
            Self::ClusterFsync => "cluster, fsync",
            Self::Standalone => "`penstock`",
            Self::Mosquitto => "mosquitto",
            Self::Nats => "NATS JetStream",
            Self::NatsFsync => "NATS, fsync",
            Self::Rumqttd => "rumqttd",
            Self::Rmqtt => "rmqtt",
            Self::Rabbitmq => "RabbitMQ",
            Self::Redis => "bare Redis",
            Self::Backlog => "cluster with a backlog",
            Self::Pair => "two routers, two gateways",
        }
    }

    /// What a PUBACK of it means.
    pub fn stored(self) -> &'static str {
        match self {
            Self::Cluster | Self::Nats | Self::Redis | Self::Backlog | Self::Pair => "page cache",
            Self::ClusterFsync | Self::Standalone | Self::NatsFsync => "fsync",
            Self::Mosquitto | Self::Rumqttd | Self::Rmqtt | Self::Rabbitmq => "no",
        }
    }

    /// Whether it is Penstock.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Cluster | Self::ClusterFsync | Self::Standalone) || self.once()
    }

    /// Whether it is measured in the first round only, and told in a table of its own.
    pub fn once(self) -> bool {
        matches!(self, Self::Backlog | Self::Pair)
    }

    /// Whether this scenario tells something of it within the time there is.
    pub fn takes(self, scenario: Scenario) -> bool {
        let pair = matches!(scenario, Scenario::PushPair | Scenario::PushFlood);
        match self {
            Self::Backlog => scenario.keeps(),
            Self::Pair => pair,
            _ if pair || scenario.keeps() => false,
            // Only what differs by the sync.
            Self::ClusterFsync | Self::NatsFsync => {
                matches!(scenario, Scenario::Qos1Small | Scenario::Latency | Scenario::FanIn)
            }
            // It takes connections one by one, a millisecond each, and knows no takeover.
            Self::Rumqttd => !matches!(scenario, Scenario::Storm | Scenario::Takeover | Scenario::Push),
            // Some 500 connects a second: connecting 10,000 would take longer than all the rest.
            Self::Rabbitmq => {
                matches!(scenario, Scenario::Qos1Small | Scenario::Qos0 | Scenario::Latency | Scenario::FanIn)
            }
            Self::Redis => scenario == Scenario::Qos1Large,
            Self::Cluster | Self::Standalone => true,
            Self::Mosquitto | Self::Nats | Self::Rmqtt => scenario != Scenario::Push,
        }
    }

    /// Why it can't be started here: what is missing and how to install it. None: it can.
    pub fn missing(self) -> Option<String> {
        if self.is_ours() || self == Self::Redis { ours::missing(self) } else { peers::missing(self) }
    }

    /// What the program says of its version.
    pub fn version(self) -> String {
        match self {
            Self::Redis => "as in the cluster".to_owned(),
            own if own.is_ours() => format!("penstock {}", env!("CARGO_PKG_VERSION")),
            peer => peers::version(peer),
        }
    }

    /// Starts it.
    pub fn start(self) -> anyhow::Result<System> {
        if self.is_ours() || self == Self::Redis { ours::start(self) } else { peers::start(self) }
    }
}
