//! A bounded queue in which tenants take turns, and within a tenant the addresses that its users call from. Threads wait for
//! the next job.
//!
//! Invariant: whoever has nothing in the queue waits for one job of each other tenant (and of each other address of its
//! own), however many they have.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use hashbrown::HashMap;
use penstock_common::name::TenantName;

/// Jobs that wait, in all, for a tenant, and for an address of it.
const WAITING: usize = 1_024;
const WAITING_TENANT: usize = 256;
const WAITING_ADDRESS: usize = 128;

/// See the module.
pub(super) struct Turns<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
}

struct State<T> {
    count: usize,
    /// Of an address, whatever tenant it names.
    by_address: HashMap<String, usize>,
    /// Tenants with jobs, in the order of their turns.
    order: VecDeque<TenantName>,
    tenants: HashMap<TenantName, Addresses<T>>,
    ended: bool,
}

struct Addresses<T> {
    count: usize,
    order: VecDeque<String>,
    jobs: HashMap<String, VecDeque<T>>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        let state = State {
            count: 0,
            by_address: HashMap::new(),
            order: VecDeque::new(),
            tenants: HashMap::new(),
            ended: false,
        };
        Self { state: Mutex::new(state), filled: Condvar::new() }
    }
}

impl<T> Turns<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job; false: too many wait. An empty address is nobody's and only the tenant's share counts.
    pub(super) fn push(&self, tenant: &TenantName, address: &str, job: T) -> bool {
        let mut state = self.lock();
        let of_address = state.by_address.get(address).copied().unwrap_or(0);
        let of_tenant = state.tenants.get(tenant).map_or(0, |it| it.count);
        let full = state.count >= WAITING
            || of_tenant >= WAITING_TENANT
            || (!address.is_empty() && of_address >= WAITING_ADDRESS);
        if full || state.ended {
            return false;
        }
        state.add(tenant, address, job);
        drop(state);
        self.filled.notify_one();
        true
    }

    /// The next job; waits for one. None: there will be no more.
    pub(super) fn next(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if state.ended {
                return None;
            }
            if let Some(job) = state.take() {
                return Some(job);
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// No more jobs; those that wait are dropped.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.tenants.clear();
        drop(state);
        self.filled.notify_all();
    }
}

impl<T> State<T> {
    fn add(&mut self, tenant: &TenantName, address: &str, job: T) {
        self.count += 1;
        *self.by_address.entry_ref(address).or_insert(0) += 1;
        let addresses = self.tenants.entry(tenant.clone()).or_insert_with(|| Addresses {
            count: 0,
            order: VecDeque::new(),
            jobs: HashMap::new(),
        });
        if addresses.count == 0 {
            self.order.push_back(tenant.clone());
        }
        addresses.count += 1;
        let jobs = addresses.jobs.entry_ref(address).or_default();
        if jobs.is_empty() {
            addresses.order.push_back(address.to_owned());
        }
        jobs.push_back(job);
    }

    fn take(&mut self) -> Option<T> {
        let tenant = self.order.pop_front()?;
        let addresses = self.tenants.get_mut(&tenant)?;
        let address = addresses.order.pop_front()?;
        let jobs = addresses.jobs.get_mut(&address)?;
        let job = jobs.pop_front()?;
        addresses.count -= 1;
        self.count -= 1;
        if let Some(count) = self.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
        if jobs.is_empty() {
            addresses.jobs.remove(&address);
        } else {
            addresses.order.push_back(address);
        }
        if addresses.count == 0 {
            self.tenants.remove(&tenant);
        } else {
            self.order.push_back(tenant);
        }
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn name(tenant: &str) -> TenantName {
        TenantName::new(tenant).unwrap()
    }

    #[test]
    fn a_tenant_and_an_address_have_a_bounded_share_of_the_queue() {
        let turns = Turns::default();
        let (a, b) = (name("a"), name("b"));
        for _ in 0..WAITING_ADDRESS {
            assert!(turns.push(&a, "1.1.1.1", ()));
        }
        assert!(!turns.push(&b, "1.1.1.1", ()));
        for n in 0..WAITING_TENANT - WAITING_ADDRESS {
            assert!(turns.push(&a, &format!("2.2.2.{}", n % 4), ()));
        }
        assert!(!turns.push(&a, "3.3.3.3", ()) && turns.push(&b, "3.3.3.3", ()));
        assert!(turns.next().is_some());
        assert!(turns.push(&a, "3.3.3.3", ()));
    }

    #[test]
    fn whoever_floods_waits_behind_itself() {
        let turns = Turns::default();
        let (a, b) = (name("a"), name("b"));
        for n in 0..100 {
            turns.push(&a, "flood", n);
        }
        turns.push(&a, "other", 1_000);
        turns.push(&b, "flood", 2_000);
        let order: Vec<i32> = (0..5).map(|_| turns.next().unwrap()).collect();
        assert_eq!(order, [0, 2_000, 1_000, 1, 2]);
        assert_eq!((5..102).filter_map(|_| turns.next()).last(), Some(99), "in order, each of them once");
    }

    #[test]
    fn the_end_wakes_who_waits() {
        let turns = std::sync::Arc::new(Turns::<()>::default());
        let waiting = std::sync::Arc::clone(&turns);
        let thread = std::thread::spawn(move || waiting.next());
        turns.end();
        assert_eq!(thread.join().unwrap(), None);
        assert!(!turns.push(&name("a"), "", ()));
    }
}
