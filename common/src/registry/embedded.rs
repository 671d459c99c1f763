//! The registry inside one process. Members and ownerships live as long as the process; tenants and groups are in
//! `definitions.json`, written whole and synced before a change is answered.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::{
    Claim, ClaimError, Definitions, Group, Limits, Member, MemberKind, Members, Owner, OwnershipEvent, Registry,
    RegistryError, Tenant, TenantDefinition,
};
use crate::{
    clock::Seams,
    epoch::Epoch,
    name::{ClientKey, TenantName},
};

const FILE: &str = "definitions.json";
/// Events that may wait for the gateway of this process; `adopt` is only used while a registry does not answer, which this
/// one always does.
const EVENTS: usize = 1_024;

/// The directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Reading or writing failed.
    #[error("cannot use {path}: {error}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It holds something else.
    #[error("{path} is damaged ({error}); restore it from a copy, or move it away to begin without tenants",
        path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        error: serde_json::Error,
    },
}

/// See the module.
pub struct EmbeddedRegistry {
    path: Option<PathBuf>,
    inner: Mutex<Inner>,
    members: watch::Sender<Arc<Members>>,
    definitions: watch::Sender<Arc<Definitions>>,
    healthy: watch::Sender<bool>,
    events: mpsc::Sender<OwnershipEvent>,
    events_out: Mutex<Option<mpsc::Receiver<OwnershipEvent>>>,
}

struct Inner {
    owners: HashMap<ClientKey, (Owner, Epoch)>,
    /// Grows with every claim, also across restarts.
    revision: u64,
    written: Written,
}

/// What the file holds.
#[derive(Default, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    tenants: BTreeMap<String, WrittenTenant>,
}

#[derive(Clone, Serialize, Deserialize)]
struct WrittenTenant {
    tenant: Tenant,
    groups: BTreeMap<String, Group>,
}

impl EmbeddedRegistry {
    /// Opens the definitions in a directory; without one nothing survives the process.
    pub fn open(dir: Option<&Path>, seams: Seams) -> Result<Arc<Self>, OpenError> {
        let path = dir.map(|dir| dir.join(FILE));
        let written = path.as_deref().map_or_else(|| Ok(Written::default()), read)?;
        let (events, events_out) = mpsc::channel(EVENTS);
        let snapshot = Arc::new(snapshot(&written));
        let inner = Inner { owners: HashMap::new(), revision: seams.now_ms() << 10, written };
        Ok(Arc::new(Self {
            path,
            inner: Mutex::new(inner),
            members: watch::Sender::new(Arc::default()),
            definitions: watch::Sender::new(snapshot),
            healthy: watch::Sender::new(true),
            events,
            events_out: Mutex::new(Some(events_out)),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the definitions: written and synced first, then seen.
    fn change<T>(&self, edit: impl FnOnce(&mut Written) -> Result<T, RegistryError>) -> Result<T, RegistryError> {
        let mut inner = self.lock();
        let mut next = inner.written.clone();
        let answer = edit(&mut next)?;
        if let Some(path) = &self.path {
            write(path, &next)
                .map_err(|error| RegistryError::Unavailable(format!("cannot write {}: {error}", path.display())))?;
        }
        self.definitions.send_replace(Arc::new(snapshot(&next)));
        inner.written = next;
        Ok(answer)
    }

    fn change_tenant<T>(
        &self,
        name: &TenantName,
        edit: impl FnOnce(&mut WrittenTenant) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        self.change(|written| {
            let tenant = written.tenants.get_mut(name.as_str());
            edit(tenant.ok_or_else(|| RegistryError::Missing(format!("tenant {name}")))?)
        })
    }
}

fn read(path: &Path) -> Result<Written, OpenError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| OpenError::Damaged { path: path.to_owned(), error }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Written::default()),
        Err(error) => Err(OpenError::Io { path: path.to_owned(), error }),
    }
}

fn write(path: &Path, written: &Written) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(written)?;
    let next = path.with_extension("json.next");
    let mut file = File::create(&next)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn snapshot(written: &Written) -> Definitions {
    let define = |(name, own): (&String, &WrittenTenant)| {
        let name = TenantName::new(name).ok()?;
        let groups = own.groups.iter().map(|(name, group)| (name.clone(), Arc::new(group.clone()))).collect();
        let definition = TenantDefinition { name: name.clone(), tenant: own.tenant.clone(), groups };
        Some((name, Arc::new(definition)))
    };
    Definitions { tenants: written.tenants.iter().filter_map(define).collect() }
}

#[async_trait]
impl Registry for EmbeddedRegistry {
    async fn join(&self, member: Member) -> Result<(), RegistryError> {
        self.members.send_modify(|members| {
            let mut next = Members::clone(members);
            let kind = match member.kind {
                MemberKind::Gateway { .. } => &mut next.gateways,
                MemberKind::Router { .. } => &mut next.routers,
            };
            kind.insert(member.incarnation, member);
            *members = Arc::new(next);
        });
        Ok(())
    }

    async fn leave(&self) {
        self.lock().owners.clear();
        self.members.send_replace(Arc::default());
    }

    fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }

    async fn claim(&self, client: ClientKey, owner: Owner) -> Result<Claim, ClaimError> {
        let mut inner = self.lock();
        inner.revision += 1;
        let epoch = Epoch::real(inner.revision);
        let previous = inner.owners.insert(client, (owner, epoch));
        Ok(Claim { epoch, previous })
    }

    fn adopt(&self, client: ClientKey, owner: Owner, provisional: Epoch, superseded: Option<Epoch>) {
        let mut inner = self.lock();
        let present = inner.owners.get(&client).map(|(_, epoch)| *epoch);
        let event = if present.is_none() || present == superseded {
            inner.revision += 1;
            let new = Epoch::real(inner.revision);
            inner.owners.insert(client.clone(), (owner, new));
            OwnershipEvent::Renewed { shard: owner.shard, client, old: provisional, new }
        } else {
            OwnershipEvent::Superseded { shard: owner.shard, client, old: provisional }
        };
        drop(inner);
        let events = self.events.clone();
        tokio::spawn(async move {
            // Nobody listens any more: the process is ending.
            let _ = events.send(event).await;
        });
    }

    fn release(&self, client: ClientKey, epoch: Epoch) {
        let mut inner = self.lock();
        if inner.owners.get(&client).is_some_and(|(_, own)| *own == epoch) {
            inner.owners.remove(&client);
        }
    }

    fn ownership_events(&self) -> Option<mpsc::Receiver<OwnershipEvent>> {
        self.events_out.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn owner(&self, client: &ClientKey) -> Result<Option<(Owner, Epoch)>, RegistryError> {
        Ok(self.lock().owners.get(client).copied())
    }

    fn definitions(&self) -> watch::Receiver<Arc<Definitions>> {
        self.definitions.subscribe()
    }

    async fn create_tenant(&self, name: &TenantName, tenant: &Tenant) -> Result<(), RegistryError> {
        self.change(|written| {
            if written.tenants.contains_key(name.as_str()) {
                return Err(RegistryError::Exists(format!("tenant {name}")));
            }
            let tenant = WrittenTenant { tenant: tenant.clone(), groups: BTreeMap::new() };
            written.tenants.insert(name.to_string(), tenant);
            Ok(())
        })
    }

    async fn set_limits(&self, name: &TenantName, limits: Limits) -> Result<Tenant, RegistryError> {
        self.change_tenant(name, |own| {
            own.tenant.limits = limits;
            Ok(own.tenant.clone())
        })
    }

    async fn raise_users_version(&self, name: &TenantName) -> Result<(), RegistryError> {
        self.change_tenant(name, |own| {
            own.tenant.users_version += 1;
            Ok(())
        })
    }

    async fn delete_tenant(&self, name: &TenantName) -> Result<(), RegistryError> {
        self.change(|written| {
            let gone = written.tenants.remove(name.as_str());
            gone.map(drop).ok_or_else(|| RegistryError::Missing(format!("tenant {name}")))
        })
    }

    async fn create_group(&self, tenant: &TenantName, group: &Group) -> Result<(), RegistryError> {
        self.change_tenant(tenant, |own| {
            if own.groups.contains_key(&group.name) {
                return Err(RegistryError::Exists(format!("group {}", group.name)));
            }
            own.groups.insert(group.name.clone(), group.clone());
            Ok(())
        })
    }

    async fn activate_group(&self, tenant: &TenantName, name: &str) -> Result<(), RegistryError> {
        self.change_tenant(tenant, |own| {
            let group = own.groups.get_mut(name).ok_or_else(|| RegistryError::Missing(format!("group {name}")))?;
            group.active = true;
            Ok(())
        })
    }

    async fn delete_group(&self, tenant: &TenantName, name: &str) -> Result<(), RegistryError> {
        self.change_tenant(tenant, |own| {
            own.groups.remove(name).map(drop).ok_or_else(|| RegistryError::Missing(format!("group {name}")))
        })
    }

    fn healthy(&self) -> watch::Receiver<bool> {
        self.healthy.subscribe()
    }

    fn describe(&self) -> String {
        "embedded".to_owned()
    }
}
