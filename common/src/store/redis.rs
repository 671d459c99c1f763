//! The store on Redis 7.0 and later, one server, behind sentinels, or a cluster: entries in a stream per partition, everything
//! of a partition in one slot. It keeps no state of its own but on which connection each term was taken (`taken`): any number
//! of routers use one Redis, and terms decide between them.
//!
//! Not here: TLS; opening says so.

mod answers;
mod checks;
mod cluster;
mod config;
mod confirm;
mod connection;
mod counts;
mod cursors;
mod filters;
mod group_scripts;
mod keys;
mod live;
mod log;
mod one;
mod push_scripts;
mod pushes;
mod routes;
mod scripts;
mod sentinel;
mod session_scripts;
mod sessions;
mod slots;
mod taken;
mod url;
mod users;
mod view;
mod wills;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
pub use config::{OpenError, RedisConfig};
use connection::Server;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    AppendError, Appended, Begun, ChangedWills, CommitError, CursorChange, CursorStart, Cursors, DeadLetters,
    Entry, FilterChanges, FilterTable, HeldWill, Keep, MailLimits, MailStep, NewMail, NewPush, OpenedSession,
    PushKey, PushStep, PushStore, Queued, ReadBack, SessionError, SessionFilter, SessionFilters,
    SessionState, SessionStore, SteppedMail, Store, StoreError, StoredEntry, Took, Trimmed, User,
    WillChanges, WillStore,
};
use crate::{
    clock::UnixMillis,
    epoch::Epoch,
    name::{PartitionKey, TenantName},
    position::{EntryId, Term},
};

/// Partitions and users in Redis.
pub struct RedisStore {
    server: Arc<Server>,
    /// Ends the task that keeps the connection.
    _stop: DropGuard,
}

impl RedisStore {
    /// Connects and checks that the server can honour the durability; from then on a task of the current runtime keeps
    /// connected, checking each time, until `shutdown` or the last use of the store.
    pub async fn open(config: RedisConfig, shutdown: &CancellationToken) -> Result<Arc<Self>, OpenError> {
        let stop = shutdown.child_token();
        let server = Server::open(config, stop.clone()).await?;
        Ok(Arc::new(Self { server, _stop: stop.drop_guard() }))
    }

    /// Registers what it counts: lost connections, redirects of a cluster, entries that replicas did not confirm.
    pub fn register(&self, metrics: &mut Registry) {
        self.server.register(metrics);
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn take(&self, partition: &PartitionKey, holder: u64) -> Result<Took, StoreError> {
        log::take(&self.server, partition, holder).await
    }

    async fn holder(&self, partition: &PartitionKey) -> Result<Option<(Term, u64)>, StoreError> {
        log::holder(&self.server, partition).await
    }

    async fn append(
        &self,
        partition: &PartitionKey,
        term: Term,
        entry: &Entry,
    ) -> Result<EntryId, AppendError> {
        log::append(&self.server, partition, term, entry).await
    }

    async fn read(
        &self,
        partition: &PartitionKey,
        after: EntryId,
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        log::read(&self.server, partition, after, max_entries, max_bytes).await
    }

    async fn read_back(&self, partition: &PartitionKey, max_bytes: usize) -> Result<ReadBack, StoreError> {
        log::read_back(&self.server, partition, max_bytes).await
    }

    async fn cursors(&self, partition: &PartitionKey) -> Result<Cursors, StoreError> {
        cursors::cursors(&self.server, partition).await
    }

    async fn create_cursor(
        &self,
        partition: &PartitionKey,
        group: &str,
        start: CursorStart,
    ) -> Result<(), StoreError> {
        cursors::create_cursor(&self.server, partition, group, start).await
    }

    async fn delete_cursor(&self, partition: &PartitionKey, group: &str) -> Result<(), StoreError> {
        cursors::delete_cursor(&self.server, partition, group).await
    }

    async fn commit(
        &self,
        partition: &PartitionKey,
        term: Term,
        changes: &[CursorChange],
    ) -> Result<(), CommitError> {
        cursors::commit(&self.server, partition, term, changes).await
    }

    async fn seek(
        &self,
        partition: &PartitionKey,
        term: Term,
        group: &str,
        to: CursorStart,
    ) -> Result<(), CommitError> {
        cursors::seek(&self.server, partition, term, group, to).await
    }

    async fn dead_letters(
        &self,
        partition: &PartitionKey,
        group: &str,
        after: u64,
        max: usize,
    ) -> Result<DeadLetters, StoreError> {
        cursors::dead_letters(&self.server, partition, group, after, max).await
    }

    async fn delete_dead(
        &self,
        partition: &PartitionKey,
        group: &str,
        numbers: &[u64],
    ) -> Result<(), StoreError> {
        cursors::delete_dead(&self.server, partition, group, numbers).await
    }

    async fn trim(&self, partition: &PartitionKey, term: Term, keep: &Keep) -> Result<Trimmed, CommitError> {
        cursors::trim(&self.server, partition, term, keep).await
    }

    async fn put_user(&self, tenant: &TenantName, user: &User, create: bool) -> Result<bool, StoreError> {
        users::put(&self.server, tenant, user, create).await
    }

    async fn user(&self, tenant: &TenantName, name: &str) -> Result<Option<User>, StoreError> {
        users::get(&self.server, tenant, name).await
    }

    async fn users(&self, tenant: &TenantName) -> Result<Vec<User>, StoreError> {
        users::all(&self.server, tenant).await
    }

    async fn delete_user(&self, tenant: &TenantName, name: &str) -> Result<bool, StoreError> {
        users::delete(&self.server, tenant, name).await
    }

    async fn delete_tenant(&self, tenant: &TenantName, partitions: u32) -> Result<(), StoreError> {
        users::delete_tenant(&self.server, tenant, partitions).await
    }

    fn healthy(&self) -> watch::Receiver<bool> {
        self.server.healthy()
    }

    fn describe(&self) -> String {
        format!("redis {}", self.server.describe())
    }
}

#[async_trait]
impl SessionStore for RedisStore {
    async fn open_session(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        epoch: Epoch,
        expiry_ms: u64,
    ) -> Result<OpenedSession, SessionError> {
        sessions::open(&self.server, partition, term, client, epoch, expiry_ms).await
    }

    async fn wipe_session(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
    ) -> Result<Option<u64>, SessionError> {
        sessions::wipe(&self.server, partition, term, client).await
    }

    async fn set_filters(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        epoch: Epoch,
        filters: &[SessionFilter],
    ) -> Result<SessionFilters, SessionError> {
        sessions::set_filters(&self.server, partition, term, client, epoch, filters).await
    }

    async fn append_mail(
        &self,
        partition: &PartitionKey,
        client: &[u8],
        incarnation: u64,
        source: u32,
        mail: &[NewMail],
        limits: MailLimits,
    ) -> Result<Appended, StoreError> {
        sessions::append(&self.server, partition, client, incarnation, source, mail, limits).await
    }

    async fn step_mail(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        epoch: Epoch,
        step: &MailStep,
    ) -> Result<SteppedMail, SessionError> {
        sessions::step(&self.server, partition, term, client, epoch, step).await
    }

    async fn session_state(
        &self,
        partition: &PartitionKey,
        client: &[u8],
    ) -> Result<Option<SessionState>, StoreError> {
        sessions::state(&self.server, partition, client).await
    }

    async fn publish_filters(
        &self,
        tenant: &TenantName,
        client: &[u8],
        filters: &SessionFilters,
    ) -> Result<u64, StoreError> {
        filters::publish(&self.server, tenant, client, filters).await
    }

    async fn withdraw_filters(
        &self,
        tenant: &TenantName,
        client: &[u8],
        incarnation: u64,
    ) -> Result<u64, StoreError> {
        filters::withdraw(&self.server, tenant, client, incarnation).await
    }

    async fn filter_table(&self, tenant: &TenantName) -> Result<FilterTable, StoreError> {
        filters::table(&self.server, tenant).await
    }

    async fn filter_changes(&self, tenant: &TenantName, after: u64) -> Result<FilterChanges, StoreError> {
        filters::changes(&self.server, tenant, after).await
    }
}

#[async_trait]
impl PushStore for RedisStore {
    async fn queue_push(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        push: &NewPush,
    ) -> Result<Queued, SessionError> {
        pushes::queue(&self.server, partition, term, client, push).await
    }

    async fn waits(&self, partition: &PartitionKey, client: &[u8], number: u64) -> Result<bool, StoreError> {
        pushes::waits(&self.server, partition, client, number).await
    }

    async fn step_pushes(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        step: &PushStep,
    ) -> Result<SteppedMail, SessionError> {
        pushes::step(&self.server, partition, term, client, step).await
    }

    async fn waiting_clients(
        &self,
        partition: &PartitionKey,
    ) -> Result<Vec<(Bytes, UnixMillis)>, StoreError> {
        pushes::waiting(&self.server, partition).await
    }

    async fn expire_pushes(
        &self,
        partition: &PartitionKey,
        term: Term,
    ) -> Result<(u64, Vec<Bytes>), SessionError> {
        pushes::expire(&self.server, partition, term).await
    }

    async fn begin_push(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        key: &PushKey,
    ) -> Result<Begun, SessionError> {
        pushes::begin(&self.server, partition, term, client, key).await
    }

    async fn end_push(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        key: &PushKey,
        outcome: Option<&str>,
    ) -> Result<(), SessionError> {
        pushes::end(&self.server, partition, term, client, key, outcome).await
    }
}

#[async_trait]
impl WillStore for RedisStore {
    async fn change_wills(
        &self,
        partition: &PartitionKey,
        term: Term,
        changes: &WillChanges,
    ) -> Result<ChangedWills, AppendError> {
        wills::change(&self.server, partition, term, changes).await
    }

    async fn wills(&self, partition: &PartitionKey) -> Result<Vec<HeldWill>, StoreError> {
        wills::all(&self.server, partition).await
    }

    async fn any_wills(&self, partition: &PartitionKey) -> Result<bool, StoreError> {
        wills::any(&self.server, partition).await
    }
}
