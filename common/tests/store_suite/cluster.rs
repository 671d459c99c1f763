//! What only a cluster can do: have slots elsewhere, on the move, or at a primary that is dead or was replaced.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use penstock_common::{
    name::PartitionKey,
    position::EntryId,
    store::{
        AppendError, Durability, Store,
        redis::{OpenError, RedisConfig, RedisStore},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    fixture::{Home, open_cluster, partition, tenant, until, user},
    redis_cluster::{self, RedisCluster},
    redis_server::RedisServer,
};

/// `CLUSTER KEYSLOT {acme/0}`.
const SLOT: u16 = 7_666;

async fn open(config: RedisConfig) -> Result<Arc<RedisStore>, OpenError> {
    RedisStore::open(config, &CancellationToken::new()).await
}

#[tokio::test]
async fn what_is_no_whole_cluster_is_refused() {
    let plain = RedisServer::durable();
    let url = plain.url().replace("redis://", "redis+cluster://");
    let error = open(RedisConfig::new(url, Durability::Memory)).await.err().unwrap();
    assert!(matches!(error, OpenError::NoCluster(_)), "{error}");
    let bus = crate::redis_server::free_port().to_string();
    let lonely = RedisServer::start(&["--cluster-enabled", "yes", "--cluster-port", &bus]);
    lonely.command("CLUSTER ADDSLOTSRANGE 0 100").unwrap();
    let url = lonely.url().replace("redis://", "redis+cluster://");
    let error = open(RedisConfig::new(url, Durability::Memory)).await.err().unwrap();
    assert!(matches!(error, OpenError::Uncovered { uncovered: 16_283, .. }), "{error}");
    let error = open(RedisConfig::new(lonely.url(), Durability::Memory)).await.err().unwrap();
    assert!(matches!(error, OpenError::ClusterNode), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
}

/// What [`append_on`] was told.
#[derive(Default)]
struct Told {
    confirmed: Vec<EntryId>,
    /// Appends of which nobody knows: each may be stored or not.
    unknown: usize,
}

/// Appends one entry after the other, taking the partition again when that is asked for, until `stop`.
async fn append_on(store: Arc<dyn Store>, key: PartitionKey, mut stop: watch::Receiver<bool>) -> Told {
    let mut told = Told::default();
    while !*stop.borrow_and_update() {
        let Ok(took) = store.take(&key, 1).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut home = Home::of(&store, &key, &took);
        while !*stop.borrow_and_update() {
            match home.try_append(1, 5, 100).await {
                Ok(id) => told.confirmed.push(id),
                // The same entry again, as a home does.
                Err(AppendError::Refused(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(AppendError::Retake) => break,
                Err(AppendError::Lost(_)) => {
                    told.unknown += 1;
                    break;
                }
                Err(AppendError::Fenced) => panic!("there is no other home"),
            }
        }
    }
    told
}

fn check(told: &Told, stored: &[EntryId]) {
    let confirmed = &told.confirmed;
    assert!(confirmed.is_sorted_by(|a, b| a < b), "ids grow, whatever happens");
    let known: BTreeSet<_> = stored.iter().collect();
    let lost: Vec<_> = confirmed.iter().filter(|id| !known.contains(id)).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), confirmed.len());
}

async fn stored(store: &Arc<dyn Store>, key: &PartitionKey) -> Vec<EntryId> {
    // A read that meets a replaced primary is made again.
    let reading = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Ok(entries) = store.read(key, EntryId::ZERO, usize::MAX, usize::MAX).await {
                return entries;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let entries = reading.await.expect("the log can be read");
    entries.into_iter().map(|entry| entry.id).collect()
}

async fn grows(store: &Arc<dyn Store>, key: &PartitionKey, by: usize) {
    let before = stored(store, key).await.len();
    until("appends go on", || async {
        store.read(key, EntryId::ZERO, usize::MAX, usize::MAX).await.is_ok_and(|all| all.len() >= before + by)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_is_moved_under_appends_and_nothing_is_lost() {
    let cluster = RedisCluster::start(3, 0, &[]);
    let store: Arc<dyn Store> = open_cluster(&cluster).await;
    let (key, other) = (partition("acme", 0), partition("acme", 1));
    let from = cluster.owner(SLOT).unwrap();
    let to = (from + 1) % 3;
    let (stop, stopped) = watch::channel(false);
    let appends = tokio::spawn(append_on(Arc::clone(&store), key.clone(), stopped));
    until("appends run", || async { store.read(&key, EntryId::ZERO, 9, 9_999).await.unwrap().len() > 5 })
        .await;
    cluster.on(to, &format!("CLUSTER SETSLOT {SLOT} IMPORTING {}", cluster.id(from)));
    cluster.on(from, &format!("CLUSTER SETSLOT {SLOT} MIGRATING {}", cluster.id(to)));
    grows(&store, &key, 5).await;
    let port = cluster.nodes()[to].port();
    let migrate = |name: &str| {
        let moved = cluster.on(from, &format!("MIGRATE 127.0.0.1 {port} ps:{{acme/0}}:{name} 0 10000"));
        assert_eq!(moved, "+OK\r\n", "{name}");
    };
    migrate("log");
    // Half of the slot is there and half is here: nothing is written, and what was is read there.
    let read = stored(&store, &key).await;
    assert!(read.len() > 5);
    let refused = store.take(&key, 1).await;
    assert!(refused.is_err(), "the keys of the script are on two nodes: {refused:?}");
    let mut aside = Home::take(&store, &other, 1).await;
    aside.append(1, 5, 10).await;
    migrate("term");
    cluster.on(to, &format!("CLUSTER SETSLOT {SLOT} NODE {}", cluster.id(to)));
    cluster.on(from, &format!("CLUSTER SETSLOT {SLOT} NODE {}", cluster.id(to)));
    grows(&store, &key, 5).await;
    aside.append(1, 5, 10).await;
    stop.send_replace(true);
    let told = appends.await.unwrap();
    assert!(told.confirmed.iter().any(|id| id.term > read[read.len() - 1].term), "under a new term");
    check(&told, &stored(&store, &key).await);
}

/// Its sockets hold commands that it executes when it wakes, as the primary that it thinks it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_sleeps_is_replaced_and_confirms_nothing_when_it_wakes() {
    let cluster = RedisCluster::start(3, 1, &[]);
    let store: Arc<dyn Store> = open_cluster(&cluster).await;
    let key = partition("acme", 0);
    let mut home = Home::take(&store, &key, 1).await;
    let first = home.append(1, 5, 100).await;
    let old = cluster.owner(SLOT).unwrap();
    replicated(&cluster, old);
    cluster.nodes()[old].pause();
    let lost = home.try_append(1, 5, 100).await;
    assert!(matches!(lost, Err(AppendError::Lost(_))), "{lost:?}");
    let (stop, stopped) = watch::channel(false);
    let appends = tokio::spawn(append_on(Arc::clone(&store), key.clone(), stopped));
    let mut healthy = store.healthy();
    let again = tokio::time::timeout(Duration::from_secs(60), healthy.wait_for(|healthy| *healthy)).await;
    again.expect("another primary in time").unwrap();
    grows(&store, &key, 5).await;
    cluster.nodes()[old].resume();
    redis_cluster::until("the old one follows", || {
        cluster.on(old, "INFO replication").contains("role:slave")
    });
    grows(&store, &key, 5).await;
    stop.send_replace(true);
    let told = appends.await.unwrap();
    let ids = stored(&store, &key).await;
    check(&told, &ids);
    let others = ids.len() - told.confirmed.len() - 1;
    assert!(others <= told.unknown, "{others} that nobody appended, {} unknown", told.unknown);
    assert_eq!(ids[0], first);
}

/// Waits until the replica of a node has all that it wrote.
fn replicated(cluster: &RedisCluster, node: usize) {
    redis_cluster::until("the replica has it", || {
        let told = cluster.on(node, "INFO replication");
        let number = |name: &str| {
            let rest = told.split_once(name)?.1;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
        };
        let has = told
            .split_once("slave0:")
            .and_then(|(_, rest)| rest.split_once("offset=")?.1.split(',').next()?.parse::<u64>().ok());
        has.is_some() && has == number("master_repl_offset:")
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_tenants_of_all_nodes_are_found() {
    let cluster = RedisCluster::start(3, 0, &[]);
    let store = open_cluster(&cluster).await;
    for number in 0..40 {
        store.put_user(&tenant("acme"), &user(&format!("u{number}"), "v"), true).await.unwrap();
    }
    assert_eq!(store.users(&tenant("acme")).await.unwrap().len(), 40);
    for number in 0..8 {
        store.take(&partition("acme", number), 1).await.unwrap();
    }
    store.delete_tenant(&tenant("acme"), 8).await.unwrap();
    for node in 0..3 {
        assert_eq!(cluster.on(node, "DBSIZE"), ":0\r\n");
    }
}
