//! The way in: one CONNECT, acknowledgements in the order of the publishes, and when a client is not read.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mqttbytes::{QoS as Q, v4};
use penstock_mqtt::session::{Admission, CloseReason, Event, PublishToken, Session, SessionLimits, Settled};

use crate::support::{PING, acked, connect, events, feed, open, open_with, publish, written};

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
fn a_publish_of_qos_2_closes_after_earlier_acknowledgements() {
    let mut session = open();
    let bytes =
        Bytes::from([&publish(1)[..], &publish(2), &[0x34, 6, 0, 1, b'a', 0, 3, b'x'], &PING].concat());
    session.receive(&bytes, 0);
    let tokens: Vec<_> = events(&mut session)
        .into_iter()
        .filter_map(|event| if let Event::Publish { token, .. } = event { token } else { None })
        .collect();
    assert!(session.closed().is_none() && !session.wants_read());
    tokens.iter().for_each(|token| session.settle(*token, Settled::Stored));
    assert_eq!(acked(&mut session), [1, 2]);
    assert_eq!(events(&mut session), [Event::Closed(CloseReason::QosNotOffered)]);
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
    let mut asked_twice = open();
    feed(&mut asked_twice, &[publish(1)]);
    (0..100).for_each(|_| asked_twice.close_when_settled(CloseReason::Draining));
    assert_eq!(asked_twice.unsettled(), 2, "the publish, and one end");
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
    let limits = SessionLimits { control_rate: 10_000, ..Default::default() };
    let mut session = open_with(limits, |_| {}, 0);
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
