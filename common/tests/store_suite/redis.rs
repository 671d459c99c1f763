//! What only Redis can do wrong: go away, hang, come back as another one, or be set up so that it can't keep a promise.

use std::{sync::Arc, time::Duration};

use penstock_common::store::{
    AppendError, CursorStart, Durability, Store, StoreError,
    redis::{OpenError, RedisConfig, RedisStore},
};
use tokio_util::sync::CancellationToken;

use crate::{
    fixture::{Home, keep, open_redis, partition, redis_config, until},
    redis_server::RedisServer,
};

async fn open(config: RedisConfig) -> Result<Arc<RedisStore>, OpenError> {
    RedisStore::open(config, &CancellationToken::new()).await
}

async fn refused(server: &RedisServer, durability: Durability) -> OpenError {
    open(RedisConfig::new(server.url(), durability)).await.err().expect("refused")
}

#[tokio::test]
async fn nothing_there_is_said_in_a_line() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let error = refused(&server, Durability::Memory).await;
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
}

#[tokio::test]
async fn a_hung_server_is_unreachable_within_the_limit() {
    let server = RedisServer::start(&[]);
    server.pause();
    let mut config = RedisConfig::new(server.url(), Durability::Memory);
    config.connect_timeout = Duration::from_millis(300);
    let opened = tokio::time::timeout(Duration::from_secs(10), open(config)).await.unwrap();
    assert!(matches!(opened.err(), Some(OpenError::Unreachable { .. })));
}

#[tokio::test]
async fn a_server_that_can_not_keep_the_promise_is_refused() {
    let evicting = RedisServer::start(&["--maxmemory-policy", "allkeys-lru"]);
    assert_eq!(refused(&evicting, Durability::Memory).await, OpenError::Evicts("allkeys-lru".into()));
    let unsynced = RedisServer::start(&["--appendonly", "yes"]);
    assert!(matches!(refused(&unsynced, Durability::Fsynced).await, OpenError::NotFsynced { .. }));
    let store = open(RedisConfig::new(unsynced.url(), Durability::Memory)).await.unwrap();
    assert!(store.describe().ends_with("(memory)"), "{}", store.describe());
    let primary = unsynced.url().rsplit_once(':').unwrap().1.to_owned();
    let replica = RedisServer::start(&["--replicaof", &format!("127.0.0.1 {primary}")]);
    assert!(matches!(refused(&replica, Durability::Memory).await, OpenError::Replica(_)));
}

#[tokio::test]
async fn passwords_and_unreadable_configs_are_told_apart() {
    let locked = RedisServer::start(&["--requirepass", "secret"]);
    assert!(matches!(refused(&locked, Durability::Memory).await, OpenError::Login { .. }));
    let url = locked.url().replace("//", "//:secret@");
    open(RedisConfig::new(&url, Durability::Memory)).await.unwrap();
    let url = locked.url().replace("//", "//:wrong-one@");
    let error = open(RedisConfig::new(&url, Durability::Memory)).await.err().unwrap();
    assert!(matches!(error, OpenError::Login { .. }), "{error}");
    assert!(!error.to_string().contains("wrong-one"));
    let mute = RedisServer::start(&["--rename-command", "CONFIG", ""]);
    assert!(matches!(refused(&mute, Durability::Memory).await, OpenError::UnreadableConfig(_)));
    let mut config = RedisConfig::new(mute.url(), Durability::Fsynced);
    config.accept_unreadable_config = true;
    open(config).await.unwrap();
}

#[tokio::test]
async fn a_killed_server_loses_answers_and_no_entry_that_was_confirmed() {
    let mut server = RedisServer::durable();
    let store: Arc<dyn Store> = open_redis(&server).await;
    let key = partition("acme", 0);
    let mut home = Home::take(&store, &key, 1).await;
    let appends = tokio::spawn(async move {
        let mut confirmed = Vec::new();
        loop {
            match home.try_append(1, 5, 100).await {
                Ok(id) => confirmed.push(id),
                Err(error) => return (confirmed, error),
            }
        }
    });
    let watched = Home::take(&store, &partition("acme", 1), 1).await;
    until("appends run", || async {
        store.read(&key, Default::default(), 9, 9_999).await.unwrap().len() > 5
    })
    .await;
    server.kill();
    let (confirmed, error) = appends.await.unwrap();
    assert!(matches!(error, AppendError::Lost(_)), "{error}");
    let mut healthy = store.healthy();
    healthy.wait_for(|healthy| !healthy).await.unwrap();
    assert!(matches!(store.take(&key, 2).await, Err(StoreError::Unavailable(_))), "at once");
    assert!(matches!(store.cursors(&watched.partition).await, Err(StoreError::Unavailable(_))));
    server.start_again();
    healthy.wait_for(|healthy| *healthy).await.unwrap();
    let mut home = Home::take(&store, &key, 2).await;
    home.append(1, 5, 100).await;
    let ids = home.ids().await;
    assert!(confirmed.iter().all(|id| ids.contains(id)));
    assert!(ids.len() <= confirmed.len() + 2, "at most the one in doubt, and stored once");
}

#[tokio::test]
async fn a_paused_server_loses_the_append_in_time_and_works_again() {
    let server = RedisServer::durable();
    let config = RedisConfig { response_timeout: Duration::from_millis(300), ..redis_config(&server) };
    let store: Arc<dyn Store> = open(config).await.unwrap();
    let (mut one, mut two) = (
        Home::take(&store, &partition("acme", 0), 1).await,
        Home::take(&store, &partition("acme", 1), 1).await,
    );
    server.pause();
    let both = async { tokio::join!(one.try_append(1, 5, 10), two.try_append(1, 5, 10)) };
    let (first, second) = tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
    assert!(matches!(first, Err(AppendError::Lost(_))) && matches!(second, Err(AppendError::Lost(_))));
    let mut healthy = store.healthy();
    healthy.wait_for(|healthy| !healthy).await.unwrap();
    server.resume();
    healthy.wait_for(|healthy| *healthy).await.unwrap();
    // What lay in the socket may have been stored under the old term; under the new one nothing of it can follow.
    let mut again = Home::take(&store, &one.partition, 1).await;
    let id = again.append(1, 5, 10).await;
    assert_eq!((id.term, id.sequence), (again.term, 1));
    let fenced = again.store.append(&again.partition, one.term, &one.entry(1, 5, 10)).await;
    assert!(matches!(fenced, Err(AppendError::Fenced)));
}

#[tokio::test]
async fn a_server_that_comes_back_without_its_promise_is_not_used() {
    let mut server = RedisServer::durable();
    let store = open_redis(&server).await;
    let mut healthy = store.healthy();
    server.kill();
    healthy.wait_for(|healthy| !healthy).await.unwrap();
    server.set(&["--appendonly", "no"]);
    server.start_again();
    let refused = store.take(&partition("acme", 0), 1).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))));
    until("it was tried", || async { tried(&server) > 3 }).await;
    assert!(!*healthy.borrow());
    server.command("CONFIG SET appendonly yes").unwrap();
    server.command("CONFIG SET appendfsync always").unwrap();
    healthy.wait_for(|healthy| *healthy).await.unwrap();
    store.take(&partition("acme", 0), 1).await.unwrap();
}

/// How often the server was asked for its settings since it started.
fn tried(server: &RedisServer) -> u32 {
    let stats = server.command("INFO commandstats").unwrap();
    let calls = stats.split_once("cmdstat_config|get:calls=").map_or("0", |(_, rest)| rest);
    calls.split(',').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_full_server_refuses_and_stores_nothing() {
    let server = RedisServer::durable();
    let store: Arc<dyn Store> = open_redis(&server).await;
    let mut home = Home::take(&store, &partition("acme", 0), 1).await;
    home.append(1, 5, 10).await;
    server.command("CONFIG SET maxmemory 1").unwrap();
    let full = home.try_append(1, 5, 10).await;
    assert!(matches!(full, Err(AppendError::Refused(_))), "{full:?}");
    server.command("CONFIG SET maxmemory 0").unwrap();
    assert_eq!(home.append(1, 5, 10).await.sequence, 2, "the connection and the term still hold");
}

#[tokio::test]
async fn a_server_that_lost_its_data_takes_nothing_under_the_old_term() {
    let mut server = RedisServer::start(&[]);
    let store: Arc<dyn Store> = open(RedisConfig::new(server.url(), Durability::Memory)).await.unwrap();
    let mut home = Home::take(&store, &partition("acme", 0), 1).await;
    home.append(1, 5, 10).await;
    let mut healthy = store.healthy();
    server.kill();
    healthy.wait_for(|healthy| !healthy).await.unwrap();
    server.start_again();
    healthy.wait_for(|healthy| *healthy).await.unwrap();
    assert!(matches!(home.try_append(1, 5, 10).await, Err(AppendError::Retake)));
    let other: Arc<dyn Store> = open(RedisConfig::new(server.url(), Durability::Memory)).await.unwrap();
    let fenced = other.append(&home.partition, home.term, &home.entry(1, 5, 10)).await;
    assert!(matches!(fenced, Err(AppendError::Fenced)), "by the server too: {fenced:?}");
    assert_eq!(home.ids().await, []);
}

/// Otherwise ids that readers have seen would be given out again, to other entries.
#[tokio::test]
async fn a_term_that_was_taken_before_the_connection_broke_is_taken_again_before_the_next_append() {
    let server = RedisServer::start(&[]);
    let store: Arc<dyn Store> = open(RedisConfig::new(server.url(), Durability::Memory)).await.unwrap();
    let mut home = Home::take(&store, &partition("acme", 0), 1).await;
    let first = home.append(1, 5, 10).await;
    let mut healthy = store.healthy();
    server.command("CLIENT KILL TYPE normal SKIPME yes").unwrap();
    healthy.wait_for(|healthy| !healthy).await.unwrap();
    healthy.wait_for(|healthy| *healthy).await.unwrap();
    let refused = home.try_append(1, 5, 10).await;
    assert!(matches!(refused, Err(AppendError::Retake)), "{refused:?}");
    assert_eq!(home.ids().await, [first], "and was not sent");
    let mut again = Home::take(&store, &home.partition, 1).await;
    assert!(again.append(1, 5, 10).await > first);
}

/// A replica that was promoted has another replication id, on the same port and perhaps over the same connection.
#[tokio::test]
async fn another_history_of_the_data_is_another_connection() {
    let server = RedisServer::start(&[]);
    let store: Arc<dyn Store> = open(RedisConfig::new(server.url(), Durability::Memory)).await.unwrap();
    let mut home = Home::take(&store, &partition("acme", 0), 1).await;
    home.append(1, 5, 10).await;
    let mut healthy = store.healthy();
    // A first replica begins a new history.
    let _replica = RedisServer::start(&["--replicaof", &format!("127.0.0.1 {}", server.port())]);
    let changed = tokio::time::timeout(Duration::from_secs(30), healthy.wait_for(|healthy| !healthy)).await;
    changed.expect("noticed in time").unwrap();
    healthy.wait_for(|healthy| *healthy).await.unwrap();
    assert!(matches!(home.try_append(1, 5, 10).await, Err(AppendError::Retake)));
}

#[tokio::test]
async fn scripts_are_loaded_again_when_the_server_forgot_them() {
    let server = RedisServer::durable();
    let store: Arc<dyn Store> = open_redis(&server).await;
    let home = Home::take(&store, &partition("acme", 0), 1).await;
    server.command("SCRIPT FLUSH").unwrap();
    store.create_cursor(&home.partition, "g", CursorStart::Latest).await.unwrap();
    store.trim(&home.partition, home.term, &keep(0, 0)).await.unwrap();
    store.take(&home.partition, 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routers_that_fight_over_a_partition_store_each_confirmed_entry_once() {
    let server = RedisServer::start(&[]);
    let key = partition("acme", 0);
    let mut routers = tokio::task::JoinSet::new();
    for router in 1..=4 {
        let store: Arc<dyn Store> = open(RedisConfig::new(server.url(), Durability::Memory)).await.unwrap();
        let key = key.clone();
        routers.spawn(async move {
            let mut confirmed = Vec::new();
            for _ in 0..20 {
                let mut home = Home::take(&store, &key, router).await;
                for _ in 0..50 {
                    match home.try_append(1, 5, 10).await {
                        Ok(id) => confirmed.push((id, home.totals.records)),
                        Err(AppendError::Fenced) => break,
                        Err(other) => panic!("{other}"),
                    }
                }
            }
            confirmed
        });
    }
    let mut confirmed: Vec<_> = routers.join_all().await.into_iter().flatten().collect();
    confirmed.sort_unstable();
    let store = open(RedisConfig::new(server.url(), Durability::Memory)).await.unwrap();
    let stored = store.read(&key, Default::default(), usize::MAX, usize::MAX).await.unwrap();
    assert!(stored.iter().map(|e| (e.id, e.entry.totals.records)).eq(confirmed.iter().copied()));
    assert!(confirmed.iter().map(|(_, records)| *records).eq(1..=confirmed.len() as u64), "totals run on");
}
