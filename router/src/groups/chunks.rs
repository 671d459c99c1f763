//! Records that are handed out in one turn, gathered by consumer and entry into batches that fit a message. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use penstock_common::position::EntryId;

use super::{clients::ConsumerId, held::Held};

/// A hand-out holds no more, so that it fits a message of the doors; one record may be larger.
const HAND_OUT_BYTES: usize = 1 << 20;

/// Records of one entry for one consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOut {
    /// Whose hands.
    pub consumer: ConsumerId,
    /// Which entry.
    pub entry: EntryId,
    /// A `RecordBatch`.
    pub records: Bytes,
    /// Index in the entry of each; empty: all of it.
    pub indexes: Vec<u32>,
    /// How often each was handed out, with this time; empty: all 1.
    pub counts: Vec<u32>,
}

/// Consumer, entry, and count of chunks.
pub type ChunkKey = (ConsumerId, EntryId, u32);

#[derive(Debug, Default)]
struct Chunk {
    number: u64,
    indexes: Vec<u32>,
    bytes: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Chunks(BTreeMap<ChunkKey, Chunk>);

impl Chunks {
    /// The chunk that a record of this size belongs to: the last one of the entry, or the next one when that is full.
    pub fn key(&self, consumer: ConsumerId, entry: EntryId, size: usize) -> ChunkKey {
        match self.0.range((consumer, entry, 0)..=(consumer, entry, u32::MAX)).next_back() {
            None => (consumer, entry, 0),
            Some(((_, _, last), chunk)) if chunk.bytes + size > HAND_OUT_BYTES => (consumer, entry, last + 1),
            Some((key, _)) => *key,
        }
    }

    /// The number under which a chunk is handed out, if it has been begun.
    pub fn number(&self, key: &ChunkKey) -> Option<u64> {
        self.0.get(key).map(|chunk| chunk.number)
    }

    /// Adds a record to a chunk; begins it under this number.
    pub fn add(&mut self, key: ChunkKey, number: u64, index: u32, size: usize) {
        let chunk = self.0.entry(key).or_insert_with(|| Chunk { number, ..Chunk::default() });
        chunk.indexes.push(index);
        chunk.bytes += size;
    }

    /// The hand-outs, in the order of consumers and of the log.
    pub fn build<'a>(
        self,
        entries: impl Fn(EntryId) -> Option<&'a Held> + 'a,
    ) -> impl Iterator<Item = HandOut> + 'a {
        let chunks = self.0.into_iter();
        chunks.filter_map(move |((consumer, entry, _), chunk)| Some(build(entries(entry)?, consumer, chunk)))
    }
}

fn build(held: &Held, consumer: ConsumerId, chunk: Chunk) -> HandOut {
    let mut indexes = chunk.indexes;
    indexes.sort_unstable();
    let times = |index: &u32| held.deliveries.get(index).map_or(1, |times| times.saturating_add(1));
    let counts: Vec<u32> = indexes.iter().map(times).collect();
    let plain = counts.iter().all(|times| *times == 1);
    let records = held.gather(&indexes);
    let whole = indexes.len() == held.done.count() as usize;
    HandOut {
        consumer,
        entry: held.id,
        records,
        indexes: if whole { Vec::new() } else { indexes },
        counts: if plain { Vec::new() } else { counts },
    }
}
