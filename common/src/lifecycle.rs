//! The life of a process: starting, ready, draining, gone. The first SIGTERM or SIGINT asks for a drain, a second one ends
//! the process at once with status 1. Parts watch; they don't handle signals themselves.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

/// Where a process is in its life. Only ever moves forward.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Parts are being started.
    Starting,
    /// Everything serves.
    Ready,
    /// No new work; what is under way is finished.
    Draining,
}

/// The life of this process. Cheap to clone.
#[derive(Clone)]
pub struct Lifecycle {
    phase: Arc<watch::Sender<Phase>>,
    drain: CancellationToken,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Lifecycle {
    /// Starting.
    pub fn new() -> Self {
        Self { phase: Arc::new(watch::Sender::new(Phase::Starting)), drain: CancellationToken::new() }
    }

    /// Everything serves, unless a drain has begun.
    pub fn started(&self) {
        self.advance(Phase::Ready);
    }

    /// Begins the drain, as a signal would.
    pub fn begin_drain(&self) {
        self.advance(Phase::Draining);
        self.drain.cancel();
    }

    /// Not ready from now on; the drain begins after `delay`, in which everything still serves: so long may it take until
    /// those who look at readiness send nobody any more. A process that was not ready yet drains at once.
    async fn drain_after(&self, delay: Duration) {
        let ready = *self.phase.borrow() == Phase::Ready;
        self.advance(Phase::Draining);
        if ready {
            tokio::time::sleep(delay).await;
        }
        self.drain.cancel();
    }

    /// The phase, as it changes.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Cancelled when the drain begins.
    pub fn drain(&self) -> &CancellationToken {
        &self.drain
    }

    /// Handles signals from now on, on the present runtime: the first one begins the drain after `delay`.
    pub fn handle_signals(&self, delay: Duration) -> io::Result<()> {
        let mut signals = Signals::new()?;
        let life = self.clone();
        tokio::spawn(async move {
            let name = signals.next().await;
            tracing::info!(signal = name, ?delay, "draining; a second signal ends at once");
            let begun = life.clone();
            tokio::spawn(async move { begun.drain_after(delay).await });
            let name = signals.next().await;
            tracing::warn!(signal = name, "ending at once");
            std::process::exit(1);
        });
        Ok(())
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let forward = to > *phase;
            *phase = to.max(*phase);
            forward
        });
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_drain_that_came_first_is_not_undone_by_a_late_start() {
        let life = Lifecycle::new();
        let phase = life.phase();
        assert_eq!(*phase.borrow(), Phase::Starting);
        life.begin_drain();
        life.started();
        assert_eq!(*phase.borrow(), Phase::Draining);
        assert!(life.drain().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_drain_is_seen_before_it_begins() {
        let life = Lifecycle::new();
        life.started();
        let draining = life.clone();
        let drain = tokio::spawn(async move { draining.drain_after(Duration::from_secs(5)).await });
        life.phase().wait_for(|phase| *phase == Phase::Draining).await.unwrap();
        assert!(!life.drain().is_cancelled(), "still serving");
        drain.await.unwrap();
        assert!(life.drain().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_nobody_was_sent_to_does_not_wait() {
        let (life, begun) = (Lifecycle::new(), tokio::time::Instant::now());
        life.drain_after(Duration::from_secs(5)).await;
        assert!(life.drain().is_cancelled() && begun.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn phases_are_seen_in_order() {
        let life = Lifecycle::new();
        let mut phase = life.phase();
        life.started();
        phase.wait_for(|phase| *phase == Phase::Ready).await.unwrap();
        life.begin_drain();
        phase.wait_for(|phase| *phase == Phase::Draining).await.unwrap();
    }
}
