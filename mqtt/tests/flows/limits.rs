//! What a client may ask for at most: size and number of packets.

use bytes::{Bytes, BytesMut};
use mqttbytes::QoS as Q;
use penstock_mqtt::session::{CloseReason, Event, SessionLimits};

use crate::support::{PING, events, open, open_with, puback, publish, subscribe, written};

#[test]
fn a_flood_of_what_stores_nothing_is_read_at_a_pace_and_no_reason_to_close() {
    let limits = SessionLimits { control_rate: 10, ..Default::default() };
    let mut session = open_with(limits, |connect| connect.keep_alive = 2, 0);
    let flood = Bytes::from([PING.repeat(298).as_slice(), &puback(9), &puback(9), &PING.repeat(50)].concat());
    let mut used = session.receive(&flood, 0);
    assert_eq!(used, 298 * 2 + 8, "30 seconds' worth at once");
    assert!(!session.wants_read() && session.needs(&flood[used..]).is_none());
    written(&mut session);
    let mut now = 0;
    while used < flood.len() {
        let deadline = session.deadline().unwrap();
        assert!(deadline > now && deadline <= now + 200);
        now = deadline;
        session.tick(now);
        assert!(session.wants_read());
        let read = session.receive(&flood.slice(used..), now);
        assert!(read > 0 && read <= 4, "{read}");
        used += read;
    }
    assert!((4_500..=5_100).contains(&now), "{now}");
    assert!(session.is_open(), "the keep alive did not run against it");
}

#[test]
fn a_pace_does_not_hold_up_publishes() {
    let mut session = open_with(SessionLimits { control_rate: 1, ..Default::default() }, |_| {}, 0);
    let bytes = Bytes::from([&PING.repeat(30)[..], &publish(0), &publish(1), &PING].concat());
    assert_eq!(session.receive(&bytes, 0), bytes.len() - 2);
    assert_eq!(events(&mut session).len(), 2);
}

#[test]
fn a_tenants_packet_limit_refuses_before_the_body_is_there() {
    let mut session = open();
    session.limit_packets(300);
    let whole = publish(1).freeze();
    assert_eq!(session.receive(&whole, 0), whole.len());
    // PUBLISH, 300 bytes behind the header.
    assert_eq!(session.receive(&Bytes::from_static(&[0x30, 0xac, 0x02]), 0), 0);
    assert_eq!(session.closed(), Some(CloseReason::PacketTooLarge));
    let mut above = open();
    above.limit_packets(u32::MAX);
    above.receive(&Bytes::from_static(&[0x30, 0xff, 0xff, 0xff, 0x7f]), 0);
    assert_eq!(above.closed(), Some(CloseReason::PacketTooLarge), "not above the server's own");
}

#[test]
fn held_subscribes_wait_until_released() {
    let mut session = open();
    session.hold_subscribes(true);
    let bytes: BytesMut = [&PING[..], &subscribe(1, &[("a", Q::AtMostOnce)])].concat().as_slice().into();
    let bytes = bytes.freeze();
    assert_eq!(session.receive(&bytes, 0), 2);
    assert!(!session.wants_read());
    session.hold_subscribes(false);
    assert!(session.wants_read());
    assert_eq!(session.receive(&bytes.slice(2..), 0), bytes.len() - 2);
    assert!(matches!(events(&mut session)[..], [Event::Subscribe { packet_id: 1, .. }]));
}
