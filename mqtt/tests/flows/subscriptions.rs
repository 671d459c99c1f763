//! Subscriptions: kept, replaced, refused, bounded.

use bytes::Bytes;
use mqttbytes::QoS as Q;
use penstock_mqtt::{
    packet::QoS,
    session::{Event, SessionLimits},
};

use crate::support::{events, feed, open, open_with, subscribe, unsubscribe};

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
