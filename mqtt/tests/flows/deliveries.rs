//! The way out: the window, packet identifiers, the outbound limit.

use bytes::Bytes;
use penstock_mqtt::{
    packet::QoS,
    session::{CloseReason, Delivered, Event, SessionLimits},
};

use crate::support::{events, feed, message, open, open_with, puback, sent};

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
fn at_the_outbound_limit_the_oldest_of_qos_0_go_and_are_counted() {
    let limits = SessionLimits { outbound_bytes: 4_000, ..Default::default() };
    let mut session = open_with(limits, |_| {}, 0);
    let mut results = Vec::new();
    for n in 0..1_000 {
        results.push(session.deliver(&message(&n.to_string(), QoS::AtMostOnce, 0)));
        assert!(session.outbound_bytes() <= 4_000 + 32);
    }
    assert!(results.iter().all(|result| matches!(result, Delivered::Sent | Delivered::Queued)));
    let mut read = Vec::new();
    while session.outbound_bytes() > 0 {
        read.extend(sent(&mut session).into_iter().map(|(_, payload)| payload.parse::<u32>().unwrap()));
    }
    assert_eq!(session.take_displaced() as usize + read.len(), 1_000);
    assert_eq!(session.take_displaced(), 0);
    // What may be on the wire stays; of the rest the newest are there, in order.
    let gap = read.windows(2).position(|pair| pair[1] != pair[0] + 1).unwrap();
    assert!(read[..=gap].iter().copied().eq(0..=gap as u32) && gap < 200, "{gap}");
    let newest = &read[gap + 1..];
    assert!(newest.iter().copied().eq(1_000 - newest.len() as u32..1_000) && newest.len() > 100);
    assert_eq!(session.deliver(&message("again", QoS::AtMostOnce, 0)), Delivered::Sent);
}

#[test]
fn qos_1_takes_the_room_of_qos_0_and_closes_only_when_it_alone_is_too_much() {
    let limits = SessionLimits { outbound_bytes: 4_000, inflight_out: 2, ..Default::default() };
    let mut session = open_with(limits, |_| {}, 0);
    for n in 0..500 {
        session.deliver(&message(&n.to_string(), QoS::AtMostOnce, 0));
    }
    let before = session.take_displaced();
    let text = "x".repeat(500);
    let mut count = 0;
    while session.has_room(&message(&text, QoS::AtLeastOnce, 1)) {
        let delivered = session.deliver(&message(&text, QoS::AtLeastOnce, 1));
        assert_eq!(delivered, if count < 2 { Delivered::Sent } else { Delivered::Queued });
        assert!(session.outbound_bytes() <= 4_000 + 32);
        count += 1;
    }
    assert_eq!(count, 5, "all but what may be on the wire");
    assert!(before > 0 && session.take_displaced() > 100);
    assert_eq!(
        session.deliver(&message("x", QoS::AtMostOnce, 0)),
        Delivered::Queued,
        "a little room is left"
    );
    assert_eq!(session.deliver(&message(&text, QoS::AtLeastOnce, 1)), Delivered::Overrun);
    assert_eq!(session.closed(), Some(CloseReason::Overrun));
}
