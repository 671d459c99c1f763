//! What only the embedded registry has: a file.

use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

use penstock_common::{
    clock::Seams,
    registry::{
        Group, GroupOptions, GroupStart, Limits, Registry as _, SigningKey, SigningKeys, Tenant,
        embedded::{EmbeddedRegistry, OpenError},
    },
    secret::Secret,
};

use crate::contract::{Handle, client, owner, tenant};

pub fn in_memory() -> Handle {
    EmbeddedRegistry::open(None, Seams::real()).unwrap()
}

fn at(ms: u64) -> Seams {
    Seams::seeded(move || ms, 1)
}

#[tokio::test]
async fn definitions_and_growing_epochs_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("registry");
    let first = EmbeddedRegistry::open(Some(&dir), at(1_700_000_000_000)).unwrap();
    let settings = Tenant {
        partitions: 8,
        limits: Limits::default(),
        isolation: Default::default(),
        users_version: 3,
        created_at: 1_700_000_000_000,
    };
    let group = Group {
        name: "g".to_owned(),
        filters: vec![],
        start: GroupStart::Earliest,
        options: GroupOptions::default(),
        active: true,
        created_at: 2,
    };
    first.create_tenant(&tenant("acme"), &settings).await.unwrap();
    first.create_group(&tenant("acme"), &group).await.unwrap();
    let before = Arc::clone(&first.definitions().borrow());
    let claim = first.claim(client("c"), owner(1, 0)).await.unwrap();
    let key = SigningKey { id: "k".to_owned(), secret: Secret::new("s"), created_at: 1 };
    let keys = SigningKeys { keys: vec![key] };
    first.replace_signing_keys(&SigningKeys::default(), &keys).await.unwrap();
    drop(first);

    let second = EmbeddedRegistry::open(Some(&dir), at(1_700_000_000_002)).unwrap();
    assert_eq!(*second.definitions().borrow(), before);
    let again = second.claim(client("c"), owner(2, 0)).await.unwrap();
    assert_eq!(again.previous, None, "owners end with their process");
    assert_eq!(second.signing_keys().borrow().as_deref(), Some(&keys));
    let mode = std::fs::metadata(dir.join("signing-keys.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(again.epoch > claim.epoch);
}

#[tokio::test]
async fn a_corrupt_file_stops_the_start_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("definitions.json");
    for content in ["{\"version\":1,\"tenants\":{\"acme\":", "{\"version\":9,\"tenants\":{}}", ""] {
        std::fs::write(&path, content).unwrap();
        let Err(error) = EmbeddedRegistry::open(Some(dir.path()), Seams::real()) else { panic!("opened") };
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("definitions.json"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content, "it is left as it is");
    }
}

#[tokio::test]
async fn a_change_that_is_not_on_disk_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("registry");
    let registry = EmbeddedRegistry::open(Some(&inside), Seams::real()).unwrap();
    std::fs::remove_dir_all(&inside).unwrap();
    let settings = Tenant {
        partitions: 4,
        limits: Limits::default(),
        isolation: Default::default(),
        users_version: 0,
        created_at: 0,
    };
    assert!(registry.create_tenant(&tenant("acme"), &settings).await.is_err());
    assert!(registry.definitions().borrow().tenants.is_empty());
}
