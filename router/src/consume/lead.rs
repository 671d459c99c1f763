//! Who has a group that only one consumer may have: the one that has joined its first partition. That partition's home
//! admits one consumer; the homes of the others let whoever comes replace whoever is there. A consumer that is replaced
//! somewhere joins the first partition again: if another one has it, that home says so.

use penstock_common::{name::PartitionKey, registry::GroupMode};
use tokio::sync::{Notify, watch};

/// The partition that decides.
pub(crate) const FIRST: u32 = 0;

/// What the followers of one consumer share.
pub(super) struct Lead {
    mode: GroupMode,
    held: watch::Sender<bool>,
    doubt: Notify,
}

impl Lead {
    /// In a shared group there is nothing to decide.
    pub(super) fn new(mode: GroupMode) -> Self {
        Self { mode, held: watch::Sender::new(mode == GroupMode::Shared), doubt: Notify::new() }
    }

    fn decides(&self, key: &PartitionKey) -> bool {
        self.mode != GroupMode::Shared && key.partition == FIRST
    }

    /// A partition is joined.
    pub(super) fn joined(&self, key: &PartitionKey) {
        if self.decides(key) {
            self.held.send_replace(true);
        }
    }

    /// A partition is no longer joined.
    pub(super) fn left(&self, key: &PartitionKey) {
        if self.decides(key) {
            self.held.send_replace(false);
        }
    }

    /// Whether a consumer that is refused gives up; otherwise it tries again.
    pub(super) fn refuses(&self) -> bool {
        self.mode == GroupMode::Exclusive
    }

    /// When a partition may be joined.
    pub(super) fn of(&self, key: &PartitionKey) -> Waiting {
        Waiting { held: (!self.decides(key)).then(|| self.held.subscribe()) }
    }

    /// The consumer was replaced somewhere.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Ends when this partition is to be joined again, because it decides and there is doubt.
    pub(super) async fn doubted(&self, key: &PartitionKey) {
        if self.decides(key) {
            self.doubt.notified().await;
        } else {
            std::future::pending().await
        }
    }
}

/// See [`Lead::of`].
pub(super) struct Waiting {
    held: Option<watch::Receiver<bool>>,
}

impl Waiting {
    /// Ends when the partition may be joined.
    pub(super) async fn held(&mut self) {
        if let Some(held) = &mut self.held
            && held.wait_for(|held| *held).await.is_err()
        {
            std::future::pending().await
        }
    }
}
