//! The lane between links and store, and what routing reads of records. The store of the bench confirms at once and keeps
//! nothing. `cargo bench -p penstock-router --bench hot`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../mqtt/benches/hot/paths.rs"]
mod paths;

use std::hint::black_box;

use bytes::Bytes;
use paths::Path;
use penstock_common::{
    position::EntryId,
    store::{ReadBack, Segment, Totals},
};
use penstock_proto::record::{Record, RecordBatch};
use penstock_router::{
    batch,
    lane::{Batch, Lane, Screened},
    producers::Producers,
};
use prost::Message;

const PATHS: &[Path] = &[
    Path { name: "lane_1_link", operations: 64, prepare: || lane(1, 64, false) },
    Path { name: "lane_8_links", operations: 512, prepare: || lane(8, 64, false) },
    Path { name: "lane_resent", operations: 64, prepare: || lane(1, 64, true) },
    Path { name: "batch_count", operations: 64, prepare: batch_count },
    Path { name: "batch_heads", operations: 64, prepare: batch_heads },
];

fn main() {
    paths::main(PATHS);
}

#[divan::bench(args = PATHS, min_time = 0.3)]
fn hot(bencher: divan::Bencher<'_, '_>, path: &Path) {
    paths::time(bencher, path);
}

fn records(count: u32) -> Bytes {
    let record = Record {
        client: Bytes::from_static(b"device-4711"),
        epoch: 1 << 40,
        topic: Bytes::from_static(b"plant/7/line/3/temperature"),
        payload: Bytes::from_static(&[b'x'; 64]),
        qos: 1,
        user: Bytes::from_static(b"device"),
        received_at: 1_763_000_000_000,
        ..Record::default()
    };
    RecordBatch { records: vec![record; count as usize] }.encode_to_vec().into()
}

/// Batches of several links joined into one entry and settled; resent ones are looked at record by record.
fn lane(links: u64, count: u32, resent: bool) -> Box<dyn FnMut()> {
    let producers = Producers::from_tail(&ReadBack { entries: vec![], complete: true }, true);
    let mut lane = Lane::new(producers, Totals::default());
    let records = records(count);
    let (mut first, mut sequence) = (1, 0);
    Box::new(move || {
        for link in 0..links {
            lane.accept(Batch {
                link,
                lane: 1,
                segment: Segment { producer: link, first, count },
                records: black_box(&records).clone(),
                resent,
                first_received_at: 1_763_000_000_000,
                refused: false,
                held: None,
            });
        }
        (first, sequence) = (first + u64::from(count), sequence + 1);
        let flight = lane.next(|_, _| false, &mut Screened::default()).unwrap();
        let id = EntryId::new(1, sequence);
        let settled = lane.stored(flight, Some(id));
        assert_eq!(settled.len(), links as usize);
        black_box(settled);
    })
}

/// What is checked of a batch when it comes.
fn batch_count() -> Box<dyn FnMut()> {
    let records = records(64);
    Box::new(move || assert_eq!(batch::count(black_box(&records)), Ok(64)))
}

/// What filters need of each record.
fn batch_heads() -> Box<dyn FnMut()> {
    let records = records(64);
    Box::new(move || {
        for frame in batch::frames(black_box(&records)) {
            black_box(batch::head(frame.unwrap().body).unwrap());
        }
    })
}
