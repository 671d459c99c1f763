//! Exclusive, failover and unordered groups, and options that are changed while a group is consumed.

use std::collections::BTreeSet;

use penstock_proto::messaging::{Group, GroupMode, SetGroupRequest, consume_response};
use tonic::Code;

use super::{world::*, *};

fn of_mode(mode: GroupMode) -> Group {
    Group { mode: mode.into(), ..group("g") }
}

async fn end_of(consumer: &mut TestConsumer) -> Status {
    timeout(LIMIT, async {
        loop {
            if let Err(status) = consumer.responses.message().await {
                return status;
            }
        }
    })
    .await
    .expect("the stream goes on")
}

/// The next record of a consumer that takes one at a time.
async fn one(consumer: &mut TestConsumer) -> Got {
    consumer.records().await.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exclusive_group_refuses_a_second_consumer_until_the_first_has_gone() {
    let cluster = Cluster::start(2).await;
    cluster.create(0, of_mode(GroupMode::Exclusive)).await.unwrap();
    let mut first = cluster.consume(0, "g", 100, 0).await;
    for router in [0, 1] {
        let mut second = cluster.begin(router, "g", 100, 0).await;
        let refused = end_of(&mut second).await;
        assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    }
    for client in clients() {
        cluster.publish(&client, "t", 0..1).await;
    }
    let mut got = vec![];
    while got.len() < 12 {
        got.extend(first.records().await);
    }
    first.ack(&got).await;
    until("nothing lags", async || cluster.lag(0, "g").await == 0).await;
    drop(first);
    let joined = timeout(LIMIT, async {
        loop {
            // Its home may not have noticed yet that the first one is gone.
            let mut next = cluster.begin(1, "g", 100, 0).await;
            match next.responses.message().await {
                Err(refused) => assert_eq!(refused.code(), Code::AlreadyExists),
                Ok(response) => break response.and_then(|response| response.kind),
            }
        }
    });
    assert!(matches!(joined.await.unwrap(), Some(consume_response::Kind::Joined(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_group_hands_everything_to_one_and_then_to_the_next() {
    let cluster = Cluster::start(2).await;
    cluster.create(0, of_mode(GroupMode::Failover)).await.unwrap();
    let mut first = cluster.consume(0, "g", 1_000, 0).await;
    let mut second = cluster.begin(1, "g", 1_000, 0).await;
    for client in clients() {
        cluster.publish(&client, "t", 0..3).await;
    }
    let mut got = vec![];
    while got.len() < 36 {
        got.extend(first.records().await);
    }
    assert!(second.quiet(Duration::from_millis(300)).await, "the second one waits");
    let (done, left): (Vec<Got>, Vec<Got>) = got.into_iter().partition(|got| got.number == 0);
    first.ack(&done).await;
    until("acks are counted", async || cluster.lag(1, "g").await == 24).await;
    drop(first);
    let mut again = vec![];
    while again.len() < left.len() {
        again.extend(second.records().await);
    }
    let names = |got: &[Got]| got.iter().map(|got| (got.client.clone(), got.number)).collect::<BTreeSet<_>>();
    assert_eq!(names(&again), names(&left));
    second.ack(&again).await;
    until("nothing lags", async || cluster.lag(0, "g").await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_moves_leaves_an_exclusive_group_with_its_consumer() {
    let cluster = Cluster::start(2).await;
    cluster.create(0, of_mode(GroupMode::Exclusive)).await.unwrap();
    let mut consumer = cluster.consume(0, "g", 100, 0).await;
    for partition in 0..PARTITIONS {
        let key = cluster.key(partition);
        let from = usize::from(cluster.routers[0].homes.here(&key).is_none());
        let old = cluster.routers[from].homes.here(&key).unwrap();
        cluster.routers[1 - from].homes.take(&key).await.unwrap();
        old.lost.cancel();
    }
    for client in clients() {
        cluster.publish(&client, "t", 0..1).await;
    }
    let mut got = vec![];
    while got.len() < 12 {
        got.extend(consumer.records().await);
    }
    consumer.ack(&got).await;
    until("nothing lags", async || cluster.lag(0, "g").await == 0).await;
    let refused = end_of(&mut cluster.begin(0, "g", 100, 0).await).await;
    assert_eq!(refused.code(), Code::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unordered_group_does_not_wait_for_a_clients_earlier_record() {
    let cluster = Cluster::start(1).await;
    cluster.create(0, Group { unordered: true, ..group("g") }).await.unwrap();
    // Four partitions, so that each consumer has one record of each at a time.
    let (mut first, mut second) = (cluster.consume(0, "g", 4, 0).await, cluster.consume(0, "g", 4, 0).await);
    cluster.publish("client-1", "t", 0..2).await;
    let both = [one(&mut first).await, one(&mut second).await];
    assert_eq!(both.iter().map(|got| got.number).collect::<BTreeSet<_>>(), BTreeSet::from([0, 1]));
    let nacks = Nacks { ranges: vec![both[0].range], delay_ms: 60_000 };
    first.requests.send(say(consume_request::Kind::Nacks(nacks))).await.unwrap();
    cluster.publish("client-1", "t", 2..3).await;
    assert_eq!(one(&mut first).await.number, 2, "a record that was given back holds nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn options_are_set_and_hold_for_consumers_that_come_later() {
    let cluster = Cluster::start(1).await;
    let made = cluster.create(0, group("g")).await.unwrap();
    assert_eq!((made.ack_timeout_ms, made.unordered), (60_000, false));
    let set = async |change: SetGroupRequest| {
        let request = cluster.request(APP, SetGroupRequest { name: "g".into(), ..change });
        cluster.messaging(0).await.set_group(request).await.map(tonic::Response::into_inner)
    };
    let short = set(SetGroupRequest { ack_timeout_ms: Some(99), ..Default::default() }).await;
    assert_eq!(short.unwrap_err().code(), Code::InvalidArgument);
    let changed = set(SetGroupRequest { ack_timeout_ms: Some(400), ..Default::default() }).await.unwrap();
    assert_eq!(changed, Group { ack_timeout_ms: 400, ..made.clone() });
    let again = cluster.create(0, group("g")).await.unwrap();
    assert_eq!(again, changed, "what was set stays when the group is asked for again");
    let other = cluster.create(0, of_mode(GroupMode::Failover)).await;
    assert_eq!(other.unwrap_err().code(), Code::AlreadyExists, "the mode is fixed");
    cluster.publish("client-1", "t", 0..1).await;
    let mut consumer = cluster.consume(0, "g", 100, 0).await;
    assert_eq!(one(&mut consumer).await.times, 1);
    assert_eq!(one(&mut consumer).await.times, 2, "the group's ack timeout holds");
    let missing = SetGroupRequest { name: "nobody".into(), unordered: Some(true), ..Default::default() };
    let missing = cluster.messaging(0).await.set_group(cluster.request(APP, missing)).await;
    assert_eq!(missing.unwrap_err().code(), Code::NotFound);
}
