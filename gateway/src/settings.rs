//! The gateway's settings as an operator gives them, for `penstock-gateway` and `penstock` alike.

use std::{net::SocketAddr, time::Duration};

use penstock_common::config::{Reader, Setting, Size};

use crate::config::{ClusterSecret, GatewayConfig};

/// Flags, variables and keys.
pub const SETTINGS: &[Setting] = &[
    Setting::new("mqtt-listen", "mqtt.listen", "ADDRESS:PORT", "Where MQTT listens; port 0 picks one")
        .or("127.0.0.1:1883"),
    Setting::new("shards", "mqtt.shards", "N", "Threads that hold connections; 0: one a core").or("0"),
    Setting::new(
        "max-packet",
        "mqtt.max_packet",
        "SIZE",
        "Largest MQTT packet; a tenant's limit may be lower",
    )
    .or("1MiB"),
    Setting::new(
        "store-timeout",
        "mqtt.store_timeout",
        "DURATION",
        "A publish not stored within this time closes its connection",
    )
    .or("60s"),
    Setting::new(
        "reserved-prefixes",
        "mqtt.reserved_prefixes",
        "A/,B/…",
        "Topics below these are not for devices",
    ),
    Setting::new("reserved-topics", "mqtt.reserved_topics", "A,B…", "Topics that are not for devices"),
];

/// Reads [`SETTINGS`].
pub fn read(reader: &mut Reader) -> GatewayConfig {
    let mut config = GatewayConfig { shards: reader.value("shards"), ..GatewayConfig::default() };
    config.mqtt_listen = reader.value::<SocketAddr>("mqtt-listen");
    config.limits.packet_bytes = u32::try_from(reader.value::<Size>("max-packet").0).unwrap_or(u32::MAX);
    config.timeouts.store_ms =
        u64::try_from(reader.value::<Duration>("store-timeout").as_millis()).unwrap_or(u64::MAX);
    if let Some(prefixes) = reader.optional("reserved-prefixes") {
        config.reserved.prefixes = prefixes;
    }
    if let Some(names) = reader.optional("reserved-topics") {
        config.reserved.names = names;
    }
    config
}

/// Notes what is wrong with a configuration that is complete.
pub fn check(config: &GatewayConfig, reader: &mut Reader) {
    for fault in config.faults() {
        reader.fault("", &fault);
    }
}

/// The form in which links show the cluster's secret.
pub fn link_secret(secret: &penstock_common::secret::Secret) -> ClusterSecret {
    ClusterSecret::new(secret.expose_shared())
}
