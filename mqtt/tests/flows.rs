//! One session, flow by flow: acknowledgements in order, backpressure, deliveries and their limits, subscriptions, wills, keep
//! alive. The client's packets are written by `mqttbytes`, so that both sides can't share a mistake.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mqttbytes::{QoS as Q, v4};
use penstock_mqtt::{
    packet::QoS,
    reserved::Reserved,
    session::{
        Admission, CloseReason, Delivered, Delivery, Event, Millis, PublishToken, Session, SessionLimits,
        Settled,
    },
};

fn connect(set: impl FnOnce(&mut v4::Connect)) -> Bytes {
    let mut connect = v4::Connect::new("c1");
    connect.set_login("demo/device", "secret").keep_alive = 0;
    set(&mut connect);
    let mut out = BytesMut::new();
    connect.write(&mut out).unwrap();
    out.freeze()
}

fn open_with(limits: SessionLimits, set: impl FnOnce(&mut v4::Connect), now: Millis) -> Session {
    let mut session = Session::new(Arc::new(limits), Arc::new(Reserved::default()), now);
    let bytes = connect(set);
    assert_eq!(session.receive(&bytes, now), bytes.len());
    assert!(matches!(session.poll_event(), Some(Event::Connect(_))));
    session.admit(Admission::Accepted { session_present: false }, now);
    assert_eq!(
        written(&mut session),
        [v4::Packet::ConnAck(v4::ConnAck::new(v4::ConnectReturnCode::Success, false))]
    );
    session
}

fn open() -> Session {
    open_with(SessionLimits::default(), |_| {}, 0)
}

fn written(session: &mut Session) -> Vec<v4::Packet> {
    let mut bytes = session.transmit().split();
    session.written(0);
    std::iter::from_fn(|| (!bytes.is_empty()).then(|| v4::read(&mut bytes, 1 << 28).unwrap())).collect()
}

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

fn publish(id: u16) -> BytesMut {
    let mut out = BytesMut::new();
    let qos = if id == 0 { Q::AtMostOnce } else { Q::AtLeastOnce };
    let mut publish = v4::Publish::new("a/b", qos, format!("m{id}"));
    publish.pkid = id;
    publish.write(&mut out).unwrap();
    out
}

fn feed(session: &mut Session, parts: &[BytesMut]) -> Vec<PublishToken> {
    let bytes = Bytes::from(parts.concat());
    assert_eq!(session.receive(&bytes, 0), bytes.len());
    let token = |event| if let Event::Publish { token, .. } = event { token } else { None };
    events(session).into_iter().filter_map(token).collect()
}

fn subscribe(id: u16, filters: &[(&str, Q)]) -> BytesMut {
    let filters = filters.iter().map(|(path, qos)| v4::SubscribeFilter { path: (*path).into(), qos: *qos });
    let mut subscribe = v4::Subscribe::new_many(filters);
    subscribe.pkid = id;
    let mut out = BytesMut::new();
    subscribe.write(&mut out).unwrap();
    out
}

fn unsubscribe(id: u16, filter: &str) -> BytesMut {
    let mut out = BytesMut::new();
    let mut packet = v4::Unsubscribe::new(filter);
    packet.pkid = id;
    packet.write(&mut out).unwrap();
    out
}

fn puback(id: u16) -> BytesMut {
    let mut out = BytesMut::new();
    v4::PubAck::new(id).write(&mut out).unwrap();
    out
}

const PING: [u8; 2] = [0xc0, 0];
const DISCONNECT: [u8; 2] = [0xe0, 0];

fn acked(session: &mut Session) -> Vec<u16> {
    written(session)
        .into_iter()
        .map(|packet| if let v4::Packet::PubAck(ack) = packet { ack.pkid } else { panic!("{packet:?}") })
        .collect()
}

#[test]
fn connect_is_handed_out_whole_and_nothing_is_read_before_the_verdict() {
    let mut session = Session::new(Arc::default(), Arc::default(), 0);
    let bytes = Bytes::from([&connect(|c| c.keep_alive = 7)[..], &publish(1)].concat());
    let used = session.receive(&bytes, 0);
    assert_eq!(used, bytes.len() - publish(1).len());
    let Some(Event::Connect(said)) = session.poll_event() else { panic!("no Connect") };
    assert_eq!((&said.client[..], &said.username[..], said.keep_alive), (&b"c1"[..], &b"demo/device"[..], 7));
    assert_eq!(said.password.as_deref(), Some(&b"secret"[..]));
    assert!(!format!("{said:?}").contains("secret"));
    assert!(!session.wants_read() && session.deadline().is_none() && !session.is_open());
    assert_eq!(session.receive(&bytes.slice(used..), 0), 0);
    session.admit(Admission::Accepted { session_present: false }, 0);
    assert!(session.wants_read() && session.is_open());
    assert_eq!(session.receive(&bytes.slice(used..), 0), publish(1).len());
    assert_eq!(session.client().unwrap(), "c1");
}

#[test]
fn acknowledgements_leave_in_the_order_of_the_publishes() {
    let mut session = open();
    let tokens = feed(&mut session, &[publish(5), publish(0), publish(3), publish(4)]);
    assert_eq!((tokens.len(), session.unsettled()), (3, 3));
    session.settle(tokens[2], Settled::Stored);
    session.settle(tokens[1], Settled::Stored);
    assert!(acked(&mut session).is_empty());
    session.settle(tokens[0], Settled::Stored);
    assert_eq!(acked(&mut session), [5, 3, 4]);
    session.settle(tokens[0], Settled::Stored);
    session.settle(PublishToken(99), Settled::Stored);
    assert!(acked(&mut session).is_empty());
}

#[test]
fn a_refusal_waits_for_earlier_acknowledgements_then_closes() {
    let mut session = open();
    let tokens = feed(&mut session, &[publish(1), publish(2), publish(3)]);
    session.settle(tokens[1], Settled::Refused(CloseReason::PublishQuota));
    session.settle(tokens[2], Settled::Stored);
    assert!(session.closed().is_none() && !session.wants_read());
    session.settle(tokens[0], Settled::Stored);
    assert_eq!(acked(&mut session), [1]);
    assert_eq!(events(&mut session), [Event::Closed(CloseReason::PublishQuota)]);
}

#[test]
fn a_publish_to_a_reserved_topic_closes_after_earlier_acknowledgements() {
    let mut session = open();
    let mut bad = BytesMut::new();
    v4::Publish::new("s/us", Q::AtMostOnce, "x").write(&mut bad).unwrap();
    let bytes = Bytes::from([publish(1), bad, publish(2)].concat());
    assert_eq!(session.receive(&bytes, 0), bytes.len() - publish(2).len());
    let Some(Event::Publish { token: Some(token), .. }) = session.poll_event() else { panic!("no publish") };
    assert!(session.closed().is_none());
    session.settle(token, Settled::Stored);
    assert_eq!(acked(&mut session), [1]);
    assert_eq!(events(&mut session), [Event::Closed(CloseReason::TopicReserved)]);
}

#[test]
fn draining_lets_acknowledgements_leave() {
    let mut session = open();
    let tokens = feed(&mut session, &[publish(1)]);
    session.close_when_settled(CloseReason::Draining);
    assert!(!session.wants_read() && session.closed().is_none());
    session.settle(tokens[0], Settled::Stored);
    assert_eq!(acked(&mut session), [1]);
    assert_eq!(session.closed(), Some(CloseReason::Draining));
    let mut idle = open();
    idle.close_when_settled(CloseReason::Draining);
    assert_eq!(idle.closed(), Some(CloseReason::Draining));
}

#[test]
fn at_the_unsettled_limit_publishes_wait_and_pings_before_them_do_not() {
    let mut session =
        open_with(SessionLimits { unsettled: 2, ..Default::default() }, |c| c.keep_alive = 10, 0);
    let tokens = feed(&mut session, &[publish(1), publish(2)]);
    assert!(session.wants_read());
    let more = Bytes::from([&PING[..], &publish(3), &PING].concat());
    assert_eq!(session.receive(&more, 0), PING.len());
    assert!(!session.wants_read());
    assert_eq!(session.needs(&more[2..]), None);
    assert_eq!(written(&mut session), [v4::Packet::PingResp]);
    session.tick(15_000);
    assert!(session.closed().is_none(), "silent for our reasons");
    session.settle(tokens[0], Settled::Stored);
    assert!(session.wants_read());
    assert_eq!(session.receive(&more.slice(2..), 15_000), more.len() - 2);
    session.tick(29_999);
    assert!(session.closed().is_none());
    session.tick(30_000);
    assert_eq!(session.closed(), Some(CloseReason::KeepAlive));
}

#[test]
fn held_publishes_wait_until_released() {
    let mut session = open();
    session.hold_publishes(true, 0);
    let bytes = Bytes::from([&PING[..], &publish(0)].concat());
    assert_eq!(session.receive(&bytes, 0), 2);
    assert!(!session.wants_read());
    session.hold_publishes(false, 5);
    assert!(session.wants_read());
    assert_eq!(session.receive(&bytes.slice(2..), 5), publish(0).len());
}

#[test]
fn a_client_that_does_not_read_its_answers_is_not_read() {
    let mut session = open();
    let pings = Bytes::from(PING.repeat(100_000));
    let used = session.receive(&pings, 0);
    assert!(used < pings.len() && !session.wants_read());
    assert_eq!(session.transmit().len(), 65_536);
    session.written(2);
    assert!(session.wants_read());
}

#[test]
fn receive_returns_before_its_events_become_a_long_queue() {
    let mut session = open();
    let bytes = Bytes::from(publish(0).repeat(1_000));
    let used = session.receive(&bytes, 0);
    assert_eq!(used, publish(0).len() * 64);
    assert_eq!(events(&mut session).len(), 64);
    assert_eq!(session.receive(&bytes.slice(used..), 0), publish(0).len() * 64);
}

fn message(payload: &str, qos: QoS, token: u64) -> Delivery<'_> {
    Delivery { topic: b"down/1", payload: payload.as_bytes(), qos, token }
}

fn sent(session: &mut Session) -> Vec<(u16, String)> {
    let read = |packet| match packet {
        v4::Packet::Publish(p) => {
            assert!(!p.retain && !p.dup);
            (p.pkid, String::from_utf8(p.payload.to_vec()).unwrap())
        }
        other => panic!("{other:?}"),
    };
    written(session).into_iter().map(read).collect()
}

#[test]
fn deliveries_beyond_the_window_queue_and_follow_acknowledgements_in_order() {
    let mut session = open_with(SessionLimits { inflight_out: 2, ..Default::default() }, |_| {}, 0);
    let results = ["a", "b", "c", "d"].map(|p| session.deliver(&message(p, QoS::AtLeastOnce, 7)));
    assert_eq!(results, [Delivered::Sent, Delivered::Sent, Delivered::Queued, Delivered::Queued]);
    assert_eq!(session.deliver(&message("zero", QoS::AtMostOnce, 0)), Delivered::Sent);
    assert_eq!(sent(&mut session), [(1, "a".into()), (2, "b".into()), (0, "zero".into())]);
    feed(&mut session, &[puback(2), puback(2), puback(9)]);
    assert_eq!(sent(&mut session), [(3, "c".into())]);
    assert_eq!((session.inflight(), session.unacknowledged().count()), (2, 3));
    let bytes = Bytes::from([puback(1), puback(3), puback(4)].concat());
    assert_eq!(session.receive(&bytes, 0), bytes.len());
    assert_eq!(events(&mut session), [7, 7, 7].map(|token| Event::Acknowledged { token }));
    assert_eq!(sent(&mut session), [(4, "d".into())]);
    assert_eq!((session.inflight(), session.outbound_bytes()), (0, 0));
}

#[test]
fn packet_identifiers_skip_zero_and_those_in_use() {
    let mut session = open();
    assert_eq!(session.deliver(&message("stuck", QoS::AtLeastOnce, 0)), Delivered::Sent);
    assert_eq!(sent(&mut session)[0].0, 1);
    let mut last = 1;
    for _ in 0..65_534 {
        assert_eq!(session.deliver(&message("x", QoS::AtLeastOnce, 0)), Delivered::Sent);
        last = sent(&mut session)[0].0;
        feed(&mut session, &[puback(last)]);
    }
    assert_eq!(last, 65_535);
    session.deliver(&message("x", QoS::AtLeastOnce, 0));
    assert_eq!(sent(&mut session)[0].0, 2, "0 is no identifier and 1 is in use");
}

#[test]
fn at_the_outbound_limit_qos_0_is_dropped_and_qos_1_closes() {
    let limits = SessionLimits { outbound_bytes: 1_000, ..Default::default() };
    let mut session = open_with(limits, |_| {}, 0);
    let big = "x".repeat(2_000);
    assert_eq!(session.deliver(&message(&big, QoS::AtMostOnce, 0)), Delivered::Sent, "one always fits");
    assert_eq!(session.deliver(&message("x", QoS::AtMostOnce, 0)), Delivered::DroppedQos0);
    assert_eq!(session.deliver(&message("x", QoS::AtLeastOnce, 0)), Delivered::Overrun);
    assert_eq!(events(&mut session), [Event::Closed(CloseReason::Overrun)]);
    assert_eq!(session.deliver(&message("x", QoS::AtMostOnce, 0)), Delivered::NotOpen);
}

#[test]
fn a_client_that_acknowledges_nothing_overruns_however_small_the_messages() {
    let mut session = open();
    let mut count = 0;
    while session.deliver(&message("", QoS::AtLeastOnce, 3)) != Delivered::Overrun {
        session.transmit().clear();
        count += 1;
    }
    assert!((10_000..40_000).contains(&count), "{count}");
    assert_eq!(session.unacknowledged().count(), count, "the driver can tell who got no receipt");
}

#[test]
fn subscriptions_are_kept_replaced_and_forgotten() {
    let mut session = open_with(SessionLimits { subscriptions: 2, ..Default::default() }, |_| {}, 0);
    let bytes =
        Bytes::from(subscribe(1, &[("a/#", Q::ExactlyOnce), ("b", Q::AtMostOnce), ("c", Q::AtMostOnce)]));
    session.receive(&bytes, 0);
    let Some(Event::Subscribe { packet_id: 1, filters }) = session.poll_event() else { panic!() };
    assert_eq!(filters.iter().map(|f| f.refused).collect::<Vec<_>>(), [None, None, Some(0x80)]);
    assert_eq!(filters[0].qos, QoS::AtLeastOnce);
    assert_eq!(session.subscriptions().count(), 2, "also before the answer, to be undone");
    session.subscribed(1, &[1, 0, 0]);
    assert_eq!(&session.transmit().split()[..], [0x90, 5, 0, 1, 1, 0, 0x80]);
    session.subscribed(1, &[1, 1, 1]);
    assert!(session.transmit().is_empty(), "answered once");
    feed(&mut session, &[subscribe(2, &[("b", Q::AtLeastOnce)])]);
    session.subscribed(2, &[1]);
    let mut all: Vec<_> = session.subscriptions().map(|(f, q)| (f.clone(), q.number())).collect();
    all.sort();
    assert_eq!(all, [(Bytes::from("a/#"), 1), (Bytes::from("b"), 1)]);
    session.transmit().clear();
    feed(&mut session, &[unsubscribe(3, "a/#"), unsubscribe(4, "unknown"), unsubscribe(5, "b")]);
    assert_eq!(session.subscriptions().count(), 0);
    [3, 4, 5].iter().for_each(|id| session.unsubscribed(*id));
    assert_eq!(&session.transmit().split()[..], [0xb0, 2, 0, 3, 0xb0, 2, 0, 4, 0xb0, 2, 0, 5]);
}

#[test]
fn a_refused_subscription_is_forgotten_unless_it_was_granted_or_is_asked_again() {
    let mut session = open();
    feed(&mut session, &[subscribe(1, &[("a", Q::AtMostOnce), ("b", Q::AtMostOnce)])]);
    session.subscribed(1, &[0, 0x80]);
    assert_eq!(session.subscriptions().count(), 1);
    feed(&mut session, &[subscribe(2, &[("a", Q::AtLeastOnce)])]);
    session.subscribed(2, &[]);
    assert_eq!(session.subscriptions().map(|(_, q)| q).collect::<Vec<_>>(), [QoS::AtMostOnce]);
    feed(&mut session, &[subscribe(3, &[("c", Q::AtMostOnce)]), subscribe(4, &[("c", Q::AtMostOnce)])]);
    session.subscribed(3, &[0x80]);
    session.subscribed(4, &[0]);
    assert_eq!(session.subscriptions().count(), 2);
    feed(&mut session, &[subscribe(5, &[("d", Q::AtMostOnce)]), unsubscribe(6, "d")]);
    session.subscribed(5, &[0]);
    assert_eq!(session.subscriptions().count(), 2, "unsubscribed before the answer");
}

#[test]
fn unanswered_subscribes_are_bounded() {
    let mut session = open();
    let bytes = Bytes::from(subscribe(1, &[("a", Q::AtMostOnce)]).repeat(100));
    let mut used = 0;
    while let taken @ 1.. = session.receive(&bytes.slice(used..), 0) {
        events(&mut session);
        used += taken;
    }
    assert_eq!(used * 100, bytes.len() * 64);
    assert!(!session.wants_read());
    session.subscribed(1, &[0]);
    assert!(session.wants_read());
}

fn with_will(connect: &mut v4::Connect) {
    connect.keep_alive = 10;
    connect.last_will = Some(v4::LastWill::new("gone/1", "bye", Q::AtLeastOnce, true));
}

#[test]
fn the_will_fires_on_every_end_but_disconnect_and_a_stale_state() {
    for reason in
        [CloseReason::PeerClosed, CloseReason::TakenOver, CloseReason::Draining, CloseReason::KeepAlive]
    {
        let mut session = open_with(SessionLimits::default(), with_will, 0);
        session.close(reason);
        let events = events(&mut session);
        let [Event::Will(will), Event::Closed(closed)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(
            (&will.topic[..], &will.payload[..], will.qos),
            (&b"gone/1"[..], &b"bye"[..], QoS::AtLeastOnce)
        );
        assert_eq!(*closed, reason);
    }
    let mut session = open_with(SessionLimits::default(), with_will, 0);
    session.receive(&Bytes::copy_from_slice(&DISCONNECT), 0);
    assert_eq!(events(&mut session), [Event::Closed(CloseReason::Disconnect)]);
    let mut session = open_with(SessionLimits::default(), with_will, 0);
    session.deliver(&message("stale", QoS::AtMostOnce, 0));
    session.close(CloseReason::Paused);
    assert_eq!(events(&mut session), [Event::Closed(CloseReason::Paused)]);
    assert!(session.transmit().is_empty());
}

#[test]
fn a_will_of_qos_2_is_published_with_qos_1() {
    let will = |connect: &mut v4::Connect| {
        connect.last_will = Some(v4::LastWill::new("gone/1", "bye", Q::ExactlyOnce, false));
    };
    let mut session = open_with(SessionLimits::default(), will, 0);
    session.close(CloseReason::PeerClosed);
    let Some(Event::Will(will)) = session.poll_event() else { panic!("no will") };
    assert_eq!(will.qos, QoS::AtLeastOnce);
}

#[test]
fn the_will_of_a_client_that_was_not_admitted_does_not_fire() {
    let mut session = Session::new(Arc::default(), Arc::default(), 0);
    session.receive(&connect(with_will), 0);
    assert!(session.will().is_some());
    session.close(CloseReason::PeerClosed);
    assert!(!events(&mut session).iter().any(|event| matches!(event, Event::Will(_))));
}

#[test]
fn keep_alive_is_one_and_a_half_times_and_counts_packets_not_bytes() {
    let mut session = open_with(SessionLimits::default(), |c| c.keep_alive = 10, 1_000);
    assert_eq!(session.deadline(), Some(16_000));
    session.receive(&Bytes::copy_from_slice(&PING), 5_000);
    assert_eq!(session.deadline(), Some(20_000));
    session.receive(&Bytes::from_static(&[0x30, 9, 0, 3]), 19_000);
    session.tick(19_999);
    assert!(session.closed().is_none());
    session.tick(20_000);
    assert_eq!(session.closed(), Some(CloseReason::KeepAlive));
    assert!(session.deadline().is_none());
    assert!(open().deadline().is_none(), "keep alive 0 is none");
}

#[test]
fn keep_alive_starts_anew_after_a_pause_of_ours() {
    let mut session = open_with(SessionLimits::default(), |c| c.keep_alive = 10, 0);
    session.suspend_keep_alive(true, 1_000);
    assert!(session.deadline().is_none());
    session.tick(100_000);
    assert!(session.closed().is_none());
    session.suspend_keep_alive(false, 100_000);
    assert_eq!(session.deadline(), Some(115_000));
}

#[test]
fn a_connection_without_a_whole_connect_is_closed_in_time() {
    let mut session = Session::new(Arc::default(), Arc::default(), 500);
    let bytes = connect(|_| {});
    assert_eq!(session.receive(&bytes.slice(..5), 9_000), 0);
    assert_eq!(session.deadline(), Some(10_500));
    session.tick(10_500);
    assert_eq!(events(&mut session), [Event::Closed(CloseReason::ConnectTimeout)]);
}
