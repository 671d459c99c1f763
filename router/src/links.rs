//! The links of this router, by number and by shard.

use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashMap;

use crate::{fan::ShardId, link::Link};

/// See the module.
#[derive(Default)]
pub struct Links {
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    numbers: HashMap<u64, Arc<Link>>,
    shards: HashMap<ShardId, Arc<Link>>,
}

impl Links {
    /// Adds a link; returns the one that the same shard had before.
    pub fn add(&self, link: &Arc<Link>) -> Option<Arc<Link>> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.numbers.insert(link.number, Arc::clone(link));
        table.shards.insert(link.shard, Arc::clone(link))
    }

    /// Removes a link.
    pub fn remove(&self, link: &Link) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.numbers.remove(&link.number);
        if table.shards.get(&link.shard).is_some_and(|own| **own == *link) {
            table.shards.remove(&link.shard);
        }
    }

    /// By number.
    pub fn number(&self, number: u64) -> Option<Arc<Link>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).numbers.get(&number).cloned()
    }

    /// By shard.
    pub fn shard(&self, shard: &ShardId) -> Option<Arc<Link>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).shards.get(shard).cloned()
    }

    /// Whether there is a link of another shard than this one at a gateway.
    pub fn any_other(&self, gateway: u64, than: ShardId) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.shards.keys().any(|shard| shard.gateway == gateway && *shard != than)
    }

    /// All.
    pub fn all(&self) -> Vec<Arc<Link>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).numbers.values().cloned().collect()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).numbers.len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
