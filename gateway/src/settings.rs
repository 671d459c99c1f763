//! The gateway's settings as an operator gives them, for `penstock-gateway` and `penstock` alike.

use std::{net::SocketAddr, path::PathBuf};

use ipnet::IpNet;
use penstock_common::config::{Reader, Setting, Value};

use crate::{
    certificates,
    config::{
        ClusterSecret, GatewayConfig,
        transports::{TlsFiles, TransportConfig, TransportKind},
    },
};

mod limits;

pub use limits::LIMITS;

/// Flags, variables and keys.
pub const SETTINGS: &[Setting] = &[
    Setting::new("mqtt-listen", "mqtt.listen", "ADDRESS:PORT", "Where MQTT listens; port 0 picks one")
        .or("127.0.0.1:1883"),
    Setting::new(
        "mqtts-listen",
        "mqtt.tls_listen",
        "ADDRESS:PORT",
        "Where MQTT over TLS listens, like 0.0.0.0:8883; needs a certificate",
    ),
    Setting::new(
        "ws-listen",
        "mqtt.ws_listen",
        "ADDRESS:PORT",
        "Where MQTT over WebSocket listens, like 0.0.0.0:8083",
    ),
    Setting::new(
        "wss-listen",
        "mqtt.wss_listen",
        "ADDRESS:PORT",
        "Where MQTT over WebSocket and TLS listens, like 0.0.0.0:8084; needs a certificate",
    ),
    Setting::new("ws-path", "mqtt.ws_path", "PATH", "Path of MQTT over WebSocket").or("/mqtt"),
    Setting::new(
        "tls-cert-file",
        "tls.cert_file",
        "FILE",
        "Certificate in PEM, its intermediates behind it; read again when it changes, and at SIGHUP",
    ),
    Setting::new("tls-key-file", "tls.key_file", "FILE", "The certificate's private key in PEM"),
    Setting::new(
        "proxy-protocol-from",
        "mqtt.proxy_protocol_from",
        "CIDR[,CIDR…]",
        "Networks of proxies: their connections must begin with a PROXY protocol header (v1 or v2)",
    ),
    Setting::new(
        "proxy-protocol-on",
        "mqtt.proxy_protocol_on",
        "LISTENER[,…]",
        "Listeners to which --proxy-protocol-from applies",
    )
    .or("mqtt,mqtts,ws,wss"),
    Setting::new("shards", "mqtt.shards", "N", "Threads that hold connections; 0: one a core").or("0"),
    Setting::new(
        "reserved-prefixes",
        "mqtt.reserved_prefixes",
        "A/,B/…",
        "Topics below these are not for devices",
    ),
    Setting::new("reserved-topics", "mqtt.reserved_topics", "A,B…", "Topics that are not for devices"),
];

/// Reads [`SETTINGS`] and [`LIMITS`].
pub fn read(reader: &mut Reader) -> GatewayConfig {
    let mut config = GatewayConfig { shards: reader.value("shards"), ..GatewayConfig::default() };
    config.mqtt_listen = reader.value::<SocketAddr>("mqtt-listen");
    config.transports = transports(reader);
    limits::read(reader, &mut config);
    if let Some(prefixes) = reader.optional("reserved-prefixes") {
        config.reserved.prefixes = prefixes;
    }
    if let Some(names) = reader.optional("reserved-topics") {
        config.reserved.names = names;
    }
    config
}

fn transports(reader: &mut Reader) -> TransportConfig {
    let mut config = TransportConfig {
        mqtts_listen: reader.optional("mqtts-listen"),
        ws_listen: reader.optional("ws-listen"),
        wss_listen: reader.optional("wss-listen"),
        ws_path: reader.value("ws-path"),
        proxied: reader.value("proxy-protocol-on"),
        ..TransportConfig::default()
    };
    let networks = reader.optional::<Vec<Network>>("proxy-protocol-from").unwrap_or_default();
    config.proxies = networks.into_iter().map(|Network(network)| network).collect();
    let certificate = reader.optional::<PathBuf>("tls-cert-file");
    config.tls = match (certificate, reader.optional::<PathBuf>("tls-key-file")) {
        (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
        (Some(_), None) => {
            reader.fault("tls-cert-file", "needs --tls-key-file");
            None
        }
        (None, Some(_)) => {
            reader.fault("tls-key-file", "needs --tls-cert-file");
            None
        }
        (None, None) => None,
    };
    if let Some(files) = &config.tls
        && let Err(error) = certificates::check(files)
    {
        reader.fault("tls-cert-file", &error.to_string());
    }
    config
}

/// A network as people write it; a single address is a network of one.
struct Network(IpNet);

impl Value for Network {
    fn parse(text: &str) -> Result<Self, String> {
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        network.map(Self).map_err(|_| "a list of networks like 10.0.0.0/8,fd00::/8".to_owned())
    }

    fn placeholder() -> Self {
        Self(IpNet::default())
    }
}

impl Value for TransportKind {
    fn parse(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.label() == text);
        found.ok_or_else(|| "a list of mqtt, mqtts, ws and wss".to_owned())
    }

    fn placeholder() -> Self {
        Self::Mqtt
    }
}

/// Notes what is wrong with a configuration that is complete.
pub fn check(config: &GatewayConfig, reader: &mut Reader) {
    for (flag, fault) in config.transports.faults() {
        reader.fault(flag, &fault);
    }
    for fault in config.own_faults() {
        reader.fault("", &fault);
    }
}

/// The form in which links show the cluster's secret.
pub fn link_secret(secret: &penstock_common::secret::Secret) -> ClusterSecret {
    ClusterSecret::new(secret.expose_shared())
}
