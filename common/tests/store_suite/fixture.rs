//! A store with what is under it, and short ways to say what tests need.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use penstock_common::{
    name::{PartitionKey, TenantName},
    position::{EntryId, Term},
    store::{
        AppendError, Counts, CursorChange, Durability, Entry, Keep, Role, Segment, Store, Took, Totals, User,
        embedded::EmbeddedStore,
        redis::{RedisConfig, RedisStore},
    },
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{redis_cluster::RedisCluster, redis_server::RedisServer};

enum Under {
    Directory(TempDir),
    Server(RedisServer),
    Cluster(RedisCluster),
}

pub struct Fixture {
    store: Option<Arc<dyn Store>>,
    under: Under,
}

impl Fixture {
    pub async fn embedded() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(directory.path(), Durability::Fsynced).unwrap();
        Self { store: Some(store), under: Under::Directory(directory) }
    }

    pub async fn redis() -> Self {
        let server = RedisServer::durable();
        let store = open_redis(&server).await;
        Self { store: Some(store), under: Under::Server(server) }
    }

    /// On a cluster that other tests use after this one: see `cluster`.
    pub async fn cluster(cluster: RedisCluster) -> Self {
        let store = open_cluster(&cluster).await;
        Self { store: Some(store), under: Under::Cluster(cluster) }
    }

    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(self.store.as_ref().unwrap())
    }

    /// Ends the process that keeps the data, or what stands for it, and opens the store again.
    pub async fn restart(&mut self) {
        drop(self.store.take());
        self.store = Some(match &mut self.under {
            Under::Directory(directory) => {
                EmbeddedStore::open(directory.path() as &Path, Durability::Fsynced).unwrap()
            }
            Under::Server(server) => {
                server.kill();
                server.start_again();
                open_redis(server).await
            }
            Under::Cluster(cluster) => {
                cluster.restart();
                open_cluster(cluster).await
            }
        });
    }
}

pub fn redis_config(server: &RedisServer) -> RedisConfig {
    RedisConfig::new(server.url(), Durability::Fsynced)
}

pub async fn open_cluster(cluster: &RedisCluster) -> Arc<RedisStore> {
    let config = RedisConfig::new(cluster.url(), Durability::Fsynced);
    RedisStore::open(config, &CancellationToken::new()).await.unwrap()
}

pub async fn open_redis(server: &RedisServer) -> Arc<RedisStore> {
    RedisStore::open(redis_config(server), &CancellationToken::new()).await.unwrap()
}

pub fn tenant(name: &str) -> TenantName {
    TenantName::new(name).unwrap()
}

pub fn partition(name: &str, partition: u32) -> PartitionKey {
    PartitionKey { tenant: tenant(name), partition }
}

pub fn user(name: &str, verifier: &str) -> User {
    User { name: name.into(), role: Role::Device, verifier: verifier.into() }
}

/// What a trim keeps that goes as far as cursors allow.
pub fn keep(entries: u64, groups: usize) -> Keep {
    Keep { entries, groups, bytes: 0, received_since: 0, yielding: vec![] }
}

/// A cursor that moves on and counts nothing.
pub fn moved(group: &str, to: EntryId, records: u64) -> CursorChange {
    CursorChange::Group {
        group: group.into(),
        done_up_to: to,
        done_records: records,
        counts: Counts::default(),
        open: vec![],
        dead: vec![],
    }
}

/// Appends as a home does: under a term, with running totals.
pub struct Home {
    pub store: Arc<dyn Store>,
    pub partition: PartitionKey,
    pub term: Term,
    pub totals: Totals,
    next: u64,
}

impl Home {
    pub async fn take(store: &Arc<dyn Store>, partition: &PartitionKey, holder: u64) -> Self {
        Self::of(store, partition, &store.take(partition, holder).await.unwrap())
    }

    /// After a take.
    pub fn of(store: &Arc<dyn Store>, partition: &PartitionKey, took: &Took) -> Self {
        let (term, totals, next) = (took.term, took.totals, took.totals.records + 1);
        Self { store: Arc::clone(store), partition: partition.clone(), term, totals, next }
    }

    /// An entry of `count` records, received at `time`.
    pub fn entry(&self, count: u32, time: u64, bytes: usize) -> Entry {
        Entry {
            records: Bytes::from(vec![(self.next % 251) as u8; bytes]),
            segments: vec![Segment { producer: u64::MAX - 7, first: self.next, count }],
            count,
            first_received_at: time,
            totals: Totals {
                records: self.totals.records + u64::from(count),
                bytes: self.totals.bytes + bytes as u64,
            },
        }
    }

    pub async fn try_append(&mut self, count: u32, time: u64, bytes: usize) -> Result<EntryId, AppendError> {
        let entry = self.entry(count, time, bytes);
        let id = self.store.append(&self.partition, self.term, &entry).await?;
        self.totals = entry.totals;
        self.next += u64::from(count);
        Ok(id)
    }

    pub async fn append(&mut self, count: u32, time: u64, bytes: usize) -> EntryId {
        self.try_append(count, time, bytes).await.unwrap()
    }

    /// Ids of everything that is retained.
    pub async fn ids(&self) -> Vec<EntryId> {
        let entries = self.store.read(&self.partition, EntryId::ZERO, usize::MAX, usize::MAX).await.unwrap();
        entries.into_iter().map(|entry| entry.id).collect()
    }
}

/// Waits for a condition, at most 20 s.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("still waiting: {what}"));
}
