//! First runs that are completed, interrupted at each step, repeated, and told what to do.

#![allow(clippy::unwrap_used)]

use std::{fs, sync::Arc};

use penstock_common::{
    registry::embedded::EmbeddedRegistry,
    store::{Durability, embedded::EmbeddedStore},
};

use penstock_router::verify::{Verdict, Verifier};

use super::*;

struct Place {
    dir: tempfile::TempDir,
    registry: Arc<EmbeddedRegistry>,
    store: Arc<EmbeddedStore>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = EmbeddedRegistry::open(Some(dir.path()), Seams::real()).unwrap();
        let store = EmbeddedStore::open(&dir.path().join("store"), Durability::Memory).unwrap();
        Self { dir, registry, store }
    }

    async fn start(&self, wishes: &Wishes) -> FirstRun {
        let seams = Seams::real();
        complete(self.dir.path(), wishes, &*self.registry, &*self.store, &seams).await.unwrap()
    }

    async fn user(&self, name: &str) -> Option<User> {
        let (tenant, user) = name.split_once('/').unwrap();
        self.store.user(&TenantName::new(tenant).unwrap(), user).await.unwrap()
    }

    /// Whether the router would let this user in with this password.
    async fn enters(&self, name: &str, password: &str) -> bool {
        let (tenant, user) = name.split_once('/').unwrap();
        let store: Arc<dyn Store> = self.store.clone();
        let verifier = Verifier::new(store, self.registry.definitions(), &Seams::real()).unwrap();
        let tenant = TenantName::new(tenant).unwrap();
        matches!(
            verifier.verify(&tenant, user, password.as_bytes(), "127.0.0.1").await,
            Verdict::Allowed { .. }
        )
    }

    fn has_tenant(&self) -> bool {
        self.registry.definitions().borrow().tenants.contains_key(&TenantName::new(DEMO).unwrap())
    }

    fn mark(&self) -> std::path::PathBuf {
        self.dir.path().join("first-run-done")
    }
}

fn wishes() -> Wishes {
    Wishes { demo: true, demo_password: None, admin_password: None }
}

#[tokio::test]
async fn the_first_start_makes_the_tenant_and_its_users() {
    let place = Place::new();
    let run = place.start(&wishes()).await;
    assert!(run.now && place.has_tenant() && place.mark().exists());
    for (name, role) in [(DEVICE, Role::Device), (APP, Role::Service), (ADMIN, Role::Admin)] {
        let user = place.user(name).await.unwrap();
        assert_eq!(user.role, role);
        let password = run.credentials.password(name).unwrap().expose();
        assert!(place.enters(name, password).await && !place.enters(name, "other").await);
        assert!(!user.verifier.contains(password));
    }
}

#[tokio::test]
async fn later_starts_create_nothing_again() {
    let place = Place::new();
    let first = place.start(&wishes()).await;
    place.registry.delete_tenant(&TenantName::new(DEMO).unwrap()).await.unwrap();
    let again = place.start(&Wishes { demo_password: Some(Secret::new("other")), ..wishes() }).await;
    assert!(!again.now && !place.has_tenant());
    let password = |run: &FirstRun| run.credentials.password(DEVICE).unwrap().expose().to_owned();
    assert_eq!(password(&again), password(&first));
}

#[tokio::test]
async fn a_start_that_was_interrupted_after_the_passwords_is_completed_with_them() {
    let place = Place::new();
    let mut credentials = Credentials::default();
    credentials.provide(ADMIN, Some(&Secret::new("seen-by-someone")), &Seams::real());
    credentials.write(place.dir.path()).unwrap();
    let run = place.start(&wishes()).await;
    assert_eq!(run.credentials.password(ADMIN).unwrap().expose(), "seen-by-someone");
    assert!(place.enters(ADMIN, "seen-by-someone").await && place.has_tenant());
}

#[tokio::test]
async fn a_start_that_was_interrupted_before_the_mark_heals_what_does_not_match() {
    let place = Place::new();
    let run = place.start(&wishes()).await;
    fs::remove_file(place.mark()).unwrap();
    let name = TenantName::new(DEMO).unwrap();
    let broken = User { name: "app".into(), role: Role::Device, verifier: String::new() };
    place.store.put_user(&name, &broken, false).await.unwrap();
    let again = place.start(&wishes()).await;
    let password = run.credentials.password(APP).unwrap().expose();
    assert_eq!(again.credentials.password(APP).unwrap().expose(), password);
    let app = place.user(APP).await.unwrap();
    assert!(app.role == Role::Service && place.enters(APP, password).await);
}

#[tokio::test]
async fn no_demo_makes_only_the_administrator() {
    let place = Place::new();
    let run = place.start(&Wishes { demo: false, ..wishes() }).await;
    assert!(!place.has_tenant() && run.credentials.password(DEVICE).is_none());
    assert!(place.user(ADMIN).await.is_some() && place.user(DEVICE).await.is_none());
}

#[tokio::test]
async fn given_passwords_are_taken() {
    let place = Place::new();
    let given = Wishes {
        demo: true,
        demo_password: Some(Secret::new("for-scripts")),
        admin_password: Some(Secret::new("for-admins")),
    };
    place.start(&given).await;
    for (name, password) in [(DEVICE, "for-scripts"), (APP, "for-scripts"), (ADMIN, "for-admins")] {
        assert!(place.enters(name, password).await, "{name}");
    }
}
