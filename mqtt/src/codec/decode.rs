//! Strict decoder of what clients send (3.1.1): every statement of the standard about form is checked here, nothing about
//! state. It borrows from its input and allocates nothing. Never panics, whatever the bytes.

use crate::topic::TopicError;

/// Why bytes are not a well-formed packet; each names its statement.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// Packet type 0 or 15.
    #[error("reserved packet type")]
    Type,
    /// The fixed header's flags.
    #[error("reserved flags of the fixed header [MQTT-2.2.2-2]")]
    Flags,
    /// More than four bytes, or more bytes than the value needs.
    #[error("remaining length")]
    Length,
    /// The body ends before its fields do.
    #[error("body ends early")]
    Short,
    /// Bytes after the last field.
    #[error("bytes after the last field")]
    Trailing,
    /// Not UTF-8, or with U+0000.
    #[error("ill-formed string [MQTT-1.5.3-1, MQTT-1.5.3-2]")]
    Text,
    /// Packet identifier 0.
    #[error("packet identifier 0 [MQTT-2.3.1-1]")]
    PacketId,
    /// A PUBLISH with QoS 3.
    #[error("QoS 3 [MQTT-3.3.1-4]")]
    Qos,
    /// A PUBLISH of QoS 0 with DUP.
    #[error("DUP with QoS 0 [MQTT-3.3.1-2]")]
    Dup,
    /// A topic name or filter.
    #[error("topic: {0}")]
    Topic(TopicError),
    /// CONNECT's reserved flag.
    #[error("reserved flag of CONNECT [MQTT-3.1.2-3]")]
    ConnectFlag,
    /// Will QoS 3, or will QoS or retain without a will.
    #[error("will flags [MQTT-3.1.2-11, -13, -14, -15]")]
    WillFlags,
    /// A password without a user name.
    #[error("password without user name [MQTT-3.1.2-22]")]
    PasswordFlag,
    /// The protocol's name.
    #[error("protocol name [MQTT-3.1.2-1]")]
    ProtocolName,
    /// SUBSCRIBE or UNSUBSCRIBE without a filter.
    #[error("no filter [MQTT-3.8.3-3, MQTT-3.10.3-2]")]
    NoFilter,
    /// SUBSCRIBE's requested QoS byte.
    #[error("requested QoS [MQTT-3.8.3-4]")]
    RequestedQos,
    /// More filters in a packet than the limit.
    #[error("too many filters in one packet")]
    TooManyFilters,
}
