//! `replicated:N`: what an answer means, and what it never means.

use std::{sync::Arc, time::Duration};

use penstock_common::{
    name::PartitionKey,
    store::{
        AppendError, Durability, Store, StoreError,
        redis::{OpenError, RedisConfig, RedisStore},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::{
    fixture::{Home, partition, until},
    redis_cluster,
    redis_server::{RedisServer, free_port},
};

const REPLICATED: [&str; 6] =
    ["--appendonly", "yes", "--appendfsync", "everysec", "--repl-diskless-sync-delay", "0"];

/// Long enough for a replica on a busy machine, short enough to be waited for by those who freeze one.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(1);

/// Takes as soon as a replica confirms it.
async fn take(store: &Arc<dyn Store>, key: &PartitionKey) -> Home {
    let confirmed = async {
        loop {
            match store.take(key, 1).await {
                Ok(took) => return Home::of(store, key, &took),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), confirmed).await.expect("a replica confirms a take")
}

async fn open(config: RedisConfig) -> Result<Arc<RedisStore>, OpenError> {
    RedisStore::open(config, &CancellationToken::new()).await
}

fn config(server: &RedisServer, replicas: u32) -> RedisConfig {
    let config = RedisConfig::new(server.url(), Durability::Replicated(replicas));
    RedisConfig { replica_timeout: REPLICA_TIMEOUT, ..config }
}

fn primary() -> RedisServer {
    RedisServer::start(&[&REPLICATED[..], &["--min-replicas-to-write", "1"]].concat())
}

/// In step with its primary.
fn replica_of(primary: &RedisServer) -> RedisServer {
    let of = format!("127.0.0.1 {}", primary.port());
    let replica = RedisServer::start(
        &[&REPLICATED[..], &["--min-replicas-to-write", "1", "--replicaof", &of]].concat(),
    );
    redis_cluster::until("the replica is in step", || {
        replica.command("INFO replication").is_ok_and(|told| told.contains("master_link_status:up"))
            && primary.command("INFO replication").is_ok_and(|told| told.contains("state=online"))
    });
    replica
}

#[tokio::test]
async fn what_can_not_be_kept_is_refused_with_what_to_do() {
    async fn told(server: &RedisServer, replicas: u32) -> String {
        let refused = open(config(server, replicas)).await.err().expect("refused");
        assert!(matches!(refused, OpenError::NotReplicated { .. }), "{refused}");
        assert_eq!(refused.to_string().lines().count(), 1);
        refused.to_string()
    }
    let server = RedisServer::start(&["--appendonly", "no"]);
    assert!(told(&server, 1).await.contains("needs appendonly yes"));
    server.command("CONFIG SET appendonly yes").unwrap();
    assert!(
        told(&server, 1)
            .await
            .contains("needs min-replicas-to-write 1 in Redis, but it has min-replicas-to-write 0")
    );
    server.command("CONFIG SET min-replicas-to-write 1").unwrap();
    assert!(told(&server, 1).await.contains("needs 1 connected replicas in Redis, but it has 0"));
    let _replica = replica_of(&server);
    let store = open(config(&server, 1)).await.unwrap();
    assert!(store.describe().ends_with("(replicated:1)"), "{}", store.describe());
    assert!(told(&server, 2).await.contains("needs min-replicas-to-write 2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_replica_withholds_answers_until_it_wakes() {
    let server = primary();
    let replica = replica_of(&server);
    let store: Arc<dyn Store> = open(config(&server, 1)).await.unwrap();
    let key = partition("acme", 0);
    let mut home = take(&store, &key).await;
    let first = home.append(1, 5, 100).await;
    replica.pause();
    let doubtful = home.try_append(1, 5, 100).await;
    assert!(matches!(doubtful, Err(AppendError::Lost(_))), "{doubtful:?}");
    // It is in the primary's log, and what is read back after a take is taken for stored: so a take waits as well.
    assert_eq!(home.ids().await.len(), 2);
    let refused = store.take(&key, 1).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(*store.healthy().borrow(), "the connection stays");
    replica.resume();
    let mut home = take(&store, &key).await;
    home.append(1, 5, 100).await;
    assert_eq!(home.ids().await.len(), 3);
    assert_eq!(home.ids().await[0], first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_partitions_share_flushes() {
    let server = primary();
    let _replica = replica_of(&server);
    let store: Arc<dyn Store> = open(config(&server, 1)).await.unwrap();
    let mut homes = tokio::task::JoinSet::new();
    for number in 0..64 {
        let store = Arc::clone(&store);
        homes.spawn(async move {
            let mut home = take(&store, &partition("acme", number)).await;
            for _ in 0..20 {
                home.append(1, 5, 100).await;
            }
            assert_eq!(home.ids().await.len(), 20);
        });
    }
    homes.join_all().await;
    let told = server.command("INFO commandstats").unwrap();
    let calls = |name: &str| {
        let rest = told.split_once(&format!("cmdstat_{name}:calls=")).expect("called").1;
        rest.split(',').next().unwrap().parse::<u32>().unwrap()
    };
    assert!(calls("wait") * 2 < calls("xadd"), "{} WAITs for {} XADDs", calls("wait"), calls("xadd"));
}

/// Passes bytes on, and can lose the answers of the server, or everything.
struct Proxy {
    url: String,
    answers: watch::Sender<bool>,
    cut: CancellationToken,
}

impl Proxy {
    async fn before(server: &RedisServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let (answers, passing) = watch::channel(true);
        let (cut, port) = (CancellationToken::new(), server.port());
        let all = cut.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                let always = watch::channel(true).1;
                tokio::spawn(all.child_token().run_until_cancelled_owned(pass(
                    from_client,
                    to_server,
                    always,
                )));
                let passing = passing.clone();
                tokio::spawn(all.child_token().run_until_cancelled_owned(pass(
                    from_server,
                    to_client,
                    passing,
                )));
            }
        });
        Self { url, answers, cut }
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, passing: watch::Receiver<bool>) {
    let mut bytes = [0; 16_384];
    while let Ok(len @ 1..) = from.read(&mut bytes).await {
        if *passing.borrow() && to.write_all(&bytes[..len]).await.is_err() {
            return;
        }
    }
}

/// The entry is in the primary, and so would be the answer of XADD on its way: not taken for replicated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_between_xadd_and_wait_confirms_nothing() {
    let server = primary();
    let replica = replica_of(&server);
    let proxy = Proxy::before(&server).await;
    let config = RedisConfig::new(&proxy.url, Durability::Replicated(1));
    let store: Arc<dyn Store> =
        open(RedisConfig { replica_timeout: Duration::from_secs(4), ..config }).await.unwrap();
    let key = partition("acme", 0);
    let mut home = take(&store, &key).await;
    home.append(1, 5, 100).await;
    replica.pause();
    let append = tokio::spawn(async move { home.try_append(1, 5, 100).await });
    // XADD is done and WAIT has begun: its answer lies in the connection.
    until("the entry is stored", || async {
        store.read(&key, Default::default(), 9, 9_999).await.unwrap().len() == 2
    })
    .await;
    proxy.answers.send_replace(false);
    proxy.cut.cancel();
    let outcome = append.await.unwrap();
    assert!(matches!(outcome, Err(AppendError::Lost(_))), "{outcome:?}");
    replica.resume();
    let direct: Arc<dyn Store> =
        open(RedisConfig::new(server.url(), Durability::Replicated(1))).await.unwrap();
    until("the replica is in step again", || async { direct.take(&key, 1).await.is_ok() }).await;
    assert_eq!(take(&direct, &key).await.ids().await.len(), 2, "it was in doubt, and is there once");
}

/// Primary and sentinel on free ports; the sentinel takes a silent primary for dead after a second.
fn sentinel(primary: &RedisServer) -> RedisServer {
    RedisServer::sentinel(&format!(
        "sentinel monitor main 127.0.0.1 {} 1\nsentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n",
        primary.port()
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_name_the_next_primary_and_nothing_that_was_confirmed_is_lost() {
    let mut server = primary();
    // Two, so that the one that is promoted has one.
    let replicas = [replica_of(&server), replica_of(&server)];
    let sentinel = sentinel(&server);
    let known =
        || sentinel.command("SENTINEL MASTER main").is_ok_and(|told| told.contains("num-slaves\r\n$1\r\n2"));
    redis_cluster::until("the sentinel knows the replicas", known);
    let nobody = free_port();
    let url = format!("redis+sentinel://127.0.0.1:{nobody},127.0.0.1:{}", sentinel.port());
    let unknown = open(RedisConfig::new(format!("{url}/other"), Durability::Memory)).await.err().unwrap();
    assert!(matches!(&unknown, OpenError::UnknownPrimary { name, .. } if name == "other"), "{unknown}");
    let config = RedisConfig::new(format!("{url}/main"), Durability::Replicated(1));
    let store: Arc<dyn Store> =
        open(RedisConfig { replica_timeout: REPLICA_TIMEOUT, ..config }).await.unwrap();
    let key = partition("acme", 0);
    let mut home = take(&store, &key).await;
    let appends = tokio::spawn(async move {
        let mut confirmed = Vec::new();
        loop {
            match home.try_append(1, 5, 100).await {
                Ok(id) => confirmed.push(id),
                Err(error) => return (confirmed, error),
            }
        }
    });
    until("appends run", || async {
        store.read(&key, Default::default(), 99, 99_999).await.unwrap().len() > 20
    })
    .await;
    let mut healthy = store.healthy();
    server.kill();
    let (confirmed, error) = appends.await.unwrap();
    assert!(matches!(error, AppendError::Lost(_) | AppendError::Retake), "{error:?}");
    let again = tokio::time::timeout(Duration::from_secs(60), healthy.wait_for(|healthy| *healthy)).await;
    again.expect("another primary in time").unwrap();
    until("the other replica follows", || async { store.take(&key, 1).await.is_ok() }).await;
    let mut home = take(&store, &key).await;
    home.append(1, 5, 100).await;
    let ids = home.ids().await;
    let lost: Vec<_> = confirmed.iter().filter(|id| !ids.contains(id)).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), confirmed.len());
    assert!(ids.len() <= confirmed.len() + 2, "at most the one in doubt, and stored once");
    drop(replicas);
}
