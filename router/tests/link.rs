//! A router, or two, on the embedded store and registry; the test plays the shards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/shard.rs"]
mod shard;
#[path = "link/wills.rs"]
mod wills;

use std::{sync::Arc, time::Duration};

use penstock_common::{
    clock::Seams,
    epoch::Epoch,
    name::{PartitionKey, TenantName},
    position::EntryId,
    registry::{Limits, Registry, Tenant, embedded::EmbeddedRegistry},
    store::{Durability, Store, embedded::EmbeddedStore},
};
use penstock_proto::link::{Kick, Kicked, SettleResult, control_down, control_up, data_down};
use penstock_router::{
    config::RouterConfig,
    start::{Router, RunningRouter},
};
use shard::{Numbered, Shard, topics};
use tempfile::TempDir;

struct World {
    store: Arc<EmbeddedStore>,
    registry: Arc<EmbeddedRegistry>,
    _dir: TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = EmbeddedStore::open(&dir.path().join("store"), Durability::Memory).unwrap();
        let registry = EmbeddedRegistry::open(None, Seams::real()).unwrap();
        let tenant = Tenant {
            partitions: 1,
            limits: Limits::default(),
            isolation: Default::default(),
            users_version: 1,
            created_at: 0,
        };
        registry.create_tenant(&TenantName::new("acme").unwrap(), &tenant).await.unwrap();
        Self { store, registry, _dir: dir }
    }

    async fn router(&self) -> RunningRouter {
        let any = "127.0.0.1:0".parse().unwrap();
        let config = RouterConfig {
            link_listen: any,
            grpc_listen: any,
            http_listen: any,
            grace_ms: 300,
            ..RouterConfig::default()
        };
        let mut metrics = prometheus_client::registry::Registry::default();
        Router::start(config, self.registry.clone(), self.store.clone(), Seams::real(), &mut metrics)
            .await
            .unwrap()
    }

    /// Topics of everything stored.
    async fn stored(&self) -> Vec<String> {
        let entries = self.store.read(&partition(), EntryId::ZERO, 10_000, 1 << 30).await.unwrap();
        entries.iter().flat_map(|entry| topics(&entry.entry.records)).collect()
    }

    async fn fan_cursor(&self) -> Option<EntryId> {
        self.store.cursors(&partition()).await.unwrap().fan
    }
}

fn partition() -> PartitionKey {
    PartitionKey { tenant: TenantName::new("acme").unwrap(), partition: 0 }
}

async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let look = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), look).await.expect(what);
}

#[tokio::test]
async fn a_batch_is_stored_and_settled() {
    let world = World::new().await;
    let router = world.router().await;
    let mut shard = Shard::link(router.link_address(), 1, 1).await;
    shard.open(1, &[("c", 1)]).await;
    shard.append(1, "c", &Numbered::new(1, &["a", "b"]), false).await;
    shard.append(1, "c", &Numbered::new(3, &["c"]), false).await;
    let settle = shard.settled().await;
    assert_eq!((settle.lane, settle.first, settle.result()), (1, 1, SettleResult::Stored));
    assert!(settle.credit > 0);
    while world.stored().await.len() < 3 {
        shard.settled().await;
    }
    assert_eq!(world.stored().await, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_batch_that_is_sent_again_on_another_link_is_stored_once() {
    let world = World::new().await;
    let router = world.router().await;
    let mut shard = Shard::link(router.link_address(), 1, 1).await;
    shard.open(1, &[("c", 1)]).await;
    shard.append(1, "c", &Numbered::new(1, &["a", "b"]), false).await;
    shard.settled().await;
    drop(shard);
    let mut shard = Shard::link(router.link_address(), 1, 2).await;
    shard.open(1, &[("c", 1)]).await;
    shard.append(1, "c", &Numbered::new(1, &["a", "b", "c"]), true).await;
    let settle = shard.settled().await;
    assert_eq!((settle.first, settle.count), (1, 3));
    assert_eq!(world.stored().await, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_partition_that_moves_keeps_order_and_stores_once() {
    let world = World::new().await;
    let (first, second) = (world.router().await, world.router().await);
    let mut a = Shard::link(first.link_address(), 1, 1).await;
    a.open(1, &[("c", 1)]).await;
    a.append(1, "c", &Numbered::new(1, &["a"]), false).await;
    a.settled().await;
    // Another router takes the partition: the first one's next append is refused, and it says so.
    let mut b = Shard::link(second.link_address(), 1, 2).await;
    b.open(7, &[("c", 1)]).await;
    a.append(1, "c", &Numbered::new(2, &["b"]), false).await;
    let data_down::Kind::LaneLost(lost) = a.sent().await else { panic!("no LaneLost") };
    assert_eq!(lost.lane, 1);
    // "a" was settled on a link that could have broken before it was read: sent again, with what was refused.
    b.append(7, "c", &Numbered::new(1, &["a", "b"]), true).await;
    let settle = b.settled().await;
    assert_eq!((settle.first, settle.count), (1, 2));
    assert_eq!(world.stored().await, ["a", "b"]);
}

#[tokio::test]
async fn subscribers_get_what_is_stored_after_their_interest_was_confirmed() {
    let world = World::new().await;
    let router = world.router().await;
    let mut publisher = Shard::link(router.link_address(), 1, 1).await;
    publisher.interest(1, &[]).await;
    let mut subscriber = Shard::link(router.link_address(), 2, 1).await;
    subscriber.interest(1, &[]).await;
    publisher.open(1, &[("c", 1)]).await;
    publisher.append(1, "c", &Numbered::new(1, &["early/1"]), false).await;
    publisher.settled().await;
    subscriber.interest(2, &["up/#", "+/1"]).await;
    publisher.append(1, "c", &Numbered::new(2, &["up/1", "down/2", "up/3"]), false).await;
    let deliver = subscriber.delivered().await;
    assert_eq!(
        (topics(&deliver.records), deliver.repeat),
        (vec!["up/1".to_owned(), "up/3".to_owned()], false)
    );
    let before = world.fan_cursor().await.unwrap();
    assert!(before < EntryId::new(deliver.term, deliver.sequence), "the cursor waits for the shard");
    subscriber.take(&deliver).await;
    until("the cursor moves", async || {
        world.fan_cursor().await == Some(EntryId::new(deliver.term, deliver.sequence))
    })
    .await;
}

#[tokio::test]
async fn a_router_that_dies_between_puback_and_delivery_loses_nothing() {
    let world = World::new().await;
    let (first, second) = (world.router().await, world.router().await);
    let mut subscriber = Shard::link(first.link_address(), 2, 1).await;
    subscriber.interest(1, &["#"]).await;
    let mut elsewhere = Shard::link(second.link_address(), 2, 2).await;
    elsewhere.interest(1, &["#"]).await;
    let mut publisher = Shard::link(first.link_address(), 1, 1).await;
    publisher.open(1, &[("c", 1)]).await;
    publisher.append(1, "c", &Numbered::new(1, &["a", "b"]), false).await;
    publisher.settled().await;
    // The Deliver is lost with the router: nobody has taken it.
    first.stop_now().await;
    let mut publisher = Shard::link(second.link_address(), 1, 2).await;
    publisher.open(1, &[("c", 1)]).await;
    let deliver = elsewhere.delivered().await;
    assert_eq!((topics(&deliver.records), deliver.repeat), (vec!["a".to_owned(), "b".to_owned()], true));
}

#[tokio::test]
async fn a_shard_that_was_cut_off_gets_what_it_missed() {
    let world = World::new().await;
    let router = world.router().await;
    let mut subscriber = Shard::link(router.link_address(), 2, 1).await;
    subscriber.interest(1, &["#"]).await;
    let mut publisher = Shard::link(router.link_address(), 1, 1).await;
    publisher.interest(1, &[]).await;
    publisher.open(1, &[("c", 1)]).await;
    publisher.append(1, "c", &Numbered::new(1, &["a"]), false).await;
    // The link breaks before the Deliver is taken; its gateway is alive (it is linked again before it is missed).
    subscriber.delivered().await;
    let mut subscriber = {
        let again = Shard::link(router.link_address(), 2, 2).await;
        drop(subscriber);
        again
    };
    publisher.append(1, "c", &Numbered::new(2, &["b"]), false).await;
    for _ in 0..2 {
        publisher.settled().await;
    }
    subscriber.interest(1, &["#"]).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let deliver = subscriber.delivered().await;
        assert!(deliver.repeat);
        seen.extend(topics(&deliver.records));
    }
    assert_eq!(seen, ["a", "b"]);
}

#[tokio::test]
async fn a_kick_reaches_the_owner_and_its_answer_comes_back() {
    let world = World::new().await;
    let router = world.router().await;
    let mut new = Shard::link(router.link_address(), 1, 1).await;
    let mut old = Shard::link(router.link_address(), 2, 1).await;
    let kick = Kick { id: 5, tenant: "acme".into(), client: "c".into(), below: 9, gateway: 2, shard: 0 };
    new.tell(control_up::Kind::Kick(kick.clone())).await;
    let control_down::Kind::Kick(got) = old.told().await else { panic!("no kick") };
    assert_eq!((got.client, got.below), ("c".into(), 9));
    old.tell(control_up::Kind::Kicked(Kicked { id: got.id, gone: false })).await;
    let control_down::Kind::Kicked(kicked) = new.told().await else { panic!("no answer") };
    assert_eq!((kicked.id, kicked.gone), (5, false));
    new.tell(control_up::Kind::Kick(Kick { id: 6, gateway: 77, ..kick })).await;
    let control_down::Kind::Kicked(kicked) = new.told().await else { panic!("no answer") };
    assert_eq!((kicked.id, kicked.gone), (6, true));
}

#[tokio::test]
async fn what_an_old_owner_still_sends_is_refused() {
    let world = World::new().await;
    let router = world.router().await;
    let mut old = Shard::link(router.link_address(), 1, 1).await;
    let mut new = Shard::link(router.link_address(), 2, 1).await;
    let (epoch_old, epoch_new) = (Epoch::real(10).0, Epoch::real(11).0);
    old.open(1, &[("c", epoch_old), ("d", epoch_old)]).await;
    new.open(1, &[("c", epoch_new)]).await;
    let control_down::Kind::Kick(kick) = old.told().await else { panic!("the old owner is kicked") };
    assert_eq!((kick.client, kick.below), ("c".into(), epoch_old + 1));
    new.append(1, "c", &Numbered { epoch: epoch_new, ..Numbered::new(1, &["new"]) }, false).await;
    new.settled().await;
    old.append(1, "c", &Numbered { epoch: epoch_old, ..Numbered::new(1, &["stale"]) }, false).await;
    assert_eq!(old.settled().await.result(), SettleResult::Stale);
    old.append(1, "d", &Numbered { epoch: epoch_old, ..Numbered::new(2, &["other client"]) }, false).await;
    assert_eq!(old.settled().await.result(), SettleResult::Stored);
    assert_eq!(world.stored().await, ["new", "other client"]);
}
