//! The registry inside one process: members and owners in memory, tenants and groups in a file, signing keys in another. It always answers, so
//! nothing is ever provisional for long and no registration is ever lost.
//!
//! Epochs grow over restarts as long as the wall clock does: they start at the time of the start.

mod definitions_file;
mod signing_keys_file;

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use super::{
    Claim, ClaimError, Definitions, Group, GroupChange, Limits, Member, MemberKind, Members, Owner,
    OwnershipEvent, Registry, RegistryError, SigningKeys, Tenant, TenantDefinition,
};
use crate::{
    clock::Seams,
    epoch::Epoch,
    name::{ClientKey, TenantName},
};

/// Room for 2^10 epochs a millisecond: while claims come slower, a restart begins above all earlier ones.
const EPOCH_BITS_PER_MS: u32 = 10;
/// Events that may wait to be taken.
const EVENTS_MAX: usize = 1_024;

/// The registry can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file or its directory can't be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file is there and makes no sense.
    #[error("{} is corrupt ({reason}): restore it, or move it away to start without tenants", path.display())]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

#[derive(Clone, Copy)]
struct Held {
    owner: Owner,
    epoch: Epoch,
    /// The provisional epoch that it was adopted under, or its own.
    since: Epoch,
}

#[derive(Default)]
struct Owners {
    last: u64,
    held: HashMap<ClientKey, Held>,
}

impl Owners {
    fn put(&mut self, client: ClientKey, owner: Owner, since: Option<Epoch>) -> (Epoch, Option<Held>) {
        self.last += 1;
        let epoch = Epoch::real(self.last);
        let held = Held { owner, epoch, since: since.unwrap_or(epoch) };
        (epoch, self.held.insert(client, held))
    }
}

/// The registry of `penstock`, the standalone program.
pub struct EmbeddedRegistry {
    dir: Option<PathBuf>,
    owners: Mutex<Owners>,
    /// Held while definitions change, so that changes follow each other.
    changes: Arc<tokio::sync::Mutex<()>>,
    members: watch::Sender<Arc<Members>>,
    definitions: Arc<watch::Sender<Arc<Definitions>>>,
    signing_keys: watch::Sender<Option<Arc<SigningKeys>>>,
    healthy: watch::Sender<bool>,
    events: mpsc::Sender<OwnershipEvent>,
    listener: Mutex<Option<mpsc::Receiver<OwnershipEvent>>>,
}

impl EmbeddedRegistry {
    /// Opens it. Without a directory nothing outlives the process. The directory is made when it isn't there.
    pub fn open(dir: Option<&Path>, seams: Seams) -> Result<Arc<Self>, OpenError> {
        let (definitions, signing_keys) = match dir {
            None => Default::default(),
            Some(dir) => {
                std::fs::create_dir_all(dir)
                    .map_err(|error| OpenError::Io { path: dir.to_path_buf(), error })?;
                (definitions_file::load(dir)?, signing_keys_file::load(dir)?)
            }
        };
        let (events, listener) = mpsc::channel(EVENTS_MAX);
        let owners = Owners { last: seams.now_ms() << EPOCH_BITS_PER_MS, held: HashMap::new() };
        Ok(Arc::new(Self {
            dir: dir.map(Path::to_path_buf),
            owners: Mutex::new(owners),
            changes: Arc::default(),
            members: watch::Sender::new(Arc::default()),
            definitions: Arc::new(watch::Sender::new(Arc::new(definitions))),
            signing_keys: watch::Sender::new(Some(Arc::new(signing_keys))),
            healthy: watch::Sender::new(true),
            events,
            listener: Mutex::new(Some(listener)),
        }))
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: OwnershipEvent) {
        if self.listener.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            let events = self.events.clone();
            // One waiting event an adoption; who adopts also listens.
            tokio::spawn(async move { events.send(event).await });
        }
    }

    /// Changes the definitions: on disk first, then in the snapshot. Both happen also when nobody waits any more.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Definitions) -> Result<T, RegistryError> + Send,
    ) -> Result<T, RegistryError> {
        let one = self.changes.clone().lock_owned().await;
        let mut definitions = Definitions::clone(&self.definitions.borrow());
        let value = change(&mut definitions)?;
        let (dir, shown) = (self.dir.clone(), self.definitions.clone());
        let save = move || {
            let _one = one;
            if let Some(dir) = dir {
                definitions_file::save(&dir, &definitions)?;
            }
            shown.send_replace(Arc::new(definitions));
            io::Result::Ok(())
        };
        let saved = tokio::task::spawn_blocking(save).await.map_err(io::Error::other).flatten();
        let failed = |error| RegistryError::Unavailable(format!("definitions can't be written: {error}"));
        saved.map(|()| value).map_err(failed)
    }

    async fn change_tenant<T: Send + 'static>(
        &self,
        name: &TenantName,
        change: impl FnOnce(&mut TenantDefinition) -> Result<T, RegistryError> + Send,
    ) -> Result<T, RegistryError> {
        self.change(|definitions| {
            let missing = || RegistryError::Missing(format!("tenant {name}"));
            change(Arc::make_mut(definitions.tenants.get_mut(name).ok_or_else(missing)?))
        })
        .await
    }
}

fn no_group(name: &str) -> RegistryError {
    RegistryError::Missing(format!("group {name}"))
}

#[async_trait]
impl Registry for EmbeddedRegistry {
    async fn join(&self, member: Member) -> Result<(), RegistryError> {
        let mut outcome = Ok(());
        self.members.send_if_modified(|members| {
            let mut next = Members::clone(members);
            let map = match member.kind {
                MemberKind::Gateway { .. } => &mut next.gateways,
                MemberKind::Router { .. } => &mut next.routers,
            };
            if map.contains_key(&member.incarnation) {
                outcome = Err(RegistryError::Exists(format!("member {}", member.incarnation)));
                return false;
            }
            map.insert(member.incarnation, member.clone());
            *members = Arc::new(next);
            true
        });
        outcome
    }

    async fn leave(&self) {
        self.members.send_replace(Arc::default());
        self.owners().held.clear();
    }

    fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }

    async fn claim(&self, client: ClientKey, owner: Owner) -> Result<Claim, ClaimError> {
        let (epoch, previous) = self.owners().put(client, owner, None);
        Ok(Claim { epoch, previous: previous.map(|held| (held.owner, held.epoch)) })
    }

    fn adopt(&self, client: ClientKey, owner: Owner, provisional: Epoch, superseded: Option<Epoch>) {
        let mut owners = self.owners();
        let present = owners.held.get(&client).map(|held| held.epoch);
        let shard = owner.shard;
        let event = if present.is_none() || present == superseded {
            let (new, _) = owners.put(client.clone(), owner, Some(provisional));
            OwnershipEvent::Renewed { shard, client, old: provisional, new }
        } else {
            OwnershipEvent::Superseded { shard, client, old: provisional }
        };
        drop(owners);
        self.tell(event);
    }

    fn release(&self, client: ClientKey, epoch: Epoch) {
        if let Entry::Occupied(held) = self.owners().held.entry(client)
            && (held.get().since <= epoch && epoch <= held.get().epoch)
        {
            held.remove();
        }
    }

    fn ownership_events(&self) -> Option<mpsc::Receiver<OwnershipEvent>> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn owner(&self, client: &ClientKey) -> Result<Option<(Owner, Epoch)>, RegistryError> {
        Ok(self.owners().held.get(client).map(|held| (held.owner, held.epoch)))
    }

    fn definitions(&self) -> watch::Receiver<Arc<Definitions>> {
        self.definitions.subscribe()
    }

    async fn create_tenant(&self, name: &TenantName, tenant: &Tenant) -> Result<(), RegistryError> {
        let definition =
            TenantDefinition { name: name.clone(), tenant: tenant.clone(), groups: Default::default() };
        self.change(|definitions| {
            if definitions.tenants.contains_key(name) {
                return Err(RegistryError::Exists(format!("tenant {name}")));
            }
            definitions.tenants.insert(name.clone(), Arc::new(definition));
            Ok(())
        })
        .await
    }

    async fn set_limits(&self, name: &TenantName, limits: Limits) -> Result<Tenant, RegistryError> {
        self.change_tenant(name, |definition| {
            definition.tenant.limits = limits;
            Ok(definition.tenant.clone())
        })
        .await
    }

    async fn raise_users_version(&self, name: &TenantName) -> Result<(), RegistryError> {
        self.change_tenant(name, |definition| {
            definition.tenant.users_version += 1;
            Ok(())
        })
        .await
    }

    async fn delete_tenant(&self, name: &TenantName) -> Result<(), RegistryError> {
        let missing = || RegistryError::Missing(format!("tenant {name}"));
        self.change(|definitions| definitions.tenants.remove(name).map(drop).ok_or_else(missing)).await
    }

    async fn create_group(&self, tenant: &TenantName, group: &Group) -> Result<(), RegistryError> {
        self.change_tenant(tenant, |definition| {
            if definition.groups.contains_key(&group.name) {
                return Err(RegistryError::Exists(format!("group {}", group.name)));
            }
            definition.groups.insert(group.name.clone(), Arc::new(group.clone()));
            Ok(())
        })
        .await
    }

    async fn activate_group(&self, tenant: &TenantName, name: &str) -> Result<(), RegistryError> {
        self.change_tenant(tenant, |definition| {
            let group = definition.groups.get_mut(name).ok_or_else(|| no_group(name))?;
            Arc::make_mut(group).active = true;
            Ok(())
        })
        .await
    }

    async fn set_group(
        &self,
        tenant: &TenantName,
        name: &str,
        change: GroupChange,
    ) -> Result<Group, RegistryError> {
        self.change_tenant(tenant, |definition| {
            let group = definition.groups.get_mut(name).ok_or_else(|| no_group(name))?;
            Arc::make_mut(group).options.apply(change);
            Ok(group.as_ref().clone())
        })
        .await
    }

    async fn delete_group(&self, tenant: &TenantName, name: &str) -> Result<(), RegistryError> {
        self.change_tenant(tenant, |definition| {
            definition.groups.remove(name).map(drop).ok_or_else(|| no_group(name))
        })
        .await
    }

    fn signing_keys(&self) -> watch::Receiver<Option<Arc<SigningKeys>>> {
        self.signing_keys.subscribe()
    }

    async fn replace_signing_keys(
        &self,
        seen: &SigningKeys,
        next: &SigningKeys,
    ) -> Result<(), RegistryError> {
        let one = self.changes.clone().lock_owned().await;
        if self.signing_keys.borrow().as_deref() != Some(seen) {
            return Err(RegistryError::Exists("another list of signing keys".to_owned()));
        }
        let (dir, shown, next) = (self.dir.clone(), self.signing_keys.clone(), next.clone());
        let save = move || {
            let _one = one;
            if let Some(dir) = dir {
                signing_keys_file::save(&dir, &next)?;
            }
            shown.send_replace(Some(Arc::new(next)));
            io::Result::Ok(())
        };
        let saved = tokio::task::spawn_blocking(save).await.map_err(io::Error::other).flatten();
        saved.map_err(|error| RegistryError::Unavailable(format!("signing keys can't be written: {error}")))
    }

    fn healthy(&self) -> watch::Receiver<bool> {
        self.healthy.subscribe()
    }

    fn describe(&self) -> String {
        match &self.dir {
            Some(dir) => format!("embedded {}", dir.display()),
            None => "embedded, in memory".to_owned(),
        }
    }
}
