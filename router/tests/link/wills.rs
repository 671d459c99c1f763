//! Each will once per epoch, whoever notices the end of its connection, and however often.

use penstock_common::{
    epoch::Epoch,
    position::EntryId,
    registry::{Member, MemberKind, Registry},
    store::{Store, WillStore},
};
use penstock_proto::{
    link::WillEnd,
    record::{Record, RecordBatch},
};
use prost::Message;

use crate::{
    World, partition,
    shard::{Numbered, Shard, topics},
    until,
};

impl World {
    async fn records(&self) -> Vec<Record> {
        let entries = self.store.read(&partition(), EntryId::ZERO, 10_000, 1 << 30).await.unwrap();
        entries.into_iter().flat_map(|it| RecordBatch::decode(it.entry.records).unwrap().records).collect()
    }

    async fn held(&self) -> usize {
        self.store.wills(&partition()).await.unwrap().len()
    }

    async fn register(&self, incarnation: u64) {
        let kind = MemberKind::Gateway { shards: 1 };
        self.registry.join(Member { incarnation, node_id: "gateway".into(), kind }).await.unwrap();
    }

    /// Nobody is registered any more.
    async fn forget_everybody(&self) {
        self.registry.leave().await;
    }
}

fn epoch(number: u64) -> u64 {
    Epoch::real(number).0
}

#[tokio::test]
async fn a_will_follows_what_its_client_published_and_fires_once() {
    let world = World::new().await;
    let router = world.router().await;
    let mut shard = Shard::link(router.link_address(), 1, 1).await;
    shard.interest(1, &["#"]).await;
    shard.open(1, &[]).await;
    assert!(shard.attach(1, "c", epoch(7), "gone").await.refused.is_empty());
    assert_eq!(world.held().await, 1, "confirmed when it is kept");
    shard.append(1, "c", &Numbered { epoch: epoch(7), ..Numbered::new(1, &["a"]) }, false).await;
    shard.settled().await;
    shard.end_will(1, "c", epoch(7), WillEnd::Fire).await;
    for end in [WillEnd::Fire, WillEnd::TakenOver, WillEnd::Drop] {
        shard.end_will(1, "c", epoch(7), end).await;
    }
    let records = world.records().await;
    assert_eq!(records.len(), 2);
    assert!(!records[0].last_will && records[1].last_will);
    assert_eq!((&records[1].topic[..], &records[1].payload[..]), (&b"gone"[..], &b"gone"[..]));
    assert!(records[1].received_at > 1_600_000_000_000, "when it was published");
    let mut delivered = Vec::new();
    while delivered.len() < 2 {
        delivered.extend(topics(&shard.delivered().await.records));
    }
    assert_eq!(delivered, ["a", "gone"], "subscribers get it as well");
    // A clean end.
    shard.attach(1, "c", epoch(9), "never").await;
    shard.end_will(1, "c", epoch(9), WillEnd::Drop).await;
    assert_eq!(world.held().await, 0);
    drop(shard);
    let mut next = Shard::link(router.link_address(), 2, 1).await;
    next.open(1, &[("c", epoch(11))]).await;
    next.append(1, "c", &Numbered { epoch: epoch(11), ..Numbered::new(1, &["b"]) }, false).await;
    next.settled().await;
    assert_eq!(world.stored().await, ["a", "gone", "b"]);
}

#[tokio::test]
async fn a_takeover_publishes_the_older_will_before_the_newer_connection_is_confirmed() {
    let world = World::new().await;
    let router = world.router().await;
    let mut old = Shard::link(router.link_address(), 1, 1).await;
    let mut new = Shard::link(router.link_address(), 2, 1).await;
    old.open(1, &[]).await;
    new.open(1, &[]).await;
    old.attach(1, "c", epoch(7), "seven").await;
    new.attach(1, "c", epoch(9), "nine").await;
    assert_eq!(world.stored().await, ["seven"]);
    // What the older one still says, and its gateway's death.
    old.end_will(1, "c", epoch(7), WillEnd::TakenOver).await;
    drop(old);
    let mut third = Shard::link(router.link_address(), 3, 1).await;
    third.open(1, &[]).await;
    third.attach(1, "c", epoch(11), "").await;
    assert_eq!(world.stored().await, ["seven", "nine"], "also without a will of its own");
    assert_eq!(world.held().await, 0);
    // It opens the lane anew, as the same connection.
    third.attach(1, "d", epoch(12), "d").await;
    let mut again = Shard::link(router.link_address(), 3, 2).await;
    drop(third);
    again.ask_open(2, &[]).await;
    again.attach(2, "d", epoch(12), "d").await;
    assert_eq!(world.held().await, 1);
    assert_eq!(world.stored().await, ["seven", "nine"]);
}

#[tokio::test]
async fn a_disconnect_that_is_told_after_the_clients_next_connect_forgets_the_will() {
    let world = World::new().await;
    let router = world.router().await;
    let mut old = Shard::link(router.link_address(), 1, 1).await;
    let mut new = Shard::link(router.link_address(), 2, 1).await;
    old.open(1, &[]).await;
    new.open(1, &[]).await;
    old.attach(1, "c", epoch(7), "seven").await;
    new.ask_attach(1, "c", epoch(9), "nine").await;
    let penstock_proto::link::control_down::Kind::Kick(_) = old.told().await else { panic!("no kick") };
    old.end_will(1, "c", epoch(7), WillEnd::Drop).await;
    assert!(new.attached(epoch(9)).await.refused.is_empty());
    assert_eq!((world.stored().await.len(), world.held().await), (0, 1));
}

#[tokio::test]
async fn two_routers_that_notice_the_death_of_a_gateway_fire_each_will_once() {
    let world = World::new().await;
    world.register(1).await;
    let (first, second) = (world.router().await, world.router().await);
    let mut dying = Shard::link(first.link_address(), 1, 1).await;
    let elsewhere = Shard::link(second.link_address(), 1, 2).await;
    dying.open(1, &[]).await;
    for (client, number) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        dying.attach(1, client, epoch(number), client).await;
    }
    dying.end_will(1, "d", epoch(4), WillEnd::Drop).await;
    // Both believe to be the home; c is back meanwhile, without a will.
    let mut other = Shard::link(second.link_address(), 2, 1).await;
    other.open(1, &[]).await;
    other.attach(1, "c", epoch(9), "").await;
    assert_eq!(world.stored().await, ["c"]);
    drop((dying, elsewhere));
    world.register(2).await;
    other.append(1, "x", &Numbered::new(1, &["x"]), false).await;
    other.settled().await;
    assert_eq!(world.stored().await, ["c", "x"], "one witness is not enough");
    world.forget_everybody().await;
    until("both wills", async || world.stored().await.len() >= 4).await;
    let mut stored = world.stored().await;
    stored.sort();
    assert_eq!((stored, world.held().await), (["a", "b", "c", "x"].map(str::to_owned).to_vec(), 0));
}

#[tokio::test]
async fn wills_of_a_gateway_that_died_with_its_router_are_published_by_another() {
    let world = World::new().await;
    let router = world.router().await;
    let mut shard = Shard::link(router.link_address(), 1, 1).await;
    shard.open(1, &[]).await;
    shard.attach(1, "c", epoch(7), "gone").await;
    router.stop_now().await;
    world.forget_everybody().await;
    drop(shard);
    assert_eq!(world.held().await, 1);
    // Nobody opens a lane there.
    let _router = world.router().await;
    until("the will", async || world.stored().await == ["gone"]).await;
}
