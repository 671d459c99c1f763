//! Hot paths without I/O: decoder, encoder, trie, and whole steps of a session. `cargo bench -p penstock-mqtt --bench hot`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod paths;

use std::{hint::black_box, sync::Arc};

use bytes::{Bytes, BytesMut};
use mqttbytes::{QoS as Q, v4};
use paths::Path;
use penstock_mqtt::{
    codec::{
        decode::{self, Bounds},
        encode,
    },
    packet::QoS,
    reserved::Reserved,
    session::{Admission, Delivery, Event, Session, SessionLimits, Settled},
    trie::Trie,
};

const TOPIC: &str = "plant/7/line/3/temperature";
const PAYLOAD: [u8; 64] = [b'x'; 64];
const BOUNDS: Bounds = Bounds { topic: 1_024, filters: 64 };
/// Messages of a step: what a busy connection's read brings.
const TURN: u16 = 16;

const PATHS: &[Path] = &[
    Path { name: "decode_publish", operations: TURN as u64, prepare: decode_publish },
    Path { name: "decode_connect", operations: 1, prepare: decode_connect },
    Path { name: "encode_publish", operations: TURN as u64, prepare: encode_publish },
    Path { name: "trie_match", operations: 64, prepare: trie_match },
    Path { name: "trie_insert_remove", operations: 64, prepare: trie_insert_remove },
    Path { name: "session_in", operations: TURN as u64, prepare: session_in },
    Path { name: "session_out", operations: TURN as u64, prepare: session_out },
];

fn main() {
    paths::main(PATHS);
}

#[divan::bench(args = PATHS, min_time = 0.3)]
fn hot(bencher: divan::Bencher<'_, '_>, path: &Path) {
    paths::time(bencher, path);
}

fn publishes() -> Bytes {
    let mut out = BytesMut::new();
    for id in 1..=TURN {
        let mut publish = v4::Publish::new(TOPIC, Q::AtLeastOnce, PAYLOAD);
        publish.pkid = id;
        publish.write(&mut out).unwrap();
    }
    out.freeze()
}

fn connect() -> Bytes {
    let mut connect = v4::Connect::new("device-4711");
    connect.set_login("demo/device", "a-password-of-a-device");
    let mut out = BytesMut::new();
    connect.write(&mut out).unwrap();
    out.freeze()
}

fn decode_all(mut input: &[u8]) {
    while let Some(first) = input.first() {
        let kind = decode::kind(*first).unwrap();
        let frame = decode::frame(input).unwrap().unwrap();
        black_box(decode::body(kind, &input[frame.header..frame.total], BOUNDS).unwrap());
        input = &input[frame.total..];
    }
}

fn decode_publish() -> Box<dyn FnMut()> {
    let input = publishes();
    Box::new(move || decode_all(black_box(&input)))
}

fn decode_connect() -> Box<dyn FnMut()> {
    let input = connect();
    Box::new(move || decode_all(black_box(&input)))
}

fn encode_publish() -> Box<dyn FnMut()> {
    let mut out = BytesMut::with_capacity(4_096);
    Box::new(move || {
        out.clear();
        for id in 1..=TURN {
            encode::publish(&mut out, black_box(TOPIC.as_bytes()), &PAYLOAD, QoS::AtLeastOnce, id).unwrap();
        }
        black_box(&out);
    })
}

/// What a shard with 10,000 devices holds: a filter for each, and a few for many.
fn filters() -> Trie<u32, QoS> {
    let mut trie = Trie::new();
    for device in 0..10_000u32 {
        trie.insert(format!("device/{device}/command/+").as_bytes(), device, QoS::AtLeastOnce);
    }
    for (key, filter) in (20_000..).zip(["device/+/command/restart", "plant/#", "+/7/line/+/temperature"]) {
        trie.insert(filter.as_bytes(), key, QoS::AtMostOnce);
    }
    trie
}

fn trie_match() -> Box<dyn FnMut()> {
    let trie = filters();
    let topics: Vec<String> =
        (0..64).map(|n| format!("device/{}/command/{}", n * 150, ["restart", "set"][n % 2])).collect();
    Box::new(move || {
        for topic in &topics {
            trie.matches(topic.as_bytes(), |key, qos| {
                black_box((key, qos));
            });
        }
    })
}

fn trie_insert_remove() -> Box<dyn FnMut()> {
    let mut trie = filters();
    let filters: Vec<String> = (0..64).map(|n| format!("device/new-{n}/command/+")).collect();
    Box::new(move || {
        for (key, filter) in (30_000..).zip(&filters) {
            trie.insert(filter.as_bytes(), key, QoS::AtLeastOnce);
        }
        for (key, filter) in (30_000..).zip(&filters) {
            trie.remove(filter.as_bytes(), key);
        }
    })
}

fn open() -> Session {
    let mut session = Session::new(Arc::new(SessionLimits::default()), Arc::new(Reserved::default()), 0);
    session.receive(&connect(), 0);
    assert!(matches!(session.poll_event(), Some(Event::Connect(_))));
    session.admit(Admission::Accepted { session_present: false }, 0);
    let bytes = session.transmit().len();
    session.written(bytes);
    session
}

/// PUBLISHes in, settled, PUBACKs out.
fn session_in() -> Box<dyn FnMut()> {
    let (mut session, input) = (open(), publishes());
    let mut tokens = Vec::with_capacity(TURN.into());
    Box::new(move || {
        let used = session.receive(&input, 1);
        assert_eq!(used, input.len());
        while let Some(event) = session.poll_event() {
            if let Event::Publish { publish, token } = event {
                black_box(publish);
                tokens.extend(token);
            }
        }
        for token in tokens.drain(..) {
            session.settle(token, Settled::Stored);
        }
        let acks = session.transmit().len();
        assert_eq!(acks, 4 * usize::from(TURN));
        session.written(acks);
    })
}

/// Deliveries of QoS 1 out, their PUBACKs in.
fn session_out() -> Box<dyn FnMut()> {
    let mut session = open();
    let mut acks = BytesMut::new();
    Box::new(move || {
        let delivery =
            Delivery { topic: TOPIC.as_bytes(), payload: &PAYLOAD, qos: QoS::AtLeastOnce, token: 0 };
        for _ in 0..TURN {
            black_box(session.deliver(black_box(&delivery)));
        }
        acks.clear();
        let mut sent: &[u8] = session.transmit();
        while !sent.is_empty() {
            let frame = decode::frame(sent).unwrap().unwrap();
            let id_at = frame.header + 2 + TOPIC.len();
            acks.extend_from_slice(&[0x40, 2, sent[id_at], sent[id_at + 1]]);
            sent = &sent[frame.total..];
        }
        let bytes = session.transmit().len();
        session.written(bytes);
        let input = acks.split().freeze();
        assert_eq!(session.receive(&input, 1), input.len());
        while session.poll_event().is_some() {}
    })
}
