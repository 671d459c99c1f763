//! PUBLISH to PUBACK.

use std::{sync::atomic::Ordering, time::Duration};

use penstock_proto::{
    link::{self, SettleResult, control_up, data_down},
    record::RecordBatch,
};
use prost::Message;

use crate::{
    client::{Client, PATIENCE},
    router::{Router, Seen},
    setup::{Setup, config, incarnations, until},
};

fn records(append: &link::Append) -> Vec<penstock_proto::record::Record> {
    RecordBatch::decode(append.records.clone()).unwrap().records
}

#[tokio::test]
async fn a_puback_follows_the_settle_and_not_before() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    router.hold().settles.store(true, Ordering::SeqCst);
    let mut client = Client::connect(setup.address, "c1").await;
    client.publish("sensors/1", 7, b"hot").await;
    let append = router.expect_append().await;
    assert_eq!((append.first, append.count, append.resent), (1, 1, false));
    let record = records(&append).remove(0);
    assert_eq!((&record.client[..], &record.topic[..]), (&b"c1"[..], &b"sensors/1"[..]));
    assert_eq!((&record.payload[..], &record.user[..], record.qos), (&b"hot"[..], &b"device"[..], 1));
    assert!(record.received_at > 1_600_000_000_000 && append.first_received_at == record.received_at);
    client.expect_silence().await;
    router.settle(&append).await;
    client.expect_puback(7).await;
}

#[tokio::test]
async fn records_grow_into_batches_while_the_lane_is_busy_and_stay_in_order() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut client = Client::connect(setup.address, "c1").await;
    for n in 1..=500u16 {
        client.publish("a", n, &n.to_be_bytes()).await;
    }
    let (mut next, mut appends) = (1, 0);
    while next <= 500 {
        let append = router.expect_append().await;
        assert_eq!(append.first, next, "numbers are dense");
        for record in records(&append) {
            assert_eq!(&record.payload[..], (next as u16).to_be_bytes());
            next += 1;
        }
        appends += 1;
    }
    assert!(appends <= 500);
    for n in 1..=500 {
        client.expect_puback(n).await;
    }
}

#[tokio::test]
async fn a_lost_lane_is_opened_again_and_sends_the_same_numbers_marked_before_anything_new() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    router.hold().settles.store(true, Ordering::SeqCst);
    let mut client = Client::connect(setup.address, "c1").await;
    client.publish("a", 1, b"x").await;
    let first = router.expect_append().await;
    let lost = link::LaneLost { lane: first.lane, reason: "test".into() };
    router.data(data_down::Kind::LaneLost(lost)).await;
    let open = router.expect_open_lane().await;
    assert_ne!(open.lane, first.lane, "a number of an opening is never used again");
    assert_eq!(open.owners.len(), 1);
    let again = router.expect_append().await;
    assert_eq!((again.lane, again.first, again.count, again.resent), (open.lane, 1, 1, true));
    assert_eq!(again.records, first.records);
    client.publish("a", 2, b"y").await;
    let new = router.expect_append().await;
    assert_eq!((new.first, new.resent), (2, false));
    // A settle of the old opening means nothing any more.
    router.settle(&first).await;
    client.expect_silence().await;
    router.settle(&again).await;
    client.expect_puback(1).await;
    router.settle(&new).await;
    client.expect_puback(2).await;
}

#[tokio::test]
async fn a_dead_link_moves_what_is_unsettled_to_the_next_home() {
    let (home, other) = incarnations();
    let (mut first, mut second) = (Router::start(home).await, Router::start(other).await);
    let setup = Setup::new(&[&first, &second]).await;
    first
        .expect("link", |seen| matches!(seen, Seen::Control(control_up::Kind::Hello(_))).then_some(()))
        .await;
    second
        .expect("link", |seen| matches!(seen, Seen::Control(control_up::Kind::Hello(_))).then_some(()))
        .await;
    until("both links", || setup.metric("penstock_links") == Some(2.0)).await;
    first.hold().settles.store(true, Ordering::SeqCst);
    let mut client = Client::connect(setup.address, "c1").await;
    client.publish("a", 1, b"x").await;
    let lost = first.expect_append().await;
    first.cut();
    let again = second.expect_append().await;
    assert_eq!((again.first, again.resent, &again.records), (1, true, &lost.records));
    client.expect_puback(1).await;
}

#[tokio::test]
async fn a_lane_moves_to_a_better_home_only_when_all_is_settled() {
    let (home, other) = incarnations();
    let (mut better, mut present) = (Router::start(home).await, Router::start(other).await);
    let setup = Setup::new(&[&present]).await;
    present.hold().settles.store(true, Ordering::SeqCst);
    let mut client = Client::connect(setup.address, "c1").await;
    client.publish("a", 1, b"x").await;
    let append = present.expect_append().await;
    setup.registry.add_router(home, &better.address);
    until("both links", || setup.metric("penstock_links") == Some(2.0)).await;
    client.publish("a", 2, b"y").await;
    client.expect_silence().await;
    let opened = |seen: &Seen| matches!(seen, Seen::Control(control_up::Kind::OpenLane(_)));
    assert!(!better.drain_seen().iter().any(opened), "moved with something unsettled");
    present.settle(&append).await;
    client.expect_puback(1).await;
    let closed = present
        .expect("CloseLane", |seen| match seen {
            Seen::Control(control_up::Kind::CloseLane(close)) => Some(close.lane),
            _ => None,
        })
        .await;
    assert_eq!(closed, append.lane);
    better.expect_open_lane().await;
    let moved = better.expect_append().await;
    assert_eq!((moved.first, moved.resent), (2, false));
    client.expect_puback(2).await;
}

#[tokio::test]
async fn a_leaving_router_loses_its_lanes_then_its_link() {
    let (home, other) = incarnations();
    let (mut leaving, mut next) = (Router::start(home).await, Router::start(other).await);
    let setup = Setup::new(&[&leaving, &next]).await;
    until("both links", || setup.metric("penstock_links") == Some(2.0)).await;
    let mut client = Client::connect(setup.address, "c1").await;
    leaving.expect_open_lane().await;
    leaving.control(link::control_down::Kind::Leaving(link::Leaving {})).await;
    next.expect_open_lane().await;
    until("one link", || setup.metric("penstock_links") == Some(1.0)).await;
    client.publish("a", 1, b"x").await;
    next.expect_append().await;
    client.expect_puback(1).await;
}

#[tokio::test]
async fn routers_hear_when_all_is_told_and_a_registration_alone_does_not_end_a_link() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let view = |routers: &[u64]| penstock_common::rendezvous::view(routers.iter().copied());
    let synced = |seen: &Seen| match seen {
        Seen::Control(control_up::Kind::Synced(synced)) => Some(synced.view),
        _ => None,
    };
    assert_eq!(router.expect("Synced", synced).await, view(&[1]));
    setup.registry.remove_router(1);
    assert_eq!(router.expect("Synced", synced).await, view(&[]));
    let mut client = Client::connect(setup.address, "c1").await;
    client.publish("a", 1, b"x").await;
    client.expect_puback(1).await;
}

#[tokio::test]
async fn a_full_backlog_closes_after_earlier_acknowledgements() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    router.hold().settles.store(true, Ordering::SeqCst);
    let mut client = Client::connect(setup.address, "c1").await;
    client.publish("a", 1, b"x").await;
    let first = router.expect_append().await;
    client.publish("a", 2, b"y").await;
    let second = router.expect_append().await;
    router.settle(&first).await;
    let result = SettleResult::BacklogFull.into();
    let refused = link::Settle { lane: second.lane, first: second.first, count: 1, result, credit: 0 };
    router.data(data_down::Kind::Settles(link::Settles { settles: vec![refused] })).await;
    client.expect_puback(1).await;
    client.expect_closed().await;
    assert_eq!(setup.metric("penstock_publishes_refused_total{reason=\"backlog\"}"), Some(1.0));
}

#[tokio::test]
async fn a_stalled_store_stops_publishes_but_not_pings_and_then_closes() {
    let mut config = config();
    config.timeouts.store_ms = 1_000;
    config.limits.unsettled = 4;
    let router = Router::start(1).await;
    let setup = Setup::with(config, &[&router]).await;
    router.hold().settles.store(true, Ordering::SeqCst);
    let mut client = Client::connect(setup.address, "c1").await;
    for n in 1..=4 {
        client.publish("a", n, b"x").await;
    }
    client.expect_silence().await;
    client.expect_closed().await;
    assert_eq!(setup.metric("penstock_closes_total{reason=\"store_timeout\"}"), Some(1.0));
}

#[tokio::test]
async fn a_full_lane_stops_its_publishers_and_nobody_else_and_nothing_is_lost() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    router.hold().settles.store(true, Ordering::SeqCst);
    let client = Client::connect(setup.address, "c1").await;
    let mut other = Client::connect(setup.address, "c2").await;
    let Client { mut input, mut output } = client;
    // More than the kernel's buffers hold.
    let publisher = tokio::spawn(async move {
        for n in 1..=300u16 {
            output.publish("big", n, &[n as u8; 100_000]).await;
        }
        output
    });
    let mut append = router.expect_append().await;
    other.expect_silence().await;
    assert!(!publisher.is_finished(), "30 MB went into a lane that holds a fraction of it");
    let mut next = 1;
    loop {
        assert_eq!(append.first, next);
        next += u64::from(append.count);
        router.settle(&append).await;
        if next > 300 {
            break;
        }
        append = router.expect_append().await;
    }
    for n in 1..=300 {
        let Some(mqttbytes::v4::Packet::PubAck(ack)) = input.read().await else { panic!("no PUBACK {n}") };
        assert_eq!(ack.pkid, n);
    }
    publisher.await.unwrap();
}

#[tokio::test]
async fn a_full_shard_stops_publishers_of_all_lanes_until_there_is_room() {
    let mut config = config();
    config.limits.waiting_bytes = 1;
    let mut router = Router::start(1).await;
    let setup = Setup::with(config, &[&router]).await;
    let mut client = Client::connect(setup.address, "c1").await;
    let (mut small, _) = Client::try_connect(setup.address, "c2", "small/device", "secret").await;
    router.hold().settles.store(true, Ordering::SeqCst);
    let mut appends = Vec::new();
    for n in 1..=4 {
        client.publish("a", n, b"x").await;
        appends.push(router.expect_append().await);
    }
    // Nothing more may be under way: this one waits, and fills the shard.
    client.publish("a", 5, b"x").await;
    client.expect_silence().await;
    small.publish("b", 1, b"held").await;
    let early = tokio::time::timeout(Duration::from_millis(200), router.expect_append()).await;
    assert!(early.is_err(), "a publish was taken by a shard that is full");
    router.settle(appends.first().unwrap()).await;
    let (one, two) = (router.expect_append().await, router.expect_append().await);
    assert_ne!(one.lane, two.lane, "both lanes go on");
    for append in appends.iter().skip(1).chain([&one, &two]) {
        router.settle(append).await;
    }
    for n in 1..=5 {
        client.expect_puback(n).await;
    }
    small.expect_puback(1).await;
}

#[tokio::test]
async fn a_packet_in_pieces_and_a_large_one_arrive_whole() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut client = Client::connect(setup.address, "c1").await;
    let payload: Vec<u8> = (0..900_000u32).map(|n| n as u8).collect();
    client.publish("big", 1, &payload).await;
    let append = router.expect_append().await;
    assert_eq!(records(&append).remove(0).payload, payload);
    client.expect_puback(1).await;
}

#[tokio::test]
async fn a_drain_acknowledges_what_was_received_then_closes_and_releases() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    router.hold().settles.store(true, Ordering::SeqCst);
    let mut client = Client::connect(setup.address, "c1").await;
    client.publish("a", 1, b"x").await;
    let append = router.expect_append().await;
    let (registry, mut ready) = (setup.registry.clone(), setup.gateway.ready());
    let drain = tokio::spawn(setup.gateway.drain(Duration::from_secs(10)));
    ready.wait_for(|ready| !*ready).await.unwrap();
    router.settle(&append).await;
    client.expect_puback(1).await;
    client.expect_closed().await;
    drain.await.unwrap();
    assert_eq!(registry.owned(&crate::setup::client_key("c1")), None);
}

#[tokio::test]
async fn a_lost_lane_that_nobody_needs_is_not_opened_again() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let client = Client::connect(setup.address, "c1").await;
    let open = router.expect_open_lane().await;
    drop(client);
    let detach = |seen: &Seen| matches!(seen, Seen::Control(control_up::Kind::Detach(_))).then_some(());
    router.expect("Detach", detach).await;
    let lost = link::LaneLost { lane: open.lane, reason: "test".into() };
    router.data(data_down::Kind::LaneLost(lost)).await;
    let early = tokio::time::timeout(Duration::from_millis(200), router.expect_open_lane()).await;
    assert!(early.is_err(), "opened without an owner or a record");
    let mut client = Client::connect(setup.address, "c1").await;
    client.publish("a", 1, b"x").await;
    client.expect_puback(1).await;
}

#[tokio::test]
async fn the_lane_of_a_deleted_tenant_drops_its_records_and_is_not_opened_again() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    router.hold().settles.store(true, Ordering::SeqCst);
    let mut client = Client::connect(setup.address, "c1").await;
    client.publish("a", 1, b"x").await;
    let append = router.expect_append().await;
    setup.registry.delete("acme");
    client.expect_closed().await;
    let refused = "penstock_publishes_refused_total{reason=\"no_tenant\"}";
    until("the record is dropped", || setup.metric(refused) == Some(1.0)).await;
    let lost = link::LaneLost { lane: append.lane, reason: "the tenant does not exist".into() };
    router.data(data_down::Kind::LaneLost(lost)).await;
    let early = tokio::time::timeout(Duration::from_millis(200), router.expect_open_lane()).await;
    assert!(early.is_err(), "opened for a tenant that is gone");
    // It comes again, perhaps with the log that it had: the producer's numbers are not used twice.
    setup.registry.define("acme", 1, 100);
    let again = async {
        loop {
            let (client, code) = Client::try_connect(setup.address, "c1", "acme/device", "secret").await;
            if code == 0 {
                return client;
            }
        }
    };
    let mut client = tokio::time::timeout(PATIENCE, again).await.expect("never defined");
    client.publish("a", 1, b"y").await;
    let append = router.expect_append().await;
    assert_eq!((append.first, append.count, append.resent), (2, 1, false));
    router.settle(&append).await;
    client.expect_puback(1).await;
}
