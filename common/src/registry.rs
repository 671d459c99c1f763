//! The registry: who is there (members), who owns which client (ownerships), and what tenants and groups are defined.
//! etcd and an embedded one stand behind one trait and one test suite (`tests/registry_suite.rs`).
//!
//! Invariants of every backend:
//! * Claims of one client have strictly growing epochs, and each claim learns the ownership that it replaced.
//! * A registration that was lost (lease gone) is made again create-only: it never replaces a later claim.
//! * Snapshots that `members` and `definitions` give shrink as soon as the registry says so; keeping what is still linked
//!   (the second witness) is the reader's job. While the registry doesn't answer they stay as they are.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use crate::{
    clock::UnixMillis,
    epoch::Epoch,
    name::{ClientKey, TenantName},
};

#[cfg(feature = "embedded")]
pub mod embedded;
#[cfg(feature = "etcd")]
pub mod etcd;
mod group;
mod signing_keys;

pub use group::{BacklogPolicy, Group, GroupChange, GroupMode, GroupOptions, GroupStart};
pub use signing_keys::{SigningKey, SigningKeys};

/// What a member is.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum MemberKind {
    /// MQTT in front.
    Gateway {
        /// Shards, each of which links to every router.
        shards: u32,
    },
    /// Links, store, doors.
    Router {
        /// host:port for links and peers.
        link: String,
        /// host:port of the gRPC door.
        grpc: String,
    },
}

/// One process, one life of it.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Member {
    /// Random, new at every start; never 0.
    pub incarnation: u64,
    /// Name for people.
    pub node_id: String,
    /// What it is.
    #[serde(flatten)]
    pub kind: MemberKind,
}

/// Who is registered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    /// By incarnation.
    pub gateways: BTreeMap<u64, Member>,
    /// By incarnation.
    pub routers: BTreeMap<u64, Member>,
}

/// Which link holds a client's connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Owner {
    /// Gateway incarnation.
    pub gateway: u64,
    /// Shard of it.
    pub shard: u32,
    /// Up to two routers that it was linked to, 0 for none.
    pub routers: [u64; 2],
}

/// Answer to a claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The new epoch.
    pub epoch: Epoch,
    /// The ownership that it replaced: kick it, unless it is this connection's own.
    pub previous: Option<(Owner, Epoch)>,
}

/// A claim that failed.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ClaimError {
    /// No answer within the deadline (2 s), or no connection: connect provisionally.
    #[error("the registry does not answer: {0}")]
    Unavailable(String),
    /// Too many claims wait already: refuse the connection (CONNACK 3).
    #[error("too many claims are waiting")]
    Busy,
}

/// What happened to an ownership of this process, told unasked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OwnershipEvent {
    /// Registered again (or, after a provisional connect, for the first time): same connection, new epoch.
    Renewed {
        /// Shard that holds it.
        shard: u32,
        /// Whose.
        client: ClientKey,
        /// Epoch until now.
        old: Epoch,
        /// Epoch from now on.
        new: Epoch,
    },
    /// Another connection holds the client: this one is the old one and closes.
    Superseded {
        /// Shard that holds it.
        shard: u32,
        /// Whose.
        client: ClientKey,
        /// Epoch that is void.
        old: Epoch,
    },
}

const WEEK: u32 = 7 * 24 * 3_600;

/// Limits of a tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Connections at a time.
    pub connections: u32,
    /// Largest packet with all headers, bytes.
    pub packet_bytes: u32,
    /// Bytes of records that wait for groups.
    pub backlog_bytes: u64,
    /// How long a record is kept at most, seconds.
    pub backlog_seconds: u32,
    /// Messages that wait for one client; further ones are dropped.
    pub mailbox_messages: u32,
    /// Bytes of records that wait for one client; further ones are dropped.
    pub mailbox_bytes: u64,
    /// How long a message waits for a client, seconds.
    pub mailbox_seconds: u32,
    /// Life of a session after its last connection, seconds.
    pub session_seconds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1_000,
            packet_bytes: 1_048_576,
            backlog_bytes: 1 << 30,
            backlog_seconds: 36 * 3_600,
            mailbox_messages: 1_000,
            mailbox_bytes: 16 << 20,
            mailbox_seconds: WEEK,
            session_seconds: WEEK,
        }
    }
}

/// Who receives what clients of a tenant publish, beside its groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Every client of the tenant that is subscribed.
    #[default]
    Tenant,
    /// Nobody: each client has a space of its own, and receives only pushes.
    Device,
}

/// A tenant, as defined.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Tenant {
    /// Partitions, fixed at creation.
    pub partitions: u32,
    /// Limits.
    pub limits: Limits,
    /// Who receives what clients publish, fixed at creation.
    #[serde(default)]
    pub isolation: Isolation,
    /// Raised when a user changes: cached verdicts of a lower version are void.
    pub users_version: u64,
    /// When it was created.
    pub created_at: UnixMillis,
}

/// A tenant with its groups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TenantDefinition {
    /// Name.
    pub name: TenantName,
    /// Settings.
    pub tenant: Tenant,
    /// Groups by name.
    pub groups: BTreeMap<String, Arc<Group>>,
}

/// Everything that is defined: an immutable snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Definitions {
    /// By name.
    pub tenants: BTreeMap<TenantName, Arc<TenantDefinition>>,
}

/// A registry call that failed.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum RegistryError {
    /// No answer: try again.
    #[error("the registry does not answer: {0}")]
    Unavailable(String),
    /// It is there already.
    #[error("{0} exists already")]
    Exists(String),
    /// It is not there.
    #[error("there is no {0}")]
    Missing(String),
    /// It answered with something unreadable.
    #[error("the registry holds something unreadable: {0}")]
    Corrupt(String),
}

/// Members, ownerships, definitions.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Registers this process and keeps it registered until `leave`: renews its lease, and registers again, create-only,
    /// when the lease was lost.
    async fn join(&self, member: Member) -> Result<(), RegistryError>;

    /// Removes this process and its ownerships.
    async fn leave(&self);

    /// Who is registered, as a snapshot that is swapped.
    fn members(&self) -> watch::Receiver<Arc<Members>>;

    /// Makes `owner` (of this process) the owner of a client. Claims that come together are committed together.
    async fn claim(&self, client: ClientKey, owner: Owner) -> Result<Claim, ClaimError>;

    /// Registers a provisional ownership as soon as the registry answers: create-only, or over exactly the `superseded`
    /// ownership. The outcome is an `OwnershipEvent`.
    fn adopt(&self, client: ClientKey, owner: Owner, provisional: Epoch, superseded: Option<Epoch>);

    /// Gives an ownership up if it is still this one. Needs no answer; it also ends a pending `adopt` of that epoch.
    fn release(&self, client: ClientKey, epoch: Epoch);

    /// Events of this process's ownerships. The first call gets the receiver, later ones None.
    fn ownership_events(&self) -> Option<mpsc::Receiver<OwnershipEvent>>;

    /// The present owner of a client.
    async fn owner(&self, client: &ClientKey) -> Result<Option<(Owner, Epoch)>, RegistryError>;

    /// Tenants and groups, as a snapshot that is swapped.
    fn definitions(&self) -> watch::Receiver<Arc<Definitions>>;

    /// Creates a tenant.
    async fn create_tenant(&self, name: &TenantName, tenant: &Tenant) -> Result<(), RegistryError>;

    /// Changes a tenant's limits.
    async fn set_limits(&self, name: &TenantName, limits: Limits) -> Result<Tenant, RegistryError>;

    /// Raises the users version.
    async fn raise_users_version(&self, name: &TenantName) -> Result<(), RegistryError>;

    /// Removes a tenant and its groups.
    async fn delete_tenant(&self, name: &TenantName) -> Result<(), RegistryError>;

    /// Defines a group.
    async fn create_group(&self, tenant: &TenantName, group: &Group) -> Result<(), RegistryError>;

    /// Marks a group active.
    async fn activate_group(&self, tenant: &TenantName, name: &str) -> Result<(), RegistryError>;

    /// Changes options of a group. Returns it as it is then.
    async fn set_group(
        &self,
        tenant: &TenantName,
        name: &str,
        change: GroupChange,
    ) -> Result<Group, RegistryError>;

    /// Removes a group.
    async fn delete_group(&self, tenant: &TenantName, name: &str) -> Result<(), RegistryError>;

    /// Keys that sign tokens, as a snapshot that is swapped; None until they were read for the first time.
    fn signing_keys(&self) -> watch::Receiver<Option<Arc<SigningKeys>>>;

    /// Puts `next` in the place of `seen`. `Exists`: something else is there, and the snapshot will show it.
    async fn replace_signing_keys(&self, seen: &SigningKeys, next: &SigningKeys)
    -> Result<(), RegistryError>;

    /// Whether the registry answers now.
    fn healthy(&self) -> watch::Receiver<bool>;

    /// One word and the address, for logs and `penstockctl cluster`.
    fn describe(&self) -> String;
}
