//! Publishes of QoS 1 until they are settled: acknowledgements leave in the order of the publishes [MQTT-4.6.0-2], whatever
//! order the settles come in. A refusal waits for its turn too, then closes.

use std::collections::VecDeque;

use super::{CloseReason, PublishToken, Session, Settled, State};
use crate::codec::encode;

/// An empty queue of up to this capacity is kept for the next publish.
const KEPT: usize = 8;

/// The queue of publishes without an acknowledgement.
#[derive(Default)]
pub(super) struct Unsettled {
    queue: VecDeque<Received>,
    /// Number of the one at the front.
    front: u64,
    /// A refusal is in the queue: nothing is read any more.
    ends: bool,
}

struct Received {
    packet_id: u16,
    fate: Option<Settled>,
}

impl Unsettled {
    pub(super) fn push(&mut self, packet_id: u16) -> PublishToken {
        self.queue.push_back(Received { packet_id, fate: None });
        PublishToken(self.front + self.queue.len() as u64 - 1)
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn ends(&self) -> bool {
        self.ends
    }

    /// Takes what is settled from the front.
    fn pop(&mut self) -> Option<(u16, Settled)> {
        let Received { packet_id, fate } = self.queue.front()?;
        let settled = (*packet_id, (*fate)?);
        self.queue.pop_front();
        self.front += 1;
        if self.queue.is_empty() && self.queue.capacity() > KEPT {
            self.queue = VecDeque::new();
        }
        Some(settled)
    }
}

impl Session {
    /// The fate of a publish. In any order; the first one counts; unknown or closed: ignored.
    pub fn settle(&mut self, token: PublishToken, outcome: Settled) {
        if self.state != State::Open {
            return;
        }
        let place = token.0.checked_sub(self.unsettled.front).and_then(|n| usize::try_from(n).ok());
        let Some(received) = place.and_then(|place| self.unsettled.queue.get_mut(place)) else { return };
        received.fate.get_or_insert(outcome);
        if let Some(Settled::Refused(_)) = received.fate {
            self.unsettled.ends = true;
        }
        if place == Some(0) {
            self.acknowledge_settled();
        }
    }

    /// Reads no more and closes with `reason` once all received publishes are settled and their acknowledgements are
    /// among the bytes to write. The driver bounds the time (with `close`).
    pub fn close_when_settled(&mut self, reason: CloseReason) {
        match self.state {
            State::Closed(_) => {}
            // A refusal that is in the queue already closes.
            State::Open if self.unsettled.ends => {}
            State::Open => {
                self.unsettled.ends = true;
                let fate = Some(Settled::Refused(reason));
                self.unsettled.queue.push_back(Received { packet_id: 0, fate });
                self.acknowledge_settled();
            }
            State::Fresh | State::Judged => self.close(reason),
        }
    }

    /// Publishes of QoS 1 received and not yet settled, or settled behind one that is not.
    pub fn unsettled(&self) -> usize {
        self.unsettled.len()
    }

    fn acknowledge_settled(&mut self) {
        while let Some((packet_id, fate)) = self.unsettled.pop() {
            match fate {
                Settled::Stored => self.answer(|out| encode::puback(out, packet_id)),
                Settled::Refused(reason) => return self.close(reason),
            }
        }
    }
}
