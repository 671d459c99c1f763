//! What etcd suffers, and what must not come of it.

use std::{collections::BTreeMap, time::Duration};

use etcd_client::{Client, GetOptions};
use penstock_common::{
    clock::Seams,
    epoch::Epoch,
    name::ClientKey,
    position::Term,
    registry::{
        ClaimError, Limits, OwnershipEvent, RegistryError, Tenant,
        etcd::{EtcdConfig, EtcdRegistry, OpenError},
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use crate::{
    contract::{Handle, LONG, client, event, gateway, owner, router, tenant, until, until_owner},
    deaf_proxy::DeafProxy,
    etcd_child::{self, Etcd, TTL},
};

fn settings() -> Tenant {
    Tenant {
        partitions: 4,
        limits: Limits::default(),
        isolation: Default::default(),
        users_version: 0,
        created_at: 0,
    }
}

/// New epochs by client, from as many events; every one must be a renewal.
async fn renewals(
    events: &mut mpsc::Receiver<OwnershipEvent>,
    count: usize,
) -> BTreeMap<String, (Epoch, Epoch)> {
    let mut renewed = BTreeMap::new();
    for _ in 0..count {
        let OwnershipEvent::Renewed { client, old, new, .. } = event(events).await else {
            panic!("superseded by nobody")
        };
        assert!(new > old);
        let name = String::from_utf8(client.client.to_vec()).unwrap();
        assert!(renewed.insert(name.clone(), (old, new)).is_none(), "{name} renewed twice");
    }
    renewed
}

/// Revokes every lease that owners below a prefix hang on, as an etcd that slept past their TTL would.
async fn revoke_owner_leases(etcd: &Etcd, prefix: &str, of: impl Fn(&str) -> bool) {
    let mut raw = Client::connect([etcd.url()], None).await.unwrap();
    let owners = raw.get(format!("{prefix}owners/"), Some(GetOptions::new().with_prefix())).await.unwrap();
    let mut leases: Vec<i64> =
        owners.kvs().iter().filter(|kv| of(kv.key_str().unwrap())).map(|kv| kv.lease()).collect();
    leases.sort_unstable();
    leases.dedup();
    assert!(!leases.is_empty());
    for lease in leases {
        raw.lease_client().revoke(lease).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_not_there_is_one_clear_line_at_once() {
    let before = Instant::now();
    let config = EtcdConfig::new(vec!["http://127.0.0.1:9".to_owned()]);
    let Err(error) = EtcdRegistry::open(config, Seams::real()).await else { panic!("opened") };
    assert!(before.elapsed() < Duration::from_secs(4), "{:?}", before.elapsed());
    let text = error.to_string();
    assert!(text.contains("http://127.0.0.1:9") && text.contains("--etcd") && !text.contains('\n'), "{text}");
    let short =
        EtcdConfig { lease_ttl: Duration::from_secs(1), ..EtcdConfig::new(vec!["http://x:1".into()]) };
    assert!(matches!(EtcdRegistry::open(short, Seams::real()).await, Err(OpenError::Config(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_endpoint_beside_a_living_one_costs_nothing_but_time() {
    let etcd = etcd_child::shared().await;
    let mut config = etcd.config("/dead-endpoint/");
    config.endpoints.insert(0, "http://127.0.0.1:9".to_owned());
    let registry: Handle = EtcdRegistry::open(config, Seams::real()).await.unwrap();
    registry.join(gateway(1)).await.unwrap();
    until(registry.members(), "the gateway", |members| members.gateways.contains_key(&1)).await;
    let claim = registry.claim(client("c"), owner(1, 0)).await.unwrap();
    assert_eq!(registry.owner(&client("c")).await.unwrap(), Some((owner(1, 0), claim.epoch)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_removes_the_member_and_its_ownerships() {
    let etcd = etcd_child::shared().await;
    let (a, b) = (etcd.open("/leaving/").await, etcd.open("/leaving/").await);
    a.join(gateway(1)).await.unwrap();
    b.join(router(2)).await.unwrap();
    a.claim(client("c"), owner(1, 0)).await.unwrap();
    until(b.members(), "the gateway", |members| members.gateways.contains_key(&1)).await;
    a.leave().await;
    assert_eq!(b.owner(&client("c")).await.unwrap(), None);
    until(b.members(), "only the router", |members| members.gateways.is_empty()).await;
    assert!(b.members().borrow().routers.contains_key(&2));
    assert!(matches!(a.claim(client("c"), owner(1, 0)).await, Err(ClaimError::Unavailable(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_never_steals_what_another_claimed_meanwhile() {
    let etcd = etcd_child::shared().await;
    let (a, b) = (etcd.open("/steal/").await, etcd.open("/steal/").await);
    let mut events = a.ownership_events().unwrap();
    let mut epochs = BTreeMap::new();
    for n in 0..250 {
        let name = format!("c{n}");
        epochs.insert(name.clone(), a.claim(client(&name), owner(1, 0)).await.unwrap().epoch);
    }
    // A gateway that is cut off hears nothing of this.
    let taken = b.claim(client("c7"), owner(2, 0)).await.unwrap();
    revoke_owner_leases(&etcd, "/steal/", |key| !key.ends_with("/c7")).await;

    let (mut renewed, mut superseded) = (0, 0);
    while renewed < 249 || superseded < 1 {
        match event(&mut events).await {
            OwnershipEvent::Renewed { client, old, new, .. } => {
                let name = String::from_utf8(client.client.to_vec()).unwrap();
                assert_eq!(epochs.insert(name.clone(), new), Some(old), "{name}");
                renewed += 1;
            }
            OwnershipEvent::Superseded { client: who, old, .. } => {
                assert_eq!((who, Some(old)), (client("c7"), epochs.remove("c7")));
                superseded += 1;
            }
        }
    }
    assert_eq!(b.owner(&client("c7")).await.unwrap(), Some((owner(2, 0), taken.epoch)));
    for name in ["c0", "c100", "c249"] {
        let found = b.owner(&client(name)).await.unwrap();
        assert_eq!(found, Some((owner(1, 0), epochs[name])));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_killed_and_started_again_loses_nothing() {
    let mut etcd = Etcd::start().await;
    let (a, b) = (etcd.open("/kill/").await, etcd.open("/kill/").await);
    a.join(gateway(1)).await.unwrap();
    a.create_tenant(&tenant("acme"), &settings()).await.unwrap();
    let first = a.claim(client("c"), owner(1, 0)).await.unwrap();
    etcd.kill();
    until(a.healthy(), "unhealthy", |healthy| !healthy).await;
    let before = Instant::now();
    assert!(matches!(a.claim(client("d"), owner(1, 0)).await, Err(ClaimError::Unavailable(_))));
    assert!(before.elapsed() < Duration::from_secs(3));
    assert!(matches!(a.owner(&client("c")).await, Err(RegistryError::Unavailable(_))));
    assert!(b.members().borrow().gateways.contains_key(&1), "snapshots stay");
    assert!(b.definitions().borrow().tenants.contains_key(&tenant("acme")));

    etcd.start_again().await;
    until(a.healthy(), "healthy", |healthy| *healthy).await;
    let mut second = b.claim(client("c"), owner(2, 0)).await;
    while second.is_err() {
        second = b.claim(client("c"), owner(2, 0)).await;
    }
    assert_eq!(second.unwrap().previous, Some((owner(1, 0), first.epoch)));
    a.create_tenant(&tenant("later"), &settings()).await.unwrap();
    until(b.definitions(), "the later tenant", |definitions| {
        definitions.tenants.contains_key(&tenant("later"))
    })
    .await;
    assert!(b.members().borrow().gateways.contains_key(&1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_that_sleeps_past_every_lease_gets_all_registrations_back() {
    let etcd = Etcd::start().await;
    let (a, b) = (etcd.open("/sleep/").await, etcd.open("/sleep/").await);
    let mut events = a.ownership_events().unwrap();
    a.join(gateway(1)).await.unwrap();
    b.join(router(2)).await.unwrap();
    let names: Vec<String> = (0..300).map(|n| format!("c{n}")).collect();
    for name in &names {
        a.claim(client(name), owner(1, 0)).await.unwrap();
    }
    until(a.members(), "both", |members| members.gateways.len() + members.routers.len() == 2).await;

    etcd.stop();
    let stopped = Instant::now();
    let refused = a.claim(client("provisional"), owner(1, 5)).await;
    assert!(matches!(refused, Err(ClaimError::Unavailable(_))), "{refused:?}");
    assert!(stopped.elapsed() < Duration::from_millis(2_600), "{:?}", stopped.elapsed());
    let provisional = Epoch::provisional(Term(9), 1);
    a.adopt(client("provisional"), owner(1, 5), provisional, None);
    assert!(a.claim(client("abandoned"), owner(1, 6)).await.is_err());
    until(a.healthy(), "unhealthy", |healthy| !healthy).await;
    // Time itself is the fault here.
    sleep((TTL + Duration::from_secs(3)).saturating_sub(stopped.elapsed())).await;
    assert_eq!(a.members().borrow().gateways.len(), 1, "the last snapshot stays");
    etcd.go_on();

    let renewed = renewals(&mut events, names.len() + 1).await;
    assert_eq!(renewed["provisional"].0, provisional);
    for name in ["c0", "c299", "provisional"] {
        let (_, epoch) = b.owner(&client(name)).await.unwrap().unwrap();
        assert_eq!(epoch, renewed[name].1, "{name}");
    }
    until_owner(&b, &client("abandoned"), |owner| owner.is_none()).await;
    until(a.healthy(), "healthy", |healthy| *healthy).await;
    let mut raw = Client::connect([etcd.url()], None).await.unwrap();
    let end = Instant::now() + LONG;
    while raw.get("/sleep/members/", Some(GetOptions::new().with_prefix())).await.unwrap().kvs().len() < 2 {
        assert!(Instant::now() < end, "members did not come back");
        sleep(Duration::from_millis(50)).await;
    }
    for registry in [&a, &b] {
        until(registry.members(), "both back", |members| {
            members.gateways.contains_key(&1) && members.routers.contains_key(&2)
        })
        .await;
    }
    let again = b.claim(client("c0"), owner(2, 0)).await.unwrap();
    assert_eq!(again.previous, Some((owner(1, 0), renewed["c0"].1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_that_was_compacted_while_the_watch_was_away_is_not_missed() {
    let mut etcd = Etcd::start().await;
    let (a, b) = (etcd.open("/compact/").await, etcd.open("/compact/").await);
    a.create_tenant(&tenant("acme"), &settings()).await.unwrap();
    etcd.kill();
    until(b.healthy(), "unhealthy", |healthy| !healthy).await;
    etcd.start_again().await;
    let mut raw = Client::connect([etcd.url()], None).await.unwrap();
    raw.delete("/compact/tenants/acme", None).await.unwrap();
    raw.put("/compact/tenants/later", serde_json::to_vec(&settings()).unwrap(), None).await.unwrap();
    let revision = raw.get("x", None).await.unwrap().header().unwrap().revision();
    raw.compact(revision, None).await.unwrap();
    until(b.definitions(), "the later tenant alone", |definitions| {
        definitions.tenants.keys().eq([&tenant("later")])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_carried_out_twice_still_names_whom_it_replaced() {
    let etcd = etcd_child::shared().await;
    let proxy = DeafProxy::start(&etcd.url()).await;
    let b = etcd.open("/twice/").await;
    let mut config = etcd.config("/twice/");
    config.endpoints.insert(0, proxy.url.clone());
    let a: Handle = EtcdRegistry::open(config, Seams::real()).await.unwrap();
    // The lease is there already: only the claim itself loses its answer.
    a.claim(client("warm"), owner(1, 0)).await.unwrap();
    let old = b.claim(client("c"), owner(2, 0)).await.unwrap();
    proxy.lose_answers(true);
    let claim = a.claim(client("c"), owner(1, 0)).await.unwrap();
    assert_eq!(claim.previous, Some((owner(2, 0), old.epoch)));
    assert!(
        claim.epoch.revision() > old.epoch.revision().map(|revision| revision + 1),
        "carried out once only"
    );
    assert_eq!(b.owner(&client("c")).await.unwrap(), Some((owner(1, 0), claim.epoch)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_carried_out_unheard_is_taken_back_or_found_again() {
    let etcd = etcd_child::shared().await;
    let proxy = DeafProxy::start(&etcd.url()).await;
    let b = etcd.open("/unheard/").await;
    let config = EtcdConfig { endpoints: vec![proxy.url.clone()], ..etcd.config("/unheard/") };
    let a: Handle = EtcdRegistry::open(config, Seams::real()).await.unwrap();
    let mut events = a.ownership_events().unwrap();
    a.claim(client("warm"), owner(1, 0)).await.unwrap();
    proxy.lose_answers(true);
    let provisional = Epoch::provisional(Term(1), 1);
    a.adopt(client("adopted"), owner(1, 2), provisional, None);
    until_owner(&b, &client("adopted"), |owner| owner.is_some()).await;
    assert!(matches!(a.claim(client("abandoned"), owner(1, 1)).await, Err(ClaimError::Unavailable(_))));
    assert!(
        b.owner(&client("abandoned")).await.unwrap().is_some(),
        "it was not carried out: nothing to test"
    );
    proxy.lose_answers(false);
    until_owner(&b, &client("abandoned"), |owner| owner.is_none()).await;
    // Our own, from an attempt whose answer was lost: not another's.
    let OwnershipEvent::Renewed { old, new, .. } = event(&mut events).await else { panic!("superseded") };
    assert_eq!(old, provisional);
    assert_eq!(b.owner(&client("adopted")).await.unwrap(), Some((owner(1, 2), new)));
    let next = b.claim(client("abandoned"), owner(2, 0)).await.unwrap();
    assert_eq!(next.previous, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_allows_few_operations_gets_small_transactions() {
    let etcd = Etcd::start_with(&["--max-txn-ops", "16"]).await;
    let a = etcd.open("/few/").await;
    let mut events = a.ownership_events().unwrap();
    let claims: Vec<_> = (0..300u32)
        .map(|n| {
            let a = a.clone();
            tokio::spawn(async move { a.claim(client(&format!("c{n}")), owner(1, 0)).await })
        })
        .collect();
    for claim in claims {
        claim.await.unwrap().unwrap();
    }
    // Renewals are conditional and nest two levels deep.
    revoke_owner_leases(&etcd, "/few/", |_| true).await;
    renewals(&mut events, 300).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_beyond_the_bound_are_refused_at_once() {
    let etcd = Etcd::start().await;
    let a = etcd.open("/busy/").await;
    etcd.stop();
    let claims: Vec<_> = (0..17_000u32)
        .map(|n| {
            let a = a.clone();
            tokio::spawn(async move { a.claim(client(&format!("c{n}")), owner(1, 0)).await })
        })
        .collect();
    let mut busy = 0;
    for claim in claims {
        match claim.await.unwrap() {
            Err(ClaimError::Busy) => busy += 1,
            Err(ClaimError::Unavailable(_)) => {}
            Ok(_) => panic!("claimed at an etcd that sleeps"),
        }
    }
    assert!((1..=17_000 - 16_384).contains(&busy), "{busy}");
    etcd.go_on();
    // None of them stays: not even those that were on their way.
    let mut raw = Client::connect([etcd.url()], None).await.unwrap();
    let end = Instant::now() + LONG;
    let done: ClientKey = client("done");
    while a.claim(done.clone(), owner(1, 0)).await.is_err() {}
    while raw.get("/busy/owners/", Some(GetOptions::new().with_prefix())).await.unwrap().kvs().len() != 1 {
        assert!(Instant::now() < end, "abandoned claims stay");
        sleep(Duration::from_millis(50)).await;
    }
}
