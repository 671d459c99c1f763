//! Bytes in: whole packets from the front of what was read, and what each of them does. Decides when a packet has to wait
//! unread; never keeps a part of one.

use bytes::Bytes;

use super::{CloseReason, Event, Millis, Session, State};
use crate::{
    codec::{
        decode::{self, Bounds, Frame, Kind, Malformed, Packet, PublishBody},
        encode,
    },
    packet::{Publish, QoS},
};

/// Events after which `receive` returns, so that a buffer of tiny packets does not become a long queue.
const EVENTS_MAX: usize = 64;
/// Unwritten bytes of answers (PUBACK, PINGRESP, SUBACK, UNSUBACK) at which reading stops: the client sends without reading.
const ANSWERS_MAX: usize = 65_536;
/// SUBSCRIBE and UNSUBSCRIBE without an answer at which the next one waits.
const UNANSWERED_MAX: usize = 64;
/// Largest body of a CONNECT there can be: ten bytes and five fields of at most 65,535 bytes.
const CONNECT_MAX: usize = 10 + 5 * (2 + 65_535);

/// What the packet at the front has to wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waits {
    /// A PUBLISH, for the unsettled limit or the driver's hold.
    Publish,
    /// A SUBSCRIBE or UNSUBSCRIBE, for answers to earlier ones or the driver's hold.
    Subscribe,
    /// A packet that stores nothing, for its time to come.
    Pace,
}

impl Session {
    /// Takes whole packets from the front of `input`; returns the bytes consumed. Call again with the rest, after
    /// handling the events, until it returns 0: it stops at a partial packet, after some 64 events, while reading has
    /// to pause (see `wants_read`), and when closed.
    ///
    /// Only [`Event::Publish`] keeps a slice of `input`; everything else is copied. Drop or copy it in the same turn and
    /// the buffer can be reused (`BytesMut::split().freeze()` before, `reserve` after).
    pub fn receive(&mut self, input: &Bytes, now: Millis) -> usize {
        let mut used = 0;
        self.waits = None;
        self.pace.fill(now, self.limits.control_rate);
        while self.events.len() < EVENTS_MAX && self.takes_packets() {
            let Some(rest) = input.get(used..).filter(|rest| !rest.is_empty()) else { break };
            match self.packet(input, rest, now) {
                Ok(Some(total)) => used += total,
                Ok(None) => break,
                // The endpoint's own rule, as reserved topics are: earlier acknowledgements leave first.
                Err(reason @ CloseReason::QosNotOffered) => self.close_when_settled(reason),
                Err(reason) => self.close(reason),
            }
        }
        used
    }

    /// Bytes that the packet at the front of `input` needs in total, once its header is there. `None` also when it is
    /// refused or has to wait: don't read on for it. More than `input` holds: read on into a buffer of this size.
    pub fn needs(&self, input: &[u8]) -> Option<usize> {
        let kind = self.allowed(*input.first()?).ok()?;
        if self.must_wait(kind).is_some() {
            return None;
        }
        self.frame(kind, input).ok()?.map(|frame| frame.total)
    }

    /// Whether to read from the transport. False: before the verdict on CONNECT; while a packet that has to wait is at
    /// the front (PUBLISH held or at the unsettled limit, SUBSCRIBE with too many unanswered, too many packets that store
    /// nothing); while the client leaves
    /// too much unread; when closed. When this turns true, call `receive` with what is left first.
    pub fn wants_read(&self) -> bool {
        self.takes_packets() && !self.waiting(self.waits)
    }

    /// While on, PUBLISH is left unread and everything before one is still taken (PINGREQ and acknowledgements live on):
    /// for a connection whose lane has no credit. Keep alive does not close it while a PUBLISH waits.
    pub fn hold_publishes(&mut self, on: bool, now: Millis) {
        if self.held && !on && self.state == State::Open {
            self.keep_alive.hear(now);
        }
        self.held = on;
    }

    /// While on, SUBSCRIBE and UNSUBSCRIBE are left unread: for a driver that can't tell others of more filters now.
    pub fn hold_subscribes(&mut self, on: bool) {
        self.held_subscribes = on;
    }

    /// Whether the client can't be heard because of us.
    pub(super) fn pauses_for_us(&self) -> bool {
        self.unsettled.ends() || self.waiting(self.waits)
    }

    fn takes_packets(&self) -> bool {
        let unread = self.answers.min(self.transmit.len());
        matches!(self.state, State::Fresh | State::Open) && !self.unsettled.ends() && unread < ANSWERS_MAX
    }

    /// Whether what was waited for is still missing.
    fn waiting(&self, waits: Option<Waits>) -> bool {
        match waits {
            None => false,
            Some(Waits::Publish) => self.held || self.unsettled.len() >= self.limits.unsettled.into(),
            Some(Waits::Subscribe) => self.held_subscribes || self.unanswered() >= UNANSWERED_MAX,
            Some(Waits::Pace) => self.pace.is_empty(self.limits.control_rate),
        }
    }

    /// What a packet of this kind has to wait for now.
    fn must_wait(&self, kind: Kind) -> Option<Waits> {
        let waits: &[Waits] = match kind {
            Kind::Publish { .. } => &[Waits::Publish],
            Kind::Subscribe | Kind::Unsubscribe => &[Waits::Subscribe, Waits::Pace],
            Kind::PingReq | Kind::PubAck => &[Waits::Pace],
            _ => &[],
        };
        waits.iter().copied().find(|waits| self.waiting(Some(*waits)))
    }

    /// Takes the packet at the front of `rest`; its bytes, or `None` when not all of it is there or it has to wait.
    fn packet(&mut self, input: &Bytes, rest: &[u8], now: Millis) -> Result<Option<usize>, CloseReason> {
        let Some(first) = rest.first() else { return Ok(None) };
        let kind = self.allowed(*first)?;
        if let Some(waits) = self.must_wait(kind) {
            self.waits = Some(waits);
            return Ok(None);
        }
        let Some(frame) = self.frame(kind, rest)? else { return Ok(None) };
        let Some(body) = rest.get(frame.header..frame.total) else { return Ok(None) };
        let bounds =
            Bounds { topic: self.limits.topic_bytes.into(), filters: self.limits.filters_per_packet.into() };
        let packet = decode::body(kind, body, bounds).map_err(CloseReason::Malformed)?;
        self.keep_alive.hear(now);
        self.take(input, packet)?;
        Ok(Some(frame.total))
    }

    /// Whether a packet with this first byte may come now: decided before anything else of it is read.
    fn allowed(&self, first: u8) -> Result<Kind, CloseReason> {
        let kind = decode::kind(first).map_err(CloseReason::Malformed)?;
        match (self.state, kind) {
            (State::Fresh, Kind::Connect) => Ok(kind),
            (State::Fresh, _) => Err(CloseReason::NotConnect),
            (_, Kind::Connect) => Err(CloseReason::SecondConnect),
            (_, Kind::Unexpected) => Err(CloseReason::UnexpectedPacket),
            (_, Kind::Publish { qos: 2, .. }) => Err(CloseReason::QosNotOffered),
            _ => Ok(kind),
        }
    }

    /// The frame of a packet whose body may be read on for.
    fn frame(&self, kind: Kind, rest: &[u8]) -> Result<Option<Frame>, CloseReason> {
        let Some(frame) = decode::frame(rest).map_err(CloseReason::Malformed)? else { return Ok(None) };
        let body = frame.total - frame.header;
        let most = match kind {
            Kind::Connect => CONNECT_MAX,
            Kind::PubAck => 2,
            Kind::PingReq | Kind::Disconnect => 0,
            _ => usize::MAX,
        };
        if frame.total > self.packet_bytes as usize {
            return Err(CloseReason::PacketTooLarge);
        }
        if body > most { Err(CloseReason::Malformed(Malformed::Trailing)) } else { Ok(Some(frame)) }
    }

    fn take(&mut self, input: &Bytes, packet: Packet<'_>) -> Result<(), CloseReason> {
        match packet {
            Packet::Connect(connect) => self.connect(&connect),
            Packet::OtherVersion => {
                self.refuse(crate::packet::ConnectCode::Version, CloseReason::ProtocolVersion);
            }
            Packet::Publish(publish) => self.publish(input, &publish)?,
            Packet::PubAck { packet_id } => {
                if !self.acknowledge(packet_id) {
                    self.pace.spend(0);
                }
            }
            Packet::Subscribe { packet_id, filters } => self.subscribe(packet_id, filters),
            Packet::Unsubscribe { packet_id, filters } => self.unsubscribe(packet_id, filters),
            Packet::PingReq => {
                self.pace.spend(0);
                self.answer(encode::pingresp);
            }
            Packet::Disconnect => return Err(CloseReason::Disconnect),
        }
        Ok(())
    }

    fn publish(&mut self, input: &Bytes, publish: &PublishBody<'_>) -> Result<(), CloseReason> {
        if publish.topic.first() == Some(&b'$') {
            self.close_when_settled(CloseReason::TopicSystem);
            return Ok(());
        }
        if self.reserved.contains(publish.topic) {
            self.close_when_settled(CloseReason::TopicReserved);
            return Ok(());
        }
        let qos = QoS::capped(publish.qos.into());
        let token = (qos == QoS::AtLeastOnce).then(|| self.unsettled.push(publish.packet_id));
        let publish = Publish {
            topic: input.slice_ref(publish.topic),
            payload: input.slice_ref(publish.payload),
            qos,
            dup: publish.dup,
            properties: None,
        };
        self.events.push_back(Event::Publish { publish, token });
        Ok(())
    }
}
