//! The packets as the rest of Penstock sees them: one model for both MQTT versions. Only the codec knows how a version
//! writes them; what a version lacks is absent here, never faked.

use bytes::Bytes;

/// Delivery guarantee that the endpoint offers. QoS 2 has no value: it is refused where it would come in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum QoS {
    /// At most once.
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
}

impl QoS {
    /// 0 or 1, as on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The QoS that the endpoint grants to who asks for `number`: 2 and above become 1.
    pub fn capped(number: u32) -> Self {
        if number == 0 { Self::AtMostOnce } else { Self::AtLeastOnce }
    }
}

/// The protocol of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Version {
    /// MQTT 3.1.1 (protocol level 4).
    V3,
}

/// What a client said in CONNECT and the gateway has to judge. Owns copies: nothing here pins a read buffer.
#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    /// The protocol.
    pub version: Version,
    /// Client identifier, 1..128 bytes of UTF-8.
    pub client: Bytes,
    /// User name as sent (`<tenant>/<user>`, not yet split), UTF-8.
    pub username: Bytes,
    /// Any bytes. Never printed.
    pub password: Option<Bytes>,
    /// Seconds; 0 is none.
    pub keep_alive: u16,
    /// Always true in this version: a persistent session is refused before this is seen.
    pub clean_session: bool,
    /// Whether there is a will. The session keeps it and raises it when it is due.
    pub will: bool,
}

impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect")
            .field("version", &self.version)
            .field("client", &self.client)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("keep_alive", &self.keep_alive)
            .field("clean_session", &self.clean_session)
            .field("will", &self.will)
            .finish()
    }
}

/// An application message from a client: a PUBLISH, or a will that is due.
///
/// The topic and payload of a PUBLISH are slices of the buffer given to `receive`: they keep *all* of it alive. Use or
/// copy them in the same turn. Those of a will are copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publish {
    /// A valid topic name that is not reserved and does not begin with `$`.
    pub topic: Bytes,
    /// Any bytes.
    pub payload: Bytes,
    /// As published.
    pub qos: QoS,
    /// The client says that it may have sent this before.
    pub dup: bool,
    /// What MQTT 5 carries beside the payload; none in 3.1.1.
    pub properties: Option<Box<Properties>>,
}

/// What MQTT 5 lets a publisher add to a message.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Properties {
    /// 0 unspecified bytes, 1 UTF-8.
    pub payload_format: Option<u8>,
    /// Seconds the message lives.
    pub message_expiry: Option<u32>,
    /// UTF-8.
    pub content_type: Option<Bytes>,
    /// A topic name.
    pub response_topic: Option<Bytes>,
    /// Any bytes.
    pub correlation_data: Option<Bytes>,
    /// All of them, in order.
    pub user_properties: Vec<(Bytes, Bytes)>,
}

/// One filter of a SUBSCRIBE. Owns a copy of the filter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubscribeFilter {
    /// A valid filter; empty when it is one that the session refuses whatever its state.
    pub filter: Bytes,
    /// What can be granted at most: the asked one, capped at 1.
    pub qos: QoS,
    /// The session's own refusal (reserved, over the session's limit): the return code that will be sent, whatever
    /// `subscribed` says for it. Such a filter needs no work.
    pub refused: Option<u8>,
}

/// A SUBACK's return code for "no".
pub const SUBACK_FAILURE: u8 = 0x80;

/// CONNACK return codes of 3.1.1 that the endpoint uses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum ConnectCode {
    /// The protocol is not offered.
    Version = 1,
    /// The client identifier is empty or too long.
    Identifier = 2,
    /// Overload, quota, store or registry unavailable, or something this version does not offer.
    Unavailable = 3,
    /// Bad credentials or no permission (4 is not used).
    NotAuthorized = 5,
}
