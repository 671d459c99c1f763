//! The server's side of one connection, without I/O: bytes, verdicts, settles, deliveries and the time go in; events and
//! bytes to write come out. The driver owns every effect, the session every decision.
//!
//! The driver's turn: [`Session::receive`] until it consumes nothing, handling [`Session::poll_event`] until `None` after
//! each; then one write of [`Session::transmit`]; then [`Session::wants_read`] and [`Session::deadline`]. What was read
//! before the transport ended is received before `close(PeerClosed)`: a DISCONNECT may be in it.
//!
//! Invariants: PUBACKs leave in the order of the publishes [MQTT-4.6.0-2]; `Closed` is the last event and comes once;
//! after it nothing changes; every queue has a bound ([`SessionLimits`]); an idle session holds no buffer.

mod reason;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

pub use self::reason::CloseReason;
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
    /// Most bytes of deliveries that wait to be written or for an acknowledgement to make room. One delivery always fits.
    pub outbound_bytes: u32,
    /// Most publishes received and not yet settled; at it PUBLISH is left unread.
    pub unsettled: u16,
    /// Time for a complete CONNECT.
    pub connect_timeout: Millis,
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
            connect_timeout: 10_000,
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
    /// QoS 1: waits until earlier ones are acknowledged.
    Queued,
    /// QoS 0: the outbound limit is reached.
    DroppedQos0,
    /// QoS 1: the outbound limit is reached, the session closed with [`CloseReason::Overrun`].
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
        /// At least one; valid, not all of them need be subscribed. Copies.
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

/// The server's side of one connection.
pub struct Session {
    _todo: Arc<SessionLimits>,
    out: BytesMut,
}

#[allow(unused_variables)]
impl Session {
    /// A session of a connection that was just accepted.
    pub fn new(limits: Arc<SessionLimits>, reserved: Arc<Reserved>, now: Millis) -> Self {
        Self { _todo: limits, out: BytesMut::new() }
    }

    /// Takes whole packets from the front of `input`; returns the bytes consumed. Call again with the rest, after
    /// handling the events, until it returns 0: it stops at a partial packet, after some 64 events, while reading has
    /// to pause (see `wants_read`), and when closed.
    ///
    /// Only [`Event::Publish`] keeps a slice of `input`; everything else is copied. Drop or copy it in the same turn and
    /// the buffer can be reused (`BytesMut::split().freeze()` before, `reserve` after).
    pub fn receive(&mut self, input: &Bytes, now: Millis) -> usize {
        0
    }

    /// Bytes that the packet at the front of `input` needs in total, if its header is there and it is not refused anyway.
    /// More than `input` holds: read on into a buffer of this size.
    pub fn needs(&self, input: &[u8]) -> Option<usize> {
        None
    }

    /// The next thing to do. Memory of the queue is given back when it is empty.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// Bytes to write: write from the front, then report it with `written` (or `advance` it and call this again, so that
    /// memory is given back).
    pub fn transmit(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    /// The first `bytes` of `transmit` were written. Memory is given back when all were.
    pub fn written(&mut self, bytes: usize) {}

    /// Whether to read from the transport. False: before the verdict on CONNECT; while a packet that has to wait is at
    /// the front (PUBLISH held or at the unsettled limit, SUBSCRIBE with too many unanswered); while the client leaves
    /// too much unread; when closed. Then also call `receive` again with what is left when this turns true.
    pub fn wants_read(&self) -> bool {
        false
    }

    /// When to call `tick`: connect timeout or keep alive.
    pub fn deadline(&self) -> Option<Millis> {
        None
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Millis) {}

    /// Reading is paused (or resumed) for our reasons: keep alive does not run meanwhile.
    pub fn suspend_keep_alive(&mut self, on: bool, now: Millis) {}

    /// While on, PUBLISH is left unread and everything before one is still taken (PINGREQ and acknowledgements live on):
    /// for a connection whose lane has no credit. Keep alive is suspended when a PUBLISH waits.
    pub fn hold_publishes(&mut self, on: bool, now: Millis) {}

    /// The verdict on the CONNECT. Ignored at any other time.
    pub fn admit(&mut self, admission: Admission, now: Millis) {}

    /// The fate of a publish. In any order; unknown or closed: ignored.
    pub fn settle(&mut self, token: PublishToken, outcome: Settled) {}

    /// The answer to a Subscribe: one code a filter (0, 1 or 0x80), missing ones count as refused. SUBACK.
    pub fn subscribed(&mut self, packet_id: u16, codes: &[u8]) {}

    /// The answer to an Unsubscribe. UNSUBACK.
    pub fn unsubscribed(&mut self, packet_id: u16) {}

    /// A message for the client.
    pub fn deliver(&mut self, delivery: &Delivery<'_>, now: Millis) -> Delivered {
        Delivered::NotOpen
    }

    /// Closes now, for the driver's reason: `Will` when due, then `Closed`. Ignored when closed.
    pub fn close(&mut self, reason: CloseReason) {}

    /// Reads no more publishes and closes with `reason` once all received ones are settled and acknowledged.
    pub fn close_when_settled(&mut self, reason: CloseReason) {}

    /// The client identifier, once CONNECT was valid.
    pub fn client(&self) -> Option<&Bytes> {
        None
    }

    /// Whether the verdict was yes and it is not closed.
    pub fn is_open(&self) -> bool {
        false
    }

    /// Why it closed.
    pub fn closed(&self) -> Option<CloseReason> {
        None
    }

    /// Publishes of QoS 1 received and not yet settled.
    pub fn unsettled(&self) -> usize {
        0
    }

    /// Deliveries of QoS 1 sent and not yet acknowledged.
    pub fn inflight(&self) -> usize {
        0
    }

    /// Bytes of deliveries that wait: not written, or queued behind the inflight limit.
    pub fn outbound_bytes(&self) -> usize {
        0
    }

    /// Tokens (not 0) of deliveries that were not acknowledged, in order of delivery; also after close.
    pub fn unacknowledged(&self) -> impl Iterator<Item = u64> + '_ {
        std::iter::empty()
    }

    /// Filters that were subscribed or are being subscribed, with the granted (or asked) QoS; also after close, so that
    /// the driver can undo them.
    pub fn subscriptions(&self) -> impl Iterator<Item = (&Bytes, QoS)> + '_ {
        std::iter::empty()
    }
}
