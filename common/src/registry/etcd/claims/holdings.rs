//! What this process owns, and the leases it hangs on: pure. A lease takes a block of keys; one that holds nothing any more
//! and isn't the current one is let go.

use std::collections::{HashMap, HashSet};

use crate::{epoch::Epoch, name::ClientKey, registry::Owner};

/// An ownership.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub owner: Owner,
    /// Now.
    pub epoch: Epoch,
    /// When this connection got it: renewals raise `epoch` only, and who asks may not have heard of the last one.
    pub since: Epoch,
    /// 0: lost.
    pub lease: i64,
}

impl Held {
    /// Whether that epoch means this ownership.
    pub fn is(&self, epoch: Epoch) -> bool {
        self.since <= epoch && epoch <= self.epoch
    }
}

pub(super) struct Holdings {
    held: HashMap<ClientKey, Held>,
    /// Keys and reservations by lease.
    blocks: HashMap<i64, usize>,
    current: Option<i64>,
    /// Keys that were ever put on the current lease.
    filled: usize,
    block: usize,
    drained: Vec<i64>,
}

impl Holdings {
    /// `block`: keys on one lease.
    pub fn new(block: u32) -> Self {
        Self {
            held: HashMap::new(),
            blocks: HashMap::new(),
            current: None,
            filled: 0,
            block: block as usize,
            drained: Vec::new(),
        }
    }

    pub fn get(&self, client: &ClientKey) -> Option<&Held> {
        self.held.get(client)
    }

    /// Room for so many keys on the current lease, unless it is full.
    pub fn reserve(&mut self, keys: usize) -> Option<i64> {
        let lease = self.current?;
        if self.filled + keys > self.block.max(keys) {
            return None;
        }
        self.filled += keys;
        *self.blocks.entry(lease).or_default() += keys;
        Some(lease)
    }

    /// A new current lease, with so many keys reserved on it.
    pub fn open(&mut self, lease: i64, keys: usize) -> i64 {
        if let Some(old) = self.current.replace(lease) {
            self.leave(old, 0);
        }
        self.filled = keys;
        self.blocks.insert(lease, keys);
        lease
    }

    /// Ends a reservation; what was put under it has been `insert`ed.
    pub fn unreserve(&mut self, lease: i64, keys: usize) {
        self.leave(lease, keys);
    }

    pub fn insert(&mut self, client: ClientKey, held: Held) {
        if let Some(count) = self.blocks.get_mut(&held.lease) {
            *count += 1;
        }
        // A lease that was lost while the answer was under way leaves the key without one; it is renewed by `lose`'s
        // caller, which saw the lease before.
        if let Some(old) = self.held.insert(client, held) {
            self.leave(old.lease, 1);
        }
    }

    pub fn remove(&mut self, client: &ClientKey) -> Option<Held> {
        let held = self.held.remove(client)?;
        self.leave(held.lease, 1);
        Some(held)
    }

    /// Leases to keep alive.
    pub fn leases(&self) -> Vec<i64> {
        self.blocks.keys().copied().collect()
    }

    /// Whether this lease is still believed in.
    pub fn has(&self, lease: i64) -> bool {
        self.blocks.contains_key(&lease)
    }

    /// These leases are lost: what hung on them.
    pub fn lose(&mut self, leases: &HashSet<i64>) -> Vec<(ClientKey, Epoch)> {
        self.blocks.retain(|lease, _| !leases.contains(lease));
        if self.current.is_some_and(|lease| leases.contains(&lease)) {
            self.current = None;
        }
        let mut lost = Vec::new();
        for (client, held) in &mut self.held {
            if leases.contains(&held.lease) {
                held.lease = 0;
                lost.push((client.clone(), held.epoch));
            }
        }
        lost
    }

    /// Leases that hold nothing any more: they need not be kept alive.
    pub fn drained(&mut self) -> Vec<i64> {
        std::mem::take(&mut self.drained)
    }

    fn leave(&mut self, lease: i64, keys: usize) {
        let Some(count) = self.blocks.get_mut(&lease) else { return };
        *count = count.saturating_sub(keys);
        if *count == 0 && self.current != Some(lease) {
            self.blocks.remove(&lease);
            self.drained.push(lease);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::name::TenantName;

    fn client(n: u32) -> ClientKey {
        ClientKey { tenant: TenantName::new("t").unwrap(), client: n.to_string().into() }
    }

    fn held(lease: i64) -> Held {
        let owner = Owner { gateway: 1, shard: 0, routers: [0, 0] };
        Held { owner, epoch: Epoch::real(9), since: Epoch::real(5), lease }
    }

    #[test]
    fn a_full_block_is_followed_by_another_and_let_go_when_it_is_empty() {
        let mut holdings = Holdings::new(2);
        assert_eq!(holdings.reserve(1), None);
        holdings.open(7, 2);
        holdings.insert(client(1), held(7));
        holdings.insert(client(2), held(7));
        holdings.unreserve(7, 2);
        assert_eq!(holdings.reserve(1), None);
        holdings.open(8, 1);
        holdings.insert(client(3), held(8));
        holdings.unreserve(8, 1);
        holdings.remove(&client(1));
        assert!(holdings.has(7));
        holdings.insert(client(2), held(8));
        assert!(!holdings.has(7));
        assert_eq!(holdings.drained(), [7]);
        assert_eq!(holdings.leases(), [8]);
    }

    #[test]
    fn only_what_hung_on_a_lost_lease_is_lost_and_once() {
        let mut holdings = Holdings::new(1);
        holdings.open(7, 1);
        holdings.insert(client(1), held(7));
        holdings.open(8, 1);
        holdings.insert(client(2), held(8));
        assert_eq!(holdings.lose(&HashSet::from([7])), [(client(1), Epoch::real(9))]);
        assert!(holdings.lose(&HashSet::from([7])).is_empty());
        assert_eq!(holdings.reserve(1), None);
    }

    #[test]
    fn every_epoch_since_the_claim_names_the_ownership() {
        let held = held(1);
        assert!(held.is(Epoch::real(5)) && held.is(Epoch::real(7)) && held.is(Epoch::real(9)));
        assert!(!held.is(Epoch::real(4)) && !held.is(Epoch::real(10)));
    }
}
