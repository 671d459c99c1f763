//! Time: the connect timeout and the keep alive × 1.5. Never runs against a client that is not read for our reasons.

use super::{CloseReason, Millis, Session, State};

/// What the clock is compared with.
pub(super) struct KeepAlive {
    /// When the last packet came; before CONNECT: when the connection did.
    heard: Millis,
    /// Silence that is allowed, ms; 0 is any. At most 1.5 × 65,535 s.
    silence: u32,
    suspended: bool,
}

impl KeepAlive {
    pub(super) fn new(connect_timeout: Millis, now: Millis) -> Self {
        let silence = u32::try_from(connect_timeout).unwrap_or(u32::MAX);
        Self { heard: now, silence, suspended: false }
    }

    pub(super) fn hear(&mut self, now: Millis) {
        self.heard = now;
    }

    /// From CONNECT's value, seconds; counts from `now`.
    pub(super) fn set(&mut self, keep_alive: u16) {
        self.silence = u32::from(keep_alive) * 1_500;
    }
}

impl Session {
    /// The client's value, seconds; 0 is off. Before CONNECT it means nothing.
    pub fn keep_alive(&self) -> u32 {
        self.keep_alive.silence / 1_500
    }

    /// When to call `tick`: connect timeout, keep alive, or a packet whose time comes. `None` while none of them runs.
    pub fn deadline(&self) -> Option<Millis> {
        [self.silence_deadline(), self.pace_deadline()].into_iter().flatten().min()
    }

    fn silence_deadline(&self) -> Option<Millis> {
        let time = &self.keep_alive;
        let runs = match self.state {
            State::Fresh => true,
            State::Open => time.silence > 0 && !time.suspended,
            State::Judged | State::Closed(_) => false,
        };
        runs.then(|| time.heard.saturating_add(time.silence.into()))
    }

    /// Time has passed. Before the deadline: nothing.
    pub fn tick(&mut self, now: Millis) {
        self.pace.fill(now, self.limits.control_rate);
        if self.silence_deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        if self.state == State::Fresh {
            self.close(CloseReason::ConnectTimeout);
        } else if self.pauses_for_us() {
            // A PINGREQ may lie unread behind what has to wait.
            self.keep_alive.hear(now);
        } else {
            self.close(CloseReason::KeepAlive);
        }
    }

    /// Reading is paused (or resumed) for our reasons: keep alive does not run meanwhile, and starts anew.
    pub fn suspend_keep_alive(&mut self, on: bool, now: Millis) {
        if self.keep_alive.suspended != on {
            self.keep_alive.suspended = on;
            // The connect timeout runs against the client alone and does not start anew.
            if self.state == State::Open {
                self.keep_alive.hear(now);
            }
        }
    }
}
