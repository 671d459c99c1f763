//! When a message that went back to the group comes again. Pure but for the jitter.

use std::time::Duration;

/// Doubles from the first to the longest.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// After the first try.
    pub first: Duration,
    /// Never longer.
    pub longest: Duration,
}

impl Retry {
    /// After so many tries; between half of the step and all of it, so that many devices don't come at once.
    pub fn delay(self, deliveries: u32) -> Duration {
        let doublings = deliveries.saturating_sub(1).min(31);
        let step = self.first.saturating_mul(1 << doublings).min(self.longest);
        step.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_a_bound() {
        let retry = Retry { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
        for (deliveries, most) in [(0, 1), (1, 1), (2, 2), (5, 16), (7, 60), (u32::MAX, 60)] {
            let delay = retry.delay(deliveries);
            assert!(
                delay <= Duration::from_secs(most) && delay * 2 >= Duration::from_secs(most),
                "{deliveries}: {delay:?}"
            );
        }
    }
}
