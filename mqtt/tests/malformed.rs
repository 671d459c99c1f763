//! Every packet that is wrong, and what the session has to do about it: the statement of the standard, or endpoint.md's rule,
//! is the case's name. Each is fed as a whole and byte by byte.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use bytes::Bytes;
use penstock_mqtt::{
    codec::decode::Malformed as M,
    packet::ConnectCode,
    reserved::Reserved,
    session::{Admission, CloseReason as R, Event, Session, SessionLimits},
    topic::TopicError as T,
};

/// CONNECT's body from flags on: protocol name and level are put in front.
fn connect(flags: u8, fields: &[&[u8]]) -> Vec<u8> {
    connect_as(b"MQTT", 4, flags, fields)
}

fn connect_as(name: &[u8], level: u8, flags: u8, fields: &[&[u8]]) -> Vec<u8> {
    let mut body = field(name);
    body.extend([level, flags, 0, 60]);
    fields.iter().for_each(|f| body.extend(field(f)));
    packet(0x10, &body)
}

fn field(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut length = body.len();
    while length > 127 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend(body);
    out
}

fn cat(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// User name, clean session, no password.
const USER: u8 = 0x82;
const WILL: u8 = USER | 0x04;

fn good() -> Vec<u8> {
    connect(USER, &[b"c1", b"demo/device"])
}

fn fresh() -> Session {
    Session::new(Arc::new(SessionLimits::default()), Arc::new(Reserved::default()), 0)
}

fn open() -> Session {
    let mut session = fresh();
    let bytes = Bytes::from(good());
    assert_eq!(session.receive(&bytes, 0), bytes.len());
    assert!(matches!(session.poll_event(), Some(Event::Connect(_))));
    session.admit(Admission::Accepted { session_present: false }, 0);
    assert_eq!(&session.transmit()[..], [0x20, 2, 0, 0]);
    session.written(4);
    session
}

/// Feeds at most `step` bytes more at a time, as a driver does; ends when closed.
fn feed(session: &mut Session, bytes: &[u8], step: usize) {
    let (mut used, mut seen) = (0, 0);
    while seen < bytes.len() && session.closed().is_none() {
        seen = (seen + step).min(bytes.len());
        loop {
            let taken = session.receive(&Bytes::copy_from_slice(&bytes[used..seen]), 0);
            used += taken;
            if taken == 0 {
                break;
            }
        }
    }
}

#[track_caller]
fn check(name: &str, session: fn() -> Session, bytes: &[u8], reason: R, reply: &[u8]) {
    for step in [bytes.len(), 1] {
        let mut session = session();
        feed(&mut session, bytes, step);
        assert_eq!(session.closed(), Some(reason), "{name}, {step} at a time");
        assert_eq!(&session.transmit()[..], reply, "{name}, {step} at a time: reply");
        assert!(!session.wants_read(), "{name}");
        let events: Vec<_> = std::iter::from_fn(|| session.poll_event()).collect();
        assert_eq!(events, [Event::Closed(reason)], "{name}");
        assert_eq!(session.receive(&Bytes::from(good()), 0), 0, "{name}: nothing after close");
    }
}

#[test]
fn before_connect() {
    let cases: Vec<(&str, Vec<u8>, R)> = vec![
        ("3.1.0-1 PUBLISH first", packet(0x30, b"\0\x01ax"), R::NotConnect),
        ("3.1.0-1 PINGREQ first", vec![0xc0, 0], R::NotConnect),
        ("3.1.0-1 DISCONNECT first", vec![0xe0, 0], R::NotConnect),
        ("3.1.0-1 AUTH (type 15)", vec![0xf0, 0], R::Malformed(M::Type)),
        ("an HTTP request", b"GET / HTTP/1.1\r\n\r\n".to_vec(), R::Malformed(M::Flags)),
        ("a TLS hello", vec![0x16, 3, 1, 0, 200], R::Malformed(M::Flags)),
        ("type 0", vec![0x00, 0], R::Malformed(M::Type)),
        ("2.2.2-2 CONNECT's fixed flags", vec![0x11, 0], R::Malformed(M::Flags)),
        ("2.2.3 length of five bytes", vec![0x10, 0x80, 0x80, 0x80, 0x80, 0], R::Malformed(M::Length)),
        ("2.2.3 length not minimal", vec![0x10, 0x80, 0x00], R::Malformed(M::Length)),
        ("larger than any CONNECT", vec![0x10, 0xff, 0xff, 0x1f], R::Malformed(M::Trailing)),
        ("larger than the limit", vec![0x10, 0xff, 0xff, 0x7f], R::PacketTooLarge),
        ("empty CONNECT", vec![0x10, 0], R::Malformed(M::Short)),
        ("3.1.2-1 protocol name", connect_as(b"MQTX", 4, USER, &[b"c", b"u"]), R::Malformed(M::ProtocolName)),
        ("3.1.2-1 no name", connect_as(b"", 4, USER, &[b"c", b"u"]), R::Malformed(M::ProtocolName)),
        ("3.1.2-3 reserved flag", connect(USER | 1, &[b"c", b"u"]), R::Malformed(M::ConnectFlag)),
        ("3.1.2-14 will QoS 3", connect(WILL | 0x18, &[b"c", b"t", b"", b"u"]), R::Malformed(M::WillFlags)),
        ("3.1.2-13 will QoS without will", connect(USER | 8, &[b"c", b"u"]), R::Malformed(M::WillFlags)),
        ("3.1.2-15 retain without will", connect(USER | 0x20, &[b"c", b"u"]), R::Malformed(M::WillFlags)),
        ("3.1.2-22 password without user", connect(0x42, &[b"c", b"p"]), R::Malformed(M::PasswordFlag)),
        ("3.1.3 user missing", connect(USER, &[b"c"]), R::Malformed(M::Short)),
        ("3.1.3 password missing", connect(USER | 0x40, &[b"c", b"u"]), R::Malformed(M::Short)),
        ("3.1.3 field too many", connect(USER, &[b"c", b"u", b"p"]), R::Malformed(M::Trailing)),
        ("3.1.3-4 identifier not UTF-8", connect(USER, &[b"\xff", b"u"]), R::Malformed(M::Text)),
        ("1.5.3-2 identifier with U+0000", connect(USER, &[b"a\0", b"u"]), R::Malformed(M::Text)),
        ("3.1.3-11 user not UTF-8", connect(USER, &[b"c", b"\xc3\x28"]), R::Malformed(M::Text)),
        (
            "will topic with wildcard",
            connect(WILL, &[b"c", b"a/#", b"", b"u"]),
            R::Malformed(M::Topic(T::Wildcard)),
        ),
        ("empty will topic", connect(WILL, &[b"c", b"", b"", b"u"]), R::Malformed(M::Topic(T::Empty))),
        (
            "will topic not UTF-8",
            connect(WILL, &[b"c", b"\xed\xa0\x80", b"", b"u"]),
            R::Malformed(M::Topic(T::NotUtf8)),
        ),
    ];
    for (name, bytes, reason) in &cases {
        check(name, fresh, bytes, *reason, &[]);
    }
}

#[test]
fn connects_that_get_a_code() {
    let long = [b'c'; 129];
    let cases: Vec<(&str, Vec<u8>, R, u8)> = vec![
        ("3.1 is not offered", connect_as(b"MQIsdp", 3, USER, &[b"c", b"u"]), R::ProtocolVersion, 1),
        ("5.0 is not offered", connect_as(b"MQTT", 5, USER, &[b"", b"c", b"u"]), R::ProtocolVersion, 1),
        ("3.1.2-2 level 0", connect_as(b"MQTT", 0, USER, &[b"c", b"u"]), R::ProtocolVersion, 1),
        ("bridge's level", connect_as(b"MQTT", 0x84, USER, &[b"c", b"u"]), R::ProtocolVersion, 1),
        ("empty identifier, clean", connect(USER, &[b"", b"u"]), R::ClientIdentifier, 2),
        ("3.1.3-8 empty identifier, not clean", connect(0x80, &[b"", b"u"]), R::ClientIdentifier, 2),
        ("identifier of 129 bytes", connect(USER, &[&long, b"u"]), R::ClientIdentifier, 2),
        ("clean session 0", connect(0x80, &[b"c", b"u"]), R::PersistentSession, 3),
        ("no user name", connect(0x02, &[b"c"]), R::NoUsername, 5),
        ("will on a reserved topic", connect(WILL, &[b"c", b"s/us", b"", b"u"]), R::WillTopic, 5),
        ("will on $", connect(WILL, &[b"c", b"$SYS/x", b"", b"u"]), R::WillTopic, 5),
    ];
    for (name, bytes, reason, code) in &cases {
        check(name, fresh, bytes, *reason, &[0x20, 2, 0, *code]);
    }
    let mut session = fresh();
    let bytes = Bytes::from(connect(USER, &[&[b'c'; 128], b"u"]));
    assert_eq!(session.receive(&bytes, 0), bytes.len(), "128 bytes of identifier are fine");
    session.admit(Admission::Refused(ConnectCode::NotAuthorized), 0);
    assert_eq!(session.closed(), Some(R::ConnectRefused(ConnectCode::NotAuthorized)));
    assert_eq!(&session.transmit()[..], [0x20, 2, 0, 5]);
}

#[test]
fn after_connect() {
    let topic = |t: &[u8]| packet(0x30, &cat(&[&field(t), b"x"]));
    let cases: Vec<(&str, Vec<u8>, R)> = vec![
        ("3.1.0-2 second CONNECT", good(), R::SecondConnect),
        ("CONNACK from a client", vec![0x20, 2, 0, 0], R::UnexpectedPacket),
        ("SUBACK from a client", vec![0x90, 3, 0, 1, 0], R::UnexpectedPacket),
        ("UNSUBACK from a client", vec![0xb0, 2, 0, 1], R::UnexpectedPacket),
        ("PINGRESP from a client", vec![0xd0, 0], R::UnexpectedPacket),
        ("PUBREC", vec![0x50, 2, 0, 1], R::UnexpectedPacket),
        ("PUBREL", vec![0x62, 2, 0, 1], R::UnexpectedPacket),
        ("3.6.1-1 PUBREL's flags", vec![0x60, 2, 0, 1], R::Malformed(M::Flags)),
        ("type 15", vec![0xf0, 0], R::Malformed(M::Type)),
        ("3.3.1-4 QoS 3", vec![0x36, 2, 0, 0], R::Malformed(M::Qos)),
        ("3.3.1-2 DUP with QoS 0", vec![0x38, 3, 0, 1, b'a'], R::Malformed(M::Dup)),
        ("PUBLISH of QoS 2", packet(0x34, b"\0\x01a\0\x01x"), R::QosNotOffered),
        ("PUBLISH of QoS 2 before its body", vec![0x34], R::QosNotOffered),
        ("2.3.1-1 packet identifier 0", packet(0x32, b"\0\x01a\0\0x"), R::Malformed(M::PacketId)),
        ("PUBLISH without identifier", packet(0x32, b"\0\x01a\0"), R::Malformed(M::Short)),
        ("empty PUBLISH", vec![0x30, 0], R::Malformed(M::Short)),
        ("topic beyond the packet", vec![0x30, 3, 0, 9, b'a'], R::Malformed(M::Short)),
        ("4.7.3-1 empty topic", topic(b""), R::Malformed(M::Topic(T::Empty))),
        ("3.3.2-2 + in a topic", topic(b"a/+"), R::Malformed(M::Topic(T::Wildcard))),
        ("3.3.2-2 # in a topic", topic(b"#"), R::Malformed(M::Topic(T::Wildcard))),
        ("3.3.2-1 topic not UTF-8", topic(b"\xc0\x80"), R::Malformed(M::Topic(T::NotUtf8))),
        ("4.7.3-2 topic with U+0000", topic(b"a\0"), R::Malformed(M::Topic(T::Nul))),
        ("topic of 1,025 bytes", topic(&[b'a'; 1_025]), R::Malformed(M::Topic(T::TooLong))),
        ("PUBLISH to $", topic(b"$SYS/a"), R::TopicSystem),
        ("PUBLISH to a reserved prefix", topic(b"s/us"), R::TopicReserved),
        ("PUBLISH to a reserved name", topic(b"error"), R::TopicReserved),
        ("1 MiB and a byte", vec![0x30, 0xfd, 0xff, 0x3f], R::PacketTooLarge),
        ("256 MiB", vec![0x32, 0xff, 0xff, 0xff, 0x7f], R::PacketTooLarge),
        ("2.2.3 length of five bytes", vec![0x30, 0xff, 0xff, 0xff, 0xff, 1], R::Malformed(M::Length)),
        ("PUBACK's flags", vec![0x42, 2, 0, 1], R::Malformed(M::Flags)),
        ("PUBACK of identifier 0", vec![0x40, 2, 0, 0], R::Malformed(M::PacketId)),
        ("PUBACK too short", vec![0x40, 1, 0], R::Malformed(M::Short)),
        ("PUBACK too long", vec![0x40, 3, 0, 1, 0], R::Malformed(M::Trailing)),
        ("3.8.1-1 SUBSCRIBE's flags", vec![0x80, 6, 0, 1, 0, 1, b'a', 0], R::Malformed(M::Flags)),
        ("SUBSCRIBE identifier 0", packet(0x82, b"\0\0\0\x01a\0"), R::Malformed(M::PacketId)),
        ("3.8.3-3 SUBSCRIBE of nothing", packet(0x82, b"\0\x01"), R::Malformed(M::NoFilter)),
        ("SUBSCRIBE without a QoS", packet(0x82, b"\0\x01\0\x01a"), R::Malformed(M::Short)),
        ("3.8.3-4 QoS 3", packet(0x82, b"\0\x01\0\x01a\x03"), R::Malformed(M::RequestedQos)),
        ("3.8.3-4 reserved bits of QoS", packet(0x82, b"\0\x01\0\x01a\x05"), R::Malformed(M::RequestedQos)),
        ("4.7.1-2 # not last", packet(0x82, b"\0\x01\0\x03#/a\0"), R::Malformed(M::Topic(T::Wildcard))),
        ("4.7.1-3 + in a level", packet(0x82, b"\0\x01\0\x02a+\0"), R::Malformed(M::Topic(T::Wildcard))),
        ("4.7.3-1 empty filter", packet(0x82, b"\0\x01\0\0\0"), R::Malformed(M::Topic(T::Empty))),
        ("3.8.3-1 filter not UTF-8", packet(0x82, b"\0\x01\0\x01\xff\0"), R::Malformed(M::Topic(T::NotUtf8))),
        (
            "second filter is wrong",
            packet(0x82, b"\0\x01\0\x01a\0\0\x02##\0"),
            R::Malformed(M::Topic(T::Wildcard)),
        ),
        (
            "65 filters",
            packet(0x82, &cat(&[b"\0\x01", &b"\0\x01a\0".repeat(65)])),
            R::Malformed(M::TooManyFilters),
        ),
        ("3.10.1-1 UNSUBSCRIBE's flags", vec![0xa0, 5, 0, 1, 0, 1, b'a'], R::Malformed(M::Flags)),
        ("3.10.3-2 UNSUBSCRIBE of nothing", packet(0xa2, b"\0\x01"), R::Malformed(M::NoFilter)),
        ("UNSUBSCRIBE identifier 0", packet(0xa2, b"\0\0\0\x01a"), R::Malformed(M::PacketId)),
        ("UNSUBSCRIBE with a QoS", packet(0xa2, b"\0\x01\0\x01a\0"), R::Malformed(M::Short)),
        ("PINGREQ's flags", vec![0xc1, 0], R::Malformed(M::Flags)),
        ("PINGREQ with a body", vec![0xc0, 1, 0], R::Malformed(M::Trailing)),
        ("3.14.1-1 DISCONNECT's flags", vec![0xe1, 0], R::Malformed(M::Flags)),
        ("DISCONNECT with a body", vec![0xe0, 1, 0], R::Malformed(M::Trailing)),
        ("DISCONNECT", vec![0xe0, 0], R::Disconnect),
    ];
    assert!(cases.len() >= 40);
    for (name, bytes, reason) in &cases {
        check(name, open, bytes, *reason, &[]);
    }
}

#[test]
fn what_is_refused_by_itself_does_not_close() {
    let mut session = open();
    let long = [b'a'; 1_025];
    let mut body = vec![0, 7];
    for filter in [&b"ok/#"[..], b"s/us", b"error", b"$share/g/t", &long, b"errortopic"] {
        body.extend(field(filter));
        body.push(2);
    }
    feed(&mut session, &packet(0x82, &body), 100);
    let Some(Event::Subscribe { packet_id: 7, filters }) = session.poll_event() else { panic!("no event") };
    let refused: Vec<_> = filters.iter().map(|f| f.refused.is_some()).collect();
    assert_eq!(refused, [false, true, true, true, true, false]);
    session.subscribed(7, &[1; 6]);
    assert_eq!(&session.transmit()[..], [0x90, 8, 0, 7, 1, 0x80, 0x80, 0x80, 0x80, 1]);
    assert_eq!(session.subscriptions().count(), 2);
    assert!(session.closed().is_none());
}

#[test]
fn the_largest_packet_is_taken_and_its_size_is_known_from_its_header() {
    let mut session = open();
    let body = cat(&[&field(b"a"), &vec![7; 1_048_576 - 4 - 3]]);
    let bytes = Bytes::from(packet(0x30, &body));
    assert_eq!(bytes.len(), 1_048_576);
    assert_eq!(session.needs(&bytes[..3]), None, "the length is not there yet");
    assert_eq!(session.needs(&bytes[..4]), Some(1_048_576));
    assert_eq!(session.receive(&bytes.slice(..1_048_575), 0), 0);
    assert_eq!(session.receive(&bytes, 0), bytes.len());
    assert!(matches!(session.poll_event(), Some(Event::Publish { token: None, .. })));
    assert_eq!(session.needs(&[0x30, 0xfd, 0xff, 0x3f]), None, "refused: don't read on for it");
}
