//! A session that is connected, what a client sends it, and what it answers.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mqttbytes::{QoS as Q, v4};
use penstock_mqtt::{
    packet::QoS,
    reserved::Reserved,
    session::{Admission, Delivery, Event, Millis, PublishToken, Session, SessionLimits},
};

pub fn connect(set: impl FnOnce(&mut v4::Connect)) -> Bytes {
    let mut connect = v4::Connect::new("c1");
    connect.set_login("demo/device", "secret").keep_alive = 0;
    set(&mut connect);
    let mut out = BytesMut::new();
    connect.write(&mut out).unwrap();
    out.freeze()
}

pub fn open_with(limits: SessionLimits, set: impl FnOnce(&mut v4::Connect), now: Millis) -> Session {
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

pub fn open() -> Session {
    open_with(SessionLimits::default(), |_| {}, 0)
}

pub fn written(session: &mut Session) -> Vec<v4::Packet> {
    let mut bytes = session.transmit().split();
    session.written(0);
    std::iter::from_fn(|| (!bytes.is_empty()).then(|| v4::read(&mut bytes, 1 << 28).unwrap())).collect()
}

pub fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

pub fn publish(id: u16) -> BytesMut {
    let mut out = BytesMut::new();
    let qos = if id == 0 { Q::AtMostOnce } else { Q::AtLeastOnce };
    let mut publish = v4::Publish::new("a/b", qos, format!("m{id}"));
    publish.pkid = id;
    publish.write(&mut out).unwrap();
    out
}

pub fn feed(session: &mut Session, parts: &[BytesMut]) -> Vec<PublishToken> {
    let bytes = Bytes::from(parts.concat());
    assert_eq!(session.receive(&bytes, 0), bytes.len());
    let token = |event| if let Event::Publish { token, .. } = event { token } else { None };
    events(session).into_iter().filter_map(token).collect()
}

pub fn subscribe(id: u16, filters: &[(&str, Q)]) -> BytesMut {
    let filters = filters.iter().map(|(path, qos)| v4::SubscribeFilter { path: (*path).into(), qos: *qos });
    let mut subscribe = v4::Subscribe::new_many(filters);
    subscribe.pkid = id;
    let mut out = BytesMut::new();
    subscribe.write(&mut out).unwrap();
    out
}

pub fn unsubscribe(id: u16, filter: &str) -> BytesMut {
    let mut out = BytesMut::new();
    let mut packet = v4::Unsubscribe::new(filter);
    packet.pkid = id;
    packet.write(&mut out).unwrap();
    out
}

pub fn puback(id: u16) -> BytesMut {
    let mut out = BytesMut::new();
    v4::PubAck::new(id).write(&mut out).unwrap();
    out
}

pub const PING: [u8; 2] = [0xc0, 0];
pub const DISCONNECT: [u8; 2] = [0xe0, 0];

pub fn acked(session: &mut Session) -> Vec<u16> {
    written(session)
        .into_iter()
        .map(|packet| if let v4::Packet::PubAck(ack) = packet { ack.pkid } else { panic!("{packet:?}") })
        .collect()
}

pub fn message(payload: &str, qos: QoS, token: u64) -> Delivery<'_> {
    Delivery { topic: b"down/1", payload: payload.as_bytes(), qos, token }
}

pub fn sent(session: &mut Session) -> Vec<(u16, String)> {
    let read = |packet| match packet {
        v4::Packet::Publish(p) => {
            assert!(!p.retain && !p.dup);
            (p.pkid, String::from_utf8(p.payload.to_vec()).unwrap())
        }
        other => panic!("{other:?}"),
    };
    written(session).into_iter().map(read).collect()
}
