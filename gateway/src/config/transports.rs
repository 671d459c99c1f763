//! How clients reach the gateway: its listeners, their certificates, and proxies that may speak for clients. Only values
//! and what is wrong with them; nothing is opened here.

use std::{fmt, net::IpAddr, net::SocketAddr, path::PathBuf};

use ipnet::IpNet;

/// What carries MQTT between a client and a listener.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// TCP.
    Mqtt,
    /// TLS.
    Mqtts,
    /// WebSocket.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

impl TransportKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mqtt, Self::Mqtts, Self::Ws, Self::Wss];

    /// Its name in settings, logs and the label `transport` of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts => "mqtts",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    /// The flag that says where it listens.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt-listen",
            Self::Mqtts => "mqtts-listen",
            Self::Ws => "ws-listen",
            Self::Wss => "wss-listen",
        }
    }

    pub(crate) fn has_tls(self) -> bool {
        matches!(self, Self::Mqtts | Self::Wss)
    }

    pub(crate) fn has_web_socket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Transports beside plain TCP. A listener without an address does not exist.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransportConfig {
    /// Where MQTT over TLS listens; port 0 picks one.
    pub mqtts_listen: Option<SocketAddr>,
    /// Where MQTT over WebSocket listens.
    pub ws_listen: Option<SocketAddr>,
    /// Where MQTT over WebSocket and TLS listens.
    pub wss_listen: Option<SocketAddr>,
    /// Certificate and key of the listeners with TLS.
    pub tls: Option<TlsFiles>,
    /// How often the files are looked at, ms. They are also looked at when the program is told to.
    pub tls_poll_ms: u64,
    /// The one path that speaks MQTT over WebSocket.
    pub ws_path: String,
    /// Networks whose peers are proxies: each of their connections begins with a PROXY protocol header (v1 or v2).
    pub proxies: Vec<IpNet>,
    /// Listeners that `proxies` is about.
    pub proxied: Vec<TransportKind>,
}

/// Files in PEM.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate, followed by its intermediates.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Default for TransportConfig {
    fn default() -> Self {
        Self {
            mqtts_listen: None,
            ws_listen: None,
            wss_listen: None,
            tls: None,
            tls_poll_ms: 5_000,
            ws_path: "/mqtt".into(),
            proxies: Vec::new(),
            proxied: TransportKind::ALL.to_vec(),
        }
    }
}

impl TransportConfig {
    /// Listeners beside plain TCP, in the order of their flags.
    pub fn listeners(&self) -> impl Iterator<Item = (TransportKind, SocketAddr)> {
        let all = [
            (TransportKind::Mqtts, self.mqtts_listen),
            (TransportKind::Ws, self.ws_listen),
            (TransportKind::Wss, self.wss_listen),
        ];
        all.into_iter().filter_map(|(kind, address)| address.map(|address| (kind, address)))
    }

    /// Whether a connection begins with a PROXY protocol header.
    pub(crate) fn expects_proxy(&self, kind: TransportKind, peer: IpAddr) -> bool {
        // A listener on [::] sees IPv4 peers as ::ffff:a.b.c.d.
        let peer = peer.to_canonical();
        self.proxied.contains(&kind) && self.proxies.iter().any(|network| network.contains(&peer))
    }

    /// What is wrong, with the flag that it is about.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        for (kind, _) in self.listeners().filter(|(kind, _)| kind.has_tls() && self.tls.is_none()) {
            faults.push((kind.flag(), "needs --tls-cert-file and --tls-key-file".to_owned()));
        }
        let path = &self.ws_path;
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
        if !path.starts_with('/') || !path.bytes().all(plain) {
            faults.push(("ws-path", format!("{path:?} is not a path like /mqtt")));
        }
        if self.tls_poll_ms == 0 {
            faults.push(("tls-poll", "must not be 0".to_owned()));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn all_faults_are_told_with_their_flags() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = TransportConfig {
            mqtts_listen: Some(any),
            wss_listen: Some(any),
            ws_path: "mqtt?x".into(),
            ..TransportConfig::default()
        };
        let flags: Vec<_> = config.faults().into_iter().map(|(flag, _)| flag).collect();
        assert_eq!(flags, ["mqtts-listen", "wss-listen", "ws-path"]);
        assert!(TransportConfig::default().faults().is_empty());
    }

    #[test]
    fn a_proxy_is_known_by_its_network_also_on_a_listener_for_both_families() {
        let config = TransportConfig {
            proxies: vec!["10.0.0.0/8".parse().unwrap()],
            proxied: vec![TransportKind::Mqtts],
            ..TransportConfig::default()
        };
        for (kind, peer, expected) in [
            (TransportKind::Mqtts, "10.1.2.3", true),
            (TransportKind::Mqtts, "::ffff:10.1.2.3", true),
            (TransportKind::Mqtts, "11.1.2.3", false),
            (TransportKind::Mqtt, "10.1.2.3", false),
        ] {
            assert_eq!(config.expects_proxy(kind, peer.parse().unwrap()), expected, "{kind} {peer}");
        }
    }
}
