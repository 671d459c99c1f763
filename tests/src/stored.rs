//! What a cluster's store holds, read beside its routers: how far groups are, and who holds which partition.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use penstock_client::Position;
use penstock_common::{
    name::{PartitionKey, TenantName},
    position::{EntryId, Term},
    store::{
        Durability, GroupCursor, Store,
        redis::{RedisConfig, RedisStore},
    },
};
use tokio_util::sync::CancellationToken;

use crate::{cluster::Cluster, tenant::TestTenant};

/// The store of one tenant of a cluster.
pub struct Stored {
    store: Arc<RedisStore>,
    tenant: TenantName,
}

impl Stored {
    /// Needs a runtime around it, as long as it is used.
    ///
    /// # Panics
    /// When Redis can't be reached.
    pub async fn of(cluster: &Cluster, tenant: &TestTenant) -> Self {
        let config = RedisConfig::new(cluster.redis.url(), Durability::Memory);
        let store = RedisStore::open(config, &CancellationToken::new()).await.expect("Redis can be read");
        Self { store, tenant: TenantName::new(&tenant.name).expect("a name of a tenant") }
    }

    fn key(&self, partition: u32) -> PartitionKey {
        PartitionKey { tenant: self.tenant.clone(), partition }
    }

    /// Whether the group's cursors, as they are written now, say of all these records that they are done.
    pub async fn all_done(&self, group: &str, records: impl IntoIterator<Item = &Position>) -> bool {
        let mut cursors: BTreeMap<u32, GroupCursor> = BTreeMap::new();
        for record in records {
            let cursor = match cursors.entry(record.partition) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => {
                    let read = self.store.cursors(&self.key(record.partition)).await.ok();
                    let Some(cursor) = read.and_then(|mut read| read.groups.remove(group)) else {
                        return false;
                    };
                    unknown.insert(cursor)
                }
            };
            let entry = EntryId { term: Term(record.term), sequence: record.sequence };
            if !cursor.is_done(entry, record.index) {
                return false;
            }
        }
        true
    }

    /// Which of the cluster's routers holds a partition's term; None: nobody, or one that runs no more.
    pub async fn holder(&self, cluster: &Cluster, partition: u32) -> Option<usize> {
        let (_, holder) = self.store.holder(&self.key(partition)).await.ok()??;
        let members = cluster.admin().admin().cluster().await.ok()?.members;
        let holder = members.into_iter().find(|member| member.incarnation == holder && member.registered)?;
        cluster.routers.iter().position(|router| router.name() == holder.node_id)
    }
}
