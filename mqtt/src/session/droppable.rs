//! Deliveries of QoS 0 that the client has not read: a little of them is among the bytes to write, the rest waits here and
//! goes, oldest first, when newer messages of any QoS need the room [MQTT-4.3.1-1 promises nothing]. Their order is kept.
//!
//! Invariant: what is among the bytes to write is never taken back, because its beginning may be on the wire.

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};

use super::{Delivered, Delivery, Session};
use crate::codec::encode;

/// Bytes to write at which deliveries of QoS 0 wait here; less when a quarter of the limit is less.
const STAGED: usize = 65_536;
/// What one costs beside its bytes.
const COST: usize = 4;

/// Encoded packets, one after the other.
#[derive(Default)]
pub(super) struct Droppable {
    packets: BytesMut,
    lengths: VecDeque<u32>,
    /// Dropped since the driver asked.
    displaced: u32,
}

impl Droppable {
    pub(super) fn is_empty(&self) -> bool {
        self.lengths.is_empty() && self.displaced == 0
    }

    pub(super) fn bytes(&self) -> usize {
        self.packets.len() + self.lengths.len() * COST
    }

    pub(super) fn clear(&mut self) {
        *self = Self { displaced: self.displaced, ..Self::default() };
    }

    fn push(&mut self, delivery: &Delivery<'_>) -> Delivered {
        let before = self.packets.len();
        let encoded = encode::publish(&mut self.packets, delivery.topic, delivery.payload, delivery.qos, 0);
        match (encoded, u32::try_from(self.packets.len() - before)) {
            (Ok(_), Ok(length)) => {
                self.lengths.push_back(length);
                Delivered::Queued
            }
            _ => Delivered::TooLarge,
        }
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(length) = self.lengths.pop_front() else { return false };
        self.packets.advance((length as usize).min(self.packets.len()));
        self.displaced = self.displaced.saturating_add(1);
        true
    }

    /// Moves packets from the front until `out` holds so many bytes.
    fn fill(&mut self, out: &mut BytesMut, most: usize) {
        while out.len() < most {
            let Some(length) = self.lengths.pop_front() else { break };
            let length = (length as usize).min(self.packets.len());
            out.extend_from_slice(self.packets.get(..length).unwrap_or_default());
            self.packets.advance(length);
        }
        if self.lengths.is_empty() {
            (self.packets, self.lengths) = (BytesMut::new(), VecDeque::new());
        }
    }
}

impl Session {
    fn staged_most(&self) -> usize {
        STAGED.min(self.limits.outbound_bytes as usize / 4)
    }

    /// Drops the oldest deliveries of QoS 0 until so many bytes fit; false, and nothing dropped: they never will.
    pub(super) fn make_room(&mut self, len: usize) -> bool {
        if self.fits(self.outbound_bytes(), len) {
            return true;
        }
        if !self.fits(self.firm_bytes(), len) {
            return false;
        }
        while !self.fits(self.outbound_bytes(), len) {
            if !self.outgoing.as_mut().is_some_and(|outgoing| outgoing.droppable.drop_oldest()) {
                break;
            }
        }
        true
    }

    /// QoS 0, when there is room.
    pub(super) fn deliver_droppable(&mut self, delivery: &Delivery<'_>, len: usize) -> Delivered {
        let staged = self.transmit.len();
        let first = self.outgoing.as_ref().is_none_or(|outgoing| outgoing.droppable.lengths.is_empty());
        if first && (staged == 0 || staged + len <= self.staged_most()) {
            return self.encode(delivery, 0);
        }
        self.outgoing.get_or_insert_default().droppable.push(delivery)
    }

    /// Bytes were written: the next deliveries of QoS 0 come among those to write.
    pub(super) fn stage(&mut self) {
        let most = self.staged_most();
        let Some(outgoing) = &mut self.outgoing else { return };
        if !outgoing.droppable.lengths.is_empty() && self.transmit.len() < most {
            outgoing.droppable.fill(&mut self.transmit, most);
            self.drop_empty_outgoing();
        }
    }

    /// Deliveries of QoS 0 that were dropped to make room since the last call.
    pub fn take_displaced(&mut self) -> u32 {
        let Some(outgoing) = self.outgoing.as_mut().filter(|outgoing| outgoing.droppable.displaced > 0)
        else {
            return 0;
        };
        let displaced = std::mem::take(&mut outgoing.droppable.displaced);
        self.drop_empty_outgoing();
        displaced
    }
}
