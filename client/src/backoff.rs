//! How long to wait before the next try: doubling, with jitter, so that consumers of a router that died don't come to
//! the next one all at once.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
/// Longest wait between two tries.
pub(crate) const LONGEST: Duration = Duration::from_secs(2);

/// The waits of one row of failures.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// It worked: the next failure waits the shortest time.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST;
    }

    /// The wait after one more failure: between half of the step and all of it.
    pub(crate) fn wait(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(LONGEST);
        step.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_bound_and_never_vanish() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..12).map(|_| backoff.wait()).collect();
        assert!(waits.iter().all(|wait| *wait >= FIRST / 2 && *wait <= LONGEST), "{waits:?}");
        assert!(waits.last().is_some_and(|wait| *wait >= LONGEST / 2));
        backoff.reset();
        assert!(backoff.wait() <= FIRST);
    }
}
