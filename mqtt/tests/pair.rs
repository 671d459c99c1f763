//! Two sides over a pipe that splits, delays and breaks, with a virtual clock: a client (written with `mqttbytes`) that
//! publishes, subscribes and acknowledges late and out of order, and a session whose driver settles out of order, holds and
//! releases. The pipe may break anywhere; the client connects again and sends again what was not acknowledged.
//!
//! What must hold: a PUBACK comes only for what was stored, and in the order of the publishes; nothing acknowledged is
//! missing; first storings are in order; deliveries of QoS 1 come in order and once a connection; bounds hold.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::{Buf, Bytes, BytesMut};
use mqttbytes::{QoS as Q, v4};
use penstock_mqtt::{
    packet::QoS,
    session::{
        Admission, CloseReason, Delivered, Delivery, Event, Millis, PublishToken, Session, SessionLimits,
        Settled,
    },
};
use proptest::{collection::vec, prelude::*};

const KEEP_ALIVE_MS: Millis = 10_000;

/// What happens next; numbers choose among what is possible then.
#[derive(Clone, Copy, Debug)]
enum Step {
    Publish,
    PublishQos0,
    Subscribe,
    Deliver,
    /// The pipe carries so many bytes to the server, or to the client.
    Up(usize),
    Down(usize),
    /// The driver settles one of those that wait.
    Settle(usize),
    Answer,
    Hold(bool),
    /// The client acknowledges one of its deliveries.
    Acknowledge(usize),
    Pass(Millis),
    Break,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => Just(Step::Publish),
        3 => Just(Step::PublishQos0),
        1 => Just(Step::Subscribe),
        6 => Just(Step::Deliver),
        10 => (1usize..60).prop_map(Step::Up),
        10 => (1usize..60).prop_map(Step::Down),
        8 => (0usize..100).prop_map(Step::Settle),
        2 => Just(Step::Answer),
        1 => any::<bool>().prop_map(Step::Hold),
        6 => (0usize..100).prop_map(Step::Acknowledge),
        2 => (0u64..4_000).prop_map(Step::Pass),
        1 => Just(Step::Break),
    ]
}

#[derive(Default)]
struct Client {
    to_send: BytesMut,
    received: BytesMut,
    connected: bool,
    next: u64,
    /// Published with QoS 1 and not acknowledged: (number, packet identifier), in order.
    open: VecDeque<(u64, u16)>,
    acknowledged: Vec<u64>,
    /// Deliveries not acknowledged yet.
    to_acknowledge: Vec<u16>,
    delivered: Vec<u64>,
    sent_at: Millis,
}

impl Client {
    fn connect(&mut self, now: Millis) {
        *self = Self {
            next: self.next,
            open: std::mem::take(&mut self.open),
            acknowledged: std::mem::take(&mut self.acknowledged),
            sent_at: now,
            ..Self::default()
        };
        let mut connect = v4::Connect::new("c1");
        connect.set_login("demo/device", "x").keep_alive = (KEEP_ALIVE_MS / 1_000) as u16;
        connect.write(&mut self.to_send).unwrap();
        for (number, id) in self.open.clone() {
            self.write_publish(number, id, true);
        }
    }

    fn write_publish(&mut self, number: u64, id: u16, dup: bool) {
        let qos = if id == 0 { Q::AtMostOnce } else { Q::AtLeastOnce };
        let mut publish = v4::Publish::new("up/1", qos, number.to_string());
        (publish.pkid, publish.dup) = (id, dup);
        publish.write(&mut self.to_send).unwrap();
    }

    fn publish(&mut self, acknowledged: bool) {
        self.next += 1;
        let id = if acknowledged { (self.next % 65_535 + 1) as u16 } else { 0 };
        if acknowledged {
            self.open.push_back((self.next, id));
        }
        self.write_publish(self.next, id, false);
    }

    fn receive(&mut self) {
        while !self.received.is_empty() {
            match v4::read(&mut self.received, 1 << 20) {
                Ok(packet) => self.packet(packet),
                Err(mqttbytes::Error::InsufficientBytes(_)) => return,
                Err(error) => panic!("the server wrote nonsense: {error:?}"),
            }
        }
    }

    fn packet(&mut self, packet: v4::Packet) {
        match packet {
            v4::Packet::ConnAck(ack) => {
                assert_eq!(ack.code, v4::ConnectReturnCode::Success);
                self.connected = true;
            }
            v4::Packet::PubAck(ack) => {
                let (number, id) = self.open.pop_front().expect("a PUBACK for nothing");
                assert_eq!(ack.pkid, id, "PUBACKs out of order [MQTT-4.6.0-2]");
                self.acknowledged.push(number);
            }
            v4::Packet::Publish(publish) => {
                assert!(!publish.retain);
                if publish.qos == Q::AtLeastOnce {
                    assert!(!self.to_acknowledge.contains(&publish.pkid), "identifier in use");
                    self.to_acknowledge.push(publish.pkid);
                    self.delivered.push(std::str::from_utf8(&publish.payload).unwrap().parse().unwrap());
                }
            }
            v4::Packet::SubAck(_) | v4::Packet::PingResp => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The server's side: the session and what its driver keeps.
struct Server {
    session: Session,
    buffer: BytesMut,
    unsettled: Vec<(PublishToken, u64)>,
    subscribes: VecDeque<(u16, usize)>,
    queued_deliveries: u64,
}

struct World {
    client: Client,
    server: Server,
    up: BytesMut,
    down: BytesMut,
    now: Millis,
    /// Numbers of publishes of QoS 1 as they were stored.
    stored: Vec<u64>,
    limits: Arc<SessionLimits>,
    closes: Vec<CloseReason>,
}

impl World {
    fn new() -> Self {
        let limits = Arc::new(SessionLimits {
            unsettled: 5,
            inflight_out: 3,
            outbound_bytes: 400,
            ..SessionLimits::default()
        });
        let mut world = Self {
            client: Client::default(),
            server: Server::new(&limits, 0),
            up: BytesMut::new(),
            down: BytesMut::new(),
            now: 0,
            stored: Vec::new(),
            limits,
            closes: Vec::new(),
        };
        world.client.connect(0);
        world
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Publish if self.client.connected && self.client.open.len() < 20 => {
                self.client.publish(true)
            }
            Step::PublishQos0 if self.client.connected => self.client.publish(false),
            Step::Subscribe if self.client.connected => self.subscribe(),
            Step::Deliver => self.deliver(),
            Step::Up(count) => self.carry_up(count),
            Step::Down(count) => self.carry_down(count),
            Step::Settle(which) => self.settle(which),
            Step::Answer => self.answer(),
            Step::Hold(on) => self.server.session.hold_publishes(on, self.now),
            Step::Acknowledge(which) => self.acknowledge(which),
            Step::Pass(time) => self.pass(time),
            Step::Break => self.reconnect(CloseReason::PeerClosed),
            _ => {}
        }
        self.check();
    }

    fn subscribe(&mut self) {
        let mut subscribe = v4::Subscribe::new("down/#", Q::AtLeastOnce);
        subscribe.pkid = 9;
        subscribe.write(&mut self.client.to_send).unwrap();
    }

    fn deliver(&mut self) {
        self.server.queued_deliveries += 1;
        let payload = self.server.queued_deliveries.to_string();
        let delivery =
            Delivery { topic: b"down/1", payload: payload.as_bytes(), qos: QoS::AtLeastOnce, token: 0 };
        match self.server.session.deliver(&delivery) {
            Delivered::NotOpen => self.server.queued_deliveries -= 1,
            Delivered::Overrun => self.reconnect(CloseReason::Overrun),
            _ => {}
        }
    }

    fn carry_up(&mut self, count: usize) {
        self.up.unsplit(self.client.to_send.split());
        self.client.sent_at = self.now;
        // A driver reads while the session wants it, and what a read brought at most.
        if self.server.session.wants_read() {
            let count = count.min(self.up.len());
            self.server.buffer.extend_from_slice(&self.up.split_to(count));
        }
        self.receive();
    }

    fn receive(&mut self) {
        loop {
            let input = Bytes::copy_from_slice(&self.server.buffer);
            let used = self.server.session.receive(&input, self.now);
            self.server.buffer.advance(used);
            while let Some(event) = self.server.session.poll_event() {
                self.event(event);
            }
            if used == 0 {
                return;
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Connect(connect) => {
                assert_eq!(&connect.client[..], b"c1");
                self.server.session.admit(Admission::Accepted { session_present: false }, self.now);
            }
            Event::Publish { publish, token } => {
                let number = std::str::from_utf8(&publish.payload).unwrap().parse().unwrap();
                self.server.unsettled.extend(token.map(|token| (token, number)));
            }
            Event::Subscribe { packet_id, filters } => {
                self.server.subscribes.push_back((packet_id, filters.len()));
            }
            Event::Closed(reason) => self.closes.push(reason),
            other => panic!("{other:?}"),
        }
    }

    fn carry_down(&mut self, count: usize) {
        let out = self.server.session.transmit();
        let written = count.min(out.len());
        self.down.extend_from_slice(&out[..written]);
        self.server.session.written(written);
        let count = count.min(self.down.len());
        let bytes = self.down.split_to(count);
        self.client.received.extend_from_slice(&bytes);
        self.client.receive();
        self.receive();
    }

    /// Stores in order, as a lane does, but tells the session in any order.
    fn settle(&mut self, which: usize) {
        if self.server.unsettled.is_empty() {
            return;
        }
        let (token, number) = self.server.unsettled.remove(which % self.server.unsettled.len());
        self.stored.push(number);
        self.server.session.settle(token, Settled::Stored);
        self.receive();
    }

    fn answer(&mut self) {
        if let Some((id, count)) = self.server.subscribes.pop_front() {
            self.server.session.subscribed(id, &vec![1; count]);
        }
    }

    fn acknowledge(&mut self, which: usize) {
        if !self.client.to_acknowledge.is_empty() {
            let id = self.client.to_acknowledge.remove(which % self.client.to_acknowledge.len());
            v4::PubAck::new(id).write(&mut self.client.to_send).unwrap();
        }
    }

    fn pass(&mut self, time: Millis) {
        self.now += time;
        if self.client.connected && self.now - self.client.sent_at > KEEP_ALIVE_MS / 2 {
            v4::PingReq.write(&mut self.client.to_send).unwrap();
        }
        self.server.session.tick(self.now);
        if let Some(reason) = self.server.session.closed() {
            assert!(matches!(reason, CloseReason::KeepAlive | CloseReason::ConnectTimeout));
            self.reconnect(reason);
        }
    }

    fn reconnect(&mut self, reason: CloseReason) {
        self.server.session.close(reason);
        self.receive();
        let delivered = &self.client.delivered;
        assert!(delivered.iter().copied().eq(1..=delivered.len() as u64), "deliveries: {delivered:?}");
        self.server = Server::new(&self.limits, self.now);
        (self.up, self.down) = (BytesMut::new(), BytesMut::new());
        self.client.connect(self.now);
    }

    fn check(&self) {
        let session = &self.server.session;
        assert!(session.unsettled() <= 5 && session.inflight() <= 3);
        assert!(session.outbound_bytes() <= 400 + 1_000, "{}", session.outbound_bytes());
        assert!(self.server.buffer.len() <= 200, "look-ahead");
        let overrun = |reason: &CloseReason| matches!(reason, CloseReason::Malformed(_));
        assert!(!self.closes.iter().any(overrun), "{:?}", self.closes);
    }

    /// Everything flows and settles; then the accounts must balance.
    fn finish(mut self) {
        self.server.session.hold_publishes(false, self.now);
        for _ in 0..400 {
            self.carry_up(100);
            self.settle(0);
            self.answer();
            self.acknowledge(0);
            self.carry_down(100);
        }
        assert_eq!(self.client.open.len(), 0, "not everything was acknowledged");
        assert!(self.client.acknowledged.is_sorted(), "acknowledged in order");
        let stored: BTreeSet<_> = self.stored.iter().collect();
        assert!(self.client.acknowledged.iter().all(|number| stored.contains(number)));
        assert_eq!(self.server.session.closed(), None);
        assert_eq!((self.server.session.unsettled(), self.server.session.inflight()), (0, 0));
        let delivered = &self.client.delivered;
        assert!(delivered.iter().copied().eq(1..=self.server.queued_deliveries), "{delivered:?}");
        assert_eq!(self.server.session.outbound_bytes(), 0);
    }
}

impl Server {
    fn new(limits: &Arc<SessionLimits>, now: Millis) -> Self {
        Self {
            session: Session::new(limits.clone(), Arc::default(), now),
            buffer: BytesMut::new(),
            unsettled: Vec::new(),
            subscribes: VecDeque::new(),
            queued_deliveries: 0,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_acknowledged_is_lost_and_order_is_kept(steps in vec(step(), 0..300)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.finish();
    }
}
