//! A home that moves while consumers hold records: what they hold stays with them.

use std::time::Duration;

use penstock_common::name::partition_of;
use penstock_proto::messaging::{Nacks, consume_request};

use crate::{PARTITIONS, world::*};

/// Two clients of one partition.
fn neighbours() -> (String, String) {
    let of = |name: &String| partition_of(name.as_bytes(), PARTITIONS);
    let mut all = (0..).map(|n| format!("client-{n}"));
    let first = all.next().unwrap();
    let second = all.find(|name| of(name) == of(&first)).unwrap();
    (first, second)
}

/// The other router takes the partition; the old home learns of it.
async fn moves(cluster: &Cluster, client: &str) {
    let key = cluster.key(partition_of(client.as_bytes(), PARTITIONS));
    let from = usize::from(cluster.routers[0].homes.here(&key).is_none());
    let old = cluster.routers[from].homes.here(&key).unwrap();
    cluster.routers[1 - from].homes.take(&key).await.unwrap();
    old.lost.cancel();
}

async fn next_of_either(first: &mut TestConsumer, second: &mut TestConsumer) -> (usize, Vec<Got>) {
    tokio::select! {
        got = first.records() => (0, got),
        got = second.records() => (1, got),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_consumers_hold_stays_with_them_when_the_home_moves() {
    let cluster = Cluster::start(2).await;
    cluster.create_group(0, "g", &[]).await.unwrap();
    let (held, free) = neighbours();
    cluster.publish(&held, "t", 0..3).await;
    let mut holder = cluster.consume(0, "g", 100, 60_000).await;
    let first = holder.records().await;
    assert_eq!(first.len(), 3);
    // At either router, and with so much credit that everything that is free would be its.
    let mut other = cluster.consume(1, "g", 1_000, 60_000).await;
    for round in 0..2 {
        moves(&cluster, &held).await;
        cluster.publish(&held, "t", 3 + round..4 + round).await;
        cluster.publish(&free, "t", round..1 + round).await;
        let (mut next, mut theirs) = (vec![], vec![]);
        while next.is_empty() || theirs.is_empty() {
            let (who, got) = next_of_either(&mut holder, &mut other).await;
            assert!(got.iter().all(|got| got.times == 1), "nothing comes again: {got:?}");
            let (of_held, of_free): (Vec<_>, Vec<_>) = got.into_iter().partition(|got| got.client == held);
            assert!(who == 0 || of_held.is_empty(), "the earlier ones are open elsewhere: {of_held:?}");
            next.extend(of_held);
            theirs.extend(of_free.into_iter().map(|got| (who, got)));
        }
        assert_eq!(next.iter().map(|got| got.number).collect::<Vec<_>>(), [3 + round]);
        holder.ack(&next).await;
        for (who, got) in theirs {
            [&holder, &other][who].ack(&[got]).await;
        }
    }
    // One comes back before its time, and stays the holder's while it has others of the client.
    let nacks = Nacks { ranges: vec![first[0].range], delay_ms: 0 };
    holder.requests.send(say(consume_request::Kind::Nacks(nacks))).await.unwrap();
    let (who, again) = next_of_either(&mut holder, &mut other).await;
    assert_eq!((who, again[0].number, again[0].times), (0, 0, 2));
    holder.ack(&again).await;
    holder.ack(&first[1..]).await;
    until("nothing lags", async || cluster.lag(0, "g").await == 0).await;
    assert!(other.quiet(Duration::from_millis(200)).await, "nothing was left for the other one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_went_when_the_home_moved_holds_nothing_up() {
    let cluster = Cluster::start(2).await;
    cluster.create_group(0, "g", &[]).await.unwrap();
    let (held, _) = neighbours();
    cluster.publish(&held, "t", 0..3).await;
    let mut gone = cluster.consume(0, "g", 100, 600_000).await;
    assert_eq!(gone.records().await.len(), 3);
    let mut other = cluster.consume(1, "g", 1_000, 60_000).await;
    moves(&cluster, &held).await;
    drop(gone);
    let again = other.records().await;
    assert_eq!(again.iter().map(|got| got.number).collect::<Vec<_>>(), [0, 1, 2]);
}
