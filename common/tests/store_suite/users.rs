//! Users, and the end of a tenant.

use penstock_common::{
    position::EntryId,
    store::{AppendError, CommitError, CursorStart},
};

use crate::fixture::{Fixture, Home, keep, partition, tenant, user};

pub async fn users_are_created_replaced_and_deleted(fixture: Fixture) {
    let (store, acme) = (fixture.store(), tenant("acme"));
    assert_eq!(store.user(&acme, "u").await.unwrap(), None);
    assert!(store.put_user(&acme, &user("u", "one"), true).await.unwrap());
    assert!(!store.put_user(&acme, &user("u", "two"), true).await.unwrap(), "there is one");
    assert_eq!(store.user(&acme, "u").await.unwrap().unwrap().verifier, "one");
    assert!(store.put_user(&acme, &user("u", "three"), false).await.unwrap());
    assert_eq!(store.user(&acme, "u").await.unwrap(), Some(user("u", "three")));
    assert!(store.delete_user(&acme, "u").await.unwrap());
    assert!(!store.delete_user(&acme, "u").await.unwrap());
    assert_eq!(store.user(&acme, "u").await.unwrap(), None);
    assert!(store.put_user(&acme, &user("u", "four"), true).await.unwrap());
}

pub async fn tenants_share_names_and_nothing_else(fixture: Fixture) {
    let store = fixture.store();
    // One name is the beginning of the other.
    let (acme, acme2) = (tenant("acme"), tenant("acme-2"));
    let names = ["a:b", "dev/ice", "plain", "ä{}*"];
    for name in names {
        assert!(store.put_user(&acme, &user(name, "acme"), true).await.unwrap());
        assert!(store.put_user(&acme2, &user(name, "acme-2"), true).await.unwrap());
    }
    for tenant in [&acme, &acme2] {
        let users = store.users(tenant).await.unwrap();
        assert!(users.iter().map(|u| u.name.as_str()).eq(names), "by name");
        assert!(users.iter().all(|u| u.verifier == tenant.as_str()));
    }
    assert!(store.delete_user(&acme, "plain").await.unwrap());
    assert!(store.user(&acme2, "plain").await.unwrap().is_some());
    let mut home = Home::take(&store, &partition("acme", 0), 1).await;
    home.append(1, 5, 10).await;
    assert_eq!(store.holder(&partition("acme-2", 0)).await.unwrap(), None);
    assert_eq!(store.read(&partition("acme-2", 0), EntryId::ZERO, 9, 9).await.unwrap(), []);
}

pub async fn a_deleted_tenant_is_gone_and_its_old_homes_are_fenced(fixture: Fixture) {
    let store = fixture.store();
    let mut homes = Vec::new();
    for name in ["acme", "acme-2"] {
        let mut home = Home::take(&store, &partition(name, 1), 1).await;
        home.append(1, 5, 10).await;
        store.create_cursor(&home.partition, "g", CursorStart::Earliest).await.unwrap();
        store.put_user(&tenant(name), &user("u", "v"), true).await.unwrap();
        homes.push(home);
    }
    store.delete_tenant(&tenant("acme"), 4).await.unwrap();
    let (mut gone, mut stays) = (homes.remove(0), homes.remove(0));
    assert_eq!(gone.ids().await, []);
    assert_eq!(store.holder(&gone.partition).await.unwrap(), None);
    assert_eq!(store.cursors(&gone.partition).await.unwrap(), Default::default());
    assert_eq!(store.users(&tenant("acme")).await.unwrap(), []);
    assert!(matches!(gone.try_append(1, 5, 10).await, Err(AppendError::Fenced)));
    let trim = store.trim(&gone.partition, gone.term, &keep(0, 0)).await;
    assert!(matches!(trim, Err(CommitError::Fenced)));
    stays.append(1, 5, 10).await;
    assert_eq!(stays.ids().await.len(), 2);
    assert_eq!(store.cursors(&stays.partition).await.unwrap().groups.len(), 1);
    assert_eq!(store.users(&tenant("acme-2")).await.unwrap().len(), 1);
    let took = store.take(&gone.partition, 2).await.unwrap();
    assert_eq!((took.previous_holder, took.last, took.totals), (None, EntryId::ZERO, Default::default()));
}
