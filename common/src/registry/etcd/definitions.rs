//! Tenants and groups in etcd: the snapshot that is kept from the watch, and changes to them. A change waits (bounded)
//! until this process's own snapshot shows it; other processes see it when their watch does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use tokio::{sync::watch, time::timeout};

use super::{
    connection::{Answer, CallError, Connection, kv_client},
    follow::View,
    keys::Keys,
    unavailable,
};
use crate::{
    name::TenantName,
    registry::{Definitions, Group, GroupChange, Limits, RegistryError, Tenant, TenantDefinition},
};

/// How long a change waits for the own snapshot to show it.
const SHOWN_DEADLINE: Duration = Duration::from_secs(1);
/// Others that change the same key at the same time: more is refused.
const CONTENTION_MAX: u32 = 32;

/// Everything that is defined, kept from the watch.
pub(super) struct DefinitionsView {
    keys: Keys,
    tenants: BTreeMap<TenantName, Tenant>,
    /// By tenant, then by encoded name; groups whose tenant isn't there (yet) are not shown.
    groups: BTreeMap<TenantName, BTreeMap<String, Arc<Group>>>,
    dirty: BTreeSet<TenantName>,
    current: Definitions,
    shown: watch::Sender<Arc<Definitions>>,
    listed: watch::Sender<i64>,
}

impl DefinitionsView {
    pub fn new(keys: Keys, shown: watch::Sender<Arc<Definitions>>, listed: watch::Sender<i64>) -> Self {
        Self {
            keys,
            tenants: BTreeMap::new(),
            groups: BTreeMap::new(),
            dirty: BTreeSet::new(),
            current: Definitions::default(),
            shown,
            listed,
        }
    }

    fn change_tenant(&mut self, name: TenantName, value: Option<&[u8]>) {
        match value.map(serde_json::from_slice::<Tenant>) {
            None => {
                self.tenants.remove(&name);
            }
            Some(Ok(tenant)) => {
                self.tenants.insert(name.clone(), tenant);
            }
            // What was readable before stays: a tenant must not vanish by a slip of somebody's hand.
            Some(Err(error)) => tracing::warn!(tenant = %name, %error, "etcd holds an unreadable tenant"),
        }
        self.dirty.insert(name);
    }

    fn change_group(&mut self, tenant: TenantName, name: &str, value: Option<&[u8]>) {
        let groups = self.groups.entry(tenant.clone()).or_default();
        match value.map(serde_json::from_slice::<Group>) {
            None => {
                groups.remove(name);
            }
            Some(Ok(group)) => {
                groups.insert(name.to_owned(), Arc::new(group));
            }
            Some(Err(error)) => tracing::warn!(%tenant, name, %error, "etcd holds an unreadable group"),
        }
        if groups.is_empty() {
            self.groups.remove(&tenant);
        }
        self.dirty.insert(tenant);
    }

    fn rebuild(&mut self, name: &TenantName) {
        let Some(tenant) = self.tenants.get(name) else {
            self.current.tenants.remove(name);
            return;
        };
        let groups = self.groups.get(name).into_iter().flat_map(BTreeMap::values);
        let groups = groups.map(|group| (group.name.clone(), group.clone())).collect();
        let definition = TenantDefinition { name: name.clone(), tenant: tenant.clone(), groups };
        // An unchanged definition keeps its Arc, so readers can tell what changed by pointer.
        if self.current.tenants.get(name).is_none_or(|present| **present != definition) {
            self.current.tenants.insert(name.clone(), Arc::new(definition));
        }
    }
}

impl View for DefinitionsView {
    fn clear(&mut self) {
        self.dirty.extend(self.tenants.keys().cloned());
        self.tenants.clear();
        self.groups.clear();
    }

    fn change(&mut self, key: &str, value: Option<&[u8]>) {
        if let Some(name) = self.keys.tenant_of(key) {
            self.change_tenant(name, value);
        } else if let Some((tenant, name)) = self.keys.group_of(key) {
            self.change_group(tenant, name, value);
        }
    }

    fn publish(&mut self, revision: i64) {
        for name in std::mem::take(&mut self.dirty) {
            self.rebuild(&name);
        }
        self.shown.send_if_modified(|shown| {
            let changed = **shown != self.current;
            if changed {
                *shown = Arc::new(self.current.clone());
            }
            changed
        });
        self.listed.send_replace(revision);
    }
}

/// Changes definitions.
pub(super) struct Editor {
    pub connection: Arc<Connection>,
    pub keys: Keys,
    /// The revision that the own snapshot shows.
    pub listed: watch::Receiver<i64>,
}

impl Editor {
    pub async fn create_tenant(&self, name: &TenantName, tenant: &Tenant) -> Result<(), RegistryError> {
        let (key, value) = (self.keys.tenant(name), encode(tenant)?);
        let key = key.as_str();
        let answer = self
            .txn(|| {
                Txn::new()
                    .when([absent(key)])
                    .and_then([TxnOp::put(key, value.clone(), None)])
                    .or_else([get(key)])
            })
            .await?;
        let present = found(&answer.value, 0);
        if answer.value.succeeded() || ours(&answer, present.as_ref(), &value) {
            self.show(&answer.value).await;
            Ok(())
        } else {
            Err(RegistryError::Exists(format!("tenant {name}")))
        }
    }

    pub async fn delete_tenant(&self, name: &TenantName) -> Result<(), RegistryError> {
        let (key, groups) = (self.keys.tenant(name), self.keys.groups_of(name));
        let (key, groups) = (key.as_str(), groups.as_str());
        let answer = self
            .txn(|| {
                let below = TxnOp::delete(groups, Some(DeleteOptions::new().with_prefix()));
                Txn::new().when([present(key)]).and_then([TxnOp::delete(key, None), below])
            })
            .await?;
        self.removed(&answer, || format!("tenant {name}")).await
    }

    /// Reads, changes and writes a tenant until nobody else came between.
    pub async fn change_tenant(
        &self,
        name: &TenantName,
        change: impl Fn(&mut Tenant) + Send,
    ) -> Result<Tenant, RegistryError> {
        self.change(&self.keys.tenant(name), &format!("tenant {name}"), change).await
    }

    pub async fn set_limits(&self, name: &TenantName, limits: Limits) -> Result<Tenant, RegistryError> {
        self.change_tenant(name, |tenant| tenant.limits = limits).await
    }

    pub async fn create_group(&self, tenant: &TenantName, group: &Group) -> Result<(), RegistryError> {
        let (owner, key) = (self.keys.tenant(tenant), self.keys.group(tenant, &group.name));
        let (owner, key, value) = (owner.as_str(), key.as_str(), encode(group)?);
        let answer = self
            .txn(|| {
                Txn::new()
                    .when([present(owner), absent(key)])
                    .and_then([TxnOp::put(key, value.clone(), None)])
                    .or_else([get(owner), get(key)])
            })
            .await?;
        if answer.value.succeeded() || ours(&answer, found(&answer.value, 1).as_ref(), &value) {
            self.show(&answer.value).await;
            return Ok(());
        }
        match found(&answer.value, 0) {
            None => Err(RegistryError::Missing(format!("tenant {tenant}"))),
            Some(_) => Err(RegistryError::Exists(format!("group {}", group.name))),
        }
    }

    pub async fn activate_group(&self, tenant: &TenantName, name: &str) -> Result<(), RegistryError> {
        let key = self.keys.group(tenant, name);
        let activate = |group: &mut Group| group.active = true;
        self.change(&key, &format!("group {name}"), activate).await.map(drop)
    }

    pub async fn set_group(
        &self,
        tenant: &TenantName,
        name: &str,
        change: GroupChange,
    ) -> Result<Group, RegistryError> {
        let apply = |group: &mut Group| group.options.apply(change);
        self.change(&self.keys.group(tenant, name), &format!("group {name}"), apply).await
    }

    pub async fn delete_group(&self, tenant: &TenantName, name: &str) -> Result<(), RegistryError> {
        let key = self.keys.group(tenant, name);
        let key = key.as_str();
        let delete = || Txn::new().when([present(key)]).and_then([TxnOp::delete(key, None)]);
        let answer = self.txn(delete).await?;
        self.removed(&answer, || format!("group {name}")).await
    }

    async fn change<T>(
        &self,
        key: &str,
        what: &str,
        change: impl Fn(&mut T) + Send,
    ) -> Result<T, RegistryError>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        for _ in 0..CONTENTION_MAX {
            let read = self.txn(|| Txn::new().and_then([get(key)])).await?;
            let kv = found(&read.value, 0).ok_or_else(|| RegistryError::Missing(what.to_owned()))?;
            let mut value: T = serde_json::from_slice(kv.value())
                .map_err(|error| RegistryError::Corrupt(format!("{what}: {error}")))?;
            change(&mut value);
            let (bytes, revision) = (encode(&value)?, kv.mod_revision());
            let answer = self
                .txn(|| {
                    Txn::new()
                        .when([Compare::mod_revision(key, CompareOp::Equal, revision)])
                        .and_then([TxnOp::put(key, bytes.clone(), None)])
                        .or_else([get(key)])
                })
                .await?;
            if answer.value.succeeded() || ours(&answer, found(&answer.value, 0).as_ref(), &bytes) {
                self.show(&answer.value).await;
                return Ok(value);
            }
        }
        Err(RegistryError::Unavailable(format!("{what} is being changed by too many at once")))
    }

    async fn removed(
        &self,
        answer: &Answer<TxnResponse>,
        what: impl FnOnce() -> String,
    ) -> Result<(), RegistryError> {
        // After a doubtful attempt "not there" may be our own doing; there is nothing left to do either way.
        if answer.value.succeeded() || answer.doubted {
            self.show(&answer.value).await;
            Ok(())
        } else {
            Err(RegistryError::Missing(what()))
        }
    }

    async fn txn(&self, txn: impl Fn() -> Txn) -> Result<Answer<TxnResponse>, RegistryError> {
        let call = |client| {
            let txn = txn();
            async move { kv_client(&client).txn(txn).await }
        };
        self.connection.call(call).await.map_err(|error: CallError| unavailable(&error))
    }

    async fn show(&self, response: &TxnResponse) {
        let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        let mut listed = self.listed.clone();
        let shown = timeout(SHOWN_DEADLINE, listed.wait_for(|listed| *listed >= revision)).await;
        if shown.is_err() {
            tracing::debug!(revision, "the own snapshot lags behind a change");
        }
    }
}

fn encode(value: &impl serde::Serialize) -> Result<Vec<u8>, RegistryError> {
    serde_json::to_vec(value).map_err(|error| RegistryError::Corrupt(error.to_string()))
}

fn get(key: &str) -> TxnOp {
    TxnOp::get(key, None::<GetOptions>)
}

fn absent(key: &str) -> Compare {
    Compare::create_revision(key, CompareOp::Equal, 0)
}

fn present(key: &str) -> Compare {
    Compare::create_revision(key, CompareOp::Greater, 0)
}

/// What the nth operation, a get, found.
fn found(response: &TxnResponse, nth: usize) -> Option<KeyValue> {
    match response.op_responses().get(nth)? {
        TxnOpResponse::Get(get) => get.kvs().first().cloned(),
        _ => None,
    }
}

/// Whether a write that seems to have failed is there, by an earlier attempt of the same call.
fn ours(answer: &Answer<TxnResponse>, present: Option<&KeyValue>, value: &[u8]) -> bool {
    answer.doubted && present.is_some_and(|kv| kv.value() == value)
}
