//! Dead letters, seeking, the ledger of a group, and a consumer that holds very much.

use std::collections::BTreeSet;

use penstock_proto::messaging::{
    DeadName, Group, ListDeadRequest, PartitionStatus, RedriveRequest, SeekGroupRequest, Start, start,
};
use penstock_proto::record::RecordBatch;
use prost::Message;
use tonic::Code;

use super::{world::*, *};

fn names(got: &[Got]) -> BTreeSet<(String, u32)> {
    got.iter().map(|got| (got.client.clone(), got.number)).collect()
}

async fn take(consumer: &mut TestConsumer, count: usize) -> Vec<Got> {
    let mut got = vec![];
    while got.len() < count {
        got.extend(consumer.records().await);
    }
    assert_eq!(got.len(), count);
    got
}

async fn nack(consumer: &TestConsumer, got: &[Got]) {
    let nacks = Nacks { ranges: got.iter().map(|got| got.range).collect(), delay_ms: 0 };
    consumer.requests.send(say(consume_request::Kind::Nacks(nacks))).await.unwrap();
}

impl Cluster {
    async fn letters(&self, router: usize) -> Vec<(DeadName, u32)> {
        let mut found = vec![];
        for partition in 0..PARTITIONS {
            let ask = ListDeadRequest { group: "g".into(), partition, after: 0, max: 0 };
            let listed = self.messaging(router).await.list_dead(self.request(APP, ask)).await.unwrap();
            for letter in listed.into_inner().letters {
                let record = RecordBatch::decode(letter.record).unwrap().records.remove(0);
                let number = u32::from_be_bytes(record.payload[..].try_into().unwrap());
                assert_eq!(letter.deliveries, 2);
                found.push((DeadName { partition, number: letter.number }, number));
            }
        }
        found
    }

    async fn redrive(&self, router: usize, letters: Vec<DeadName>) -> u64 {
        let ask = RedriveRequest { group: "g".into(), letters };
        let redriven = self.messaging(router).await.redrive(self.request(APP, ask)).await;
        redriven.unwrap().into_inner().redriven
    }

    async fn seek(&self, router: usize, at: start::At) {
        let ask = SeekGroupRequest { name: "g".into(), to: Some(Start { at: Some(at) }) };
        self.messaging(router).await.seek_group(self.request(APP, ask)).await.unwrap();
    }

    /// The ledger of a group over all partitions, which must balance on each.
    async fn ledger(&self, group: &str) -> PartitionStatus {
        let mut sum = PartitionStatus::default();
        for own in self.show(0, group).await {
            let done = own.filtered_records + own.acked_records + own.dead_records + own.dropped_records;
            assert_eq!(own.appended_records, done + own.lag_records, "{own:?}");
            sum.appended_records += own.appended_records;
            sum.filtered_records += own.filtered_records;
            sum.acked_records += own.acked_records;
            sum.dead_records += own.dead_records;
            sum.dead_letters += own.dead_letters;
        }
        sum
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_comes_back_too_often_is_a_dead_letter_and_can_be_handed_out_again() {
    let cluster = Cluster::start(2).await;
    cluster.create(0, Group { max_deliveries: 2, filters: vec!["t".into()], ..group("g") }).await.unwrap();
    cluster.create(0, group("other")).await.unwrap();
    for client in clients() {
        cluster.publish(&client, "t", 0..3).await;
        cluster.publish(&client, "not wanted", 9..10).await;
    }
    let mut consumer = cluster.consume(0, "g", 1_000, 0).await;
    let (bad, good): (Vec<Got>, Vec<Got>) =
        take(&mut consumer, 36).await.into_iter().partition(|got| got.number == 1);
    consumer.ack(&good).await;
    nack(&consumer, &bad).await;
    let again = take(&mut consumer, 12).await;
    assert!(again.iter().all(|got| got.times == 2));
    nack(&consumer, &again).await;
    until("all of them are dead letters", async || cluster.letters(1).await.len() == 12).await;
    until("nothing lags", async || cluster.lag(0, "g").await == 0).await;
    let ledger = cluster.ledger("g").await;
    let counts =
        (ledger.appended_records, ledger.acked_records, ledger.filtered_records, ledger.dead_records);
    assert_eq!((counts, ledger.dead_letters), ((48, 24, 12, 12), 12));
    let letters = cluster.letters(0).await;
    assert!(letters.iter().all(|(_, number)| *number == 1));
    // One by name, twice, and then the rest.
    assert_eq!(cluster.redrive(1, vec![letters[0].0]).await, 1);
    assert_eq!(cluster.redrive(1, vec![letters[0].0]).await, 0);
    assert_eq!(cluster.redrive(0, vec![]).await, 11);
    let driven = take(&mut consumer, 12).await;
    assert_eq!(names(&driven), names(&bad));
    assert!(driven.iter().all(|got| got.times == 1), "as new records");
    consumer.ack(&driven).await;
    until("nothing lags", async || cluster.lag(0, "g").await == 0).await;
    assert!(cluster.letters(0).await.is_empty());
    assert_eq!(cluster.ledger("g").await.acked_records, 36);
    // They were for this group alone.
    let mut other = cluster.consume(0, "other", 1_000, 0).await;
    let got = take(&mut other, 48).await;
    other.ack(&got).await;
    until("nothing lags", async || cluster.lag(0, "other").await == 0).await;
    assert!(other.quiet(Duration::from_millis(200)).await);
    let ledger = cluster.ledger("other").await;
    assert_eq!((ledger.acked_records, ledger.filtered_records), (48, 12));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_sought_gets_what_was_acknowledged_again_and_begins_a_new_ledger() {
    let cluster = Cluster::start(2).await;
    cluster.create(0, group("g")).await.unwrap();
    for client in clients() {
        cluster.publish(&client, "t", 0..5).await;
    }
    // Nobody consumes: its homes follow all the same, one hop away.
    cluster.seek(0, start::At::Latest(true)).await;
    assert_eq!((cluster.lag(1, "g").await, cluster.ledger("g").await.appended_records), (0, 0));
    cluster.seek(1, start::At::TimeMs(0)).await;
    assert_eq!(cluster.lag(0, "g").await, 60);
    let mut consumer = cluster.consume(0, "g", 1_000, 0).await;
    let first = take(&mut consumer, 60).await;
    consumer.ack(&first).await;
    until("nothing lags", async || cluster.lag(0, "g").await == 0).await;
    cluster.seek(0, start::At::Earliest(true)).await;
    let second = take(&mut consumer, 60).await;
    assert_eq!(names(&second), names(&first));
    assert!(second.iter().all(|got| got.times == 1));
    let ledger = cluster.ledger("g").await;
    assert_eq!((ledger.appended_records, ledger.acked_records), (60, 0));
    consumer.ack(&second).await;
    until("nothing lags", async || cluster.lag(0, "g").await == 0).await;
    cluster.seek(1, start::At::Earliest(true)).await;
    take(&mut consumer, 60).await;
    cluster.seek(1, start::At::Latest(true)).await;
    cluster.publish(&clients()[0], "t", 7..8).await;
    let last = take(&mut consumer, 1).await;
    assert_eq!(last[0].number, 7);
    let missing = SeekGroupRequest { name: "nobody".into(), to: Some(Start::default()) };
    let missing = cluster.messaging(0).await.seek_group(cluster.request(APP, missing)).await;
    assert_eq!(missing.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_holds_ten_thousand_records_holds_up_nobody_else() {
    let cluster = Cluster::start(1).await;
    cluster.create(0, group("g")).await.unwrap();
    for client in clients() {
        cluster.publish(&client, "t", 0..834).await;
    }
    let mut holder = cluster.consume(0, "g", 10_000, 0).await;
    take(&mut holder, 10_000).await;
    let mut other = cluster.consume(0, "g", 1_000, 0).await;
    for client in clients() {
        cluster.publish(&format!("{client}-too"), "t", 0..1_000).await;
    }
    let mut seen = BTreeSet::new();
    // The eight that the holder had no credit for may come as well.
    let wanted =
        |seen: &BTreeSet<(String, u32)>| seen.iter().filter(|(client, _)| client.ends_with("-too")).count();
    while wanted(&seen) < 12_000 {
        let got = other.records().await;
        other.ack(&got).await;
        seen.extend(names(&got));
    }
    assert!(holder.quiet(Duration::from_millis(200)).await);
    until("only what is held lags", async || cluster.lag(0, "g").await <= 10_008).await;
}
