//! Deliveries that outlive the connection: their packet identifiers are the store's memory, so they are reserved here
//! first, given to the store, and come back with the messages. Which message has which identifier is the driver's.
//!
//! Invariants: a reserved identifier counts as one in flight, so that mail and pushes share one window and one range; an
//! identifier of an earlier connection stays in flight until it is acknowledged [MQTT-4.4.0-1].

use bytes::Bytes;

use super::{Delivery, QoS, Session, State};
use crate::codec::encode;

/// DUP in the first byte of a PUBLISH.
const DUP: u8 = 0x08;

impl Session {
    /// Takes up the state of earlier connections: filters with their granted QoS, and (packet identifier, token) of what was
    /// sent and not acknowledged, in the order of sending. Before `admit`.
    pub fn resume(
        &mut self,
        filters: impl IntoIterator<Item = (Bytes, QoS)>,
        unacknowledged: impl IntoIterator<Item = (u16, u64)>,
    ) {
        self.resume_subscriptions(filters);
        let mut inflight = unacknowledged.into_iter().filter(|(id, _)| *id != 0).peekable();
        if inflight.peek().is_some() {
            self.outgoing.get_or_insert_default().inflight.extend(inflight);
        }
    }

    /// Reserves packet identifiers as far as the window allows, and gives all that are reserved.
    pub fn reserve(&mut self) -> &[u16] {
        let (window, mut last) = (self.window(), self.last_id);
        let outgoing = self.outgoing.get_or_insert_default();
        // What waits behind the window comes first.
        while outgoing.queued.is_empty() && outgoing.occupied() < window {
            last = outgoing.next_id(last);
            outgoing.reserved.push(last);
        }
        self.last_id = last;
        &outgoing.reserved
    }

    /// Gives up the reservation: the store has used none of the identifiers that are still reserved, so they are the next
    /// ones, unless others went out after them.
    pub fn release(&mut self) {
        let Some(outgoing) = &mut self.outgoing else { return };
        let reserved = std::mem::take(&mut outgoing.reserved);
        if let (Some(first), Some(last)) = (reserved.first(), reserved.last())
            && *last == self.last_id
        {
            self.last_id = first - 1;
        }
        self.send_queued();
        self.drop_empty_outgoing();
    }

    /// Sends a message of QoS 1 with a packet identifier that is reserved, or (with its token) in flight; `again` sets DUP.
    /// False: closed, not a valid packet, or the identifier is neither; nothing happened.
    pub fn deliver_mail(&mut self, packet_id: u16, again: bool, delivery: &Delivery<'_>) -> bool {
        let len = encode::publish_len(delivery.topic, delivery.payload, QoS::AtLeastOnce);
        let Some(len) = len.ok().filter(|_| self.state == State::Open) else { return false };
        let Some(outgoing) = &mut self.outgoing else { return false };
        match outgoing.inflight.iter().find(|(id, _)| *id == packet_id) {
            Some((_, token)) if *token == delivery.token => {}
            Some(_) => return false,
            None => {
                let Some(place) = outgoing.reserved.iter().position(|id| *id == packet_id) else {
                    return false;
                };
                outgoing.reserved.remove(place);
                outgoing.inflight.push_back((packet_id, delivery.token));
            }
        }
        // Goes out in any case: the store was told how much fits.
        self.make_room(len);
        let first = self.transmit.len();
        let qos = QoS::AtLeastOnce;
        let encoded = encode::publish(&mut self.transmit, delivery.topic, delivery.payload, qos, packet_id);
        if let Some(byte) = self.transmit.get_mut(first).filter(|_| again) {
            *byte |= DUP;
        }
        encoded.is_ok()
    }
}
