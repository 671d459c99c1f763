//! Messages out: QoS 0 until the outbound limit, where the oldest go (see [`super::droppable`]); QoS 1 with a window of
//! unacknowledged ones and a bounded queue behind it. Nothing of QoS 1 is ever dropped silently: what does not fit when all
//! of QoS 0 is gone closes the session.

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};

use super::{CloseReason, Delivered, Delivery, Event, Session, State, droppable::Droppable};
use crate::{codec::encode, packet::QoS};

/// What a queued delivery costs beside its bytes.
const QUEUED_COST: usize = 32;

/// Deliveries that are not written, or (QoS 1) not acknowledged.
#[derive(Default)]
pub(super) struct Outgoing {
    /// Sent: (packet identifier, token), in order of sending. At most the window, but for what an earlier connection sent.
    pub(super) inflight: VecDeque<(u16, u64)>,
    /// Identifiers that the store may use for mail.
    pub(super) reserved: Vec<u16>,
    /// Packets behind the window, encoded without an identifier, one after the other.
    queue: BytesMut,
    pub(super) queued: VecDeque<Queued>,
    pub(super) droppable: Droppable,
}

/// A packet in the queue.
pub(super) struct Queued {
    token: u64,
    len: u32,
    /// Where its identifier goes.
    id_at: u32,
}

impl Outgoing {
    /// Bytes that no newer message can displace.
    fn firm_bytes(&self) -> usize {
        self.queue.len() + self.queued.len() * QUEUED_COST
    }

    /// Places of the window that are taken.
    pub(super) fn occupied(&self) -> usize {
        self.inflight.len() + self.reserved.len()
    }

    /// The next identifier that is not in use: never 0.
    pub(super) fn next_id(&self, mut last: u16) -> u16 {
        loop {
            last = last.checked_add(1).unwrap_or(1);
            // The window is smaller than the range, so this ends.
            if !self.inflight.iter().any(|(id, _)| *id == last) && !self.reserved.contains(&last) {
                return last;
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.inflight.is_empty()
            && self.queued.is_empty()
            && self.reserved.is_empty()
            && self.droppable.is_empty()
    }
}

impl Session {
    /// A message for the client. Order is kept among those of one QoS.
    pub fn deliver(&mut self, delivery: &Delivery<'_>) -> Delivered {
        if self.state != State::Open {
            return Delivered::NotOpen;
        }
        let Ok(len) = encode::publish_len(delivery.topic, delivery.payload, delivery.qos) else {
            return Delivered::TooLarge;
        };
        match (delivery.qos, self.make_room(len)) {
            (QoS::AtMostOnce, false) => Delivered::DroppedQos0,
            (QoS::AtMostOnce, true) => self.deliver_droppable(delivery, len),
            (QoS::AtLeastOnce, false) => {
                self.close(CloseReason::Overrun);
                Delivered::Overrun
            }
            (QoS::AtLeastOnce, true) => self.deliver_acknowledged(delivery, len),
        }
    }

    /// Whether a delivery of QoS 1 would not be an overrun.
    pub fn has_room(&self, delivery: &Delivery<'_>) -> bool {
        let len = encode::publish_len(delivery.topic, delivery.payload, delivery.qos);
        len.is_ok_and(|len| self.fits(self.firm_bytes(), len))
    }

    /// Whether so many bytes may join those that wait.
    pub(super) fn fits(&self, waiting: usize, len: usize) -> bool {
        waiting == 0 || waiting.saturating_add(len) <= self.limits.outbound_bytes as usize
    }

    fn deliver_acknowledged(&mut self, delivery: &Delivery<'_>, len: usize) -> Delivered {
        let window = self.window();
        let outgoing = self.outgoing.get_or_insert_default();
        if outgoing.occupied() >= window {
            return outgoing.enqueue(delivery, len);
        }
        let id = outgoing.next_id(self.last_id);
        outgoing.inflight.push_back((id, delivery.token));
        self.last_id = id;
        self.encode(delivery, id)
    }

    pub(super) fn encode(&mut self, delivery: &Delivery<'_>, id: u16) -> Delivered {
        match encode::publish(&mut self.transmit, delivery.topic, delivery.payload, delivery.qos, id) {
            Ok(_) => Delivered::Sent,
            Err(encode::TooLarge) => Delivered::TooLarge,
        }
    }

    /// PUBACK. One for nothing that is in flight is ignored (false): it may be late, for a delivery of an earlier connection.
    pub(super) fn acknowledge(&mut self, packet_id: u16) -> bool {
        let Some(outgoing) = &mut self.outgoing else { return false };
        let Some(place) = outgoing.inflight.iter().position(|(id, _)| *id == packet_id) else { return false };
        if let Some((_, token @ 1..)) = outgoing.inflight.remove(place) {
            self.events.push_back(Event::Acknowledged { token });
        }
        self.send_queued();
        self.drop_empty_outgoing();
        true
    }

    pub(super) fn drop_empty_outgoing(&mut self) {
        if self.outgoing.as_ref().is_some_and(|outgoing| outgoing.is_empty()) {
            self.outgoing = None;
        }
    }

    /// Moves queued packets into the window, each with an identifier of its own.
    pub(super) fn send_queued(&mut self) {
        let window = self.window();
        let Some(outgoing) = &mut self.outgoing else { return };
        while outgoing.occupied() < window {
            let Some(next) = outgoing.queued.pop_front() else { break };
            let (len, id_at) = (next.len as usize, next.id_at as usize);
            let id = outgoing.next_id(self.last_id);
            if let Some(place) = outgoing.queue.get_mut(id_at..id_at + 2) {
                place.copy_from_slice(&id.to_be_bytes());
            }
            self.transmit.extend_from_slice(outgoing.queue.get(..len).unwrap_or_default());
            outgoing.queue.advance(len.min(outgoing.queue.len()));
            outgoing.inflight.push_back((id, next.token));
            self.last_id = id;
        }
        if outgoing.queued.is_empty() {
            outgoing.queue = BytesMut::new();
            outgoing.queued = VecDeque::new();
        }
    }

    pub(super) fn window(&self) -> usize {
        self.limits.inflight_out.clamp(1, u16::MAX - 1).into()
    }

    /// Gives back the queue's memory on close; tokens stay for the driver.
    pub(super) fn stop_outgoing(&mut self) {
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.queue = BytesMut::new();
            outgoing.droppable.clear();
        }
    }

    /// Deliveries of QoS 1 sent and not yet acknowledged.
    pub fn inflight(&self) -> usize {
        self.outgoing.as_ref().map_or(0, |outgoing| outgoing.inflight.len())
    }

    /// Deliveries of QoS 1 for which there is room in flight now.
    pub fn room(&self) -> usize {
        let taken = self.outgoing.as_ref().map_or(0, |outgoing| outgoing.occupied() + outgoing.queued.len());
        self.window().saturating_sub(taken)
    }

    /// Deliveries of QoS 1 that wait until there is room for them in flight.
    pub fn queued(&self) -> usize {
        self.outgoing.as_ref().map_or(0, |outgoing| outgoing.queued.len())
    }

    /// Bytes that wait: not written, or queued behind the window (with what the queues cost).
    pub fn outbound_bytes(&self) -> usize {
        self.firm_bytes() + self.outgoing.as_ref().map_or(0, |outgoing| outgoing.droppable.bytes())
    }

    /// The same without what a newer message displaces.
    pub fn firm_bytes(&self) -> usize {
        self.transmit.len() + self.outgoing.as_ref().map_or(0, |outgoing| outgoing.firm_bytes())
    }

    /// Tokens (not 0) of deliveries that were not acknowledged, in order of delivery; also after close.
    pub fn unacknowledged(&self) -> impl Iterator<Item = u64> + '_ {
        self.outgoing
            .iter()
            .flat_map(|out| {
                out.inflight.iter().map(|(_, token)| *token).chain(out.queued.iter().map(|q| q.token))
            })
            .filter(|token| *token != 0)
    }
}

impl Outgoing {
    fn enqueue(&mut self, delivery: &Delivery<'_>, len: usize) -> Delivered {
        let encoded = encode::publish(&mut self.queue, delivery.topic, delivery.payload, delivery.qos, 0);
        match (encoded.map(u32::try_from), u32::try_from(len)) {
            (Ok(Ok(id_at)), Ok(len)) => {
                self.queued.push_back(Queued { token: delivery.token, len, id_at });
                Delivered::Queued
            }
            _ => Delivered::TooLarge,
        }
    }
}
