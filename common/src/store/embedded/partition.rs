//! State of one partition beside its entries, as it is in memory and on disk. No I/O.

use std::collections::BTreeMap;

use super::dead::Dead;
use crate::{
    position::{EntryId, Term},
    store::{
        Counts, GroupCursor, OpenEntry, Totals,
        encoding::{self, Reader},
    },
};

/// A partition as the committer knows it.
#[derive(Default, Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    /// Present term; 0: never taken.
    pub(super) term: Term,
    /// Who took it; 0: nobody.
    pub(super) holder: u64,
    /// Last entry ever stored, and totals there. Not written: it is the last one in the log, or the last trimmed.
    pub(super) last: (EntryId, Totals),
    /// Last entry that was trimmed, and totals there.
    pub(super) trimmed: (EntryId, Totals),
    /// Fan-out cursor.
    pub(super) fan: Option<EntryId>,
    /// Cursors by group. Each is written under its own key.
    pub(super) groups: BTreeMap<String, GroupCursor>,
    /// What is known of their dead letters.
    pub(super) dead: BTreeMap<String, Dead>,
}

impl Partition {
    /// The next term: above all that was, about the time.
    pub(super) fn next_term(&self, now_ms: u64) -> Term {
        let above = self.term.0.max(self.last.0.term.0).max(self.trimmed.0.term.0);
        Term(now_ms.max(above.saturating_add(1)))
    }

    /// Id of the next entry.
    pub(super) fn next_id(&self) -> EntryId {
        let last = self.last.0;
        let sequence = if last.term == self.term { last.sequence + 1 } else { 1 };
        EntryId { term: self.term, sequence }
    }

    /// Bytes of all but last entry and groups.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (trimmed, totals) = self.trimmed;
        let fan = self.fan.unwrap_or(EntryId::ZERO);
        let numbers = [
            self.term.0,
            self.holder,
            trimmed.term.0,
            trimmed.sequence,
            totals.records,
            totals.bytes,
            u64::from(self.fan.is_some()),
            fan.term.0,
            fan.sequence,
        ];
        numbers.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// Reads what `encode` wrote; None: unreadable.
    pub(super) fn restore(&mut self, bytes: &[u8]) -> Option<()> {
        let mut reader = Reader(bytes);
        self.term = Term(reader.u64()?);
        self.holder = reader.u64()?;
        let id = EntryId::new(reader.u64()?, reader.u64()?);
        self.trimmed = (id, Totals { records: reader.u64()?, bytes: reader.u64()? });
        let present = reader.u64()? == 1;
        let fan = EntryId::new(reader.u64()?, reader.u64()?);
        self.fan = present.then_some(fan);
        Some(())
    }
}

/// Moves a cursor: writes the open entries given and drops those that were passed.
pub(super) fn advance(
    cursor: &mut GroupCursor,
    done_up_to: EntryId,
    done_records: u64,
    open: &[(EntryId, OpenEntry)],
) {
    cursor.done_up_to = done_up_to;
    cursor.done_records = done_records;
    cursor.detached = false;
    cursor.open.extend(open.iter().cloned());
    cursor.open.retain(|id, _| *id > done_up_to);
}

/// Bytes of a cursor.
pub(super) fn encode_cursor(cursor: &GroupCursor) -> Vec<u8> {
    let mut bytes = Vec::new();
    let up = cursor.done_up_to;
    for number in [up.term.0, up.sequence, cursor.done_records] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for (id, open) in &cursor.open {
        bytes.extend_from_slice(&id.term.0.to_le_bytes());
        bytes.extend_from_slice(&id.sequence.to_le_bytes());
        let mut entry = Vec::new();
        encoding::put_open(&mut entry, open);
        bytes.extend_from_slice(&u32::try_from(entry.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&entry);
    }
    bytes
}

/// Reads what `encode_cursor` wrote; None: unreadable.
pub(super) fn decode_cursor(bytes: &[u8]) -> Option<GroupCursor> {
    let mut reader = Reader(bytes);
    let mut cursor = GroupCursor {
        done_up_to: EntryId::new(reader.u64()?, reader.u64()?),
        done_records: reader.u64()?,
        ..GroupCursor::default()
    };
    while !reader.0.is_empty() {
        let id = EntryId::new(reader.u64()?, reader.u64()?);
        cursor.open.insert(id, encoding::open(reader.prefixed()?)?);
    }
    cursor.counts = Counts::begin(&cursor);
    Some(cursor)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_comes_back() {
        let mut partition = Partition {
            term: Term(9),
            holder: u64::MAX,
            trimmed: (EntryId::new(3, 4), Totals { records: 5, bytes: 6 }),
            ..Partition::default()
        };
        for fan in [None, Some(EntryId::ZERO), Some(EntryId::new(7, 8))] {
            partition.fan = fan;
            let mut restored = Partition::default();
            restored.restore(&partition.encode()).unwrap();
            assert_eq!(restored, partition);
        }
        assert_eq!(Partition::default().restore(&[1; 8]), None);
        let open = OpenEntry { done: vec![3], deliveries: vec![(1, 2)] };
        let mut cursor = GroupCursor::default();
        advance(
            &mut cursor,
            EntryId::new(1, 1),
            7,
            &[
                (EntryId::new(1, 1), open.clone()),
                (EntryId::new(1, 2), open.clone()),
                (EntryId::new(2, 1), OpenEntry::default()),
            ],
        );
        assert_eq!(cursor.open.len(), 2);
        cursor.counts.began = 7 + 2;
        assert_eq!(decode_cursor(&encode_cursor(&cursor)), Some(cursor), "counts are written elsewhere");
        assert_eq!(decode_cursor(&[0; 25]), None);
    }

    #[test]
    fn a_clock_that_goes_back_lowers_no_term() {
        let partition = Partition { term: Term(50), ..Partition::default() };
        assert_eq!(partition.next_term(10), Term(51));
        assert_eq!(partition.next_term(99), Term(99));
    }
}
