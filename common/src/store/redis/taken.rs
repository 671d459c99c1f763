//! On which connection each partition's term was taken. What was confirmed on one connection may be gone on the next one
//! (another server, the same one after a crash, a replica that was behind), and the log would go on with ids that were given
//! out before. So nothing is appended under a term that was taken on another connection: `AppendError::Retake`.
//!
//! One small entry for each partition that this process ever took and whose tenant was not deleted.

use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;

use super::keys::Keys;
use crate::{name::PartitionKey, name::TenantName, position::Term};

/// A term with what every append under it needs.
pub(super) struct Taking {
    pub(super) term: Term,
    /// `Live::number`.
    pub(super) live: u64,
    /// Key of the log.
    pub(super) log: String,
    /// `<term>-*`.
    pub(super) next_id: String,
}

impl Taking {
    pub(super) fn new(partition: &PartitionKey, term: Term, live: u64) -> Self {
        Self { term, live, log: Keys::new(partition).log(), next_id: format!("{term}-*") }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Taken {
    by_partition: Mutex<HashMap<PartitionKey, Arc<Taking>>>,
}

impl Taken {
    /// What was taken last.
    pub(super) fn get(&self, partition: &PartitionKey) -> Option<Arc<Taking>> {
        self.lock().get(partition).cloned()
    }

    /// A term that is not the one that was taken here last.
    pub(super) fn stray(
        &self,
        partition: &PartitionKey,
        term: Term,
        live: impl FnOnce(&[u8]) -> Option<u64>,
    ) -> Arc<Taking> {
        let taking = Taking::new(partition, term, 0);
        let live = live(taking.log.as_bytes()).unwrap_or_default();
        Arc::new(Taking { live, ..taking })
    }

    pub(super) fn set(&self, partition: &PartitionKey, taking: Taking) {
        let mut takings = self.lock();
        // Answers of two takes may come in any order.
        if takings.get(partition).is_none_or(|other| other.term <= taking.term || other.live != taking.live) {
            takings.insert(partition.clone(), Arc::new(taking));
        }
    }

    pub(super) fn forget(&self, tenant: &TenantName) {
        self.lock().retain(|partition, _| partition.tenant != *tenant);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PartitionKey, Arc<Taking>>> {
        self.by_partition.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
