//! Sessions that outlive their connection: a store that hands out mail, connections that break at any time. What must hold:
//! every message arrives, first arrivals in order; what was sent before and not acknowledged comes again first, with its
//! identifier and DUP; nothing that was never handed out has DUP.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeMap, sync::Arc};

use bytes::{Bytes, BytesMut};
use mqttbytes::{QoS as Q, v4};
use penstock_mqtt::{
    packet::QoS,
    session::{Admission, CloseReason, Delivered, Delivery, Event, Session, SessionLimits},
};
use proptest::{collection::vec, prelude::*};

const WINDOW: u16 = 4;

fn limits() -> Arc<SessionLimits> {
    Arc::new(SessionLimits { persistent: true, inflight_out: WINDOW, ..SessionLimits::default() })
}

fn connect(clean: bool) -> Bytes {
    let mut connect = v4::Connect::new("c1");
    connect.set_login("demo/device", "x").clean_session = clean;
    let mut out = BytesMut::new();
    connect.write(&mut out).unwrap();
    out.freeze()
}

fn judged() -> Session {
    let mut session = Session::new(limits(), Arc::default(), 0);
    session.receive(&connect(false), 0);
    let Some(Event::Connect(connect)) = session.poll_event() else { panic!("no CONNECT") };
    assert!(!connect.clean_session);
    session
}

fn open(filters: &[(&'static str, QoS)], sent: &[(u16, u64)]) -> Session {
    let mut session = judged();
    let filters = filters.iter().map(|(filter, qos)| (Bytes::from_static(filter.as_bytes()), *qos));
    session.resume(filters, sent.iter().copied());
    session.admit(Admission::Accepted { session_present: true }, 0);
    assert_eq!(session.transmit().split().as_ref(), [0x20, 2, 1, 0]);
    session
}

fn delivery(token: u64) -> Delivery<'static> {
    Delivery { topic: b"t", payload: b"p", qos: QoS::AtLeastOnce, token }
}

fn written(session: &mut Session) -> Vec<(u16, bool)> {
    let mut bytes = session.transmit().split();
    let mut publishes = Vec::new();
    while !bytes.is_empty() {
        let v4::Packet::Publish(publish) = v4::read(&mut bytes, 1 << 20).unwrap() else {
            panic!("no PUBLISH")
        };
        assert_eq!(publish.qos, Q::AtLeastOnce);
        publishes.push((publish.pkid, publish.dup));
    }
    publishes
}

fn acknowledge(session: &mut Session, id: u16) -> Option<u64> {
    let [high, low] = id.to_be_bytes();
    session.receive(&Bytes::copy_from_slice(&[0x40, 2, high, low]), 0);
    match session.poll_event() {
        Some(Event::Acknowledged { token }) => Some(token),
        None => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn clean_session_0_is_refused_where_it_is_not_offered() {
    let mut session = Session::new(Arc::default(), Arc::default(), 0);
    session.receive(&connect(false), 0);
    assert_eq!(session.poll_event(), Some(Event::Closed(CloseReason::PersistentSession)));
}

#[test]
fn filters_and_identifiers_of_earlier_connections_are_there() {
    let mut session = open(&[("a/#", QoS::AtLeastOnce)], &[(7, 70), (1, 80)]);
    let filters: Vec<_> = session.subscriptions().map(|(filter, qos)| (filter.clone(), qos)).collect();
    assert_eq!(filters, [(Bytes::from_static(b"a/#"), QoS::AtLeastOnce)]);
    assert_eq!(session.reserve(), [2, 3], "1 is in flight, and the window is 4");
    assert_eq!(session.reserve(), [2, 3], "no more than the window");
    assert!(session.deliver_mail(7, true, &delivery(70)));
    assert!(session.deliver_mail(1, true, &delivery(80)));
    assert!(session.deliver_mail(3, false, &delivery(90)));
    assert!(!session.deliver_mail(7, true, &delivery(71)), "another message's identifier");
    assert_eq!(written(&mut session), [(7, true), (1, true), (3, false)]);
    assert_eq!(acknowledge(&mut session, 1), Some(80));
    assert_eq!(acknowledge(&mut session, 1), None);
    assert_eq!(acknowledge(&mut session, 3), Some(90));
    assert_eq!(session.reserve(), [2, 4, 5]);
}

#[test]
fn pushes_and_mail_share_one_window() {
    let mut session = open(&[], &[]);
    assert_eq!(session.reserve(), [1, 2, 3, 4]);
    assert_eq!(session.deliver(&delivery(5)), Delivered::Queued);
    assert!(session.deliver_mail(1, false, &delivery(10)));
    assert_eq!(acknowledge(&mut session, 1), Some(10));
    assert_eq!(written(&mut session), [(1, false), (5, false)], "the push got the place");
    session.release();
    assert_eq!(session.reserve(), [6, 7, 8]);
    session.release();
    assert_eq!(session.reserve(), [6, 7, 8], "an unused reservation uses no identifier up");
    session.close(CloseReason::PeerClosed);
    assert!(!session.deliver_mail(6, false, &delivery(11)));
}

/// Mail as the store keeps it: number → packet identifier once it was handed out.
#[derive(Default)]
struct Store {
    mail: BTreeMap<u64, Option<u16>>,
    next: u64,
}

impl Store {
    fn step(&mut self, received: u64, ids: &[u16]) -> Vec<(u64, u16, bool)> {
        let sent = self.mail.iter().filter_map(|(number, id)| Some((*number, (*id)?)));
        let sent: Vec<_> = sent.collect();
        let mut free = ids.iter().filter(|id| sent.iter().all(|(_, used)| used != *id));
        let again = sent.iter().filter(|(number, _)| *number > received).map(|(n, id)| (*n, *id, true));
        let mut out: Vec<_> = again.collect();
        for (number, id) in self.mail.iter_mut().filter(|(_, id)| id.is_none()) {
            let Some(new) = free.next() else { break };
            *id = Some(*new);
            out.push((*number, *new, false));
        }
        out
    }
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Publish,
    /// A step whose answer arrives, or is lost.
    Step(bool),
    /// The client reads what was written, or the connection breaks before.
    Read,
    Acknowledge(usize),
    Break,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => Just(Act::Publish),
        6 => prop::bool::weighted(0.8).prop_map(Act::Step),
        5 => Just(Act::Read),
        6 => (0usize..9).prop_map(Act::Acknowledge),
        1 => Just(Act::Break),
    ]
}

struct World {
    store: Store,
    session: Session,
    received: u64,
    /// (packet identifier, number) of deliveries that the client has not acknowledged.
    held: Vec<(u16, u64)>,
    /// Last identifier that each number had, and how often it was handed out.
    given: BTreeMap<u64, u16>,
    arrived: Vec<u64>,
}

impl World {
    fn read(&mut self) {
        let by_id: BTreeMap<u16, u64> = self.given.iter().map(|(number, id)| (*id, *number)).collect();
        for (id, _) in written(&mut self.session) {
            let number = by_id[&id];
            if !self.held.iter().any(|(_, held)| *held == number) {
                self.held.push((id, number));
            }
            if !self.arrived.contains(&number) {
                self.arrived.push(number);
            }
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Publish => {
                self.store.next += 1;
                self.store.mail.insert(self.store.next, None);
            }
            Act::Step(arrives) => {
                let ids = self.session.reserve().to_vec();
                let stepped = self.store.step(self.received, &ids);
                for (number, id, again) in stepped {
                    assert_eq!(self.given.insert(number, id).unwrap_or(id), id, "one identifier for good");
                    if arrives {
                        assert!(self.session.deliver_mail(id, again, &delivery(number)));
                        self.received = number;
                    }
                }
                if arrives {
                    self.session.release();
                }
            }
            Act::Read => self.read(),
            Act::Acknowledge(which) if !self.held.is_empty() => {
                let (id, number) = self.held.remove(which % self.held.len());
                if let Some(token) = acknowledge(&mut self.session, id) {
                    assert_eq!(token, number);
                    self.store.mail.remove(&number);
                    self.given.remove(&number);
                }
            }
            Act::Acknowledge(_) => {}
            Act::Break => {
                let sent: Vec<_> =
                    self.store.mail.iter().filter_map(|(number, id)| Some(((*id)?, *number))).collect();
                self.session = open(&[], &sent);
                self.received = 0;
                self.held.clear();
            }
        }
        assert!(self.session.inflight() <= usize::from(WINDOW));
    }
}

proptest! {
    #[test]
    fn every_message_arrives_in_order_whatever_breaks(acts in vec(act(), 1..120)) {
        let mut world = World {
            store: Store::default(),
            session: open(&[], &[]),
            received: 0,
            held: Vec::new(),
            given: BTreeMap::new(),
            arrived: Vec::new(),
        };
        for one in acts {
            world.act(one);
        }
        for _ in 0..=world.store.mail.len() {
            world.act(Act::Step(true));
            world.act(Act::Read);
            while !world.held.is_empty() {
                world.act(Act::Acknowledge(0));
            }
        }
        prop_assert!(world.store.mail.is_empty());
        prop_assert!(world.arrived.is_sorted(), "{:?}", world.arrived);
        prop_assert_eq!(world.arrived.len() as u64, world.store.next);
    }
}
