//! The way from a publish to its PUBACK's token, for benches (feature `bench`): one lane with its batches and an open route,
//! without a shard, links or a clock. Nothing of the gateway uses it.

use penstock_common::name::PartitionKey;
use penstock_mqtt::session::PublishToken;
use penstock_proto::link;

use crate::{
    connection::table::ConnectionKey,
    link::table::LinkKey,
    uplink::{lane::Lane, record::NewRecord},
};

/// A lane whose home is open, with more credit than a bench uses up between two settles.
pub struct Batcher {
    lane: Lane,
    tokens: u64,
}

impl Batcher {
    /// An empty lane of a partition.
    pub fn new(partition: PartitionKey) -> Self {
        let mut lane = Lane::new(partition);
        lane.opened(LinkKey { slot: 0, life: 1 }, 1, 64 << 20);
        Self { lane, tokens: 0 }
    }

    /// Adds a publish of QoS 1 to the growing batch.
    pub fn publish(&mut self, client: &[u8], topic: &[u8], payload: &[u8]) {
        let record = NewRecord {
            client,
            epoch: 1 << 40,
            topic,
            payload,
            qos: 1,
            user: b"device",
            received_at: 1_763_000_000_000,
            last_will: false,
        };
        self.tokens += 1;
        let connection = ConnectionKey { slot: 0, life: 1 };
        self.lane.push(&record, connection, Some(PublishToken(self.tokens)), 1);
    }

    /// The next batch to send, if there is one.
    pub fn append(&mut self) -> Option<link::Append> {
        self.lane.next_append()
    }

    /// Settles a batch as stored; returns how many publishers get their PUBACK.
    pub fn settle(&mut self, append: &link::Append) -> usize {
        let settle = link::Settle {
            lane: append.lane,
            first: append.first,
            count: append.count,
            result: link::SettleResult::Stored.into(),
            credit: append.records.len() as u64,
        };
        let mut acknowledged = 0;
        let known =
            self.lane.settle(&settle, |receipt, _| acknowledged += usize::from(receipt.token.is_some()));
        known.map_or(0, |()| acknowledged)
    }
}
