//! Where in a log something is: the start of a group at a time, and the bound of a trim. Both search by halves or whole
//! terms, for sequences are dense; neither walks entries.

use super::machine::Machine;
use crate::{
    name::PartitionKey,
    position::{EntryId, Term},
    store::{CommitError, Keep, StoreError, StoredEntry, Totals},
};

fn place(entry: &StoredEntry) -> (EntryId, Totals) {
    (entry.id, entry.entry.totals)
}

impl Machine {
    /// The last entry that holds nothing received at `time` or later; None: every retained one may.
    pub(super) fn before(
        &mut self,
        key: &PartitionKey,
        time: u64,
    ) -> Result<Option<(EntryId, Totals)>, StoreError> {
        self.settle()?;
        let Some(entry) = self.last_early(key, time)? else { return Ok(None) };
        if entry.entry.count <= 1 {
            return Ok(Some(place(&entry)));
        }
        // Its later records may be of that time.
        let before = EntryId { sequence: entry.id.sequence.saturating_sub(1), ..entry.id };
        Ok(self.disk.last_up_to(key, before)?.as_ref().map(place))
    }

    /// The last entry that was first received before `time`.
    fn last_early(&self, key: &PartitionKey, time: u64) -> Result<Option<StoredEntry>, StoreError> {
        let Some(oldest) = self.disk.first_from(key, EntryId::ZERO)? else { return Ok(None) };
        let newest = self.partitions.get(key).map_or(oldest.id.term, |partition| partition.last.0.term);
        let early = |id| {
            let found = self.disk.first_from(key, id)?;
            Ok::<_, StoreError>(found.filter(|entry| entry.entry.first_received_at < time))
        };
        let (mut from, mut to, mut last) = (oldest.id.term.0, newest.0, None);
        while from <= to {
            let middle = from + (to - from) / 2;
            match early(EntryId::new(middle, 0))? {
                Some(entry) => {
                    from = entry.id.term.0 + 1;
                    last = Some(entry);
                }
                None => to = middle.saturating_sub(1),
            }
        }
        let Some(mut last) = last else { return Ok(None) };
        let term = last.id.term;
        let end = self.disk.last_up_to(key, EntryId { term, sequence: u64::MAX })?;
        let (mut from, mut to) = (last.id.sequence + 1, end.map_or(0, |entry| entry.id.sequence));
        while from <= to {
            let middle = from + (to - from) / 2;
            match early(EntryId { term, sequence: middle })? {
                Some(entry) => {
                    last = entry;
                    from = middle + 1;
                }
                None => to = middle - 1,
            }
        }
        Ok(Some(last))
    }

    pub(super) fn trim(&mut self, key: &PartitionKey, term: Term, keep: Keep) -> Result<Totals, CommitError> {
        let partition = self.held(key, term).ok_or(CommitError::Fenced)?;
        let (trimmed, last) = (partition.trimmed, partition.last.0);
        let cursor = partition.lowest_cursor();
        if partition.groups.len() < keep.groups {
            return Ok(trimmed.1);
        }
        self.settle()?;
        if let Some(kept) = self.bound(key, last, keep.entries)? {
            let bound = cursor.map_or(kept, |cursor| cursor.min(kept));
            self.remove_entries(key, trimmed.0, bound)?;
        }
        Ok(self.held(key, term).map_or(trimmed.1, |partition| partition.trimmed.1))
    }

    /// The last entry that is not among the newest `keep`, or an id just above it.
    fn bound(&self, key: &PartitionKey, last: EntryId, mut keep: u64) -> Result<Option<EntryId>, StoreError> {
        let mut id = last;
        while id.sequence < keep {
            keep -= id.sequence;
            match self.disk.last_up_to(key, EntryId { sequence: 0, ..id })? {
                Some(entry) => id = entry.id,
                None => return Ok(None),
            }
        }
        Ok(Some(EntryId { sequence: id.sequence - keep, ..id }))
    }
}
