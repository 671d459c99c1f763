//! The newest entries of a log in memory, while somebody reads them. Pure. Bounded in bytes and entries; what is older
//! comes from the store.

use std::{collections::VecDeque, sync::Arc};

use penstock_common::{position::EntryId, store::StoredEntry};

/// Bytes of records held for one partition.
const BYTES: usize = 4 << 20;
/// Entries held for one partition.
const ENTRIES: usize = 4_096;

/// The end of a log.
#[derive(Debug)]
pub struct Tail {
    entries: VecDeque<Arc<StoredEntry>>,
    bytes: usize,
    /// Everything stored above this is in `entries`.
    after: EntryId,
}

impl Tail {
    /// Knows nothing at or below `after`.
    pub fn new(after: EntryId) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, after }
    }

    /// Follows an append.
    pub fn push(&mut self, entry: Arc<StoredEntry>) {
        self.bytes += entry.entry.records.len();
        self.entries.push_back(entry);
        while self.bytes > BYTES || self.entries.len() > ENTRIES {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.entry.records.len();
            self.after = oldest.id;
        }
    }

    /// Nobody reads, or something was stored that is not known here: starts again after this entry.
    pub fn reset(&mut self, after: EntryId) {
        *self = Self::new(after);
    }

    /// Entries above `after`, or None when they reach further back than the memory.
    pub fn read(
        &self,
        after: EntryId,
        max_entries: usize,
        max_bytes: usize,
    ) -> Option<Vec<Arc<StoredEntry>>> {
        if after < self.after {
            return None;
        }
        let from = self.entries.partition_point(|entry| entry.id <= after);
        let mut bytes = 0;
        let found = self.entries.iter().skip(from).take(max_entries).take_while(|entry| {
            let within = bytes < max_bytes;
            bytes += entry.entry.records.len();
            within
        });
        Some(found.map(Arc::clone).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use penstock_common::store::{Entry, Totals};

    use super::*;

    fn entry(sequence: u64, size: usize) -> Arc<StoredEntry> {
        let entry = Entry {
            records: Bytes::from(vec![0; size]),
            segments: vec![],
            count: 1,
            first_received_at: 0,
            totals: Totals::default(),
        };
        Arc::new(StoredEntry { id: EntryId::new(1, sequence), entry })
    }

    #[test]
    fn memory_is_bounded_and_says_what_it_lacks() {
        let mut tail = Tail::new(EntryId::new(1, 0));
        for sequence in 1..=10 {
            tail.push(entry(sequence, 1 << 20));
        }
        assert!(tail.read(EntryId::new(1, 2), 10, 1 << 30).is_none());
        let ids: Vec<_> =
            tail.read(EntryId::new(1, 7), 2, 1 << 30).unwrap().iter().map(|e| e.id.sequence).collect();
        assert_eq!(ids, [8, 9]);
        assert_eq!(tail.read(EntryId::new(1, 7), 9, 1).unwrap().len(), 1);
        assert!(tail.read(EntryId::new(1, 10), 9, 9).unwrap().is_empty());
    }
}
