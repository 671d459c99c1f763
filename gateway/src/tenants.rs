//! How many connections each tenant has at this gateway, counted over all shards, and what the end of a tenant means for
//! them. Touched at CONNECT, at close, and when definitions change.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use penstock_common::{name::TenantName, registry::Definitions};
use penstock_mqtt::session::CloseReason;

use crate::shard::Shard;

/// Connections by tenant. Shared by the shards.
#[derive(Default)]
pub(crate) struct Seats {
    // Bounded by the number of tenants ever defined.
    tenants: Mutex<HashMap<TenantName, Arc<AtomicU32>>>,
}

/// A connection's place within its tenant's limit; given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat(Arc<AtomicU32>);

impl Seats {
    /// A place, unless the tenant has `limit` connections.
    pub(crate) fn take(&self, tenant: &TenantName, limit: u32) -> Option<Seat> {
        let taken = {
            let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(tenants.entry(tenant.clone()).or_default())
        };
        let more = |n: u32| (n < limit).then_some(n + 1);
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Seat(taken))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shard {
    /// Takes a new snapshot; connections of tenants that are no more close, and what nobody will store is dropped.
    pub(crate) fn define(&mut self, definitions: Arc<Definitions>) {
        let before = std::mem::replace(&mut self.definitions, definitions);
        let gone = |tenant: &TenantName| !self.definitions.tenants.contains_key(tenant);
        if !before.tenants.keys().any(gone) {
            return;
        }
        let of_gone = |key| self.connections.identity(key).is_some_and(|identity| gone(&identity.tenant));
        let keys: Vec<_> = self.connections.keys().into_iter().filter(|key| of_gone(*key)).collect();
        for key in keys {
            self.close(key, CloseReason::Administrative);
        }
        // First the claims: one whose connection is gone would still want its lane.
        self.sweep_claims();
        self.abandon_lanes();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_tenant_at_its_limit_waits_for_a_close_and_others_do_not() {
        let (seats, acme, other) =
            (Seats::default(), TenantName::new("acme").unwrap(), TenantName::new("other").unwrap());
        let first = seats.take(&acme, 1).unwrap();
        assert!(seats.take(&acme, 1).is_none());
        assert!(seats.take(&other, 1).is_some());
        drop(first);
        assert!(seats.take(&acme, 1).is_some());
    }
}
