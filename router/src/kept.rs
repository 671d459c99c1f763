//! The filters of persistent sessions, as this router knows them: the tenant's table in the store, followed change by
//! change. What is matched with is never older than the last `follow` that was asked for.

use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use hashbrown::HashMap;
use penstock_common::{
    name::TenantName,
    store::{FilterChanges, FilterTable, SessionFilters, Store, StoreError},
};
use penstock_mqtt::trie::Trie;

use crate::clients::Page;

/// See the module.
#[derive(Default)]
pub struct KeptFilters {
    tenants: RwLock<HashMap<TenantName, Table>>,
    /// One follows at a time.
    following: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Table {
    up_to: u64,
    /// Of QoS 1 only: nothing else waits for a client.
    trie: Trie<u64, ()>,
    clients: HashMap<Bytes, Session>,
    names: HashMap<u64, Bytes>,
    numbers: u64,
}

struct Session {
    number: u64,
    filters: SessionFilters,
}

impl Table {
    fn of(stored: FilterTable) -> Self {
        let mut table = Self { up_to: stored.up_to, ..Self::default() };
        for (client, filters) in stored.sessions {
            table.set(client, Some(filters));
        }
        table
    }

    fn set(&mut self, client: Bytes, filters: Option<SessionFilters>) {
        if let Some(old) = self.clients.remove(&client) {
            for filter in &old.filters.filters {
                self.trie.remove(&filter.filter, old.number);
            }
            self.names.remove(&old.number);
        }
        let Some(filters) = filters else { return };
        self.numbers += 1;
        let number = self.numbers;
        for filter in filters.filters.iter().filter(|filter| filter.qos > 0) {
            self.trie.insert(&filter.filter, number, ());
        }
        self.names.insert(number, client.clone());
        self.clients.insert(client, Session { number, filters });
    }
}

impl KeptFilters {
    /// Follows a tenant's table to its last change.
    pub async fn follow(&self, store: &dyn Store, tenant: &TenantName) -> Result<(), StoreError> {
        let _alone = self.following.lock().await;
        let known = self.read(|tenants| tenants.get(tenant).map(|table| table.up_to));
        let changes = match known {
            Some(after) => store.filter_changes(tenant, after).await?,
            None => FilterChanges::Forgotten,
        };
        match changes {
            FilterChanges::Known { up_to, changes } => {
                let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
                if let Some(table) = tenants.get_mut(tenant) {
                    table.up_to = up_to;
                    changes.into_iter().for_each(|(client, filters)| table.set(client, filters));
                }
            }
            FilterChanges::Forgotten => {
                let table = Table::of(store.filter_table(tenant).await?);
                let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
                tenants.insert(tenant.clone(), table);
            }
        }
        Ok(())
    }

    fn read<T>(&self, look: impl FnOnce(&HashMap<TenantName, Table>) -> T) -> T {
        look(&self.tenants.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether mail may be wanted for anybody of the tenant.
    pub fn any(&self, tenant: &TenantName) -> bool {
        self.read(|tenants| tenants.get(tenant).is_some_and(|table| !table.trie.is_empty()))
    }

    /// The filters of a client's session, if it has one.
    pub fn of(&self, tenant: &TenantName, client: &[u8]) -> Option<SessionFilters> {
        self.read(|tenants| Some(tenants.get(tenant)?.clients.get(client)?.filters.clone()))
    }

    /// Whether the client has a session.
    pub fn has(&self, tenant: &TenantName, client: &[u8]) -> bool {
        self.read(|tenants| tenants.get(tenant).is_some_and(|table| table.clients.contains_key(client)))
    }

    /// Clients that have a session.
    pub fn clients(&self, tenant: &TenantName, page: &Page) -> Vec<Bytes> {
        self.read(|tenants| {
            let all = tenants.get(tenant).into_iter().flat_map(|table| table.clients.keys());
            let first = page.first(all.filter(|client| page.holds(client)).collect(), |client| &client[..]);
            first.into_iter().cloned().collect()
        })
    }

    /// Calls `found` with index, client and incarnation of each session that wants the topic with QoS 1, possibly several
    /// times.
    pub fn matches(&self, tenant: &TenantName, topics: &[&[u8]], mut found: impl FnMut(usize, &Bytes, u64)) {
        self.read(|tenants| {
            let Some(table) = tenants.get(tenant) else { return };
            for (index, topic) in topics.iter().enumerate() {
                table.trie.matches(topic, |number, ()| {
                    let client = table.names.get(&number);
                    let session = client.and_then(|client| Some((client, table.clients.get(client)?)));
                    if let Some((client, session)) = session {
                        found(index, client, session.filters.incarnation);
                    }
                });
            }
        });
    }
}
