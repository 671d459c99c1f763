//! Wall time and randomness, injected: a simulation gives its own, so that a seed reproduces a run. Monotonic time is
//! tokio's, which a simulation drives as well.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use rand::{RngCore, SeedableRng, rngs::StdRng};

/// Milliseconds since 1970.
pub type UnixMillis = u64;

/// Where wall time and randomness come from. Cheap to clone.
#[derive(Clone)]
pub struct Seams {
    wall: Arc<dyn Fn() -> UnixMillis + Send + Sync>,
    random: Arc<Mutex<StdRng>>,
}

impl Seams {
    /// The machine's own clock and entropy.
    pub fn real() -> Self {
        Self::with(system_millis, StdRng::from_os_rng())
    }

    /// A clock and a seed of the caller's.
    pub fn seeded(wall: impl Fn() -> UnixMillis + Send + Sync + 'static, seed: u64) -> Self {
        Self::with(wall, StdRng::seed_from_u64(seed))
    }

    fn with(wall: impl Fn() -> UnixMillis + Send + Sync + 'static, random: StdRng) -> Self {
        Self { wall: Arc::new(wall), random: Arc::new(Mutex::new(random)) }
    }

    /// Wall time, milliseconds since 1970.
    pub fn now_ms(&self) -> UnixMillis {
        (self.wall)()
    }

    /// A random number other than 0, for incarnations, producers and link numbers.
    pub fn number(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).next_u64().max(1)
    }

    /// Fills a buffer with random bytes, for secrets.
    pub fn fill(&self, bytes: &mut [u8]) {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }
}

fn system_millis() -> UnixMillis {
    // The one place where the wall clock is read.
    #[allow(clippy::disallowed_methods)]
    let now = SystemTime::now();
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
