//! Why a session ended: one list, each with its metric label and whether the will fires. No transitions here.

use crate::codec::decode::Malformed;

/// Why a session ended, or shall end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// DISCONNECT: the client is done and its will is dropped [MQTT-3.14.4-3].
    Disconnect,
    /// The transport ended without a DISCONNECT (the driver's reason).
    PeerClosed,
    /// The transport failed (the driver's reason).
    TransportFailed,
    /// Nothing came for 1.5 × the keep alive [MQTT-3.1.2-24].
    KeepAlive,
    /// No complete CONNECT in time.
    ConnectTimeout,
    /// A packet that began and was not complete in time (the driver's reason).
    PacketTimeout,
    /// It was the slowest to complete its CONNECT or another packet when others needed the room (the driver's reason).
    Crowded,
    /// The client has read nothing for too long (the driver's reason).
    Unread,
    /// Not a well-formed packet.
    Malformed(Malformed),
    /// The first packet was not a CONNECT [MQTT-3.1.0-1].
    NotConnect,
    /// A second CONNECT [MQTT-3.1.0-2].
    SecondConnect,
    /// A packet that only servers send, or one of QoS 2's.
    UnexpectedPacket,
    /// Larger than the limit; its body was not read.
    PacketTooLarge,
    /// A protocol that is not offered: CONNACK 1.
    ProtocolVersion,
    /// Client identifier empty or too long: CONNACK 2.
    ClientIdentifier,
    /// Clean session 0, which is not offered here: CONNACK 3.
    PersistentSession,
    /// A will on a reserved topic or one that begins with `$`: CONNACK 5.
    WillTopic,
    /// No user name: CONNACK 5.
    NoUsername,
    /// The verdict on the CONNECT was no: CONNACK with this code.
    ConnectRefused(crate::packet::ConnectCode),
    /// A PUBLISH of QoS 2.
    QosNotOffered,
    /// A PUBLISH to a reserved topic.
    TopicReserved,
    /// A PUBLISH to a topic that begins with `$`.
    TopicSystem,
    /// A publish was refused: no right to this topic.
    PublishNotAuthorized,
    /// A publish was refused: the tenant's quota or backlog is full.
    PublishQuota,
    /// A publish was refused: the store is not available.
    StoreUnavailable,
    /// A publish was not settled in time; the client sends it again.
    StoreTimeout,
    /// The way to the routers is lost for too long; the client sends its publishes again.
    LinkLost,
    /// Deliveries of QoS 1 beyond the limit: the client reads or acknowledges too slowly.
    Overrun,
    /// What outlives the connection can't be kept any more: the client takes it up with a new one.
    SessionLost,
    /// A newer connection with this client identifier.
    TakenOver,
    /// The ownership belongs to another connection.
    Superseded,
    /// The pod drains: acknowledgements have left.
    Draining,
    /// An operator or the tenant closed it.
    Administrative,
    /// The gateway was paused past its lease: its state is stale, so nothing of it may be published.
    Paused,
}

impl CloseReason {
    /// The label in metrics: lower case, underscores, no client's data.
    pub fn label(self) -> &'static str {
        match self {
            Self::Disconnect => "disconnect",
            Self::PeerClosed => "peer_closed",
            Self::TransportFailed => "transport_failed",
            Self::KeepAlive => "keep_alive",
            Self::ConnectTimeout => "connect_timeout",
            Self::PacketTimeout => "packet_timeout",
            Self::Crowded => "crowded",
            Self::Unread => "unread",
            Self::Malformed(_) => "malformed",
            Self::NotConnect => "not_connect",
            Self::SecondConnect => "second_connect",
            Self::UnexpectedPacket => "unexpected_packet",
            Self::PacketTooLarge => "packet_too_large",
            Self::ProtocolVersion => "protocol_version",
            Self::ClientIdentifier => "client_identifier",
            Self::PersistentSession => "persistent_session",
            Self::WillTopic => "will_topic",
            Self::NoUsername => "no_username",
            Self::ConnectRefused(_) => "connect_refused",
            Self::QosNotOffered => "qos_not_offered",
            Self::TopicReserved => "topic_reserved",
            Self::TopicSystem => "topic_system",
            Self::PublishNotAuthorized => "publish_not_authorized",
            Self::PublishQuota => "publish_quota",
            Self::StoreUnavailable => "store_unavailable",
            Self::StoreTimeout => "store_timeout",
            Self::LinkLost => "link_lost",
            Self::Overrun => "overrun",
            Self::SessionLost => "session_lost",
            Self::TakenOver => "taken_over",
            Self::Superseded => "superseded",
            Self::Draining => "draining",
            Self::Administrative => "administrative",
            Self::Paused => "paused",
        }
    }

    /// Whether the will of an admitted session fires: always, but after a DISCONNECT [MQTT-3.1.2-10] and when the
    /// state is stale (the router fires it then).
    pub fn fires_will(self) -> bool {
        !matches!(self, Self::Disconnect | Self::Paused)
    }
}
