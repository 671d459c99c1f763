//! The registry in etcd. Members, owners, tenants and groups are keys below one prefix; members and owners hang on leases.
//! Nothing here decides who is dead, and nothing on the data path waits for it.
//!
//! Background tasks (watches, renewals, claim lanes, a probe) survive an etcd that is dead or hangs, for any time; they end
//! with `leave` or when the registry is dropped.

mod claims;
mod connection;
mod definitions;
mod follow;
mod keys;
mod leases;
mod members;
mod signing_keys;

use std::{
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    claims::{Claims, ClaimsConfig},
    connection::{CALL_DEADLINE, CallError, Connection, kv_client},
    definitions::{DefinitionsView, Editor},
    follow::{View, follow},
    keys::Keys,
    leases::Leases,
    members::{MembersView, Presence},
    signing_keys::{Shown, SigningKeysView},
};
use super::{
    Claim, ClaimError, Definitions, Group, GroupChange, Limits, Member, Members, Owner, OwnershipEvent,
    Registry, RegistryError, SigningKeys, Tenant,
};
use crate::{
    clock::Seams,
    epoch::Epoch,
    name::{ClientKey, TenantName},
};

/// Time between questions whether etcd answers.
const PROBE: Duration = Duration::from_secs(1);
/// Shorter leases would be lost by a moment's load.
const TTL_MIN: Duration = Duration::from_secs(5);
/// How long `open` waits for the first snapshots, after etcd has answered.
const FIRST_LISTING: Duration = Duration::from_secs(2);

/// Where etcd is and how it is used.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// `http://host:port`, at least one.
    pub endpoints: Vec<String>,
    /// Above all keys; several clusters may share an etcd under different ones.
    pub prefix: String,
    /// How long a registration outlives a process that dies; whole seconds, at least 5.
    pub lease_ttl: Duration,
    /// Ownerships on one lease, at least 1.
    pub lease_block: u32,
}

impl EtcdConfig {
    /// The defaults: `/penstock/`, 10 s, 4,000.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            prefix: "/penstock/".to_owned(),
            lease_ttl: Duration::from_secs(10),
            lease_block: 4_000,
        }
    }

    fn check(&self) -> Result<(), OpenError> {
        let fault = if self.endpoints.is_empty() {
            "no etcd endpoint is given; give --etcd http://HOST:2379".to_owned()
        } else if self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
            "etcd over https is not built in; use http:// on a private network".to_owned()
        } else if self.prefix.trim_matches('/').is_empty() {
            "the etcd prefix is empty".to_owned()
        } else if self.lease_ttl < TTL_MIN || self.lease_ttl.subsec_nanos() != 0 {
            format!("the lease TTL is {:?}; it is whole seconds, at least {TTL_MIN:?}", self.lease_ttl)
        } else if self.lease_block == 0 {
            "a lease block of 0 keys holds nothing".to_owned()
        } else {
            return Ok(());
        };
        Err(OpenError::Config(fault))
    }
}

/// The registry can't be opened.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OpenError {
    /// Something is wrong with the settings.
    #[error("{0}")]
    Config(String),
    /// Nothing answered.
    #[error("no etcd answers at {endpoints} ({cause}): start it, or point --etcd at one that runs")]
    Unreachable {
        /// All that were tried.
        endpoints: String,
        /// What the last said.
        cause: String,
    },
}

/// The registry in etcd.
pub struct EtcdRegistry {
    endpoints: String,
    connection: Arc<Connection>,
    leases: Arc<Leases>,
    presence: Arc<Presence>,
    claims: Arc<Claims>,
    editor: Editor,
    members: watch::Receiver<Arc<Members>>,
    definitions: watch::Receiver<Arc<Definitions>>,
    keys: Keys,
    signing_keys: OnceLock<Shown>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl EtcdRegistry {
    /// Connects and takes the first snapshots. Fails within about 4 s when no etcd answers.
    pub async fn open(config: EtcdConfig, seams: Seams) -> Result<Arc<Self>, OpenError> {
        config.check()?;
        let connect = || async {
            Connection::new(&config.endpoints)
                .await
                .map(Arc::new)
                .map_err(|error| OpenError::Config(format!("etcd endpoint: {error}")))
        };
        let connection = connect().await?;
        let leases = Arc::new(Leases::new(connect().await?, config.lease_ttl));
        let keys = Keys::new(&config.prefix);
        let endpoints = config.endpoints.join(",");
        probe(&connection, &keys).await.map_err(|error| OpenError::Unreachable {
            endpoints: endpoints.clone(),
            cause: error.to_string(),
        })?;

        let stop = CancellationToken::new();
        let members = watch::Sender::new(Arc::default());
        let definitions = watch::Sender::new(Arc::default());
        let (members_listed, definitions_listed) = (watch::Sender::new(0), watch::Sender::new(0));
        let mut listings = [members_listed.subscribe(), definitions_listed.subscribe()];
        let registry = Self {
            endpoints,
            presence: Arc::new(Presence {
                connection: connection.clone(),
                leases: leases.clone(),
                keys: keys.clone(),
                stop: stop.clone(),
                joined: Mutex::default(),
            }),
            claims: Claims::start(ClaimsConfig {
                connection: connection.clone(),
                leases: leases.clone(),
                keys: keys.clone(),
                lease_block: config.lease_block,
                stop: stop.clone(),
                nonce: seams.number() >> 1,
            }),
            editor: Editor {
                connection: connection.clone(),
                keys: keys.clone(),
                listed: definitions_listed.subscribe(),
            },
            members: members.subscribe(),
            definitions: definitions.subscribe(),
            keys: keys.clone(),
            signing_keys: OnceLock::new(),
            connection,
            leases,
            stop: stop.clone(),
            _stop_on_drop: stop.drop_guard(),
        };
        registry.follow(vec![keys.members()], MembersView::new(keys.clone(), members, members_listed));
        let prefixes = vec![keys.tenants(), keys.groups()];
        registry.follow(prefixes, DefinitionsView::new(keys.clone(), definitions, definitions_listed));
        registry.watch_health(keys);
        for listed in &mut listings {
            // A registry that stops answering right here goes on with empty snapshots until it answers again.
            let _ = timeout(FIRST_LISTING, listed.wait_for(|revision| *revision > 0)).await;
        }
        Ok(Arc::new(registry))
    }

    fn follow(&self, prefixes: Vec<String>, view: impl View) {
        let (connection, stop) = (self.connection.clone(), self.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow(connection, prefixes, view) => {}
            }
        });
    }

    fn watch_health(&self, keys: Keys) {
        let (connection, stop) = (self.connection.clone(), self.stop.clone());
        let mut healthy = connection.healthy();
        tokio::spawn(async move {
            let ask = async {
                let mut before = true;
                loop {
                    sleep(PROBE).await;
                    let outcome = probe(&connection, &keys).await;
                    let now = *healthy.borrow_and_update();
                    match (before, now, outcome) {
                        (true, false, Err(error)) => tracing::warn!(%error, "etcd does not answer"),
                        (false, true, _) => tracing::info!("etcd answers again"),
                        _ => {}
                    }
                    before = now;
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = ask => {}
            }
        });
    }
}

/// A read that needs a quorum.
async fn probe(connection: &Connection, keys: &Keys) -> Result<(), CallError> {
    let key = keys.probe();
    let key = key.as_str();
    connection.call(|client| async move { kv_client(&client).get(key, None).await }).await.map(drop)
}

fn unavailable(error: &CallError) -> RegistryError {
    RegistryError::Unavailable(error.to_string())
}

#[async_trait]
impl Registry for EtcdRegistry {
    async fn join(&self, member: Member) -> Result<(), RegistryError> {
        self.presence.join(member).await
    }

    async fn leave(&self) {
        self.stop.cancel();
        if timeout(CALL_DEADLINE, self.leases.revoke_all()).await.is_err() {
            tracing::warn!("etcd did not confirm that this process left");
        }
    }

    fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.clone()
    }

    async fn claim(&self, client: ClientKey, owner: Owner) -> Result<Claim, ClaimError> {
        self.claims.claim(client, owner).await
    }

    fn adopt(&self, client: ClientKey, owner: Owner, provisional: Epoch, superseded: Option<Epoch>) {
        self.claims.adopt(client, owner, provisional, superseded);
    }

    fn release(&self, client: ClientKey, epoch: Epoch) {
        self.claims.release(client, epoch);
    }

    fn ownership_events(&self) -> Option<mpsc::Receiver<OwnershipEvent>> {
        self.claims.events()
    }

    async fn owner(&self, client: &ClientKey) -> Result<Option<(Owner, Epoch)>, RegistryError> {
        self.claims.owner(client).await
    }

    fn definitions(&self) -> watch::Receiver<Arc<Definitions>> {
        self.definitions.clone()
    }

    async fn create_tenant(&self, name: &TenantName, tenant: &Tenant) -> Result<(), RegistryError> {
        self.editor.create_tenant(name, tenant).await
    }

    async fn set_limits(&self, name: &TenantName, limits: Limits) -> Result<Tenant, RegistryError> {
        self.editor.set_limits(name, limits).await
    }

    async fn raise_users_version(&self, name: &TenantName) -> Result<(), RegistryError> {
        self.editor.change_tenant(name, |tenant| tenant.users_version += 1).await.map(drop)
    }

    async fn delete_tenant(&self, name: &TenantName) -> Result<(), RegistryError> {
        self.editor.delete_tenant(name).await
    }

    async fn create_group(&self, tenant: &TenantName, group: &Group) -> Result<(), RegistryError> {
        self.editor.create_group(tenant, group).await
    }

    async fn activate_group(&self, tenant: &TenantName, name: &str) -> Result<(), RegistryError> {
        self.editor.activate_group(tenant, name).await
    }

    async fn set_group(
        &self,
        tenant: &TenantName,
        name: &str,
        change: GroupChange,
    ) -> Result<Group, RegistryError> {
        self.editor.set_group(tenant, name, change).await
    }

    async fn delete_group(&self, tenant: &TenantName, name: &str) -> Result<(), RegistryError> {
        self.editor.delete_group(tenant, name).await
    }

    fn signing_keys(&self) -> watch::Receiver<Option<Arc<SigningKeys>>> {
        let shown = self.signing_keys.get_or_init(|| {
            let (key, shown) = (self.keys.signing_keys(), Shown::new(None));
            self.follow(vec![key.clone()], SigningKeysView::new(key, shown.clone()));
            shown
        });
        shown.subscribe()
    }

    async fn replace_signing_keys(
        &self,
        seen: &SigningKeys,
        next: &SigningKeys,
    ) -> Result<(), RegistryError> {
        signing_keys::replace(&self.connection, &self.keys.signing_keys(), seen, next).await
    }

    fn healthy(&self) -> watch::Receiver<bool> {
        self.connection.healthy()
    }

    fn describe(&self) -> String {
        format!("etcd {}", self.endpoints)
    }
}
