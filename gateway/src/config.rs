//! What the gateway needs to be told: its own section of the configuration. Loading, merging and printing it is the
//! program's job.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use penstock_mqtt::session::SessionLimits;

use self::transports::{TransportConfig, TransportKind};

pub mod transports;

/// The gateway's settings. Every field has a default; unknown fields are refused.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Where MQTT listens; port 0 picks one.
    pub mqtt_listen: SocketAddr,
    /// Single-threaded runtimes, each with its own connections and links; 0 means one a core.
    pub shards: u32,
    /// Name for people.
    pub node_id: String,
    /// Bounds.
    pub limits: GatewayLimits,
    /// Times.
    pub timeouts: GatewayTimeouts,
    /// Listeners beside plain TCP.
    pub transports: TransportConfig,
    /// Topics that devices may not use.
    pub reserved: ReservedTopics,
    /// What links show to routers. Never printed.
    #[serde(skip)]
    pub cluster_secret: Option<ClusterSecret>,
}

/// The secret that links show to routers; its `Debug` shows nothing.
#[derive(Clone)]
pub struct ClusterSecret(Arc<str>);

impl ClusterSecret {
    /// Takes text as the secret.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that needs it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterSecret(…)")
    }
}

/// Bounds of one gateway.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayLimits {
    /// Largest MQTT packet, bytes with its headers. A tenant's limit may be lower.
    pub packet_bytes: u32,
    /// Connections of a shard that are between accept and CONNECT, handshakes included; beyond, the slowest is closed, or
    /// the new one when none has been slow.
    pub handshakes: usize,
    /// Bytes of packets that a shard holds in part; beyond, the connections whose packets take longest are closed.
    pub half_bytes: usize,
    /// Filters in one SUBSCRIBE or UNSUBSCRIBE; beyond, closed.
    pub filters_per_packet: u16,
    /// What a client may say a second that stores nothing (see [`SessionLimits`]); beyond, it is read later.
    pub control_rate: u16,
    /// The kernel's buffer of a connection in each direction, bytes; 0 leaves it to the system.
    pub socket_bytes: usize,
    /// Connections of a shard that are between CONNECT and CONNACK; beyond, CONNACK 3.
    pub admissions: usize,
    /// Subscriptions of a session.
    pub subscriptions: u32,
    /// Deliveries of QoS 1 to a client that are not acknowledged.
    pub inflight_out: u16,
    /// Bytes of deliveries that wait for a client; beyond, the oldest of QoS 0 are dropped, then a clean session closes.
    pub outbound_bytes: u32,
    /// Publishes of a connection that were received and not yet settled.
    pub unsettled: u16,
    /// Bytes of publishes of a shard that wait to be sent to routers; beyond, all its publishers wait.
    pub waiting_bytes: usize,
    /// Positive verdicts on credentials that a shard remembers.
    pub verdicts: usize,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            packet_bytes: 1_048_576,
            handshakes: 8_192,
            half_bytes: 64 << 20,
            filters_per_packet: 64,
            control_rate: 100,
            socket_bytes: 256 << 10,
            admissions: 8_192,
            subscriptions: 1_000,
            inflight_out: 64,
            outbound_bytes: 1_048_576,
            unsettled: 1_024,
            waiting_bytes: 128 << 20,
            verdicts: 65_536,
        }
    }
}

/// Times, milliseconds.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayTimeouts {
    /// A publish that is not stored within this time closes its connection, so that the client sends it again.
    pub store_ms: u64,
    /// From accept to a complete CONNECT: PROXY header, TLS and WebSocket handshake included.
    pub connect_ms: u64,
    /// From the first byte of a packet to its last.
    pub packet_ms: u64,
    /// A client that reads nothing for this long while there is something to read is closed.
    pub unread_ms: u64,
    /// Each remote step between CONNECT and CONNACK: credentials, home.
    pub admission_ms: u64,
    /// How long CONNACK waits for the older connection to be closed.
    pub kick_ms: u64,
    /// A shard whose clock jumped further than this was paused: what it holds is stale. Below the lease's TTL.
    pub pause_ms: u64,
    /// How long a verdict on credentials is remembered; at most 5 minutes.
    pub verdict_ms: u64,
    /// A router that can't be dialled for this long is reached through another one.
    pub relay_after_ms: u64,
}

impl Default for GatewayTimeouts {
    fn default() -> Self {
        Self {
            store_ms: 60_000,
            connect_ms: 10_000,
            packet_ms: 60_000,
            unread_ms: 120_000,
            admission_ms: 5_000,
            kick_ms: 1_000,
            pause_ms: 6_600,
            verdict_ms: 300_000,
            relay_after_ms: 1_000,
        }
    }
}

/// Topics that belong to the platform.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReservedTopics {
    /// Everything below these.
    pub prefixes: Vec<String>,
    /// Exactly these.
    pub names: Vec<String>,
}

impl Default for ReservedTopics {
    fn default() -> Self {
        Self {
            prefixes: penstock_mqtt::reserved::PREFIXES.map(String::from).to_vec(),
            names: penstock_mqtt::reserved::NAMES.map(String::from).to_vec(),
        }
    }
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            mqtt_listen: SocketAddr::from(([127, 0, 0, 1], 1883)),
            shards: 0,
            node_id: "gateway".into(),
            limits: GatewayLimits::default(),
            timeouts: GatewayTimeouts::default(),
            transports: TransportConfig::default(),
            reserved: ReservedTopics::default(),
            cluster_secret: None,
        }
    }
}

impl GatewayConfig {
    /// Everything that is wrong with it, one line each; empty when it can be used.
    pub fn faults(&self) -> Vec<String> {
        let transports = self.transports.faults().into_iter().map(|(flag, fault)| format!("{flag}: {fault}"));
        self.own_faults().into_iter().chain(transports).collect()
    }

    /// What is wrong beside the transports.
    pub(crate) fn own_faults(&self) -> Vec<String> {
        let (limits, timeouts) = (&self.limits, &self.timeouts);
        let checks = [
            (self.shards <= 1_024, "shards: at most 1,024"),
            (!self.node_id.is_empty(), "node_id: must not be empty"),
            (limits.admissions > 0, "limits.admissions (--max-admissions): at least 1"),
            (limits.control_rate > 0, "limits.control_rate (--control-rate): at least 1"),
            (
                (1..=1_000).contains(&limits.filters_per_packet),
                "limits.filters_per_packet (--max-filters): 1 to 1,000",
            ),
            (limits.half_bytes >= 1 << 20, "limits.half_bytes (--max-half-packets): at least 1MiB"),
            (limits.handshakes > 0, "limits.handshakes (--max-handshakes): at least 1"),
            (
                (1..=65_534).contains(&limits.inflight_out),
                "limits.inflight_out (--max-inflight-out): 1 to 65,534",
            ),
            (limits.outbound_bytes >= 4_096, "limits.outbound_bytes (--max-outbound): at least 4KiB"),
            (
                (256..=1_048_576).contains(&limits.packet_bytes),
                "limits.packet_bytes (--max-packet): 256 to 1,048,576",
            ),
            (
                limits.socket_bytes == 0 || limits.socket_bytes >= 4_096,
                "limits.socket_bytes (--socket-buffer): 0, or at least 4KiB",
            ),
            // Each is looked for among the others of its session.
            (limits.subscriptions <= 10_000, "limits.subscriptions (--max-subscriptions): at most 10,000"),
            (limits.unsettled > 0, "limits.unsettled (--max-inflight-in): at least 1"),
            (limits.waiting_bytes > 0, "limits.waiting_bytes: at least 1"),
            (timeouts.connect_ms >= 100, "timeouts.connect_ms (--connect-timeout): at least 100 ms"),
            (timeouts.packet_ms >= 100, "timeouts.packet_ms (--packet-timeout): at least 100 ms"),
            (timeouts.pause_ms >= 1_000, "timeouts.pause_ms: at least 1,000"),
            (timeouts.store_ms >= 1_000, "timeouts.store_ms (--store-timeout): at least 1,000 ms"),
            (timeouts.unread_ms >= 100, "timeouts.unread_ms (--unread-timeout): at least 100 ms"),
            (timeouts.verdict_ms <= 300_000, "timeouts.verdict_ms: at most 300,000"),
        ];
        checks.into_iter().filter(|(fine, _)| !fine).map(|(_, line)| line.to_owned()).collect()
    }

    /// Every listener.
    pub(crate) fn listeners(&self) -> Vec<(TransportKind, SocketAddr)> {
        std::iter::once((TransportKind::Mqtt, self.mqtt_listen)).chain(self.transports.listeners()).collect()
    }

    /// Shards that will run.
    pub(crate) fn shard_count(&self) -> u32 {
        let cores = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
        if self.shards == 0 { cores } else { self.shards }
    }

    pub(crate) fn session_limits(&self) -> SessionLimits {
        SessionLimits {
            packet_bytes: self.limits.packet_bytes,
            subscriptions: self.limits.subscriptions,
            inflight_out: self.limits.inflight_out,
            outbound_bytes: self.limits.outbound_bytes,
            unsettled: self.limits.unsettled,
            filters_per_packet: self.limits.filters_per_packet,
            control_rate: self.limits.control_rate,
            connect_timeout: self.timeouts.connect_ms,
            persistent: true,
            ..SessionLimits::default()
        }
    }

    pub(crate) fn relay_after(&self) -> Duration {
        Duration::from_millis(self.timeouts.relay_after_ms)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_defaults_are_fine_and_all_faults_are_told_at_once() {
        assert!(GatewayConfig::default().faults().is_empty());
        let mut config = GatewayConfig { shards: 5_000, node_id: String::new(), ..GatewayConfig::default() };
        config.timeouts.verdict_ms = 1_000_000;
        assert_eq!(config.faults().len(), 3);
    }

    #[test]
    fn the_secret_does_not_show() {
        let config =
            GatewayConfig { cluster_secret: Some(ClusterSecret::new("hunter2")), ..GatewayConfig::default() };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
