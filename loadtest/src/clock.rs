//! Wall time in stamps: one reading of the clock, and monotonic time since then, so that all clients of a process agree.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Where wall time and monotonic time met.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    at: Instant,
    /// Since 1970.
    micros: u64,
}

impl Clock {
    // Load runs against real servers only: no simulation gives it a clock.
    #[allow(clippy::disallowed_methods)]
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { at: Instant::now(), micros: u64::try_from(since.as_micros()).unwrap_or(u64::MAX) }
    }

    /// Microseconds since 1970 at an instant.
    pub(crate) fn micros(&self, at: Instant) -> u64 {
        let micros = |later: Instant, earlier: Instant| {
            u64::try_from(later.saturating_duration_since(earlier).as_micros()).unwrap_or(u64::MAX)
        };
        self.micros.saturating_add(micros(at, self.at)).saturating_sub(micros(self.at, at))
    }
}
