//! Strict decoder of what clients send (3.1.1): every statement of the standard about form is checked here, nothing about
//! state. It borrows from its input and allocates nothing. Never panics, whatever the bytes.

use crate::topic::{self, TopicError};

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
    /// Not UTF-8, or with U+0000 or another control character (1.5.3 lets a server refuse these).
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

/// A packet's type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// CONNECT.
    Connect,
    /// PUBLISH with its fixed header's fields. Retain is not looked at: the endpoint ignores it.
    Publish {
        /// DUP.
        dup: bool,
        /// 0, 1 or 2.
        qos: u8,
    },
    /// PUBACK.
    PubAck,
    /// SUBSCRIBE.
    Subscribe,
    /// UNSUBSCRIBE.
    Unsubscribe,
    /// PINGREQ.
    PingReq,
    /// DISCONNECT.
    Disconnect,
    /// A type that the endpoint never takes from a client: those of servers and of QoS 2.
    Unexpected,
}

/// Reads the first byte of a packet: its type and flags.
pub fn kind(first: u8) -> Result<Kind, Malformed> {
    let (number, flags) = (first >> 4, first & 0x0f);
    let (kind, required) = match number {
        1 => (Kind::Connect, 0),
        3 => return publish_kind(flags),
        4 => (Kind::PubAck, 0),
        8 => (Kind::Subscribe, 2),
        10 => (Kind::Unsubscribe, 2),
        12 => (Kind::PingReq, 0),
        14 => (Kind::Disconnect, 0),
        6 => (Kind::Unexpected, 2),
        2 | 5 | 7 | 9 | 11 | 13 => (Kind::Unexpected, 0),
        _ => return Err(Malformed::Type),
    };
    if flags == required { Ok(kind) } else { Err(Malformed::Flags) }
}

fn publish_kind(flags: u8) -> Result<Kind, Malformed> {
    let (dup, qos) = (flags & 8 != 0, flags >> 1 & 3);
    match (qos, dup) {
        (3, _) => Err(Malformed::Qos),
        (0, true) => Err(Malformed::Dup),
        _ => Ok(Kind::Publish { dup, qos }),
    }
}

/// Where a packet's body lies, from the packet's first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Bytes of the fixed header.
    pub header: usize,
    /// Bytes of the packet with its fixed header; at most 268,435,460.
    pub total: usize,
}

/// Reads the remaining length of the packet at the front of `input`; `None` until all of it is there.
pub fn frame(input: &[u8]) -> Result<Option<Frame>, Malformed> {
    let mut length = 0usize;
    for (at, byte) in input.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            // A last byte of 0 adds nothing: the value was written longer than it needs.
            if *byte == 0 && at > 0 {
                return Err(Malformed::Length);
            }
            return Ok(Some(Frame { header: at + 2, total: at + 2 + length }));
        }
    }
    if input.len() > 4 { Err(Malformed::Length) } else { Ok(None) }
}

/// Bounds on what a body may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Longest topic name, bytes. A longer filter is handed out, to be refused by itself.
    pub topic: usize,
    /// Most filters in a packet.
    pub filters: usize,
}

/// A packet, borrowed from its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Packet<'a> {
    /// CONNECT of 3.1.1.
    Connect(ConnectBody<'a>),
    /// CONNECT of a protocol that is not offered; the rest was not read.
    OtherVersion,
    /// PUBLISH.
    Publish(PublishBody<'a>),
    /// PUBACK.
    PubAck {
        /// Not 0.
        packet_id: u16,
    },
    /// SUBSCRIBE.
    Subscribe {
        /// Not 0.
        packet_id: u16,
        /// At least one.
        filters: Filters<'a>,
    },
    /// UNSUBSCRIBE.
    Unsubscribe {
        /// Not 0.
        packet_id: u16,
        /// At least one.
        filters: Filters<'a>,
    },
    /// PINGREQ.
    PingReq,
    /// DISCONNECT.
    Disconnect,
}

/// What a CONNECT says.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectBody<'a> {
    /// UTF-8, possibly empty.
    pub client: &'a [u8],
    /// The flag.
    pub clean_session: bool,
    /// Seconds.
    pub keep_alive: u16,
    /// The will.
    pub will: Option<WillBody<'a>>,
    /// UTF-8.
    pub username: Option<&'a [u8]>,
    /// Any bytes.
    pub password: Option<&'a [u8]>,
}

impl std::fmt::Debug for ConnectBody<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(self.client);
        f.debug_struct("ConnectBody").field("client", &text).finish_non_exhaustive()
    }
}

/// A will as written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WillBody<'a> {
    /// A valid name.
    pub topic: &'a [u8],
    /// Any bytes.
    pub payload: &'a [u8],
    /// 0, 1 or 2.
    pub qos: u8,
}

/// What a PUBLISH says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublishBody<'a> {
    /// DUP.
    pub dup: bool,
    /// 0, 1 or 2.
    pub qos: u8,
    /// A valid name.
    pub topic: &'a [u8],
    /// Not 0 with QoS 1 and 2, else 0.
    pub packet_id: u16,
    /// Any bytes.
    pub payload: &'a [u8],
}

/// The filters of a SUBSCRIBE or UNSUBSCRIBE: (filter, requested QoS, which is 0 in UNSUBSCRIBE). All are valid but for
/// their length.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filters<'a> {
    body: Body<'a>,
    with_qos: bool,
}

impl<'a> Iterator for Filters<'a> {
    type Item = (&'a [u8], u8);

    fn next(&mut self) -> Option<Self::Item> {
        self.body.filter(self.with_qos).ok()
    }
}

/// Reads one whole packet's body: all of it, no byte more or less.
pub fn body<'a>(kind: Kind, body: &'a [u8], bounds: Bounds) -> Result<Packet<'a>, Malformed> {
    let mut body = Body(body);
    match kind {
        Kind::Connect => return body.connect(bounds),
        Kind::Publish { dup, qos } => return body.publish(dup, qos, bounds),
        Kind::Subscribe => return body.filters(true, bounds),
        Kind::Unsubscribe => return body.filters(false, bounds),
        _ => {}
    }
    let packet = match kind {
        Kind::PubAck => Packet::PubAck { packet_id: body.packet_id()? },
        Kind::PingReq => Packet::PingReq,
        Kind::Disconnect => Packet::Disconnect,
        _ => return Err(Malformed::Type),
    };
    body.end()?;
    Ok(packet)
}

/// The rest of a body.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(*first)
    }

    fn number(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn packet_id(&mut self) -> Result<u16, Malformed> {
        match self.number()? {
            0 => Err(Malformed::PacketId),
            id => Ok(id),
        }
    }

    /// Two bytes of length, then so many bytes.
    fn data(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.number()?;
        self.take(length.into())
    }

    fn text(&mut self) -> Result<&'a [u8], Malformed> {
        let text = self.data()?;
        topic::check_text(text).map_err(|_| Malformed::Text)?;
        Ok(text)
    }

    fn name(&mut self, bounds: Bounds) -> Result<&'a [u8], Malformed> {
        let name = self.data()?;
        topic::validate_name(name, bounds.topic).map_err(Malformed::Topic)?;
        Ok(name)
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed::Trailing) }
    }

    fn connect(mut self, bounds: Bounds) -> Result<Packet<'a>, Malformed> {
        match (self.data()?, self.byte()?) {
            (b"MQTT", 4) => {}
            (b"MQTT" | b"MQIsdp", _) => return Ok(Packet::OtherVersion),
            _ => return Err(Malformed::ProtocolName),
        }
        let flags = ConnectFlags::read(self.byte()?)?;
        let keep_alive = self.number()?;
        let client = self.text()?;
        let will = match flags.will {
            Some(qos) => Some(WillBody { topic: self.name(bounds)?, payload: self.data()?, qos }),
            None => None,
        };
        let username = if flags.username { Some(self.text()?) } else { None };
        let password = if flags.password { Some(self.data()?) } else { None };
        self.end()?;
        let clean_session = flags.clean_session;
        Ok(Packet::Connect(ConnectBody { client, clean_session, keep_alive, will, username, password }))
    }

    fn publish(mut self, dup: bool, qos: u8, bounds: Bounds) -> Result<Packet<'a>, Malformed> {
        let topic = self.name(bounds)?;
        let packet_id = if qos == 0 { 0 } else { self.packet_id()? };
        Ok(Packet::Publish(PublishBody { dup, qos, topic, packet_id, payload: self.0 }))
    }

    fn filters(mut self, with_qos: bool, bounds: Bounds) -> Result<Packet<'a>, Malformed> {
        let packet_id = self.packet_id()?;
        let filters = Filters { body: self.clone(), with_qos };
        let mut count = 0;
        while !self.0.is_empty() {
            self.filter(with_qos)?;
            count += 1;
            if count > bounds.filters {
                return Err(Malformed::TooManyFilters);
            }
        }
        match (count, with_qos) {
            (0, _) => Err(Malformed::NoFilter),
            (_, true) => Ok(Packet::Subscribe { packet_id, filters }),
            (_, false) => Ok(Packet::Unsubscribe { packet_id, filters }),
        }
    }

    fn filter(&mut self, with_qos: bool) -> Result<(&'a [u8], u8), Malformed> {
        let filter = self.data()?;
        topic::validate_filter(filter, usize::from(u16::MAX)).map_err(Malformed::Topic)?;
        match if with_qos { self.byte()? } else { 0 } {
            qos @ 0..=2 => Ok((filter, qos)),
            _ => Err(Malformed::RequestedQos),
        }
    }
}

struct ConnectFlags {
    clean_session: bool,
    /// The will's QoS.
    will: Option<u8>,
    username: bool,
    password: bool,
}

impl ConnectFlags {
    fn read(flags: u8) -> Result<Self, Malformed> {
        let bit = |number: u8| flags >> number & 1 == 1;
        let (will, qos, retain) = (bit(2), flags >> 3 & 3, bit(5));
        let (username, password) = (bit(7), bit(6));
        if bit(0) {
            return Err(Malformed::ConnectFlag);
        }
        if qos == 3 || (!will && (qos != 0 || retain)) {
            return Err(Malformed::WillFlags);
        }
        if password && !username {
            return Err(Malformed::PasswordFlag);
        }
        Ok(Self { clean_session: bit(1), will: will.then_some(qos), username, password })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_read_when_all_of_it_is_there_and_minimal() {
        let read = |bytes: &[u8]| frame(bytes).map(|f| f.map(|f| (f.header, f.total)));
        assert_eq!(read(&[0x30]), Ok(None));
        assert_eq!(read(&[0x30, 0x80]), Ok(None));
        assert_eq!(read(&[0x30, 0xff, 0xff, 0xff]), Ok(None));
        assert_eq!(read(&[0x30, 0]), Ok(Some((2, 2))));
        assert_eq!(read(&[0x30, 0x7f]), Ok(Some((2, 129))));
        assert_eq!(read(&[0x30, 0x80, 1]), Ok(Some((3, 131))));
        assert_eq!(read(&[0x30, 0xff, 0xff, 0xff, 0x7f]), Ok(Some((5, 268_435_460))));
        for bad in [&[0x30, 0x80, 0][..], &[0x30, 0x81, 0x80, 0], &[0x30, 0x80, 0x80, 0x80, 0x80]] {
            assert_eq!(read(bad), Err(Malformed::Length), "{bad:?}");
        }
    }

    #[test]
    fn every_first_byte_has_a_verdict() {
        let good = (0..=255u8).filter(|first| kind(*first).is_ok()).count();
        // Twelve types with one form each, PUBLISH with QoS 0 × 2, 1 × 4, 2 × 4 (retain, DUP).
        assert_eq!(good, 13 + 2 + 4 + 4);
        assert_eq!(kind(0x00), Err(Malformed::Type));
        assert_eq!(kind(0xf0), Err(Malformed::Type));
    }
}
