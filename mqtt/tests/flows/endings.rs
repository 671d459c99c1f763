//! How a connection ends: wills, keep alive, a CONNECT that never comes.

use std::sync::Arc;

use bytes::Bytes;
use mqttbytes::{QoS as Q, v4};
use penstock_mqtt::{
    packet::QoS,
    session::{CloseReason, Event, Session, SessionLimits},
};

use crate::support::{DISCONNECT, PING, connect, events, message, open, open_with};

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
