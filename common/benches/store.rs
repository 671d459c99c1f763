//! How many entries and records a second a store confirms, and how long one waits: `cargo bench -p penstock-common
//! --features embedded,redis --bench store -- [redis://…]`. Each partition has one append in flight, as a lane has.
//! Without a URL it measures the embedded store in a temporary directory, in both classes.
// What is measured is real time.
#![allow(clippy::disallowed_methods)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use penstock_common::{
    name::{PartitionKey, TenantName},
    store::{
        Durability, Entry, Segment, Store, Totals,
        embedded::EmbeddedStore,
        redis::{RedisConfig, RedisStore},
    },
};
use tokio_util::sync::CancellationToken;

const RUN: Duration = Duration::from_secs(3);
const RECORD_BYTES: usize = 120;

#[tokio::main]
async fn main() {
    let url = std::env::args().find(|argument| argument.contains("://"));
    for durability in [Durability::Memory, Durability::Fsynced] {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = match &url {
            Some(url) => {
                let config = RedisConfig::new(url, durability);
                match RedisStore::open(config, &CancellationToken::new()).await {
                    Ok(store) => store,
                    Err(refused) => {
                        println!("{durability}: {refused}");
                        continue;
                    }
                }
            }
            None => EmbeddedStore::open(directory.path(), durability).unwrap(),
        };
        println!("{}", store.describe());
        for (partitions, records) in [(1, 1), (64, 1), (256, 1), (64, 16), (64, 256)] {
            measure(&store, partitions, records).await;
        }
    }
}

async fn measure(store: &Arc<dyn Store>, partitions: u32, records: u32) {
    let end = Instant::now() + RUN;
    let mut lanes = tokio::task::JoinSet::new();
    for partition in 0..partitions {
        lanes.spawn(lane(Arc::clone(store), partition, records, end));
    }
    let mut waits: Vec<Duration> = lanes.join_all().await.into_iter().flatten().collect();
    waits.sort_unstable();
    let entries = waits.len() as f64 / RUN.as_secs_f64();
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize];
    println!(
        "{partitions:4} partitions, {records:3} records an entry: {entries:8.0} entries/s {:9.0} records/s, \
         p50 {:?} p99 {:?}",
        entries * f64::from(records),
        at(0.5),
        at(0.99),
    );
}

async fn lane(store: Arc<dyn Store>, partition: u32, records: u32, end: Instant) -> Vec<Duration> {
    let key = PartitionKey { tenant: TenantName::new("bench").unwrap(), partition };
    let took = store.take(&key, 1).await.unwrap();
    let batch = Bytes::from(vec![7; RECORD_BYTES * records as usize]);
    let (mut totals, mut waits) = (took.totals, Vec::new());
    while Instant::now() < end {
        totals =
            Totals { records: totals.records + u64::from(records), bytes: totals.bytes + batch.len() as u64 };
        let entry = Entry {
            records: batch.clone(),
            segments: vec![Segment { producer: 1, first: totals.records, count: records }],
            count: records,
            first_received_at: 1,
            totals,
        };
        let start = Instant::now();
        store.append(&key, took.term, &entry).await.unwrap();
        waits.push(start.elapsed());
    }
    waits
}
