//! How often a client may say what costs work and stores nothing: PINGREQ, SUBSCRIBE, UNSUBSCRIBE, a PUBACK for nothing. A
//! bucket of 30 seconds' worth; when it is empty the next such packet is left unread until its time comes.

use super::{Millis, Session, State, receive::Waits};

/// The bucket holds this many seconds' worth.
const SECONDS: u32 = 30;
/// What a filter costs: others are told of it.
const FILTER: u32 = 2;
/// A client that is paced is looked at this often at most.
const STEP: Millis = 100;

/// The bucket. Full at first.
#[derive(Default)]
pub(super) struct Pace {
    /// Up to when it was filled.
    filled: Millis,
    spent: u32,
}

impl Pace {
    pub(super) fn is_empty(&self, rate: u16) -> bool {
        self.spent >= u32::from(rate.max(1)) * SECONDS
    }

    /// One packet, with so many filters.
    pub(super) fn spend(&mut self, filters: usize) {
        let cost = u32::try_from(filters).unwrap_or(u32::MAX).saturating_mul(FILTER).saturating_add(1);
        self.spent = self.spent.saturating_add(cost);
    }

    /// Time has passed; `rate` packets a second.
    pub(super) fn fill(&mut self, now: Millis, rate: u16) {
        let passed = now.saturating_sub(self.filled);
        let back = passed.saturating_mul(rate.max(1).into()) / 1_000;
        if self.spent == 0 || back > 0 {
            self.spent = self.spent.saturating_sub(u32::try_from(back).unwrap_or(u32::MAX));
            self.filled = now;
        }
    }
}

impl Session {
    /// Whether the client was too quick and is not read for that.
    pub fn is_paced(&self) -> bool {
        self.state == State::Open
            && self.waits == Some(Waits::Pace)
            && self.pace.is_empty(self.limits.control_rate)
    }

    /// When a client that was too quick is heard again.
    pub(super) fn pace_deadline(&self) -> Option<Millis> {
        let rate = Millis::from(self.limits.control_rate.max(1));
        self.is_paced().then(|| self.pace.filled + STEP.max(1_000_u64.div_ceil(rate)))
    }
}
