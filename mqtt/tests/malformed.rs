//! Packets that are wrong, and what the session has to do about them: `malformed/table.txt` by the row, and families of them
//! made here: every first byte, every flag, every ill-formed string in every field, every packet cut anywhere. Each is fed as
//! a whole and byte by byte.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use penstock_mqtt::{
    codec::decode::Malformed as M,
    packet::ConnectCode,
    reserved::Reserved,
    session::{Admission, CloseReason as R, Event, Session, SessionLimits},
};
use table::Reaction;

#[path = "malformed/table.rs"]
mod table;

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

/// CONNECT with these flags, and its fields behind the keep alive.
fn connect(flags: u8, fields: &[&[u8]]) -> Vec<u8> {
    let head = [&b"\0\x04MQTT\x04"[..], &[flags, 0, 60]].concat();
    packet(0x10, &fields.iter().fold(head, |body, bytes| [body, field(bytes)].concat()))
}

/// User name, clean session, no password.
const USER: u8 = 0x82;
const WILL: u8 = USER | 0x04;

fn good() -> Vec<u8> {
    connect(USER, &[b"c1", b"demo/device"])
}

fn fresh() -> Session {
    let limits = SessionLimits { persistent: true, ..SessionLimits::default() };
    Session::new(Arc::new(limits), Arc::new(Reserved::default()), 0)
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

/// What came of some bytes.
#[derive(PartialEq, Debug)]
struct Outcome {
    closed: Option<R>,
    reply: Vec<u8>,
    events: Vec<Event>,
    /// Bytes that were not consumed.
    left: usize,
}

/// Feeds at most `step` bytes more at a time, as a driver does; ends when closed.
fn feed(session: &mut Session, bytes: &[u8], step: usize) -> Outcome {
    let (mut used, mut seen, mut events) = (0, 0, Vec::new());
    while seen < bytes.len() && session.closed().is_none() {
        seen = (seen + step).min(bytes.len());
        loop {
            let taken = session.receive(&Bytes::copy_from_slice(&bytes[used..seen]), 0);
            used += taken;
            events.extend(std::iter::from_fn(|| session.poll_event()));
            if taken == 0 {
                break;
            }
        }
    }
    let reply = session.transmit().to_vec();
    Outcome { closed: session.closed(), reply, events, left: bytes.len() - used }
}

/// What comes of the bytes, whole and byte by byte, which must be the same.
#[track_caller]
fn outcome(name: &str, state: fn() -> Session, bytes: &[u8]) -> Outcome {
    let mut session = state();
    let whole = feed(&mut session, bytes, bytes.len().max(1));
    if let Some(reason) = whole.closed {
        assert!(!session.wants_read() && session.deadline().is_none(), "{name}");
        assert_eq!(whole.events.last(), Some(&Event::Closed(reason)), "{name}");
        assert_eq!(session.receive(&Bytes::from(good()), 0), 0, "{name}: nothing after close");
    }
    // Of large ones steps are larger, too: all splits of the first bytes, then few.
    let step = if bytes.len() > 10_000 { 997 } else { 1 };
    let split = feed(&mut state(), bytes, step);
    assert_eq!(
        (split.closed, &split.reply, &split.events),
        (whole.closed, &whole.reply, &whole.events),
        "{name}"
    );
    whole
}

/// The connection is closed for a malformed packet, without a word.
#[track_caller]
fn refused(name: &str, state: fn() -> Session, bytes: &[u8]) -> M {
    let outcome = outcome(name, state, bytes);
    let Some(R::Malformed(why)) = outcome.closed else { panic!("{name}: {outcome:?}") };
    assert!(outcome.reply.is_empty() && outcome.events.len() == 1, "{name}: {outcome:?}");
    why
}

#[track_caller]
fn taken(name: &str, state: fn() -> Session, bytes: &[u8]) -> Outcome {
    let outcome = outcome(name, state, bytes);
    assert!(outcome.closed.is_none() && outcome.left == 0, "{name}: {outcome:?}");
    outcome
}

#[test]
fn every_row_of_the_table_has_its_reaction() {
    let rows = table::rows();
    assert!(rows.len() >= 250, "{} rows", rows.len());
    let mut faults = Vec::new();
    for row in &rows {
        let outcome = outcome(&row.line, if row.open { open } else { fresh }, &row.bytes);
        let reaction = match outcome.closed {
            Some(reason) => Reaction::Closes(format!("{reason:?}")),
            None if outcome.left == 0 => Reaction::Fine,
            None => Reaction::Waits,
        };
        if (&reaction, &outcome.reply) != (&row.reaction, &row.reply) {
            faults.push(format!("{}: {reaction:?} {:02x?}", row.line, outcome.reply));
        }
        let section = |text: &str| text.split(['.', '-']).all(|part| part.parse::<u8>().is_ok());
        let statement = row.statement.strip_prefix("MQTT-").unwrap_or(&row.statement);
        assert!(statement == "endpoint" || section(statement), "no statement, no section: {}", row.line);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_first_byte_has_its_reaction() {
    for first in 0..=255u8 {
        let (kind, flags) = (first >> 4, first & 15);
        let wanted = match (kind, flags) {
            (0 | 15, _) => Some(R::Malformed(M::Type)),
            (3, _) if flags & 6 == 6 => Some(R::Malformed(M::Qos)),
            (3, 8 | 9) => Some(R::Malformed(M::Dup)),
            (3, _) if flags & 6 == 4 => Some(R::QosNotOffered),
            (3, _) => None,
            (6 | 8 | 10, 2) | (1 | 2 | 4 | 5 | 7 | 9 | 11..=14, 0) => match kind {
                1 => Some(R::SecondConnect),
                4 | 8 | 10 | 12 | 14 => None,
                _ => Some(R::UnexpectedPacket),
            },
            _ => Some(R::Malformed(M::Flags)),
        };
        assert_eq!(outcome("open", open, &[first]).closed, wanted, "{first:#x}");
        let wanted = match wanted {
            _ if first == 0x10 => None,
            malformed @ Some(R::Malformed(_)) => malformed,
            _ => Some(R::NotConnect),
        };
        assert_eq!(outcome("fresh", fresh, &[first]).closed, wanted, "{first:#x}");
    }
}

#[test]
fn every_combination_of_connects_flags_has_its_reaction() {
    for flags in 0..=255u8 {
        let bit = |number: u8| flags >> number & 1 == 1;
        let mut fields = vec![&b"c1"[..]];
        fields.extend(bit(2).then_some([&b"w"[..], b"m"]).into_iter().flatten());
        fields.extend(bit(7).then_some(&b"t/u"[..]));
        fields.extend(bit(6).then_some(&b"p"[..]));
        let outcome = outcome("flags", fresh, &connect(flags, &fields));
        let wanted = match flags {
            _ if bit(0) => Some(R::Malformed(M::ConnectFlag)),
            _ if flags & 0x18 == 0x18 || (!bit(2) && flags & 0x38 != 0) => Some(R::Malformed(M::WillFlags)),
            _ if bit(6) && !bit(7) => Some(R::Malformed(M::PasswordFlag)),
            _ if !bit(7) => Some(R::NoUsername),
            _ => None,
        };
        assert_eq!(outcome.closed, wanted, "{flags:#x}");
        if let [Event::Connect(said)] = &outcome.events[..] {
            assert_eq!((said.clean_session, said.will, said.password.is_some()), (bit(1), bit(2), bit(6)));
        }
    }
}

/// A packet around the bytes of a string: one for each field that is one.
type Around = (&'static str, fn() -> Session, fn(&[u8]) -> Vec<u8>);

const STRINGS: [Around; 6] = [
    ("client identifier", fresh, |text| connect(USER, &[text, b"t/u"])),
    ("will topic", fresh, |text| connect(WILL, &[b"c", text, b"m", b"t/u"])),
    ("user name", fresh, |text| connect(USER, &[b"c", text])),
    ("topic", open, |text| packet(0x30, &[&field(text)[..], b"x"].concat())),
    ("filter", open, |text| packet(0x82, &[&[0, 1], &field(text)[..], &[0]].concat())),
    ("filter of UNSUBSCRIBE", open, |text| packet(0xa2, &[&[0, 1], &field(text)[..]].concat())),
];

/// Sequences that are not UTF-8: stray and missing continuations, overlong forms, surrogates, beyond U+10FFFF, bytes that
/// never occur.
fn ill_formed() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        "80",
        "bf",
        "8080",
        "80bf80",
        "c0",
        "c1",
        "c080",
        "c0af",
        "c1bf",
        "e08080",
        "e080af",
        "e09fbf",
        "f0808080",
        "f08080af",
        "f08fbfbf",
        "f888808080",
        "fc8480808080",
        "c3",
        "c328",
        "e2",
        "e282",
        "e28228",
        "e228a1",
        "f0",
        "f09f",
        "f09f98",
        "f09f9828",
        "f0288cbc",
        "f4908080",
        "f7bfbfbf",
        "f5808080",
        "fe",
        "ff",
        "fefeffff",
        "eda080",
        "edad80",
        "edadbf",
        "edae80",
        "edaf80",
        "edafbf",
        "edb080",
        "edbe80",
        "edbfbf",
        "eda080edb080",
        "edafbfedbfbf",
    ]
    .iter()
    .map(|text| {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    })
    .collect();
    all.extend((0xc0..=0xffu8).map(|start| vec![start, b' ']));
    all
}

#[test]
fn no_field_takes_a_string_that_is_ill_formed_or_has_control_characters() {
    let controls = (0..=0x1f).chain(0x7f..=0x9f).map(|code| char::from(code as u8).to_string().into_bytes());
    let mut tried = 0;
    for bad in ill_formed().into_iter().chain(controls) {
        for text in [bad.clone(), [b"a", &bad[..]].concat(), [&bad[..], b"z"].concat()] {
            for (name, state, around) in STRINGS {
                let why = refused(&format!("{name} {text:x?}"), state, &around(&text));
                assert!(matches!(why, M::Text | M::Topic(_)), "{name} {text:x?}: {why:?}");
                tried += 1;
            }
        }
    }
    assert!(tried > 2_000, "{tried}");
}

#[test]
fn every_field_takes_strings_that_are_unusual() {
    for text in [
        "\u{feff}",
        "\u{feff}a",
        "a\u{feff}",
        "\u{ffff}",
        "\u{fffe}",
        "\u{fdd0}",
        "\u{d7ff}",
        "\u{e000}",
        "\u{10ffff}",
        "\u{a0}",
        "\u{200b}",
        "\u{2028}",
        "A\u{2a6d4}",
        "é",
        "e\u{301}",
        " ",
        "~",
    ] {
        for (name, state, around) in STRINGS {
            let outcome = taken(&format!("{name} {text:?}"), state, &around(text.as_bytes()));
            // Nothing is stripped off [MQTT-1.5.3-3] or normalized [MQTT-4.7.3-4].
            let said = match &outcome.events[..] {
                [Event::Connect(said)] if name == "user name" => &said.username,
                [Event::Connect(said)] if name == "client identifier" => &said.client,
                [Event::Publish { publish, .. }] => &publish.topic,
                [Event::Subscribe { filters, .. }] => &filters[0].filter,
                [Event::Unsubscribe { filters, .. }] => &filters[0],
                _ => continue,
            };
            assert_eq!(said, text.as_bytes(), "{name}");
        }
    }
}

/// A packet by name, and when it comes.
type Kind = (&'static str, fn() -> Session, Vec<u8>);

/// A good packet of each kind that clients send.
fn all_kinds() -> Vec<Kind> {
    vec![
        ("CONNECT", fresh, connect(WILL | 0x48, &[b"c1", b"w/1", b"bye", b"demo/device", b"secret"])),
        ("SUBSCRIBE", open, packet(0x82, b"\0\x07\0\x03a/#\x01\0\x01b\0")),
        ("UNSUBSCRIBE", open, packet(0xa2, b"\0\x07\0\x03a/#\0\x01b")),
        ("PUBACK", open, packet(0x40, b"\0\x07")),
        ("PINGREQ", open, packet(0xc0, b"")),
        ("DISCONNECT", open, packet(0xe0, b"")),
        ("PUBLISH 0", open, packet(0x30, b"\0\x03a/bhello")),
        ("PUBLISH 1", open, packet(0x32, b"\0\x03a/b\0\x07hello")),
    ]
}

#[test]
fn a_packet_that_is_cut_or_has_bytes_too_many_is_refused() {
    for (name, state, bytes) in all_kinds() {
        let (first, body) = (bytes[0], &bytes[2..]);
        let payload = if name.starts_with("PUBLISH") { 5 } else { 0 };
        for length in 0..body.len() {
            let cut = packet(first, &body[..length]);
            if length < body.len() - payload {
                // Two filters: the list may end behind the first.
                let whole = matches!((name, length), ("SUBSCRIBE", 8) | ("UNSUBSCRIBE", 7));
                let verdict = if whole { None } else { Some(refused(name, state, &cut)) };
                assert!(verdict != Some(M::Trailing), "{name} of {length}");
            } else {
                taken(name, state, &cut);
            }
            // The same without a true length: the rest may come.
            let begun = outcome(name, state, &bytes[..2 + length]);
            assert!(
                begun.closed.is_none() && begun.left == 2 + length && begun.events.is_empty(),
                "{name} {length}"
            );
        }
        for more in [&[0][..], &[0xff], &[0; 3]] {
            let longer = packet(first, &[body, more].concat());
            if payload == 0 {
                refused(name, state, &longer).to_string()
            } else {
                format!("{:?}", taken(name, state, &longer))
            };
        }
    }
}

#[test]
fn a_flipped_bit_means_the_same_in_any_split() {
    let mut closed = BTreeSet::new();
    for (name, state, bytes) in all_kinds() {
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Behind it a packet that shows whether the two sides still agree on where packets end.
            flipped.extend([0xc0, 0]);
            let outcome = outcome(name, state, &flipped);
            assert!(outcome.reply.len() <= 4, "{name}, bit {bit}: {outcome:?}");
            closed.extend(outcome.closed.map(R::label));
        }
    }
    assert!(closed.len() >= 8, "{closed:?}");
}

#[test]
fn the_longest_identifier_is_fine_and_a_refusal_is_told() {
    let mut session = fresh();
    let bytes = Bytes::from(connect(USER, &[&[b'c'; 128], b"u"]));
    assert_eq!(session.receive(&bytes, 0), bytes.len(), "128 bytes of identifier are fine");
    session.admit(Admission::Refused(ConnectCode::NotAuthorized), 0);
    assert_eq!(session.closed(), Some(R::ConnectRefused(ConnectCode::NotAuthorized)));
    assert_eq!(&session.transmit()[..], [0x20, 2, 0, 5]);
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
    let events = feed(&mut session, &packet(0x82, &body), 100).events;
    let [Event::Subscribe { packet_id: 7, filters }] = &events[..] else { panic!("{events:?}") };
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
    let body = [field(b"a"), vec![7; 1_048_576 - 4 - 3]].concat();
    let bytes = Bytes::from(packet(0x30, &body));
    assert_eq!(bytes.len(), 1_048_576);
    assert_eq!(session.needs(&bytes[..3]), None, "the length is not there yet");
    assert_eq!(session.needs(&bytes[..4]), Some(1_048_576));
    assert_eq!(session.receive(&bytes.slice(..1_048_575), 0), 0);
    assert_eq!(session.receive(&bytes, 0), bytes.len());
    assert!(matches!(session.poll_event(), Some(Event::Publish { token: None, .. })));
    assert_eq!(session.needs(&[0x30, 0xfd, 0xff, 0x3f]), None, "refused: don't read on for it");
}
