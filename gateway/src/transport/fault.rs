//! Why a transport failed before or beneath MQTT: one list, each with its metric label. What the peer is told on the way
//! out is the layer's business.

/// What a client, or a proxy before it, did wrong on the way to MQTT.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("too many connections are between accept and CONNECT")]
    TooMany,
    #[error("a trusted proxy sent no PROXY protocol header")]
    ProxyMissing,
    #[error("the PROXY protocol header is malformed")]
    ProxyMalformed,
    #[error("no complete PROXY protocol header in time")]
    ProxyTimeout,
    #[error("TLS on a listener without it")]
    UnexpectedTls,
    #[error("not TLS: {0}")]
    NotTls(rustls::Error),
    #[error("no common ground for TLS: {0}")]
    TlsIncompatible(rustls::Error),
    #[error("the client refused our TLS: {0}")]
    TlsAlert(rustls::Error),
    #[error("the TLS handshake failed: {0}")]
    TlsHandshake(rustls::Error),
    #[error("TLS failed: {0}")]
    Tls(rustls::Error),
    #[error("no complete TLS handshake in time")]
    TlsTimeout,
    #[error("not a WebSocket handshake: {0}")]
    Http(&'static str),
    #[error("not the path of MQTT")]
    WebPath,
    #[error("the client does not offer the subprotocol mqtt")]
    WebSubprotocol,
    #[error("a WebSocket text frame")]
    WebText,
    #[error("against the WebSocket protocol: {0}")]
    WebProtocol(&'static str),
    #[error("no complete WebSocket handshake in time")]
    WebTimeout,
    #[error("the client makes the transport answer and does not read")]
    Unread,
}

impl Fault {
    /// The label in metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::TooMany => "too_many",
            Self::ProxyMissing => "proxy_missing",
            Self::ProxyMalformed => "proxy_malformed",
            Self::ProxyTimeout => "proxy_timeout",
            Self::UnexpectedTls => "unexpected_tls",
            Self::NotTls(_) => "not_tls",
            Self::TlsIncompatible(_) => "tls_incompatible",
            Self::TlsAlert(_) => "tls_alert",
            Self::TlsHandshake(_) => "tls_handshake",
            Self::Tls(_) => "tls",
            Self::TlsTimeout => "tls_timeout",
            Self::Http(_) => "http",
            Self::WebPath => "ws_path",
            Self::WebSubprotocol => "ws_subprotocol",
            Self::WebText => "ws_text",
            Self::WebProtocol(_) => "ws_protocol",
            Self::WebTimeout => "ws_timeout",
            Self::Unread => "unread",
        }
    }
}
