//! The end of a shard in good order: no new connections, publishes that were received are settled and acknowledged, then
//! each connection closes; spread over half of the time, so that the clients' next home is not hit at once.

use penstock_mqtt::session::{CloseReason, Millis};
use tokio::sync::oneshot;

use crate::shard::{Drain, Shard};

impl Shard {
    /// Begins to drain; `done` hears when no connection is left.
    pub(crate) fn begin_drain(&mut self, within: Millis, done: oneshot::Sender<()>) {
        for accepting in self.accepting.drain(..) {
            accepting.abort();
        }
        let connections = self.connections.len();
        tracing::info!(shard = self.number, connections, within_ms = within, "draining");
        let until = self.now + within;
        self.drain = Some(Drain { began: self.now, until, connections, asked: 0, done: Some(done) });
        self.tick_drain();
    }

    /// Asks the next connections to close; at the end closes the rest.
    pub(crate) fn tick_drain(&mut self) {
        let Some(drain) = &self.drain else { return };
        let half = (drain.until - drain.began) / 2;
        let passed = self.now - drain.began;
        let share = if half == 0 { 1.0 } else { (passed as f64 / half as f64).min(1.0) };
        // A small shard is emptied at once.
        let due = ((drain.connections as f64 * share) as usize).max(100);
        let over = self.now >= drain.until;
        let count = if share >= 1.0 { usize::MAX } else { due.saturating_sub(drain.asked) };
        let mut asked = 0;
        for key in self.connections.keys() {
            let Some(connection) = self.connections.get_mut(key) else { continue };
            if over {
                self.close(key, CloseReason::Draining);
            } else if asked < count && !connection.draining {
                asked += 1;
                connection.draining = true;
                connection.session.close_when_settled(CloseReason::Draining);
                self.touch(key);
            }
        }
        if let Some(drain) = &mut self.drain {
            drain.asked += asked;
        }
        self.end_drain();
    }

    fn end_drain(&mut self) {
        if self.connections.len() > 0 {
            return;
        }
        let told = self.links.iter().all(|(_, link)| link.control.len() == 0 && link.data.len() == 0);
        let settled = self.lanes.iter().all(|lane| lane.is_settled() && lane.endings.is_empty());
        let Some(drain) = &mut self.drain else { return };
        // Wills and detaches still leave, if they can.
        if ((told && settled) || self.now >= drain.until)
            && let Some(done) = drain.done.take()
        {
            let _ = done.send(());
        }
    }
}
