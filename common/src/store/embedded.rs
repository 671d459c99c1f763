//! The store inside one process: a log-structured database in a directory that no other process may use meanwhile.
//! Writes are group-committed by one thread; reads go to the database beside it.
//!
//! What one process can't have is refused when it opens: `replicated:N`, which needs other machines, and a second process
//! on the directory.

mod committer;
mod dead;
mod disk;
mod keys;
mod machine;
mod mail;
mod partition;
mod pushes;
mod search;
mod session;
mod session_store;
mod wills;

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use async_trait::async_trait;
use committer::{Committer, Failure};
use disk::Disk;
use machine::Machine;
use mail::Sessions;
use tokio::sync::watch;
use wills::Wills;

use super::{
    AppendError, CommitError, CursorChange, CursorStart, Cursors, DeadLetters, Durability, Entry, Keep,
    ReadBack, Store, StoreError, StoredEntry, Took, Trimmed, User,
};
use crate::{
    name::{PartitionKey, TenantName},
    position::{EntryId, Term},
};

/// The directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It can't be made, read or written.
    #[error("can't use the data directory {}: {reason}; correct its owner and rights", directory.display())]
    Directory {
        /// Which.
        directory: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// Another process uses it.
    #[error("the data directory {} is in use by another process: stop that or choose another", .0.display())]
    InUse(PathBuf),
    /// One process has no replicas.
    #[error(
        "durability {0} needs replicas of a Redis, and penstock keeps everything itself: use memory or fsynced, or penstock-router with --redis"
    )]
    Alone(Durability),
    /// What is in it was not written by this program, or is damaged.
    #[error("the data directory {} is damaged ({reason}): restore a copy or choose another", directory.display())]
    Damaged {
        /// Which.
        directory: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Partitions and users in a directory.
pub struct EmbeddedStore {
    disk: Option<Disk>,
    committer: Option<Committer>,
    thread: Option<JoinHandle<()>>,
    healthy: watch::Receiver<bool>,
    description: String,
    /// Held while this lives; the system lets go of it when the process dies.
    _lock: File,
}

impl EmbeddedStore {
    /// Opens or makes a store in a directory of its own. Blocks while the log is recovered.
    pub fn open(directory: &Path, durability: Durability) -> Result<Arc<Self>, OpenError> {
        let synced = match durability {
            Durability::Memory => false,
            Durability::Fsynced => true,
            Durability::Replicated(_) => return Err(OpenError::Alone(durability)),
        };
        let unusable = |reason| OpenError::Directory { directory: directory.into(), reason };
        std::fs::create_dir_all(directory).map_err(unusable)?;
        let lock = lock(directory)?;
        let disk = Disk::open(&directory.join("data")).map_err(|error| match error {
            fjall::Error::Io(reason) => unusable(reason),
            fjall::Error::Locked => OpenError::InUse(directory.into()),
            other => damaged(directory, &other),
        })?;
        let partitions = disk.partitions().map_err(|error| damaged(directory, &error))?;
        let (told, healthy) = watch::channel(true);
        let sessions = Sessions::load(&disk).map_err(|error| damaged(directory, &error))?;
        let wills = Wills::load(&disk).map_err(|error| damaged(directory, &error))?;
        let machine = Machine::new(disk.clone(), partitions, sessions, wills, synced);
        let (committer, thread) = Committer::start(machine, told).map_err(unusable)?;
        let description = format!("embedded {} ({durability})", directory.display());
        let (disk, committer, thread) = (Some(disk), Some(committer), Some(thread));
        Ok(Arc::new(Self { disk, committer, thread, healthy, description, _lock: lock }))
    }

    async fn submit<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&mut Machine) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        match &self.committer {
            Some(committer) => committer.submit(bytes, work).await,
            None => Err(Failure("the store is closed".into())),
        }
    }

    /// Reads on a thread that may wait for the disk.
    async fn look<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Disk) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let closed = || StoreError::Unavailable("the store is closed".into());
        let disk = self.disk.clone().ok_or_else(closed)?;
        tokio::task::spawn_blocking(move || read(&disk)).await.map_err(|_| closed())?
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        // The lock is released after the last write: the next one to open finds everything.
        self.committer = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.disk = None;
    }
}

fn lock(directory: &Path) -> Result<File, OpenError> {
    let unusable = |reason| OpenError::Directory { directory: directory.into(), reason };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join("penstock.lock"))
        .map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(directory.into())),
        Err(TryLockError::Error(reason)) => Err(unusable(reason)),
    }
}

fn damaged(directory: &Path, reason: &dyn std::fmt::Display) -> OpenError {
    OpenError::Damaged { directory: directory.into(), reason: reason.to_string() }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn take(&self, partition: &PartitionKey, holder: u64) -> Result<Took, StoreError> {
        let key = partition.clone();
        Ok(self.submit(0, move |machine| machine.take(key, holder)).await?)
    }

    async fn holder(&self, partition: &PartitionKey) -> Result<Option<(Term, u64)>, StoreError> {
        let key = partition.clone();
        Ok(self.submit(0, move |machine| machine.holder(&key)).await?)
    }

    async fn append(
        &self,
        partition: &PartitionKey,
        term: Term,
        entry: &Entry,
    ) -> Result<EntryId, AppendError> {
        let (key, totals, bytes) = (partition.clone(), entry.totals, disk::encode_entry(entry));
        self.submit(bytes.len(), move |machine| machine.append(&key, term, totals, bytes)).await?
    }

    async fn read(
        &self,
        partition: &PartitionKey,
        after: EntryId,
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let key = partition.clone();
        self.look(move |disk| disk.read(&key, after, max_entries, max_bytes)).await
    }

    async fn read_back(&self, partition: &PartitionKey, max_bytes: usize) -> Result<ReadBack, StoreError> {
        let key = partition.clone();
        self.look(move |disk| disk.read_back(&key, max_bytes)).await
    }

    async fn cursors(&self, partition: &PartitionKey) -> Result<Cursors, StoreError> {
        let key = partition.clone();
        Ok(self.submit(0, move |machine| machine.cursors(&key)).await?)
    }

    async fn create_cursor(
        &self,
        partition: &PartitionKey,
        group: &str,
        start: CursorStart,
    ) -> Result<(), StoreError> {
        let (key, group) = (partition.clone(), group.to_owned());
        self.submit(0, move |machine| machine.create_cursor(key, group, start)).await?
    }

    async fn delete_cursor(&self, partition: &PartitionKey, group: &str) -> Result<(), StoreError> {
        let (key, group) = (partition.clone(), group.to_owned());
        Ok(self.submit(0, move |machine| machine.delete_cursor(&key, &group)).await?)
    }

    async fn commit(
        &self,
        partition: &PartitionKey,
        term: Term,
        changes: &[CursorChange],
    ) -> Result<(), CommitError> {
        let (key, changes) = (partition.clone(), changes.to_vec());
        self.submit(0, move |machine| machine.commit(&key, term, &changes)).await?
    }

    async fn seek(
        &self,
        partition: &PartitionKey,
        term: Term,
        group: &str,
        to: CursorStart,
    ) -> Result<(), CommitError> {
        let (key, group) = (partition.clone(), group.to_owned());
        self.submit(0, move |machine| machine.seek(key, term, group, to)).await?
    }

    async fn dead_letters(
        &self,
        partition: &PartitionKey,
        group: &str,
        after: u64,
        max: usize,
    ) -> Result<DeadLetters, StoreError> {
        let (key, group) = (partition.clone(), group.to_owned());
        self.submit(0, move |machine| machine.dead_letters(&key, &group, after, max)).await?
    }

    async fn delete_dead(
        &self,
        partition: &PartitionKey,
        group: &str,
        numbers: &[u64],
    ) -> Result<(), StoreError> {
        let (key, group, numbers) = (partition.clone(), group.to_owned(), numbers.to_vec());
        Ok(self.submit(0, move |machine| machine.delete_dead(&key, &group, &numbers)).await?)
    }

    async fn trim(&self, partition: &PartitionKey, term: Term, keep: &Keep) -> Result<Trimmed, CommitError> {
        let (key, keep) = (partition.clone(), keep.clone());
        self.submit(0, move |machine| machine.trim(&key, term, &keep)).await?
    }

    async fn put_user(&self, tenant: &TenantName, user: &User, create: bool) -> Result<bool, StoreError> {
        let (tenant, user) = (tenant.clone(), user.clone());
        self.submit(0, move |machine| machine.put_user(&tenant, &user, create)).await?
    }

    async fn user(&self, tenant: &TenantName, name: &str) -> Result<Option<User>, StoreError> {
        let (tenant, name) = (tenant.clone(), name.to_owned());
        self.look(move |disk| disk.user(&tenant, &name)).await
    }

    async fn users(&self, tenant: &TenantName) -> Result<Vec<User>, StoreError> {
        let tenant = tenant.clone();
        self.look(move |disk| disk.all_users(&tenant)).await
    }

    async fn delete_user(&self, tenant: &TenantName, name: &str) -> Result<bool, StoreError> {
        let (tenant, name) = (tenant.clone(), name.to_owned());
        self.submit(0, move |machine| machine.delete_user(&tenant, &name)).await?
    }

    async fn delete_tenant(&self, tenant: &TenantName, _partitions: u32) -> Result<(), StoreError> {
        let tenant = tenant.clone();
        self.submit(0, move |machine| machine.delete_tenant(&tenant)).await?
    }

    fn healthy(&self) -> watch::Receiver<bool> {
        self.healthy.clone()
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}
