//! How many connections each tenant has at this gateway, counted over all shards. Touched at CONNECT and close only.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use penstock_common::name::TenantName;

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
