//! The router's settings. Times in milliseconds, sizes in bytes.

use std::net::SocketAddr;

use penstock_common::secret::Secret;

use crate::door::web::WebConfig;

/// Settings with sane defaults.
#[derive(Clone)]
pub struct RouterConfig {
    /// Name for people.
    pub node_id: String,
    /// Where gateways and other routers link.
    pub link_listen: SocketAddr,
    /// Where microservices and operators call.
    pub grpc_listen: SocketAddr,
    /// Where the WebSocket door is.
    pub http_listen: SocketAddr,
    /// Settings of the WebSocket door.
    pub web: WebConfig,
    /// host:port under which others reach the link port; None: the listener's own address.
    pub link_advertise: Option<String>,
    /// host:port under which others reach the gRPC door; None: the listener's own address.
    pub grpc_advertise: Option<String>,
    /// Shared by all gateways and routers; None only when all of the inside is on loopback.
    pub cluster_secret: Option<Secret>,
    /// Take passwords at the doors without TLS also off loopback.
    pub plain_passwords: bool,
    /// Between two heartbeats of a link, milliseconds.
    pub heartbeat_ms: u32,
    /// A link on which nothing came for so long is closed, milliseconds; below two thirds of the registry's lease TTL.
    pub silence_ms: u32,
    /// A router that has begun so lately holds no gateway for gone, milliseconds: links and registry are given time.
    pub grace_ms: u32,
    /// Records held for all lanes before links are read no further, bytes.
    pub ingest_bytes: u64,
    /// Delivers that a link has not taken before its shard is served from the log, bytes.
    pub deliver_bytes: usize,
}

impl Default for RouterConfig {
    fn default() -> Self {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            node_id: "router".to_owned(),
            link_listen: local(7_000),
            grpc_listen: local(7_070),
            http_listen: local(7_080),
            web: WebConfig::default(),
            link_advertise: None,
            grpc_advertise: None,
            cluster_secret: None,
            plain_passwords: false,
            heartbeat_ms: 1_000,
            silence_ms: 4_000,
            grace_ms: 10_000,
            ingest_bytes: 256 << 20,
            deliver_bytes: 8 << 20,
        }
    }
}
