//! A program of bytes drives one session after the other: what a client sends, in any splits, what a driver does, in any
//! order, and the time. After each step [`super::model`] judges what the session did.

use std::sync::Arc;

use bytes::Bytes;
use penstock_mqtt::{
    packet::{ConnectCode, QoS},
    reserved::Reserved,
    session::{
        Admission, CloseReason, Delivered, Delivery, Event, Millis, PublishToken, Session, SessionLimits,
        Settled,
    },
};

use super::{
    model::Model,
    packets::{field, packet},
};

/// Bytes that the client has sent and the driver has not read: more are not sent.
const WIRE: usize = 8_192;
/// Largest payload of a delivery.
const PAYLOAD: usize = 300;
/// Packet identifiers that an earlier connection can leave unacknowledged.
const RESUMED: usize = 6;

/// Runs a program to its end; the number of its steps.
pub fn run(program: &[u8]) -> u64 {
    let mut world = World::new(Program(program));
    let mut steps = 0;
    while !world.program.0.is_empty() {
        world.step();
        steps += 1;
    }
    world.close(CloseReason::PeerClosed);
    steps
}

struct Program<'a>(&'a [u8]);

impl<'a> Program<'a> {
    fn byte(&mut self) -> u8 {
        let byte = self.0.first().copied().unwrap_or_default();
        self.0 = self.0.get(1..).unwrap_or_default();
        byte
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit.max(1)
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

struct World<'a> {
    program: Program<'a>,
    session: Session,
    limits: Arc<SessionLimits>,
    model: Model,
    now: Millis,
    /// Sent by the client, not read.
    wire: Vec<u8>,
    /// Read, not consumed.
    rest: Vec<u8>,
    /// SUBSCRIBE and UNSUBSCRIBE that wait: (packet identifier, filters; none: UNSUBSCRIBE).
    unanswered: Vec<(u16, Option<usize>)>,
    /// Publishes that wait.
    unsettled: Vec<PublishToken>,
    judged: bool,
}

fn limits(which: usize) -> SessionLimits {
    let tiny = SessionLimits {
        packet_bytes: 300,
        topic_bytes: 12,
        client_bytes: 6,
        filters_per_packet: 3,
        subscriptions: 4,
        inflight_out: 2,
        outbound_bytes: 500,
        unsettled: 2,
        control_rate: 3,
        connect_timeout: 1_000,
        persistent: true,
    };
    match which {
        0 => SessionLimits { persistent: true, ..SessionLimits::default() },
        1 => SessionLimits {
            persistent: false,
            outbound_bytes: 4_096,
            unsettled: 20,
            control_rate: 1_000,
            ..tiny
        },
        2 => SessionLimits { packet_bytes: 2, inflight_out: 0, unsettled: 0, outbound_bytes: 0, ..tiny },
        _ => tiny,
    }
}

impl<'a> World<'a> {
    fn new(mut program: Program<'a>) -> Self {
        let how = program.byte();
        let limits = Arc::new(limits(usize::from(how) % 8));
        let mut world = Self {
            program,
            session: Session::new(Arc::clone(&limits), Arc::new(Reserved::default()), 0),
            model: Model::new(&limits),
            limits,
            now: 0,
            wire: Vec::new(),
            rest: Vec::new(),
            unanswered: Vec::new(),
            unsettled: Vec::new(),
            judged: false,
        };
        // Most runs get past the door, or nothing behind it would be tried.
        if how & 0xe0 != 0 {
            world.send_connect(how & 0x20 != 0);
            world.carry(usize::MAX);
        }
        world
    }

    fn step(&mut self) {
        match self.program.byte() % 32 {
            0 => {
                let count = self.program.below(24);
                let raw = self.program.bytes(count);
                self.send(raw);
            }
            1..=4 => self.send_publish(),
            5 | 6 => self.send_filters(),
            7 => self.send(&packet(0xc0, &[])),
            8 | 9 => self.send_puback(),
            10 => self.send_rarely(),
            11..=14 => {
                let count = self.program.below(40);
                self.carry(count);
            }
            15 => self.carry(usize::MAX),
            16 | 17 => self.settle(),
            18 => self.answer(),
            19..=21 => self.deliver(),
            22 | 23 => self.mail(),
            24 | 25 => {
                let count = self.program.below(200);
                self.write(count);
            }
            26 => self.write(usize::MAX),
            27 => self.pass_time(),
            28 => {
                let on = self.program.byte() & 1 == 1;
                self.session.hold_publishes(on, self.now);
            }
            29 => match self.program.byte() {
                how if how & 2 == 0 => self.session.suspend_keep_alive(how & 1 == 1, self.now),
                0xff => self.session.limit_packets(200),
                how => self.session.hold_subscribes(how & 1 == 1),
            },
            30 => self.admit(),
            _ => self.end_rarely(),
        }
        self.events();
        self.model.check(&mut self.session);
    }

    fn send(&mut self, bytes: &[u8]) {
        if self.wire.len() < WIRE {
            self.wire.extend_from_slice(bytes);
        }
    }

    fn send_connect(&mut self, will: bool) {
        let client =
            [&b""[..], b"c1", b"client", b"seven77", b"\0"][self.program.below(20).saturating_sub(15)];
        let client = if client.is_empty() { b"c1" } else { client };
        let clean = if self.program.byte() & 3 == 0 { 0 } else { 2 };
        let [keep_alive, topic] = [self.program.byte() % 4, self.program.byte()];
        let topic = self.name(topic);
        let (flags, will) =
            if will { (0xc6 | 8, [field(topic), field(b"bye")].concat()) } else { (0xc2, vec![]) };
        let head = [&b"\0\x04MQTT\x04"[..], &[flags & !2 | clean, 0, keep_alive]].concat();
        self.send(&packet(0x10, &[head, field(client), will, field(b"t/u"), field(b"p")].concat()));
    }

    fn name(&mut self, which: u8) -> &'static [u8] {
        [&b"a"[..], b"a/b", b"/", "é/ü".as_bytes(), b"$x", b"s/us", b"error", b"a/+", b"", b"a-longer/name"]
            [usize::from(which) % 16 % 10]
    }

    fn send_publish(&mut self) {
        let how = self.program.byte();
        let (topic, id, length) = (self.program.byte() & 3, self.program.byte(), self.program.below(60));
        // Seldom one that is refused.
        let topic = if how >= 0xf8 { how } else { topic };
        let qos = if how & 1 == 0 { 0 } else { 2 };
        let dup = if how & 6 == 6 && qos > 0 { 8 } else { 0 };
        let mut body = field(self.name(topic));
        if qos > 0 {
            body.extend([0, id | 1]);
        }
        body.extend(vec![id; length]);
        self.send(&packet(0x30 | dup | qos | how >> 3 & 1, &body));
    }

    fn send_filters(&mut self) {
        let (how, count) = (self.program.byte(), self.program.below(4));
        let subscribe = how & 1 == 1;
        let mut body = vec![0, how >> 1 | 1];
        for _ in 0..count.max(usize::from(how < 0xf0)) {
            let which = self.program.byte();
            let filters = [&b"a/#"[..], b"+", b"a/b", b"#", b"s/x", b"$share/g/a", b"/+/", b"longer-than-12"];
            body.extend(field(filters[usize::from(which) % 8]));
            if subscribe {
                body.push(if which == 0xff { 3 } else { which >> 3 & 1 });
            }
        }
        self.send(&packet(if subscribe { 0x82 } else { 0xa2 }, &body));
    }

    fn send_puback(&mut self) {
        let which = self.program.byte();
        let id = self.model.open_id(usize::from(which)).unwrap_or(u16::from(which).max(1));
        self.send(&packet(0x40, &id.to_be_bytes()));
    }

    fn send_rarely(&mut self) {
        match self.program.byte() {
            0 => self.send(&packet(0xe0, &[])),
            1 => self.send_connect(true),
            2 => self.send(&packet(0x34, b"\0\x01a\0\x01")),
            3 => self.send(&[0x30, 0xff, 0xff, 0xff, 0x7f]),
            4 => self.send(&packet(0x62, b"\0\x01")),
            kind => {
                self.send(&packet(kind & 0xf0 | kind & 2, &[0, kind, 0, 1, b'a', 0][..usize::from(kind) % 7]))
            }
        }
    }

    /// The driver reads so many bytes, if the session wants them, and gives them on.
    fn carry(&mut self, count: usize) {
        if self.session.wants_read() {
            let count = count.min(self.wire.len());
            self.rest.extend(self.wire.drain(..count));
        }
        self.receive();
    }

    fn receive(&mut self) {
        loop {
            let input = Bytes::copy_from_slice(&self.rest);
            let was_open = self.session.closed().is_none();
            let used = self.session.receive(&input, self.now);
            assert!(used <= input.len() && (was_open || used == 0));
            self.model.consumed(&input[..used]);
            self.rest.drain(..used);
            self.events();
            if used == 0 {
                break;
            }
        }
        self.model.stuck(&self.session, &self.rest);
        if self.session.closed().is_some() {
            (self.wire, self.rest) = (Vec::new(), Vec::new());
        }
    }

    fn events(&mut self) {
        let mut count = 0;
        while let Some(event) = self.session.poll_event() {
            count += 1;
            assert!(count <= 66, "a long queue of events");
            self.model.event(&event, &self.session);
            match event {
                Event::Connect(_) => {
                    self.judged = true;
                    // A verdict that comes later leaves the session waiting.
                    if self.program.byte() & 7 != 0 {
                        self.admit();
                    }
                }
                Event::Publish { token: Some(token), .. } => self.unsettled.push(token),
                Event::Subscribe { packet_id, filters } => {
                    self.unanswered.push((packet_id, Some(filters.len())));
                }
                Event::Unsubscribe { packet_id, .. } => self.unanswered.push((packet_id, None)),
                Event::Closed(_) => {
                    self.unsettled.clear();
                    self.unanswered.clear();
                }
                _ => {}
            }
        }
    }

    fn admit(&mut self) {
        if !std::mem::take(&mut self.judged) {
            return;
        }
        let how = self.program.byte();
        if how >= 0xf8 {
            return self.session.admit(Admission::Refused(ConnectCode::NotAuthorized), self.now);
        }
        if how & 7 == 0 {
            let count = self.program.below(RESUMED + 1);
            let base = u16::from(self.program.byte()) * 257;
            let sent: Vec<_> = (0..count).map(|at| base.wrapping_add(at as u16)).collect();
            let sent = self.model.resume(&sent);
            self.session.resume([(Bytes::from_static(b"a/#"), QoS::AtLeastOnce)], sent);
        }
        self.model.admitted();
        self.session.admit(Admission::Accepted { session_present: how & 7 == 0 }, self.now);
    }

    fn settle(&mut self) {
        let (which, fate) = (self.program.below(8), self.program.byte());
        if self.unsettled.is_empty() {
            return self.session.settle(PublishToken(fate.into()), Settled::Stored);
        }
        let token = self.unsettled.remove(which % self.unsettled.len());
        let outcome =
            if fate >= 0xfc { Settled::Refused(CloseReason::PublishQuota) } else { Settled::Stored };
        self.model.settle(token, outcome);
        self.session.settle(token, outcome);
        self.receive();
    }

    fn answer(&mut self) {
        let how = self.program.byte();
        if self.unanswered.is_empty() {
            self.session.subscribed(how.into(), &[how]);
            return self.session.unsubscribed(how.into());
        }
        match self.unanswered.remove(usize::from(how) % self.unanswered.len()) {
            (id, Some(count)) => {
                let codes: Vec<u8> =
                    (0..count + usize::from(how & 1)).map(|_| self.program.byte() & 0x81).collect();
                self.model.suback(id);
                self.session.subscribed(id, &codes);
            }
            (id, None) => self.session.unsubscribed(id),
        }
        self.receive();
    }

    fn deliver(&mut self) {
        let (how, length) = (self.program.byte(), self.program.below(64) * 5);
        let payload = &[7; PAYLOAD + 20][..length];
        let qos = if how & 3 == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let token = if how & 12 == 0 { 0 } else { self.model.next_token() };
        let delivered = self.session.deliver(&Delivery { topic: b"a/b", payload, qos, token });
        if qos == QoS::AtLeastOnce && matches!(delivered, Delivered::Sent | Delivered::Queued) {
            self.model.delivered(token);
        }
    }

    /// One exchange about mail, as the driver makes it: identifiers are reserved, some of them used, the rest given up.
    fn mail(&mut self) {
        let how = self.program.byte();
        if !self.session.is_open() || self.session.outbound_bytes() > self.limits.outbound_bytes as usize / 2
        {
            return;
        }
        let reserved = self.session.reserve().to_vec();
        for _ in 0..how & 3 {
            let (which, length) = (self.program.below(8), self.program.below(40));
            let payload = &[9; PAYLOAD][..length];
            let (id, token) = match (how >> 2 & 3, reserved.get(which)) {
                (0, _) => (u16::from(self.program.byte()), self.model.next_token()),
                (1, _) => match self.model.mail_to_repeat() {
                    Some(mail) => mail,
                    None => continue,
                },
                (_, Some(id)) => (*id, self.model.next_token()),
                (_, None) => continue,
            };
            let delivery = Delivery { topic: b"a", payload, qos: QoS::AtLeastOnce, token };
            let again = self.model.has_token(token);
            if self.session.deliver_mail(id, again, &delivery) {
                self.model.mailed(id, token);
            }
        }
        // Without it the answer was lost.
        if how & 0x30 != 0 {
            self.session.release();
        }
    }

    fn write(&mut self, count: usize) {
        let count = count.min(self.session.transmit().len());
        let bytes = self.session.transmit()[..count].to_vec();
        self.session.written(count);
        self.model.written(&bytes);
        self.receive();
    }

    fn pass_time(&mut self) {
        self.now += u64::from(self.program.byte()) * 20;
        self.session.tick(self.now);
        assert!(self.session.deadline().is_none_or(|deadline| deadline > self.now), "time stands still");
    }

    fn end_rarely(&mut self) {
        match self.program.byte() {
            0..4 => self.close(CloseReason::TakenOver),
            4 => self.close(CloseReason::Paused),
            5 => self.session.close_when_settled(CloseReason::Draining),
            _ if self.session.closed().is_some() => self.close(CloseReason::PeerClosed),
            _ => {}
        }
    }

    /// Ends the connection; what follows is another one.
    fn close(&mut self, reason: CloseReason) {
        self.session.close(reason);
        self.events();
        self.model.check(&mut self.session);
        self.write(usize::MAX);
        self.model.ended(&self.session);
        if !self.program.0.is_empty() {
            let program = std::mem::replace(&mut self.program, Program(&[]));
            *self = Self::new(program);
        }
    }
}
