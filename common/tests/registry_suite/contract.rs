//! What every registry promises. Each function gets two handles on one registry (embedded has one, given twice).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use penstock_common::{
    epoch::Epoch,
    name::{ClientKey, TenantName},
    position::Term,
    registry::*,
    secret::Secret,
};
use tokio::{sync::mpsc, sync::watch, time::timeout};

pub type Handle = Arc<dyn Registry>;

/// Longer than anything here may take on a busy machine.
pub const LONG: Duration = Duration::from_secs(20);

pub fn tenant(name: &str) -> TenantName {
    TenantName::new(name).unwrap()
}

pub fn client(name: &str) -> ClientKey {
    ClientKey { tenant: tenant("acme"), client: Bytes::copy_from_slice(name.as_bytes()) }
}

pub fn owner(gateway: u64, shard: u32) -> Owner {
    Owner { gateway, shard, routers: [gateway + 1, u64::MAX] }
}

pub fn gateway(incarnation: u64) -> Member {
    Member { incarnation, node_id: format!("gw-{incarnation}"), kind: MemberKind::Gateway { shards: 2 } }
}

pub fn router(incarnation: u64) -> Member {
    let kind = MemberKind::Router { link: "10.0.0.1:7000".to_owned(), grpc: "10.0.0.1:7070".to_owned() };
    Member { incarnation, node_id: format!("r-{incarnation}"), kind }
}

/// Waits until a snapshot is as wanted.
pub async fn until<T>(mut snapshot: watch::Receiver<T>, what: &str, wanted: impl FnMut(&T) -> bool) {
    timeout(LONG, snapshot.wait_for(wanted)).await.unwrap_or_else(|_| panic!("never: {what}")).unwrap();
}

/// Waits until a client's owner is as wanted.
pub async fn until_owner(registry: &Handle, of: &ClientKey, wanted: impl Fn(Option<(Owner, Epoch)>) -> bool) {
    let seen = async {
        while !registry.owner(of).await.is_ok_and(&wanted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, seen).await.unwrap_or_else(|_| panic!("the owner of {of:?} never was as wanted"));
}

pub async fn event(events: &mut mpsc::Receiver<OwnershipEvent>) -> OwnershipEvent {
    timeout(LONG, events.recv()).await.expect("no event").expect("events ended")
}

pub async fn members_are_seen_by_all_and_once(a: Handle, b: Handle) {
    a.join(gateway(7)).await.unwrap();
    b.join(router(8)).await.unwrap();
    for registry in [&a, &b] {
        until(registry.members(), "both members", |members| {
            members.gateways.get(&7) == Some(&gateway(7)) && members.routers.get(&8) == Some(&router(8))
        })
        .await;
    }
    assert!(matches!(a.join(gateway(7)).await, Err(RegistryError::Exists(_))));
    b.leave().await;
    until(a.members(), "the router gone", |members| members.routers.is_empty()).await;
}

pub async fn epochs_grow_and_the_replaced_owner_is_named(a: Handle, b: Handle) {
    let c = client("c/../%2F\u{e9}");
    let first = a.claim(c.clone(), owner(1, 0)).await.unwrap();
    assert_eq!(first.previous, None);
    let second = b.claim(c.clone(), owner(2, 3)).await.unwrap();
    assert_eq!(second.previous, Some((owner(1, 0), first.epoch)));
    let third = b.claim(c.clone(), owner(2, 1)).await.unwrap();
    assert_eq!(third.previous, Some((owner(2, 3), second.epoch)));
    assert!(first.epoch < second.epoch && second.epoch < third.epoch);
    assert!(first.epoch.revision().is_some());
    assert_eq!(a.owner(&c).await.unwrap(), Some((owner(2, 1), third.epoch)));
}

pub async fn release_removes_its_own_ownership_only(a: Handle, b: Handle) {
    let c = client("c");
    let first = a.claim(c.clone(), owner(1, 0)).await.unwrap();
    let second = b.claim(c.clone(), owner(2, 0)).await.unwrap();
    a.release(c.clone(), first.epoch);
    // Claims of one handle are carried out in order: after this one, the release was.
    a.claim(client("c"), owner(1, 9))
        .await
        .map(|third| {
            assert_eq!(third.previous, Some((owner(2, 0), second.epoch)));
        })
        .unwrap();
    b.release(c.clone(), second.epoch);
    let fourth = b.claim(c.clone(), owner(2, 5)).await.unwrap();
    assert_eq!(fourth.previous.map(|(owner, _)| owner), Some(owner(1, 9)));
    b.release(c.clone(), fourth.epoch);
    until_owner(&a, &c, |owner| owner.is_none()).await;
}

pub async fn a_thousand_clients_claim_at_once(a: Handle, b: Handle) {
    let claims: Vec<_> = (0..1_000u32)
        .map(|n| {
            let a = a.clone();
            tokio::spawn(async move { a.claim(client(&format!("c{n}")), owner(1, n % 4)).await })
        })
        .collect();
    let mut epochs = Vec::new();
    for claim in claims {
        let claim = claim.await.unwrap().unwrap();
        assert_eq!(claim.previous, None);
        epochs.push(claim.epoch);
    }
    for n in [0u32, 1, 500, 999] {
        let found = b.owner(&client(&format!("c{n}"))).await.unwrap();
        assert_eq!(found, Some((owner(1, n % 4), epochs[n as usize])));
    }
    for (n, epoch) in epochs.into_iter().enumerate() {
        a.release(client(&format!("c{n}")), epoch);
    }
    for n in 0..1_000 {
        until_owner(&b, &client(&format!("c{n}")), |owner| owner.is_none()).await;
    }
}

pub async fn claims_of_one_client_at_once_form_one_chain(a: Handle, b: Handle) {
    let claims: Vec<_> = (0..60u32)
        .map(|n| {
            let registry = if n % 2 == 0 { a.clone() } else { b.clone() };
            let mine = owner(u64::from(n % 2) + 1, n);
            tokio::spawn(async move { (mine, registry.claim(client("c"), mine).await) })
        })
        .collect();
    let (mut made, mut replaced, mut first) = (BTreeSet::new(), BTreeSet::new(), 0);
    for claim in claims {
        let (mine, claim) = claim.await.unwrap();
        let claim = claim.unwrap();
        assert!(made.insert((claim.epoch, mine.shard)), "an epoch twice");
        match claim.previous {
            None => first += 1,
            Some((owner, epoch)) => {
                assert!(epoch < claim.epoch);
                assert!(replaced.insert((epoch, owner.shard)), "one ownership replaced twice");
            }
        }
    }
    assert_eq!(first, 1);
    let last = made.pop_last().unwrap();
    assert_eq!(made, replaced);
    let present = a.owner(&client("c")).await.unwrap().unwrap();
    assert_eq!((present.1, present.0.shard), last);
}

pub async fn adoption_takes_what_is_free_or_superseded_and_nothing_else(a: Handle, b: Handle) {
    let mut events = a.ownership_events().unwrap();
    assert!(a.ownership_events().is_none());
    let provisional = |n| Epoch::provisional(Term(5), n);

    a.adopt(client("free"), owner(1, 1), provisional(1), None);
    let OwnershipEvent::Renewed { shard: 1, client: who, old, new } = event(&mut events).await else {
        panic!("not renewed")
    };
    assert_eq!((who, old), (client("free"), provisional(1)));
    assert_eq!(b.owner(&client("free")).await.unwrap(), Some((owner(1, 1), new)));

    let old = b.claim(client("superseded"), owner(2, 0)).await.unwrap();
    a.adopt(client("superseded"), owner(1, 2), provisional(2), Some(old.epoch));
    let OwnershipEvent::Renewed { new, .. } = event(&mut events).await else { panic!("not renewed") };
    assert!(new > old.epoch);
    assert_eq!(b.owner(&client("superseded")).await.unwrap(), Some((owner(1, 2), new)));

    let older = b.claim(client("taken"), owner(2, 0)).await.unwrap();
    let newer = b.claim(client("taken"), owner(2, 1)).await.unwrap();
    for superseded in [None, Some(older.epoch)] {
        a.adopt(client("taken"), owner(1, 3), provisional(3), superseded);
        let expected = OwnershipEvent::Superseded { shard: 3, client: client("taken"), old: provisional(3) };
        assert_eq!(event(&mut events).await, expected);
    }
    assert_eq!(a.owner(&client("taken")).await.unwrap(), Some((owner(2, 1), newer.epoch)));
}

pub async fn an_adopted_ownership_is_released_by_its_provisional_epoch(a: Handle, b: Handle) {
    let mut events = a.ownership_events().unwrap();
    let provisional = Epoch::provisional(Term(5), 1);
    a.adopt(client("c"), owner(1, 1), provisional, None);
    event(&mut events).await;
    // The connection closes before it has heard of its new epoch.
    a.release(client("c"), provisional);
    until_owner(&b, &client("c"), |owner| owner.is_none()).await;
    // Closed at once: whether the adoption had begun or not, nothing stays.
    for n in 0..50 {
        let provisional = Epoch::provisional(Term(6), n);
        a.adopt(client("d"), owner(1, 1), provisional, None);
        a.release(client("d"), provisional);
    }
    let last = a.claim(client("d"), owner(1, 1)).await.unwrap();
    a.release(client("d"), last.epoch);
    until_owner(&b, &client("d"), |owner| owner.is_none()).await;
}

fn settings() -> Tenant {
    Tenant {
        partitions: 4,
        limits: Limits::default(),
        isolation: Default::default(),
        users_version: 1,
        created_at: 1_700_000_000_000,
    }
}

pub async fn tenants_are_created_changed_and_removed(a: Handle, b: Handle) {
    let name = tenant("acme");
    a.create_tenant(&name, &settings()).await.unwrap();
    let own = a.definitions().borrow().tenants.get(&name).cloned().unwrap();
    assert_eq!(own.tenant, settings(), "the own snapshot shows what was just made");
    assert!(matches!(b.create_tenant(&name, &settings()).await, Err(RegistryError::Exists(_))));

    let limits = Limits { connections: 5, packet_bytes: 6, backlog_bytes: 7, ..Limits::default() };
    assert_eq!(b.set_limits(&name, limits).await.unwrap(), Tenant { limits, ..settings() });
    let raises = (0..8).map(|n| {
        let (registry, name) = (if n % 2 == 0 { a.clone() } else { b.clone() }, name.clone());
        tokio::spawn(async move { registry.raise_users_version(&name).await })
    });
    for raise in raises.collect::<Vec<_>>() {
        raise.await.unwrap().unwrap();
    }
    let changed = Tenant { limits, isolation: Default::default(), users_version: 9, ..settings() };
    for registry in [&a, &b] {
        until(registry.definitions(), "the changed tenant", |definitions| {
            definitions.tenants.get(&name).is_some_and(|definition| definition.tenant == changed)
        })
        .await;
    }

    a.delete_tenant(&name).await.unwrap();
    assert!(matches!(b.delete_tenant(&name).await, Err(RegistryError::Missing(_))));
    assert!(matches!(b.set_limits(&name, limits).await, Err(RegistryError::Missing(_))));
    assert!(matches!(b.raise_users_version(&name).await, Err(RegistryError::Missing(_))));
    until(b.definitions(), "no tenant", |definitions| definitions.tenants.is_empty()).await;
}

pub async fn groups_are_defined_activated_and_removed(a: Handle, b: Handle) {
    let name = tenant("acme");
    let group = Group {
        name: "orders / \u{e4}%".to_owned(),
        filters: vec!["a/#".to_owned()],
        start: GroupStart::Time(17),
        options: GroupOptions::default(),
        active: false,
        created_at: 3,
    };
    assert!(matches!(a.create_group(&name, &group).await, Err(RegistryError::Missing(_))));
    a.create_tenant(&name, &settings()).await.unwrap();
    a.create_group(&name, &group).await.unwrap();
    assert!(matches!(b.create_group(&name, &group).await, Err(RegistryError::Exists(_))));
    assert!(matches!(b.activate_group(&name, "other").await, Err(RegistryError::Missing(_))));
    let sees = |wanted: Option<Group>| {
        let key = group.name.clone();
        let tenant = name.clone();
        move |definitions: &Arc<Definitions>| {
            let found = definitions.tenants.get(&tenant).and_then(|definition| definition.groups.get(&key));
            found.map(Arc::as_ref) == wanted.as_ref()
        }
    };
    until(b.definitions(), "the group", sees(Some(group.clone()))).await;
    b.activate_group(&name, &group.name).await.unwrap();
    until(a.definitions(), "active", sees(Some(Group { active: true, ..group.clone() }))).await;
    let change = GroupChange { ack_timeout_ms: Some(7), ..GroupChange::default() };
    assert!(matches!(b.set_group(&name, "other", change).await, Err(RegistryError::Missing(_))));
    let options = GroupOptions { ack_timeout_ms: 7, ..GroupOptions::default() };
    let changed = Group { active: true, options, ..group.clone() };
    assert_eq!(b.set_group(&name, &group.name, change).await.unwrap(), changed);
    until(a.definitions(), "the change", sees(Some(changed))).await;
    a.delete_group(&name, &group.name).await.unwrap();
    assert!(matches!(a.delete_group(&name, &group.name).await, Err(RegistryError::Missing(_))));
    until(b.definitions(), "no group", sees(None)).await;

    a.create_group(&name, &group).await.unwrap();
    a.delete_tenant(&name).await.unwrap();
    a.create_tenant(&name, &settings()).await.unwrap();
    let again = a.definitions().borrow().tenants.get(&name).cloned().unwrap();
    assert!(again.groups.is_empty(), "groups go with their tenant");
}

pub async fn clients_of_two_tenants_never_meet(a: Handle, b: Handle) {
    let in_tenant = |name: &str| ClientKey { tenant: tenant(name), client: Bytes::from_static(b"same") };
    let one = a.claim(in_tenant("one"), owner(1, 0)).await.unwrap();
    let two = b.claim(in_tenant("two"), owner(2, 0)).await.unwrap();
    assert_eq!((one.previous, two.previous), (None, None));
    assert_eq!(b.owner(&in_tenant("one")).await.unwrap(), Some((owner(1, 0), one.epoch)));
}

pub async fn signing_keys_are_replaced_by_one_at_a_time(a: Handle, b: Handle) {
    let keys = |ids: &[&str]| {
        let key = |id: &&str| SigningKey { id: (*id).to_owned(), secret: Secret::new("s"), created_at: 1 };
        SigningKeys { keys: ids.iter().map(key).collect() }
    };
    let none = SigningKeys::default();
    until(b.signing_keys(), "read", |shown| shown.as_deref() == Some(&none)).await;
    let (first, second) = (keys(&["a"]), keys(&["b"]));
    let made = tokio::join!(a.replace_signing_keys(&none, &first), b.replace_signing_keys(&none, &second));
    let won = match &made {
        (Ok(()), Err(RegistryError::Exists(_))) => first,
        (Err(RegistryError::Exists(_)), Ok(())) => second,
        both => panic!("exactly one makes the first: {both:?}"),
    };
    let next = SigningKeys { keys: [won.keys.clone(), keys(&["c"]).keys].concat() };
    b.replace_signing_keys(&won, &next).await.unwrap();
    assert!(matches!(a.replace_signing_keys(&won, &none).await, Err(RegistryError::Exists(_))));
    for registry in [&a, &b] {
        until(registry.signing_keys(), "the last list", |shown| shown.as_deref() == Some(&next)).await;
    }
}
