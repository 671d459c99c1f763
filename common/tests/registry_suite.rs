//! One suite over every registry, so that they can't drift: what `Registry` promises, then what only etcd can suffer.
//! Run it with `--features etcd,embedded`; it needs an `etcd` on the path.
#![cfg(any(feature = "etcd", feature = "embedded"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "registry_suite/contract.rs"]
mod contract;
#[cfg(feature = "etcd")]
#[path = "registry_suite/deaf_proxy.rs"]
mod deaf_proxy;
#[cfg(feature = "embedded")]
#[path = "registry_suite/embedded.rs"]
mod embedded;
#[cfg(feature = "etcd")]
#[path = "registry_suite/etcd_child.rs"]
mod etcd_child;
#[cfg(feature = "etcd")]
#[path = "registry_suite/etcd_faults.rs"]
mod etcd_faults;

/// Runs each promise on each backend: with two handles on one etcd, and with the one handle that embedded has.
macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        #[cfg(feature = "embedded")]
        mod on_embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let registry = crate::embedded::in_memory();
                crate::contract::$name(registry.clone(), registry).await;
            })*
        }
        #[cfg(feature = "etcd")]
        mod on_etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let etcd = crate::etcd_child::shared().await;
                let prefix = format!("/{}/", stringify!($name));
                let (a, b) = (etcd.open(&prefix).await, etcd.open(&prefix).await);
                crate::contract::$name(a.clone(), b.clone()).await;
            })*
        }
    };
}

promises!(
    members_are_seen_by_all_and_once,
    epochs_grow_and_the_replaced_owner_is_named,
    release_removes_its_own_ownership_only,
    a_thousand_clients_claim_at_once,
    claims_of_one_client_at_once_form_one_chain,
    adoption_takes_what_is_free_or_superseded_and_nothing_else,
    an_adopted_ownership_is_released_by_its_provisional_epoch,
    tenants_are_created_changed_and_removed,
    groups_are_defined_activated_and_removed,
    clients_of_two_tenants_never_meet,
    signing_keys_are_replaced_by_one_at_a_time,
);
