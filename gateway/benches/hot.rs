//! The batcher: publishes into the batch of their partition, batches out, settles back. `cargo bench -p penstock-gateway
//! --features bench --bench hot`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../mqtt/benches/hot/paths.rs"]
mod paths;

use std::hint::black_box;

use paths::Path;
use penstock_common::name::{PartitionKey, TenantName};
use penstock_gateway::batcher::Batcher;
use prost::Message;

const PATHS: &[Path] = &[
    Path { name: "batch_of_1", operations: 64, prepare: || batches(64, 1) },
    Path { name: "batch_of_64", operations: 64, prepare: || batches(1, 64) },
];

fn main() {
    paths::main(PATHS);
}

#[divan::bench(args = PATHS, min_time = 0.3)]
fn hot(bencher: divan::Bencher<'_, '_>, path: &Path) {
    paths::time(bencher, path);
}

/// Batches of 64 B publishes, each sealed, encoded as the link's message, and settled.
fn batches(batches: usize, records: usize) -> Box<dyn FnMut()> {
    let partition = PartitionKey { tenant: TenantName::new("bench").unwrap(), partition: 0 };
    let mut batcher = Batcher::new(partition);
    let payload = [b'x'; 64];
    let mut wire = Vec::with_capacity(64 << 10);
    Box::new(move || {
        for _ in 0..batches {
            for _ in 0..records {
                batcher.publish(b"device-4711", b"plant/7/line/3/temperature", black_box(&payload));
            }
            let append = batcher.append().unwrap();
            wire.clear();
            append.encode(&mut wire).unwrap();
            black_box(&wire);
            assert_eq!(batcher.settle(&append), records);
        }
    })
}
