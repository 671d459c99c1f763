//! Backoff with jitter, so that what failed together is not tried again together.

use std::time::Duration;

use penstock_common::clock::Seams;

/// Doubles from a first pause to a longest one.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    most: Duration,
}

impl Backoff {
    /// Pauses of `first`, twice that, …, at most `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { next: first, most }
    }

    /// The next pause: between half of it and all of it.
    pub fn step(&mut self, seams: &Seams) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.most);
        let half = pause / 2;
        half + half.mul_f64((seams.number() % 1_000) as f64 / 1_000.0)
    }

    /// Sleeps the next pause.
    pub async fn pause(&mut self, seams: &Seams) {
        tokio::time::sleep(self.step(seams)).await;
    }
}
