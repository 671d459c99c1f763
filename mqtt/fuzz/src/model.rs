//! What a session must have done, seen from outside: by the packets that it consumed, its events, and the packets that it
//! wrote. Panics when the session broke a promise.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use penstock_mqtt::session::{CloseReason, Event, PublishToken, Session, SessionLimits, Settled};

use super::packets::{front, number, publish_id};

/// Bytes that answers (to a full look-ahead of PUBLISH and SUBSCRIBE) and one delivery may take beyond their limits.
const SLACK: usize = 65_536 + 8_192;

/// Everything that is known about one session.
#[derive(Default)]
pub struct Model {
    window: usize,
    resumed: usize,
    outbound: usize,
    unsettled_limit: usize,
    subscriptions: usize,
    admitted: bool,
    closed: Option<CloseReason>,
    will: bool,
    /// Publishes of QoS 1 that were consumed and not handed out, by packet identifier.
    consumed: VecDeque<u16>,
    /// Handed out, in order.
    received: VecDeque<(PublishToken, u16, Option<Settled>)>,
    /// PUBACKs that must come, in this order.
    to_acknowledge: VecDeque<u16>,
    /// SUBSCRIBEs without an answer: (packet identifier, filters).
    subscribes: VecDeque<(u16, usize)>,
    /// SUBACKs that must come: (packet identifier, codes).
    to_answer: VecDeque<(u16, usize)>,
    pings: usize,
    /// The server's bytes, the last packet perhaps not whole.
    out: Vec<u8>,
    connacked: bool,
    /// Deliveries that the client has and has not acknowledged.
    open: BTreeSet<u16>,
    /// Acknowledged before they were written.
    early: BTreeMap<u16, usize>,
    /// Tokens whose deliveries are not acknowledged.
    tokens: BTreeSet<u64>,
    mail: BTreeMap<u64, u16>,
    to_repeat: VecDeque<(u16, u64)>,
    last_token: u64,
}

impl Model {
    /// Of a session with these limits.
    pub fn new(limits: &SessionLimits) -> Self {
        Self {
            window: limits.inflight_out.max(1).into(),
            outbound: limits.outbound_bytes as usize,
            unsettled_limit: limits.unsettled.into(),
            subscriptions: limits.subscriptions as usize,
            ..Self::default()
        }
    }

    /// The session took these whole packets.
    pub fn consumed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let packet = front(bytes).expect("only whole packets are consumed");
            match packet.first >> 4 {
                1 => self.will = packet.body.get(7).is_some_and(|flags| flags & 4 != 0),
                3 => {
                    let id = publish_id(&packet).expect("well-formed");
                    self.consumed.extend((id != 0).then_some(id));
                }
                4 => {
                    let id = number(packet.body, 0).expect("well-formed");
                    if !self.open.remove(&id) {
                        *self.early.entry(id).or_default() += 1;
                    }
                }
                12 => self.pings += 1,
                _ => {}
            }
            bytes = &bytes[packet.total..];
        }
    }

    /// What is left of the input must not be a whole packet that could have been taken.
    pub fn stuck(&self, session: &Session, rest: &[u8]) {
        let whole = front(rest).is_some();
        assert!(!(whole && session.wants_read()), "a whole packet stays: {rest:?}");
        if let Some(needs) = session.needs(rest).filter(|_| session.wants_read()) {
            assert!(needs > rest.len());
        }
    }

    /// The session said so.
    pub fn event(&mut self, event: &Event, session: &Session) {
        assert!(self.closed.is_none(), "an event after Closed: {event:?}");
        match event {
            Event::Publish { token: Some(token), publish } => {
                assert!(!publish.topic.is_empty() && self.admitted);
                let id = self.consumed.pop_front().expect("no such PUBLISH");
                assert!(self.received.back().is_none_or(|(last, ..)| last < token), "tokens ascend");
                self.received.push_back((*token, id, None));
            }
            Event::Subscribe { packet_id, filters } => {
                assert!(self.admitted && !filters.is_empty());
                self.subscribes.push_back((*packet_id, filters.len()));
            }
            Event::Publish { token: None, .. } | Event::Unsubscribe { .. } => assert!(self.admitted),
            Event::Acknowledged { token } => {
                assert!(self.tokens.remove(token), "{token} was not open");
                self.mail.remove(token);
            }
            Event::Will(_) => assert!(self.will && self.admitted && session.closed().is_some()),
            Event::Closed(reason) => {
                assert_eq!(session.closed(), Some(*reason));
                self.closed = Some(*reason);
            }
            Event::Connect(_) => assert!(!self.admitted),
        }
    }

    /// The verdict was yes.
    pub fn admitted(&mut self) {
        self.admitted |= self.closed.is_none();
    }

    /// Identifiers that an earlier connection left, as the session is told them.
    pub fn resume(&mut self, ids: &[u16]) -> Vec<(u16, u64)> {
        let ids: BTreeSet<u16> = ids.iter().copied().filter(|id| *id != 0).collect();
        self.resumed = ids.len();
        let told: Vec<_> = ids.into_iter().map(|id| (id, self.next_token())).collect();
        for (id, token) in &told {
            self.tokens.insert(*token);
            self.mail.insert(*token, *id);
        }
        self.to_repeat.extend(&told);
        told
    }

    /// A token that was not used.
    pub fn next_token(&mut self) -> u64 {
        self.last_token += 1;
        self.last_token
    }

    /// Whether a delivery with this token is not acknowledged.
    pub fn has_token(&self, token: u64) -> bool {
        self.tokens.contains(&token)
    }

    /// The next mail of an earlier connection that is not acknowledged: each is sent again once.
    pub fn mail_to_repeat(&mut self) -> Option<(u16, u64)> {
        while let Some((id, token)) = self.to_repeat.pop_front() {
            if self.mail.contains_key(&token) {
                return Some((id, token));
            }
        }
        None
    }

    /// The session took a delivery of QoS 1.
    pub fn delivered(&mut self, token: u64) {
        self.tokens.extend((token != 0).then_some(token));
    }

    /// The session took a mail.
    pub fn mailed(&mut self, id: u16, token: u64) {
        assert_ne!(id, 0, "no packet identifier");
        self.tokens.insert(token);
        assert!(self.mail.insert(token, id).is_none_or(|other| other == id));
    }

    /// One of the identifiers that the client has not acknowledged.
    pub fn open_id(&self, which: usize) -> Option<u16> {
        self.open.iter().nth(which % self.open.len().max(1)).copied()
    }

    /// The driver settles a publish.
    pub fn settle(&mut self, token: PublishToken, outcome: Settled) {
        if self.closed.is_some() {
            return;
        }
        let found = self.received.iter_mut().find(|(other, ..)| *other == token);
        found.expect("was received").2.get_or_insert(outcome);
        while let Some((_, id, Some(Settled::Stored))) = self.received.front() {
            self.to_acknowledge.push_back(*id);
            self.received.pop_front();
        }
    }

    /// The driver answers a SUBSCRIBE. A client that uses an identifier twice gets its answers in its order.
    pub fn suback(&mut self, packet_id: u16) {
        let place = self.subscribes.iter().position(|(asked, _)| *asked == packet_id);
        if let Some(place) = place.filter(|_| self.closed.is_none()) {
            self.to_answer.extend(self.subscribes.remove(place));
        }
    }

    /// The server's bytes go out.
    pub fn written(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        let out = std::mem::take(&mut self.out);
        let mut rest = &out[..];
        while let Some(packet) = front(rest) {
            self.sent(packet.first, packet.body);
            rest = &rest[packet.total..];
        }
        self.out = rest.to_vec();
    }

    fn sent(&mut self, first: u8, body: &[u8]) {
        if first == 0x20 {
            assert!(!std::mem::replace(&mut self.connacked, true) && body.len() == 2 && body[0] <= 1);
            assert!(body[1] == 0 || body[0] == 0, "[MQTT-3.2.2-4]");
            return;
        }
        assert!(self.connacked, "[MQTT-3.2.0-1]");
        let id = number(body, 0);
        match first {
            0x30 => assert_eq!(body.get(..5), Some(&b"\0\x03a/b"[..])),
            0x32 | 0x3a => self.sent_publish(first, body),
            0x40 => assert_eq!(self.to_acknowledge.pop_front(), id, "[MQTT-4.6.0-2]"),
            0x90 => {
                let (asked, filters) = self.to_answer.pop_front().expect("a SUBACK for nothing");
                assert!(Some(asked) == id && filters + 2 == body.len(), "[MQTT-3.8.4-2, MQTT-3.8.4-5]");
                assert!(body[2..].iter().all(|code| [0, 1, 0x80].contains(code)), "[MQTT-3.9.3-2]");
            }
            0xb0 => assert_eq!(body.len(), 2),
            0xd0 => self.pings = self.pings.checked_sub(1).expect("a PINGRESP for nothing"),
            _ => panic!("a server does not send {first:#x}"),
        }
    }

    fn sent_publish(&mut self, first: u8, body: &[u8]) {
        let id = number(body, 2 + usize::from(number(body, 0).unwrap())).unwrap();
        assert_ne!(id, 0, "[MQTT-2.3.1-1]");
        if let Some(early) = self.early.get_mut(&id).filter(|early| **early > 0) {
            *early -= 1;
            return;
        }
        let new = self.open.insert(id);
        assert!(new || first == 0x3a, "[MQTT-2.3.1-4] {id} is in use");
    }

    /// What must hold at any time.
    pub fn check(&mut self, session: &mut Session) {
        let inflight = self.window.max(self.resumed);
        assert!(session.inflight() <= inflight, "{} in flight", session.inflight());
        assert!(session.unsettled() <= self.unsettled_limit + 1, "{} unsettled", session.unsettled());
        assert!(session.subscriptions().count() <= self.subscriptions.max(1));
        assert!(session.outbound_bytes() <= self.outbound + SLACK, "{} bytes", session.outbound_bytes());
        assert!(session.transmit().capacity() <= 8 * (self.outbound + SLACK));
        if let Some(reason) = session.closed() {
            assert_eq!(self.closed, Some(reason), "Closed comes at once");
            assert!(!session.wants_read() && session.deadline().is_none() && !session.is_open());
        }
    }

    /// The connection is over, and everything was written.
    pub fn ended(&self, session: &Session) {
        assert!(self.closed.is_some() && (self.out.is_empty() || self.closed == Some(CloseReason::Paused)));
        if self.closed != Some(CloseReason::Paused) {
            assert!(self.to_acknowledge.is_empty(), "{:?} not acknowledged", self.to_acknowledge);
            assert!(self.to_answer.is_empty() && self.pings == 0);
        }
        let left: BTreeSet<u64> = session.unacknowledged().collect();
        assert_eq!(left, self.tokens, "tokens of what was not acknowledged");
    }
}
