//! How connections ended lately, by partition, for operators. Memory of this router only: it outlives homes that move and
//! gateways that die, and is gone with the router.
//!
//! Bound: [`ENDS_MOST`] ends of some 200 bytes in equal parts for all partitions, but at least [`ENDS_LEAST`] each; the
//! oldest of a partition go first, so that a flood of one tenant removes nothing of another's but what its part shrinks by.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use hashbrown::HashMap;
use penstock_common::{clock::UnixMillis, name::PartitionKey};
use penstock_proto::{admin::ClientEnd, link::Ended};

/// Ends that a router remembers.
const ENDS_MOST: usize = 131_072;
/// Ends of one partition, at least and at most.
const ENDS_LEAST: usize = 16;
const ENDS_OF_PARTITION: usize = 512;
/// Ends of one client in one answer.
pub const ENDS_SHOWN: usize = 16;

struct End {
    client: Box<[u8]>,
    end: ClientEnd,
}

/// See the module.
#[derive(Default)]
pub struct History {
    partitions: Mutex<HashMap<PartitionKey, VecDeque<End>>>,
}

impl History {
    /// Remembers ends that a shard tells. Partitions that are not `defined` any more are forgotten now and then.
    pub fn note(
        &self,
        key: &PartitionKey,
        (node, shard): (&str, u32),
        ended: Vec<Ended>,
        defined: impl Fn(&PartitionKey) -> bool,
    ) {
        let mut partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        if !partitions.contains_key(key) && partitions.len().is_power_of_two() {
            partitions.retain(|key, _| defined(key));
        }
        let most = (ENDS_MOST / (partitions.len() + 1)).clamp(ENDS_LEAST, ENDS_OF_PARTITION);
        let ends = partitions.entry(key.clone()).or_default();
        for one in ended {
            let end = ClientEnd {
                ended_at_ms: one.ended_at_ms,
                connected_at_ms: one.connected_at_ms,
                reason: one.reason,
                epoch: one.epoch,
                gateway_node: node.to_owned(),
                shard,
                address: one.address,
            };
            // A copy, so that nothing pins the message.
            ends.push_back(End { client: one.client.as_ref().into(), end });
        }
        let over = ends.len().saturating_sub(most);
        ends.drain(..over);
    }

    /// The last ends of a client since a time (that of its tenant's creation), newest first.
    pub fn of(&self, key: &PartitionKey, client: &[u8], since: UnixMillis) -> Vec<ClientEnd> {
        let partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = partitions.get(key).into_iter().flatten().rev();
        let own = ends.filter(|end| *end.client == *client && end.end.ended_at_ms >= since);
        own.take(ENDS_SHOWN).map(|end| end.end.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use penstock_common::name::TenantName;

    use super::*;

    fn key(partition: u32) -> PartitionKey {
        PartitionKey { tenant: TenantName::new("acme").unwrap(), partition }
    }

    fn ended(client: &str, at: u64) -> Ended {
        Ended { client: client.to_owned().into(), ended_at_ms: at, ..Ended::default() }
    }

    #[test]
    fn the_last_ends_of_a_client_are_found_newest_first_and_a_flood_is_bounded() {
        let history = History::default();
        let note = |partition, ended| {
            history.note(&key(partition), ("gateway-0", 1), ended, |key| key.partition != 0);
        };
        note(0, vec![ended("a", 1), ended("b", 2), ended("a", 3)]);
        let at = |client: &str, since| {
            let ends = history.of(&key(0), client.as_bytes(), since);
            ends.iter().map(|end| end.ended_at_ms).collect::<Vec<_>>()
        };
        assert_eq!((at("a", 0), at("a", 2), at("c", 0)), (vec![3, 1], vec![3], vec![]));
        note(0, (0..2_000).map(|time| ended("c", time)).collect());
        assert_eq!(at("a", 0), [0; 0]);
        assert_eq!(at("c", 0).len(), ENDS_SHOWN);
        assert_eq!(history.partitions.lock().unwrap().get(&key(0)).unwrap().len(), ENDS_OF_PARTITION);
        note(1, vec![ended("a", 1)]);
        assert_eq!(at("c", 0), [0; 0], "not defined any more");
    }

    #[test]
    fn many_partitions_share_the_memory() {
        let history = History::default();
        for partition in 0..1_000 {
            history
                .note(&key(partition), ("g", 0), (0..600).map(|time| ended("c", time)).collect(), |_| true);
        }
        assert!(history.partitions.lock().unwrap().get(&key(999)).unwrap().len() < 140);
    }
}
