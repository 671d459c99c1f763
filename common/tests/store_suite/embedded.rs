//! What only the embedded store can do wrong: share its directory, open a damaged one, answer before it synced.

// A child process of this test is told its directory by a variable.
#![allow(clippy::disallowed_methods)]

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::Arc,
};

use penstock_common::{
    position::EntryId,
    store::{
        Durability, Store,
        embedded::{EmbeddedStore, OpenError},
    },
};

use crate::fixture::{Home, partition};

#[tokio::test]
async fn a_directory_has_one_user_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path(), Durability::Memory).unwrap();
    let second = EmbeddedStore::open(directory.path(), Durability::Memory).err().unwrap();
    assert!(matches!(second, OpenError::InUse(_)), "{second}");
    assert_eq!(second.to_string().lines().count(), 1);
    drop(store);
    EmbeddedStore::open(directory.path(), Durability::Memory).unwrap();
}

/// What one process can't have: replicas here, a second process above.
#[tokio::test]
async fn replicas_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let refused = EmbeddedStore::open(directory.path(), Durability::Replicated(1)).err().unwrap();
    assert!(matches!(refused, OpenError::Alone(_)), "{refused}");
    assert!(refused.to_string().contains("replicated:1") && refused.to_string().lines().count() == 1);
}

#[tokio::test]
async fn a_directory_that_can_not_be_used_is_said_in_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = EmbeddedStore::open(&file, Durability::Memory).err().unwrap();
    assert!(matches!(error, OpenError::Directory { .. }), "{error}");
    drop(EmbeddedStore::open(directory.path(), Durability::Memory).unwrap());
    std::fs::write(directory.path().join("data/version"), "something else").unwrap();
    let error = EmbeddedStore::open(directory.path(), Durability::Memory).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_classes_survive_a_close() {
    for durability in [Durability::Memory, Durability::Fsynced] {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = EmbeddedStore::open(directory.path(), durability).unwrap();
        let mut home = Home::take(&store, &partition("acme", 0), 1).await;
        let ids = [home.append(1, 5, 10).await, home.append(1, 5, 10).await];
        drop((home, store));
        let store: Arc<dyn Store> = EmbeddedStore::open(directory.path(), durability).unwrap();
        let home = Home::take(&store, &partition("acme", 0), 1).await;
        assert_eq!(home.ids().await, ids);
        assert!(store.describe().ends_with(&format!("({durability})")));
        assert!(*store.healthy().borrow());
    }
}

/// Set for a process that appends until it is killed.
const DIRECTORY: &str = "PENSTOCK_TEST_APPEND_IN";

/// Not a test of its own: what `a_killed_process_loses_nothing_that_was_confirmed` runs as another process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appender() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let store: Arc<dyn Store> = EmbeddedStore::open(directory.as_ref(), Durability::Memory).unwrap();
    let mut lanes = tokio::task::JoinSet::new();
    for number in 0..8 {
        let store = Arc::clone(&store);
        lanes.spawn(async move {
            let mut home = Home::take(&store, &partition("acme", number), 1).await;
            loop {
                println!("confirmed {number} {}", home.append(1, 5, 1_000).await);
            }
        });
    }
    lanes.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_loses_nothing_that_was_confirmed() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "embedded_only::appender", "--nocapture"])
        .env(DIRECTORY, directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let confirmed = |line: String| {
        let (number, id) = line.split_once("confirmed ")?.1.split_once(' ')?;
        Some((number.parse().ok()?, id.parse().ok()?))
    };
    let mut ids: Vec<(u32, EntryId)> = Vec::new();
    while ids.len() < 2_000 {
        ids.extend(lines.next().expect("the appender ended").ok().and_then(confirmed));
    }
    child.kill().unwrap();
    // What it said before it died counts as well, but its last line may be cut.
    let mut rest: Vec<_> = lines.map_while(Result::ok).filter_map(confirmed).collect();
    rest.pop();
    ids.extend(rest);
    child.wait().unwrap();
    let store: Arc<dyn Store> = EmbeddedStore::open(directory.path(), Durability::Memory).unwrap();
    for number in 0..8 {
        let home = Home::take(&store, &partition("acme", number), 2).await;
        let stored = home.ids().await;
        assert!(ids.iter().filter(|(of, _)| *of == number).all(|(_, id)| stored.contains(id)));
        assert!(stored.iter().map(|id| id.sequence).eq(1..=stored.len() as u64), "dense");
    }
}
