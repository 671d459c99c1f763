//! What one connection may take of a gateway, in memory and in time, and what all of them that have not said who they are
//! may. A tenant's own limits (`penstockctl tenant set`) can only be lower.

use std::time::Duration;

use penstock_common::config::{Reader, Setting, Size};

use crate::config::GatewayConfig;

/// Flags, variables and keys.
pub const LIMITS: &[Setting] = &[
    Setting::new(
        "connect-timeout",
        "mqtt.connect_timeout",
        "DURATION",
        "From accept to a complete CONNECT, TLS and WebSocket handshake included",
    )
    .or("10s"),
    Setting::new(
        "max-handshakes",
        "mqtt.max_handshakes",
        "N",
        "Connections of a shard whose CONNECT has not come; beyond, the slowest is closed",
    )
    .or("8192"),
    Setting::new(
        "max-admissions",
        "mqtt.max_admissions",
        "N",
        "Connections of a shard between CONNECT and CONNACK; more get CONNACK 3",
    )
    .or("8192"),
    Setting::new(
        "max-packet",
        "mqtt.max_packet",
        "SIZE",
        "Largest MQTT packet with its headers; a larger one closes the connection before its body is read",
    )
    .or("1MiB"),
    Setting::new(
        "packet-timeout",
        "mqtt.packet_timeout",
        "DURATION",
        "From the first byte of a packet to its last; then the connection is closed",
    )
    .or("60s"),
    Setting::new(
        "max-half-packets",
        "mqtt.max_half_packets",
        "SIZE",
        "Bytes of packets that a shard holds in part; beyond, those that take longest are closed",
    )
    .or("64MiB"),
    Setting::new(
        "max-filters",
        "mqtt.max_filters",
        "N",
        "Filters in one SUBSCRIBE or UNSUBSCRIBE; more close the connection",
    )
    .or("64"),
    Setting::new(
        "max-subscriptions",
        "mqtt.max_subscriptions",
        "N",
        "Subscriptions of a session; more are refused in the SUBACK",
    )
    .or("1000"),
    Setting::new(
        "control-rate",
        "mqtt.control_rate",
        "N",
        "PINGREQ, SUBSCRIBE and UNSUBSCRIBE (2 more a filter) of a connection a second, 30 s of it at once; beyond, it is read later",
    )
    .or("100"),
    Setting::new(
        "max-inflight-in",
        "mqtt.max_inflight_in",
        "N",
        "Publishes of a connection without a PUBACK; beyond, it is read later",
    )
    .or("1024"),
    Setting::new(
        "max-inflight-out",
        "mqtt.max_inflight_out",
        "N",
        "Deliveries to a client without a PUBACK; the next ones wait",
    )
    .or("64"),
    Setting::new(
        "max-outbound",
        "mqtt.max_outbound",
        "SIZE",
        "Bytes that wait for a client; beyond, the oldest of QoS 0 are dropped, then a clean session is closed",
    )
    .or("1MiB"),
    Setting::new(
        "unread-timeout",
        "mqtt.unread_timeout",
        "DURATION",
        "A client that reads nothing for so long while there is something to read is closed",
    )
    .or("2m"),
    Setting::new(
        "socket-buffer",
        "mqtt.socket_buffer",
        "SIZE",
        "The kernel's buffers of a connection, each way; 0B leaves them to the system",
    )
    .or("256KiB"),
    Setting::new(
        "store-timeout",
        "mqtt.store_timeout",
        "DURATION",
        "A publish not stored within this time closes its connection",
    )
    .or("60s"),
];

pub(super) fn read(reader: &mut Reader, config: &mut GatewayConfig) {
    let limits = &mut config.limits;
    limits.handshakes = reader.value::<u32>("max-handshakes") as usize;
    limits.admissions = reader.value::<u32>("max-admissions") as usize;
    limits.packet_bytes = bytes(reader, "max-packet");
    limits.half_bytes = reader.value::<Size>("max-half-packets").as_usize();
    limits.filters_per_packet = small(reader, "max-filters");
    limits.subscriptions = reader.value("max-subscriptions");
    limits.control_rate = small(reader, "control-rate");
    limits.unsettled = small(reader, "max-inflight-in");
    limits.inflight_out = small(reader, "max-inflight-out");
    limits.outbound_bytes = bytes(reader, "max-outbound");
    limits.socket_bytes = reader.value::<Size>("socket-buffer").as_usize();
    let timeouts = &mut config.timeouts;
    timeouts.connect_ms = millis(reader.value("connect-timeout"));
    timeouts.packet_ms = millis(reader.value("packet-timeout"));
    timeouts.unread_ms = millis(reader.value("unread-timeout"));
    timeouts.store_ms = millis(reader.value("store-timeout"));
}

fn small(reader: &mut Reader, flag: &str) -> u16 {
    u16::try_from(reader.value::<u32>(flag)).unwrap_or_else(|_| {
        reader.fault(flag, "at most 65,535");
        1
    })
}

fn bytes(reader: &mut Reader, flag: &str) -> u32 {
    u32::try_from(reader.value::<Size>(flag).0).unwrap_or(u32::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
