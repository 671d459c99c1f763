//! What holds for all inputs: arbitrary bytes neither panic nor grow anything, however they are split; what is written is read
//! back; valid packets mean the same to `mqttbytes`; the trie finds what the plain `matches` finds.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use mqttbytes::{QoS as Q, v4};
use penstock_mqtt::{
    codec::{
        decode::{self, Bounds, Packet},
        encode,
    },
    packet::QoS,
    session::{Admission, CloseReason, Delivery, Event, Session, SessionLimits, Settled},
    topic,
    trie::Trie,
};
use proptest::{collection::vec, prelude::*, sample::select};

fn decode(bytes: &[u8]) -> Packet<'_> {
    let frame = decode::frame(bytes).unwrap().unwrap();
    assert_eq!(frame.total, bytes.len());
    let bounds = Bounds { topic: 1_024, filters: 64 };
    decode::body(decode::kind(bytes[0]).unwrap(), &bytes[frame.header..], bounds).unwrap()
}

/// Bytes that look like packets often enough to get deep.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let header = (any::<u8>(), 0u8..40, vec(any::<u8>(), 0..40)).prop_map(|(first, len, mut body)| {
        body.insert(0, len);
        body.insert(0, first);
        body
    });
    let typed = (
        select(vec![0x30u8, 0x32, 0x3a, 0x40, 0x82, 0xa2, 0xc0]),
        vec(select(vec![0u8, 1, 2, b'a', b'/', b'+', b'#', 0xc3]), 0..20),
    )
        .prop_map(|(first, body)| [&[first, body.len() as u8][..], &body].concat());
    let good = select(vec![
        b"\x30\x04\0\x01ax".to_vec(),
        b"\x32\x06\0\x01a\0\x05x".to_vec(),
        b"\x82\x06\0\x01\0\x01#\x02".to_vec(),
        b"\xa2\x05\0\x02\0\x01#".to_vec(),
        b"\x40\x02\0\x01".to_vec(),
        b"\xc0\0".to_vec(),
    ]);
    vec(prop_oneof![1 => header, 2 => typed, 12 => good], 0..200).prop_map(|parts| parts.concat())
}

fn connect_bytes() -> Vec<u8> {
    let mut connect = v4::Connect::new("c1");
    connect.set_login("demo/device", "x");
    connect.last_will = Some(v4::LastWill::new("w", "bye", Q::AtMostOnce, false));
    let mut out = BytesMut::new();
    connect.write(&mut out).unwrap();
    out.to_vec()
}

/// A driver that splits and delays; checks the bounds after every step. Returns the packets it got out and the reason.
fn drive(bytes: &[u8], splits: &[usize], lazy: bool) -> (Vec<Event>, Vec<u8>, Option<CloseReason>) {
    let limits = SessionLimits { unsettled: 8, outbound_bytes: 4_096, ..SessionLimits::default() };
    let mut session = Session::new(Arc::new(limits), Arc::default(), 0);
    let (mut log, mut out, mut used, mut seen) = (Vec::new(), Vec::new(), 0, 0);
    let mut splits = splits.iter().cycle();
    while seen < bytes.len() && session.closed().is_none() {
        seen = (seen + splits.next().unwrap()).min(bytes.len());
        loop {
            let taken = session.receive(&Bytes::copy_from_slice(&bytes[used..seen]), 0);
            used += taken;
            let mut count = 0;
            while let Some(event) = session.poll_event() {
                count += 1;
                answer(&mut session, &event, lazy);
                log.push(event);
            }
            assert!(count <= 64 + 2 && session.unsettled() <= 9 && session.inflight() <= 64);
            let delivery = Delivery { topic: b"t", payload: &[0; 50], qos: QoS::AtLeastOnce, token: 1 };
            session.deliver(&delivery);
            assert!(session.transmit().len() <= 4_096 + 65_536 + 128);
            assert!(session.outbound_bytes() <= 4_096 + 65_536 + 128);
            if !lazy {
                out.extend(session.transmit().split());
            }
            if taken == 0 {
                break;
            }
        }
    }
    while let Some(event) = session.poll_event() {
        log.push(event);
    }
    (log, out, session.closed())
}

fn answer(session: &mut Session, event: &Event, lazy: bool) {
    match event {
        Event::Connect(_) => session.admit(Admission::Accepted { session_present: false }, 0),
        Event::Publish { token: Some(token), .. } if !lazy => session.settle(*token, Settled::Stored),
        Event::Subscribe { packet_id, filters } if !lazy => {
            session.subscribed(*packet_id, &vec![1; filters.len()])
        }
        Event::Unsubscribe { packet_id, .. } if !lazy => session.unsubscribed(*packet_id),
        _ => {}
    }
}

fn word() -> impl Strategy<Value = String> {
    select(vec!["", "a", "b", "é", "$a", "ab"]).prop_map(str::to_owned)
}

fn name() -> impl Strategy<Value = String> {
    vec(word(), 1..6).prop_map(|levels| levels.join("/")).prop_filter("not empty", |name| !name.is_empty())
}

fn filter() -> impl Strategy<Value = String> {
    let level = prop_oneof![3 => word(), 1 => Just("+".to_owned())];
    (vec(level, 0..6), prop::bool::weighted(0.3))
        .prop_map(|(mut levels, multi)| {
            if multi {
                levels.push("#".into());
            }
            levels.join("/")
        })
        .prop_filter("not empty", |filter| !filter.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_neither_panic_nor_grow(bytes in vec(any::<u8>(), 0..300), splits in vec(1usize..20, 1..5)) {
        drive(&bytes, &splits, false);
        drive(&[connect_bytes(), bytes].concat(), &splits, true);
    }

    #[test]
    fn splits_do_not_matter(bytes in noise(), splits in vec(1usize..50, 1..8)) {
        let bytes = [connect_bytes(), bytes].concat();
        let whole = drive(&bytes, &[bytes.len()], false);
        let split = drive(&bytes, &splits, false);
        let last_is_closed = |log: &[Event]| log.iter().rposition(|e| matches!(e, Event::Closed(_)));
        prop_assert_eq!(last_is_closed(&split.0), split.2.map(|_| split.0.len() - 1));
        if whole.2 != Some(CloseReason::Overrun) && split.2 != Some(CloseReason::Overrun) {
            let receipts = |event: &&Event| !matches!(event, Event::Acknowledged { .. });
            prop_assert_eq!(
                whole.0.iter().filter(receipts).collect::<Vec<_>>(),
                split.0.iter().filter(receipts).collect::<Vec<_>>()
            );
            prop_assert_eq!(whole.2, split.2);
        }
        drive(&bytes, &splits, true);
    }

    #[test]
    fn a_publish_is_read_as_it_was_written(
        topic in name(), payload in vec(any::<u8>(), 0..20_000), id in 1u16.., acknowledged: bool,
    ) {
        let qos = if acknowledged { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let mut out = BytesMut::new();
        encode::publish(&mut out, topic.as_bytes(), &payload, qos, id).unwrap();
        prop_assert_eq!(out.len(), encode::publish_len(topic.as_bytes(), &payload, qos).unwrap());
        let Packet::Publish(read) = decode(&out) else { panic!() };
        prop_assert_eq!((read.topic, read.payload), (topic.as_bytes(), &payload[..]));
        prop_assert_eq!((read.qos, read.packet_id, read.dup), (qos.number(), if acknowledged { id } else { 0 }, false));
        let v4::Packet::Publish(theirs) = v4::read(&mut out.clone(), 1 << 28).unwrap() else { panic!() };
        prop_assert_eq!((theirs.topic, theirs.payload, theirs.pkid), (topic, payload.into(), read.packet_id));
    }

    #[test]
    fn a_publish_means_the_same_to_mqttbytes(topic in name(), payload in vec(any::<u8>(), 0..300), id in 1u16.., qos in 0u8..3) {
        let mut publish = v4::Publish::new(&topic, mqttbytes::qos(qos).unwrap(), payload.clone());
        (publish.pkid, publish.dup, publish.retain) = (id, qos > 0, true);
        let mut out = BytesMut::new();
        publish.write(&mut out).unwrap();
        let Packet::Publish(read) = decode(&out) else { panic!() };
        prop_assert_eq!((read.topic, read.payload, read.qos, read.dup), (topic.as_bytes(), &payload[..], qos, qos > 0));
        prop_assert_eq!(read.packet_id, if qos > 0 { id } else { 0 });
    }

    #[test]
    fn a_connect_means_the_same_to_mqttbytes(
        client in "[a-zé]{0,20}", user in "[a-z/]{1,20}", password in ".{0,20}", keep_alive: u16, clean: bool,
        will in prop::option::of((name(), vec(any::<u8>(), 0..50), 0u8..3)),
    ) {
        let mut connect = v4::Connect::new(client.clone());
        connect.set_login(user.as_str(), password.as_str());
        (connect.keep_alive, connect.clean_session) = (keep_alive, clean);
        connect.last_will = will.clone().map(|(topic, message, qos)| {
            v4::LastWill::new(topic, message, mqttbytes::qos(qos).unwrap(), qos == 1)
        });
        let mut out = BytesMut::new();
        connect.write(&mut out).unwrap();
        let Packet::Connect(read) = decode(&out) else { panic!() };
        prop_assert_eq!((read.client, read.keep_alive, read.clean_session), (client.as_bytes(), keep_alive, clean));
        prop_assert_eq!(read.username, Some(user.as_bytes()));
        // mqttbytes writes no password when it is empty.
        prop_assert_eq!(read.password, (!password.is_empty()).then_some(password.as_bytes()));
        let read_will = read.will.map(|w| (w.topic.to_vec(), w.payload.to_vec(), w.qos));
        prop_assert_eq!(read_will, will.map(|(topic, message, qos)| (topic.into_bytes(), message, qos)));
    }

    #[test]
    fn a_subscribe_means_the_same_to_mqttbytes(filters in vec((filter(), 0u8..3), 1..20), id in 1u16..) {
        let asked = filters.iter().map(|(f, q)| v4::SubscribeFilter { path: f.clone(), qos: mqttbytes::qos(*q).unwrap() });
        let mut subscribe = v4::Subscribe::new_many(asked);
        subscribe.pkid = id;
        let mut out = BytesMut::new();
        subscribe.write(&mut out).unwrap();
        let Packet::Subscribe { packet_id, filters: read } = decode(&out) else { panic!() };
        prop_assert_eq!(packet_id, id);
        let expected: Vec<_> = filters.iter().map(|(f, q)| (f.as_bytes(), *q)).collect();
        prop_assert_eq!(read.collect::<Vec<_>>(), expected);
        let mut unsubscribe = v4::Unsubscribe { pkid: id, topics: filters.iter().map(|(f, _)| f.clone()).collect() };
        unsubscribe.pkid = id;
        out.clear();
        unsubscribe.write(&mut out).unwrap();
        let Packet::Unsubscribe { packet_id, filters: read } = decode(&out) else { panic!() };
        prop_assert_eq!(packet_id, id);
        prop_assert!(read.map(|(f, _)| f).eq(filters.iter().map(|(f, _)| f.as_bytes())));
    }

    #[test]
    fn what_the_server_says_means_the_same_to_mqttbytes(id in 1u16.., codes in vec(select(vec![0u8, 1, 0x80]), 1..200)) {
        let mut out = BytesMut::new();
        encode::suback(&mut out, id, codes.iter().copied());
        encode::unsuback(&mut out, id);
        encode::puback(&mut out, id);
        encode::pingresp(&mut out);
        let v4::Packet::SubAck(suback) = v4::read(&mut out, 1 << 20).unwrap() else { panic!() };
        let back = suback.return_codes.iter().map(|code| match code {
            v4::SubscribeReasonCode::Success(Q::AtMostOnce) => 0u8,
            v4::SubscribeReasonCode::Success(_) => 1,
            v4::SubscribeReasonCode::Failure => 0x80,
        });
        prop_assert!(suback.pkid == id && back.eq(codes));
        prop_assert_eq!(v4::read(&mut out, 100).unwrap(), v4::Packet::UnsubAck(v4::UnsubAck::new(id)));
        prop_assert_eq!(v4::read(&mut out, 100).unwrap(), v4::Packet::PubAck(v4::PubAck::new(id)));
        prop_assert_eq!(v4::read(&mut out, 100).unwrap(), v4::Packet::PingResp);
        prop_assert!(out.is_empty());
    }

    #[test]
    fn the_trie_finds_what_matches_finds(
        changes in vec((filter(), 0u8..4, any::<u8>(), prop::bool::weighted(0.7)), 0..120), topics in vec(name(), 1..30),
    ) {
        let mut trie = Trie::new();
        let mut plain = BTreeMap::new();
        for (filter, key, value, add) in changes {
            if add {
                prop_assert_eq!(trie.insert(filter.as_bytes(), key, value), plain.insert((filter, key), value));
            } else {
                prop_assert_eq!(trie.remove(filter.as_bytes(), key), plain.remove(&(filter, key)));
            }
            prop_assert_eq!(trie.len(), plain.len());
            for topic in &topics {
                let mut found = Vec::new();
                trie.matches(topic.as_bytes(), |key, value| found.push((key, value)));
                found.sort_unstable();
                let matching = plain.iter().filter(|((filter, _), _)| topic::matches(filter.as_bytes(), topic.as_bytes()));
                let mut expected: Vec<_> = matching.map(|((_, key), value)| (*key, *value)).collect();
                expected.sort_unstable();
                prop_assert_eq!(found, expected, "{}", topic);
            }
        }
        for ((filter, key), value) in std::mem::take(&mut plain) {
            prop_assert_eq!(trie.remove(filter.as_bytes(), key), Some(value));
        }
        prop_assert!(trie.is_empty());
    }

    #[test]
    fn generated_names_and_filters_are_valid(name in name(), filter in filter()) {
        prop_assert_eq!(topic::validate_name(name.as_bytes(), 1_024), Ok(()));
        prop_assert_eq!(topic::validate_filter(filter.as_bytes(), 1_024), Ok(()));
        let levels: BTreeSet<_> = filter.split('/').collect();
        if !levels.contains("+") && !levels.contains("#") {
            prop_assert!(topic::matches(filter.as_bytes(), filter.as_bytes()));
        }
    }
}
