//! How many WebSockets each tenant has at this router, and the most that one may have: no tenant takes the others' places.

use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;
use penstock_common::name::TenantName;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Seats {
    most: usize,
    taken: Arc<Mutex<HashMap<TenantName, usize>>>,
}

/// A place, given back when it is dropped.
pub struct Seat {
    seats: Seats,
    tenant: TenantName,
}

impl Seats {
    /// So many a tenant.
    pub fn new(most: usize) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// The most of a tenant.
    pub fn most(&self) -> usize {
        self.most
    }

    /// One more; None: all are taken.
    pub fn take(&self, tenant: &TenantName) -> Option<Seat> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(tenant.clone()).or_insert(0);
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Seat { seats: self.clone(), tenant: tenant.clone() })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_tenant_does_not_take_anothers_places() {
        let (seats, a, b) = (Seats::new(2), TenantName::new("a").unwrap(), TenantName::new("b").unwrap());
        let both = (seats.take(&a).unwrap(), seats.take(&a).unwrap());
        assert!(seats.take(&a).is_none());
        assert!(seats.take(&b).is_some());
        drop(both.0);
        assert!(seats.take(&a).is_some());
        drop(both.1);
        assert!(seats.taken.lock().unwrap().is_empty());
    }
}
