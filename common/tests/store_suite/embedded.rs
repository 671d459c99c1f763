//! What only the embedded store can do wrong: share its directory, open a damaged one, answer before it synced.

use std::sync::Arc;

use penstock_common::store::{
    Durability, Store,
    embedded::{EmbeddedStore, OpenError},
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
