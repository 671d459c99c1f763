//! The server's side of one connection, without I/O: bytes, verdicts, settles, deliveries and the time go in; events and
//! bytes to write come out. The driver owns every effect, the session every decision.
//!
//! The driver's turn: [`Session::receive`] until it consumes nothing, handling [`Session::poll_event`] until `None` after
//! each; then one write of [`Session::transmit`]; then [`Session::wants_read`] and [`Session::deadline`]. What was read
//! before the transport ended is received before `close(PeerClosed)`: a DISCONNECT may be in it.
//!
//! Invariants: PUBACKs leave in the order of the publishes [MQTT-4.6.0-2]; `Closed` is the last event and comes once;
//! after it nothing changes; every queue has a bound ([`SessionLimits`]); an idle session holds no buffer.

mod connect;
mod deliver;
mod droppable;
mod keep_alive;
mod mail;
mod pace;
mod reason;
mod receive;
mod settle;
mod subscribe;
mod will;

use std::{collections::VecDeque, sync::Arc};

use bytes::{Buf, Bytes, BytesMut};

pub use self::reason::CloseReason;
use self::{deliver::Outgoing, receive::Waits, settle::Unsettled, subscribe::Subscriptions};
use crate::{
    packet::{Connect, ConnectCode, Publish, QoS, SubscribeFilter},
    reserved::Reserved,
};

/// Milliseconds of a monotonic clock with any origin.
pub type Millis = u64;

/// Bounds of a session. One value for many sessions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionLimits {
    /// Largest packet from the client, bytes with its headers; at most 268,435,460.
    pub packet_bytes: u32,
    /// Longest topic name and filter, bytes.
    pub topic_bytes: u16,
    /// Longest client identifier, bytes.
    pub client_bytes: u16,
    /// Most filters in one SUBSCRIBE or UNSUBSCRIBE.
    pub filters_per_packet: u16,
    /// Most subscriptions of a session.
    pub subscriptions: u32,
    /// Most deliveries of QoS 1 that were sent and not acknowledged.
    pub inflight_out: u16,
    /// Most bytes of deliveries that wait to be written or for an acknowledgement to make room; beyond, the oldest of QoS 0
    /// go, then (QoS 1) the session closes. One delivery always fits.
    pub outbound_bytes: u32,
    /// Most publishes received and not yet settled; at it PUBLISH is left unread.
    pub unsettled: u16,
    /// Packets a second that store nothing: PINGREQ, SUBSCRIBE and UNSUBSCRIBE (each filter counts two), PUBACK for nothing;
    /// 30 seconds' worth at once. Beyond, the client is read later.
    pub control_rate: u16,
    /// Time for a complete CONNECT.
    pub connect_timeout: Millis,
    /// Clean session 0 is offered: the driver keeps what outlives the connection.
    pub persistent: bool,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            packet_bytes: 1_048_576,
            topic_bytes: 1_024,
            client_bytes: 128,
            filters_per_packet: 64,
            subscriptions: 1_000,
            inflight_out: 64,
            outbound_bytes: 1_048_576,
            unsettled: 1_024,
            control_rate: 100,
            connect_timeout: 10_000,
            persistent: false,
        }
    }
}

/// Names a received publish until it is settled. Unique in its session, ascending.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PublishToken(pub u64);

/// What became of a publish of QoS 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settled {
    /// Stored at the tenant's durability class: PUBACK.
    Stored,
    /// Not stored. 3.1.1 has no word for it: the session closes with this reason once all earlier acknowledgements left.
    Refused(CloseReason),
}

/// The verdict on a CONNECT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// CONNACK 0.
    Accepted {
        /// The server kept state of this client.
        session_present: bool,
    },
    /// CONNACK with this code, then `Closed`.
    Refused(ConnectCode),
}

/// A message for the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivery<'a> {
    /// A valid topic name.
    pub topic: &'a [u8],
    /// Any bytes.
    pub payload: &'a [u8],
    /// The lower of the published and the granted QoS.
    pub qos: QoS,
    /// Comes back in [`Event::Acknowledged`] when the client acknowledges; 0 is no receipt. QoS 1 only.
    pub token: u64,
}

/// What became of a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivered {
    /// Among the bytes to write.
    Sent,
    /// Waits until earlier ones are acknowledged (QoS 1) or written (QoS 0).
    Queued,
    /// QoS 0: the outbound limit is reached, and nothing older of QoS 0 is there that could go instead.
    DroppedQos0,
    /// QoS 1: the outbound limit is reached without any of QoS 0, the session closed with [`CloseReason::Overrun`].
    Overrun,
    /// Topic above 65,535 bytes, or a packet larger than the standard allows: nothing happened.
    TooLarge,
    /// The session is not admitted, or closed: nothing happened.
    NotOpen,
}

/// What the driver has to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Judge this and answer with `admit`. Nothing is read before.
    Connect(Box<Connect>),
    /// Store this. With a token (QoS 1): answer with `settle`.
    Publish {
        /// The message.
        publish: Publish,
        /// Some for QoS 1.
        token: Option<PublishToken>,
    },
    /// Make these work, then answer with `subscribed`.
    Subscribe {
        /// For the answer.
        packet_id: u16,
        /// At least one; in the client's order.
        filters: Vec<SubscribeFilter>,
    },
    /// Undo these, then answer with `unsubscribed`.
    Unsubscribe {
        /// For the answer.
        packet_id: u16,
        /// Valid, not all of them need be subscribed; none when all are longer than a subscription can be. Copies.
        filters: Vec<Bytes>,
    },
    /// The client acknowledged the delivery with this token.
    Acknowledged {
        /// As given to `deliver`, never 0.
        token: u64,
    },
    /// The will is due. Comes right before `Closed`.
    Will(Publish),
    /// The last event. Write what is in `transmit`, within a bounded time, and end the transport.
    Closed(CloseReason),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Waits for CONNECT.
    Fresh,
    /// Waits for the verdict on it.
    Judged,
    Open,
    Closed(CloseReason),
}

/// The server's side of one connection.
pub struct Session {
    limits: Arc<SessionLimits>,
    reserved: Arc<Reserved>,
    state: State,
    /// The packet at the front has to wait for this.
    waits: Option<Waits>,
    held: bool,
    held_subscribes: bool,
    pace: pace::Pace,
    /// The tenant's limit, not above the server's.
    packet_bytes: u32,
    keep_alive: keep_alive::KeepAlive,
    client: Bytes,
    will: Option<Box<Publish>>,
    events: VecDeque<Event>,
    transmit: BytesMut,
    /// Bytes of answers that may be among those to write: never fewer than are.
    answers: usize,
    unsettled: Unsettled,
    /// None while nothing is in flight.
    outgoing: Option<Box<Outgoing>>,
    /// The packet identifier that was used last for a delivery.
    last_id: u16,
    /// None while nothing is subscribed.
    subscriptions: Option<Box<Subscriptions>>,
}

impl Session {
    /// A session of a connection that was just accepted.
    pub fn new(limits: Arc<SessionLimits>, reserved: Arc<Reserved>, now: Millis) -> Self {
        let keep_alive = keep_alive::KeepAlive::new(limits.connect_timeout, now);
        Self {
            packet_bytes: limits.packet_bytes,
            limits,
            reserved,
            state: State::Fresh,
            waits: None,
            held: false,
            held_subscribes: false,
            pace: pace::Pace::default(),
            keep_alive,
            client: Bytes::new(),
            will: None,
            events: VecDeque::new(),
            transmit: BytesMut::new(),
            answers: 0,
            unsettled: Unsettled::default(),
            outgoing: None,
            last_id: 0,
            subscriptions: None,
        }
    }

    /// The next thing to do. Memory of the queue is given back when it is empty.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if event.is_none() && self.events.capacity() > 0 {
            self.events = VecDeque::new();
        }
        event
    }

    /// Bytes to write: write from the front, then report it with `written` (or `advance` it and call this again, so that
    /// memory is given back).
    pub fn transmit(&mut self) -> &mut BytesMut {
        if self.transmit.is_empty() {
            self.transmit = BytesMut::new();
        }
        self.answers = self.answers.min(self.transmit.len());
        self.stage();
        &mut self.transmit
    }

    /// The first `bytes` of `transmit` were written. Memory is given back when all were.
    pub fn written(&mut self, bytes: usize) {
        self.transmit.advance(bytes.min(self.transmit.len()));
        self.transmit();
    }

    /// Appends an answer to what the client sent, and counts its bytes.
    fn answer(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        let before = self.transmit.len();
        encode(&mut self.transmit);
        self.answers += self.transmit.len() - before;
    }

    /// Closes now, for the driver's reason: `Will` when due, then `Closed`. Ignored when closed. What is to be written
    /// stays, but for [`CloseReason::Paused`]: a paused gateway's deliveries are stale.
    pub fn close(&mut self, reason: CloseReason) {
        let admitted = match self.state {
            State::Closed(_) => return,
            state => state == State::Open,
        };
        self.state = State::Closed(reason);
        if reason == CloseReason::Paused {
            self.transmit = BytesMut::new();
        }
        self.unsettled = Unsettled::default();
        self.stop_outgoing();
        if let Some(will) = self.take_will(admitted && reason.fires_will()) {
            self.events.push_back(Event::Will(will));
        }
        self.events.push_back(Event::Closed(reason));
    }

    /// From now on packets of the client may have so many bytes at most, if that is less than the server's limit.
    pub fn limit_packets(&mut self, bytes: u32) {
        self.packet_bytes = self.limits.packet_bytes.min(bytes);
    }

    /// The client identifier, once CONNECT was valid.
    pub fn client(&self) -> Option<&Bytes> {
        (!self.client.is_empty()).then_some(&self.client)
    }

    /// Whether the verdict was yes and it is not closed.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Why it closed.
    pub fn closed(&self) -> Option<CloseReason> {
        match self.state {
            State::Closed(reason) => Some(reason),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_session_is_small() {
        // 128 bytes of client identifier and a little queue of settles come on top.
        assert!(size_of::<Session>() <= 288, "{}", size_of::<Session>());
        assert!(size_of::<Event>() <= 96, "{}", size_of::<Event>());
        assert!(size_of::<CloseReason>() <= 4, "{}", size_of::<CloseReason>());
    }
}
