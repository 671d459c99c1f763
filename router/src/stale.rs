//! Epochs that a takeover made void, per client of one partition. Pure. A record that a paused or cut-off owner received
//! before it lost the client must not follow what the new owner published: it is refused.

use std::time::Duration;

use hashbrown::HashMap;
use penstock_common::epoch::Epoch;
use tokio::time::Instant;

/// How long a void epoch is remembered: a link that lives longer without settling is closed for silence long before.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Clients remembered at most; beyond it the memory is emptied of what is oldest.
const MOST: usize = 65_536;

/// Void epochs.
#[derive(Debug, Default)]
pub struct Stale {
    clients: HashMap<Box<[u8]>, Vec<(Epoch, Instant)>>,
}

impl Stale {
    /// Remembers an epoch as void.
    pub fn add(&mut self, client: &[u8], epoch: Epoch, now: Instant) {
        if self.clients.len() >= MOST {
            self.sweep(now);
        }
        let epochs = self.clients.entry_ref(client).or_default();
        epochs.retain(|(_, since)| now.duration_since(*since) < REMEMBERED);
        epochs.push((epoch, now));
    }

    /// Forgets what is old. Called now and then.
    pub fn sweep(&mut self, now: Instant) {
        self.clients.retain(|_, epochs| {
            epochs.retain(|(_, since)| now.duration_since(*since) < REMEMBERED);
            !epochs.is_empty()
        });
        while self.clients.len() >= MOST {
            let Some(any) = self.clients.keys().next().cloned() else { break };
            self.clients.remove(&any);
        }
    }

    /// Nothing is remembered: batches need not be looked into.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Whether a record of this client and epoch is refused.
    pub fn holds(&self, client: &[u8], epoch: u64) -> bool {
        self.clients.get(client).is_some_and(|epochs| epochs.iter().any(|(void, _)| void.0 == epoch))
    }
}
