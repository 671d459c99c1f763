//! SUBSCRIBE, deliveries and pushes.

use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

use mqttbytes::{QoS, v4::SubscribeReasonCode};
use penstock_common::registry::OwnershipEvent;
use penstock_proto::{
    link::{self, PushStatus, control_down, control_up, data_down, data_up},
    record::{Record, RecordBatch},
};
use prost::Message;

use crate::{
    client::{Client, PATIENCE},
    router::{Router, Seen},
    setup::{Setup, client_key, until},
};

/// A delivery of QoS 0, each of them another entry.
pub fn deliver_payload(delivery: u64, topic: &str, payload: &[u8]) -> data_down::Kind {
    deliver_record(delivery, delivery, false, topic, payload, 0)
}

/// The same of QoS 1.
pub fn deliver_qos_1(delivery: u64, topic: &str, payload: &[u8]) -> data_down::Kind {
    deliver_record(delivery, delivery, false, topic, payload, 1)
}

fn deliver(delivery: u64, sequence: u64, repeat: bool, topic: &str, qos: u32) -> data_down::Kind {
    deliver_record(delivery, sequence, repeat, topic, b"p", qos)
}

fn deliver_record(
    delivery: u64,
    sequence: u64,
    repeat: bool,
    topic: &str,
    payload: &[u8],
    qos: u32,
) -> data_down::Kind {
    let payload = payload.to_vec().into();
    let record = Record { topic: topic.to_owned().into(), payload, qos, ..Record::default() };
    data_down::Kind::Deliver(link::Deliver {
        tenant: "acme".into(),
        partition: 0,
        term: 5,
        sequence,
        repeat,
        delivery,
        records: RecordBatch { records: vec![record] }.encode_to_vec().into(),
    })
}

async fn interest(router: &mut Router) -> link::Interest {
    router
        .expect("Interest", |seen| match seen {
            Seen::Control(control_up::Kind::Interest(interest)) => Some(interest.clone()),
            _ => None,
        })
        .await
}

pub async fn taken(router: &mut Router) -> u64 {
    router
        .expect("Taken", |seen| match seen {
            Seen::Data(data_up::Kind::Taken(taken)) => Some(taken.delivery),
            _ => None,
        })
        .await
}

pub async fn push_result(router: &mut Router) -> link::PushResult {
    router
        .expect("PushResult", |seen| match seen {
            Seen::Data(data_up::Kind::PushResult(result)) => Some(result.clone()),
            _ => None,
        })
        .await
}

#[tokio::test]
async fn a_suback_waits_until_every_linked_router_knows_the_filter() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let snapshot = interest(&mut router).await;
    assert!(snapshot.snapshot_end && snapshot.changes.is_empty());
    let mut client = Client::connect(setup.address, "c1").await;
    router.hold().interest.store(true, Ordering::SeqCst);
    client.subscribe(1, &[("a/+", QoS::ExactlyOnce), ("s/us", QoS::AtMostOnce)]).await;
    let told = interest(&mut router).await;
    assert_eq!(told.changes.len(), 1);
    let change = told.changes.first().unwrap();
    assert_eq!((&change.filter[..], change.present), (&b"a/+"[..], true));
    client.expect_silence().await;
    let confirmed = link::InterestConfirmed { seq: told.seq };
    router.control(control_down::Kind::InterestConfirmed(confirmed)).await;
    let codes = client.expect_suback().await.return_codes;
    assert_eq!(codes, [SubscribeReasonCode::Success(QoS::AtLeastOnce), SubscribeReasonCode::Failure]);
    // A second session with the same filter is not told, and its last use is.
    let mut second = Client::connect(setup.address, "c2").await;
    second.subscribe(1, &[("a/+", QoS::AtMostOnce)]).await;
    second.expect_suback().await;
    client.unsubscribe(2, "a/+").await;
    client.read().await.unwrap();
    drop(second);
    let gone = interest(&mut router).await;
    assert!(!gone.changes.first().unwrap().present);
}

#[tokio::test]
async fn a_router_that_dies_is_not_waited_for_and_a_new_one_gets_a_snapshot() {
    let (slow, mut quick) = (Router::start(1).await, Router::start(2).await);
    let setup = Setup::new(&[&slow, &quick]).await;
    until("both links", || setup.metric("penstock_links") == Some(2.0)).await;
    let mut client = Client::connect(setup.address, "c1").await;
    slow.hold().interest.store(true, Ordering::SeqCst);
    client.subscribe(1, &[("a", QoS::AtMostOnce)]).await;
    while interest(&mut quick).await.changes.is_empty() {}
    client.expect_silence().await;
    slow.cut();
    client.expect_suback().await;
    let mut late = Router::start(3).await;
    setup.registry.add_router(3, &late.address);
    let snapshot = interest(&mut late).await;
    assert!(snapshot.snapshot_end);
    assert_eq!(&snapshot.changes.first().unwrap().filter[..], b"a");
}

#[tokio::test]
async fn overlapping_filters_get_one_delivery_and_repeated_entries_none() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut client = Client::connect(setup.address, "c1").await;
    client.subscribe(1, &[("a/#", QoS::AtMostOnce), ("a/b", QoS::AtLeastOnce)]).await;
    client.expect_suback().await;
    router.data(deliver(1, 1, false, "a/b", 1)).await;
    let publish = client.expect_publish().await;
    assert_eq!((publish.qos, publish.retain, &publish.payload[..]), (QoS::AtLeastOnce, false, &b"p"[..]));
    assert_eq!(taken(&mut router).await, 1);
    router.data(deliver(2, 1, true, "a/b", 1)).await;
    assert_eq!(taken(&mut router).await, 2);
    router.data(deliver(3, 2, true, "a/c", 1)).await;
    let next = client.expect_publish().await;
    assert_eq!(
        (next.topic.as_str(), next.qos),
        ("a/c", QoS::AtMostOnce),
        "the lower of granted and published"
    );
    client.puback(publish.pkid).await;
    client.expect_silence().await;
}

fn push(id: u64, client: &str, epoch: u64, topic: &str, wait_ms: u64) -> data_down::Kind {
    data_down::Kind::Push(link::Push {
        id,
        tenant: "acme".into(),
        client: client.to_owned().into(),
        epoch,
        topic: topic.to_owned().into(),
        payload: "do".into(),
        qos: 1,
        wait_ms,
    })
}

#[tokio::test]
async fn a_push_tells_what_became_of_it() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut client = Client::connect(setup.address, "c1").await;
    client.subscribe(1, &[("cmd/#", QoS::AtLeastOnce)]).await;
    client.expect_suback().await;
    let (_, epoch) = setup.registry.owned(&client_key("c1")).unwrap();

    router.data(push(1, "c1", epoch.0, "cmd/a", 5_000)).await;
    let publish = client.expect_publish().await;
    assert_eq!((&publish.payload[..], publish.qos), (&b"do"[..], QoS::AtLeastOnce));
    client.puback(publish.pkid).await;
    let result = push_result(&mut router).await;
    assert_eq!((result.id, result.status()), (1, PushStatus::Delivered));

    for (id, epoch, topic, wait, status) in [
        (2, epoch.0, "other", 5_000, PushStatus::NotSubscribed),
        (3, epoch.0 - 1, "cmd/a", 5_000, PushStatus::NotConnected),
        (4, epoch.0, "cmd/a", 0, PushStatus::Routed),
        (5, epoch.0, "cmd/a", 1, PushStatus::Expired),
    ] {
        router.data(push(id, "c1", epoch, topic, wait)).await;
        let result = push_result(&mut router).await;
        assert_eq!((result.id, result.status()), (id, status));
    }
    router.data(push(6, "", 0, "cmd/all", 0)).await;
    let result = push_result(&mut router).await;
    assert_eq!((result.status(), result.count), (PushStatus::Routed, 1));

    router.data(push(7, "c1", epoch.0, "cmd/a", 60_000)).await;
    for _ in 0..4 {
        client.expect_publish().await;
    }
    drop(client);
    assert_eq!(push_result(&mut router).await.status(), PushStatus::NotConnected);
}

#[tokio::test]
async fn a_push_reaches_a_client_whose_renewed_epoch_the_home_does_not_know_yet() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut client = Client::connect(setup.address, "c1").await;
    client.subscribe(1, &[("cmd/#", QoS::AtLeastOnce)]).await;
    client.expect_suback().await;
    let (owner, old) = setup.registry.owned(&client_key("c1")).unwrap();
    router.hold().settles.store(true, Ordering::SeqCst);
    client.publish("a", 1, b"unsettled under the older epoch").await;
    router.expect_append().await;
    let new = setup.registry.steal(&client_key("c1"), owner);
    setup.registry.tell(OwnershipEvent::Renewed { shard: 0, client: client_key("c1"), old, new }).await;
    let renewed = async {
        for id in 1.. {
            router.data(push(id, "c1", new.0, "cmd/a", 0)).await;
            if push_result(&mut router).await.status() == PushStatus::Routed {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.expect("never renewed");
    router.data(push(0, "c1", old.0, "cmd/a", 0)).await;
    let result = push_result(&mut router).await;
    assert_eq!((result.id, result.status()), (0, PushStatus::Routed));
}

#[tokio::test]
async fn an_overrun_closes_whoever_may_have_missed_something() {
    let router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut one = Client::connect(setup.address, "c1").await;
    one.subscribe(1, &[("a/+", QoS::AtLeastOnce)]).await;
    one.expect_suback().await;
    let mut zero = Client::connect(setup.address, "c2").await;
    zero.subscribe(1, &[("a/+", QoS::AtMostOnce)]).await;
    zero.expect_suback().await;
    let overrun = link::Overrun { tenant: "acme".into(), topic: "a/b".into() };
    router.data(data_down::Kind::Overrun(overrun)).await;
    one.expect_closed().await;
    zero.expect_silence().await;
}

#[tokio::test]
async fn an_overrun_without_a_topic_closes_every_session_of_the_tenant_that_counts_on_qos_1() {
    let router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut one = Client::connect(setup.address, "c1").await;
    one.subscribe(1, &[("z", QoS::AtMostOnce), ("a/+", QoS::AtLeastOnce)]).await;
    one.expect_suback().await;
    let mut zero = Client::connect(setup.address, "c2").await;
    zero.subscribe(1, &[("a/+", QoS::AtMostOnce)]).await;
    zero.expect_suback().await;
    let (mut other, _) = Client::try_connect(setup.address, "c1", "small/device", "secret").await;
    other.subscribe(1, &[("a/+", QoS::AtLeastOnce)]).await;
    other.expect_suback().await;
    let overrun = link::Overrun { tenant: "acme".into(), topic: "".into() };
    router.data(data_down::Kind::Overrun(overrun)).await;
    one.expect_closed().await;
    zero.expect_silence().await;
    other.expect_silence().await;
}

/// Partitions whose lanes are opened next.
async fn opened(router: &mut Router, count: usize) -> BTreeSet<u32> {
    let mut partitions = BTreeSet::new();
    while partitions.len() < count {
        partitions.insert(router.expect_open_lane().await.partition);
    }
    partitions
}

#[tokio::test]
async fn every_partition_of_a_tenant_with_subscribers_keeps_a_home_when_its_home_and_publishers_died() {
    let (mut dying, mut next) = (Router::start(1).await, Router::start(2).await);
    let setup = Setup::new(&[&dying]).await;
    let (mut client, _) = Client::try_connect(setup.address, "c1", "wide/device", "secret").await;
    client.subscribe(1, &[("a/+", QoS::AtLeastOnce)]).await;
    client.expect_suback().await;
    // One of them is the client's own, opened when it connected.
    assert_eq!(opened(&mut dying, 4).await, (0..4).collect());
    setup.registry.add_router(2, &next.address);
    until("both links", || setup.metric("penstock_links") == Some(2.0)).await;
    dying.cut();
    assert_eq!(opened(&mut next, 4).await, (0..4).collect());
    // Without subscribers and clients no home is needed.
    drop(client);
    while interest(&mut next).await.changes.iter().all(|change| change.present) {}
    next.drain_seen();
    next.cut();
    until("no link", || setup.metric("penstock_links") == Some(0.0)).await;
    next.hold().links.store(false, Ordering::SeqCst);
    until("a link", || setup.metric("penstock_links") == Some(1.0)).await;
    let early = tokio::time::timeout(Duration::from_millis(200), next.expect_open_lane()).await;
    assert!(early.is_err(), "opened without anybody who wants it");
}
