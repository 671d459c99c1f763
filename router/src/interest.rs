//! Which links want which topics, per tenant: what live subscriptions of all linked shards add up to.

use std::sync::{PoisonError, RwLock};

use hashbrown::{HashMap, HashSet};
use penstock_common::name::TenantName;
use penstock_mqtt::trie::Trie;
use penstock_proto::link::FilterChange;

/// Filters of all links. Keyed by link number: a link that comes back has another one.
#[derive(Default)]
pub struct Interest {
    tenants: RwLock<HashMap<TenantName, Trie<u64, ()>>>,
    /// Of each link, to undo it.
    links: RwLock<HashMap<u64, HashSet<(TenantName, bytes::Bytes)>>>,
}

impl Interest {
    /// Applies changes of a link; returns the tenants that they touch.
    pub fn apply(&self, link: u64, changes: Vec<FilterChange>) -> HashSet<TenantName> {
        let mut touched = HashSet::new();
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        let own = links.entry(link).or_default();
        for change in changes {
            let Ok(tenant) = TenantName::new(&change.tenant) else { continue };
            let trie = tenants.entry(tenant.clone()).or_default();
            if change.present {
                trie.insert(&change.filter, link, ());
                own.insert((tenant.clone(), change.filter));
            } else {
                trie.remove(&change.filter, link);
                own.remove(&(tenant.clone(), change.filter));
            }
            if trie.is_empty() {
                tenants.remove(&tenant);
            }
            touched.insert(tenant);
        }
        touched
    }

    /// A link is closed.
    pub fn forget(&self, link: u64) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        let own = self.links.write().unwrap_or_else(PoisonError::into_inner).remove(&link);
        for (tenant, filter) in own.into_iter().flatten() {
            let Some(trie) = tenants.get_mut(&tenant) else { continue };
            trie.remove(&filter, link);
            if trie.is_empty() {
                tenants.remove(&tenant);
            }
        }
    }

    /// Whether any link has a filter of the tenant.
    pub fn any(&self, tenant: &TenantName) -> bool {
        self.tenants.read().unwrap_or_else(PoisonError::into_inner).contains_key(tenant)
    }

    /// Calls `found` with each link that wants the topic, possibly several times.
    pub fn matches(&self, tenant: &TenantName, topics: &[&[u8]], mut found: impl FnMut(usize, u64)) {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let Some(trie) = tenants.get(tenant) else { return };
        for (index, topic) in topics.iter().enumerate() {
            trie.matches(topic, |link, ()| found(index, link));
        }
    }
}
