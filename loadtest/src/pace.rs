//! When each message is due. Pure: instants relative to the beginning of a phase come from a message's number alone, so
//! that a pause of the server or of the generator moves nothing (no coordinated omission).

use std::time::Duration;

/// How fast a phase goes, over all its clients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// As fast as acknowledgements come.
    Max,
    /// Messages a second, from one rate to another over the phase.
    Ramp {
        /// At its beginning.
        from: f64,
        /// At its end.
        to: f64,
    },
}

impl Pace {
    /// The same rate all the time.
    pub fn steady(rate: f64) -> Self {
        Self::Ramp { from: rate, to: rate }
    }

    /// Messages that are due in a phase of that length; None: as many as it can.
    pub(crate) fn count(self, phase: Duration) -> Option<u64> {
        let Self::Ramp { from, to } = self else { return None };
        // Saturates.
        Some(((from + to) / 2.0 * phase.as_secs_f64()).floor() as u64)
    }

    /// When the message of that number (from 0) is due in a phase of that length; None: not in this phase.
    pub(crate) fn due(self, number: u64, phase: Duration) -> Option<Duration> {
        let Self::Ramp { from, to } = self else { return Some(Duration::ZERO) };
        let length = phase.as_secs_f64();
        // Messages up to t: from·t + growth/2·t². The root is written so that it also holds without growth.
        let growth = (to - from) / length;
        let under_root = from * from + 2.0 * growth * number as f64;
        let divisor = from + under_root.max(0.0).sqrt();
        let at = if number == 0 && from + to > 0.0 { 0.0 } else { 2.0 * number as f64 / divisor };
        let never = under_root < 0.0 || !at.is_finite() || at >= length;
        if never { None } else { Duration::try_from_secs_f64(at).ok() }
    }
}

/// One part of a load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PhasePlan {
    /// Relative to the start of the load.
    pub(crate) start: Duration,
    pub(crate) length: Duration,
    /// Clients that take part: those with the lowest numbers.
    pub(crate) clients: u64,
    pub(crate) pace: Pace,
}

/// What a client does next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Next {
    /// A message is due then; it may be in the past.
    At(Duration),
    /// As fast as it goes, from then until the end of the phase.
    Max(Duration, Duration),
    /// No message before that; the connection is not needed meanwhile.
    Absent(Duration),
    /// No message any more.
    Done,
}

/// One client's way through the phases.
#[derive(Debug, Clone)]
pub(crate) struct Course {
    /// Number among the clients, from 0.
    client: u64,
    phase: usize,
    /// Its messages in the present phase so far.
    count: u64,
}

impl Course {
    pub(crate) fn new(client: u64) -> Self {
        Self { client, phase: 0, count: 0 }
    }

    /// What comes next; `now` since the start of the load.
    pub(crate) fn next(&mut self, plan: &[PhasePlan], now: Duration) -> Next {
        while let Some(phase) = plan.get(self.phase) {
            let end = phase.start.saturating_add(phase.length);
            let takes_part = self.client < phase.clients;
            let next = match phase.pace {
                _ if !takes_part => (now < end).then_some(Next::Absent(end)),
                Pace::Max => (now < end).then_some(Next::Max(phase.start, end)),
                Pace::Ramp { .. } => {
                    let number = self.count.saturating_mul(phase.clients).saturating_add(self.client);
                    let due = phase.pace.due(number, phase.length);
                    due.map(|due| Next::At(phase.start.saturating_add(due)))
                }
            };
            match next {
                Some(next) => return next,
                None => (self.phase, self.count) = (self.phase + 1, 0),
            }
        }
        Next::Done
    }

    /// The message that `next` told of is on its way.
    pub(crate) fn sent(&mut self) {
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn count(pace: Pace, phase: Duration) -> u64 {
        (0..).take_while(|number| pace.due(*number, phase).is_some()).count() as u64
    }

    #[test]
    fn a_steady_pace_is_evenly_spaced() {
        let pace = Pace::steady(100.0);
        assert_eq!(pace.due(0, SECOND), Some(Duration::ZERO));
        assert_eq!(pace.due(50, SECOND), Some(Duration::from_millis(500)));
        assert_eq!(count(pace, SECOND), 100);
        assert_eq!(Pace::steady(0.0).due(0, SECOND), None);
    }

    #[test]
    fn ramps_up_and_down_hold_what_their_mean_says() {
        for (from, to) in [(0.0, 200.0), (200.0, 0.0), (50.0, 150.0)] {
            let pace = Pace::Ramp { from, to };
            let sent = count(pace, 10 * SECOND);
            let expected = ((from + to) / 2.0 * 10.0) as u64;
            assert!(sent.abs_diff(expected) <= 1, "{from}..{to}: {sent}");
            let half =
                (0..).take_while(|n| pace.due(*n, 10 * SECOND).is_some_and(|due| due < 5 * SECOND)).count();
            let expected = (from + (from + to) / 2.0) / 2.0 * 5.0;
            assert!((half as f64 - expected).abs() <= 1.0, "{from}..{to}: {half} in the first half");
            let order: Vec<_> = (0..sent).map_while(|n| pace.due(n, 10 * SECOND)).collect();
            assert!(order.is_sorted());
        }
    }

    #[test]
    fn clients_share_a_pace_and_pass_from_phase_to_phase() {
        let plan = [
            PhasePlan { start: Duration::ZERO, length: SECOND, clients: 1, pace: Pace::steady(3.0) },
            PhasePlan { start: SECOND, length: SECOND, clients: 2, pace: Pace::steady(2.0) },
            PhasePlan { start: 2 * SECOND, length: SECOND, clients: 2, pace: Pace::Max },
        ];
        let millis = |client| {
            let mut course = Course::new(client);
            let mut dues = Vec::new();
            let mut now = Duration::ZERO;
            loop {
                match course.next(&plan, now) {
                    Next::At(due) => {
                        dues.push(due.as_millis() as u64);
                        course.sent();
                    }
                    Next::Absent(until) => {
                        dues.push(9_000);
                        now = until;
                    }
                    Next::Max(from, until) => {
                        dues.push(from.as_millis() as u64);
                        now = until;
                    }
                    Next::Done => return dues,
                }
            }
        };
        assert_eq!(millis(0), [0, 333, 666, 1_000, 2_000]);
        assert_eq!(millis(1), [9_000, 1_500, 2_000]);
    }
}
