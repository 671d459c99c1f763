//! Waiting for conditions with a deadline; no test sleeps and hopes.

use std::{future::Future, time::Duration};

use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep},
};

/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);

/// Looks until there is an answer.
///
/// # Panics
/// When the limit is over.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = look().await {
            return answer;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        sleep(LOOK).await;
    }
}

/// For a fault that lasts: the time passes, and the fault with it. Never used to wait for an effect.
pub async fn lasting(time: Duration) {
    sleep(time).await;
}

static ONE: Mutex<()> = Mutex::const_new(());

/// Clusters don't share the machine: held by a test while it has one.
pub async fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().await
}
