//! Where in a log something is: the start of a group at a time, and the bound of a trim. Both search by halves or whole
//! terms, for sequences are dense; neither walks entries.

use super::machine::Machine;
use crate::{
    name::PartitionKey,
    position::{EntryId, Term},
    registry::BacklogPolicy,
    store::{CommitError, Keep, StoreError, StoredEntry, Totals, Trimmed},
};

/// What holds a log's entries back.
struct Cursors {
    /// Every group that is not detached is done up to here.
    done: Option<EntryId>,
    /// Totals there.
    records: Option<u64>,
    /// Every group that blocks is done up to here.
    floor: Option<EntryId>,
}

fn place(entry: &StoredEntry) -> (EntryId, Totals) {
    (entry.id, entry.entry.totals)
}

impl Machine {
    fn trimmed(&self, key: &PartitionKey) -> EntryId {
        self.partitions.get(key).map_or(EntryId::ZERO, |partition| partition.trimmed.0)
    }

    /// The last retained entry at or below an id.
    fn last_up_to(&self, key: &PartitionKey, id: EntryId) -> Result<Option<StoredEntry>, StoreError> {
        self.disk.last_up_to(key, self.trimmed(key), id)
    }

    /// The first retained entry at or above an id.
    fn first_from(&self, key: &PartitionKey, id: EntryId) -> Result<Option<StoredEntry>, StoreError> {
        self.disk.first_from(key, self.trimmed(key), id)
    }

    /// The last entry that holds nothing received at `time` or later; None: every retained one may.
    pub(super) fn before(
        &mut self,
        key: &PartitionKey,
        time: u64,
    ) -> Result<Option<(EntryId, Totals)>, StoreError> {
        self.settle()?;
        let early = |entry: &StoredEntry| entry.entry.first_received_at < time;
        let Some(entry) = self.last_such(key, early)? else { return Ok(None) };
        if entry.entry.count <= 1 {
            return Ok(Some(place(&entry)));
        }
        // Its later records may be of that time.
        let before = EntryId { sequence: entry.id.sequence.saturating_sub(1), ..entry.id };
        Ok(self.last_up_to(key, before)?.as_ref().map(place))
    }

    /// The last entry for which `early` holds; it holds for all before that.
    fn last_such(
        &self,
        key: &PartitionKey,
        early: impl Fn(&StoredEntry) -> bool,
    ) -> Result<Option<StoredEntry>, StoreError> {
        let Some(oldest) = self.first_from(key, EntryId::ZERO)? else { return Ok(None) };
        let newest = self.partitions.get(key).map_or(oldest.id.term, |partition| partition.last.0.term);
        let early = |id| Ok::<_, StoreError>(self.first_from(key, id)?.filter(&early));
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
        let end = self.last_up_to(key, EntryId { term, sequence: u64::MAX })?;
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

    pub(super) fn trim(
        &mut self,
        key: &PartitionKey,
        term: Term,
        keep: &Keep,
    ) -> Result<Trimmed, CommitError> {
        let partition = self.held(key, term).ok_or(CommitError::Fenced)?;
        let (trimmed, last, fan) = (partition.trimmed, partition.last, partition.fan);
        if partition.groups.len() < keep.groups {
            let held = Some(trimmed.1.bytes);
            return Ok(Trimmed { totals: trimmed.1, held, ..Trimmed::default() });
        }
        self.settle()?;
        let full = self.too_many(key, (trimmed.1, last.1), keep.bytes)?;
        let aged = self.too_old(key, keep.received_since)?;
        let Cursors { done, records, floor } = self.look_at_cursors(key, full, keep);
        let mut bound = done;
        if let Some(full) = full {
            bound = bound.max(Some(floor.map_or(full, |floor| floor.min(full))));
        }
        let old = aged > bound;
        bound = bound.max(aged);
        if let (Some(bound), Some(kept)) = (bound, self.bound(key, last.0, keep.entries)?) {
            let bound = bound.min(kept);
            self.remove_entries(key, trimmed.0, fan.map_or(bound, |fan| fan.min(bound)))?;
        }
        let totals = self.held(key, term).map_or(trimmed.1, |partition| partition.trimmed.1);
        let lost = records.map_or(0, |done| totals.records.saturating_sub(done.max(trimmed.1.records)));
        let held = match floor.into_iter().chain(fan).min() {
            Some(stop) => {
                let before = self.last_up_to(key, stop)?;
                Some(before.map_or(totals.bytes, |entry| entry.entry.totals.bytes.max(totals.bytes)))
            }
            None => None,
        };
        Ok(Trimmed { totals, held, lost, aged: old })
    }

    /// The last entry that has to go for the log to keep within its bytes.
    fn too_many(
        &self,
        key: &PartitionKey,
        (trimmed, last): (Totals, Totals),
        limit: u64,
    ) -> Result<Option<EntryId>, StoreError> {
        if last.bytes - trimmed.bytes <= limit {
            return Ok(None);
        }
        let goal = last.bytes - limit + limit / 16;
        let begins = |entry: &StoredEntry| entry.entry.totals.bytes - entry.entry.records.len() as u64;
        Ok(self.last_such(key, |entry| begins(entry) < goal)?.map(|entry| entry.id))
    }

    /// The last entry that was received before a time.
    fn too_old(&self, key: &PartitionKey, since: u64) -> Result<Option<EntryId>, StoreError> {
        let old = |entry: &StoredEntry| entry.entry.first_received_at < since;
        match self.first_from(key, EntryId::ZERO)?.filter(old) {
            Some(_) => Ok(self.last_such(key, old)?.map(|entry| entry.id)),
            None => Ok(None),
        }
    }

    /// What cursors say; detaches groups that are to be detached when the log is full.
    fn look_at_cursors(&mut self, key: &PartitionKey, full: Option<EntryId>, keep: &Keep) -> Cursors {
        let mut cursors = Cursors { done: None, records: None, floor: None };
        let mut detached = Vec::new();
        let Some(partition) = self.partitions.get_mut(key) else { return cursors };
        for (name, cursor) in &mut partition.groups {
            let policy =
                keep.yielding.iter().find(|(yielding, _)| yielding == name).map(|(_, policy)| *policy);
            let (up, policy) = (cursor.done_up_to, policy.unwrap_or_default());
            if policy == BacklogPolicy::Detach && !cursor.detached && full > Some(up) {
                cursor.detached = true;
                detached.push(name.clone());
            }
            let holds = policy != BacklogPolicy::Detach || !cursor.detached;
            if holds && cursors.done.is_none_or(|done| up < done) {
                (cursors.done, cursors.records) = (Some(up), Some(cursor.done_records));
            }
            if policy == BacklogPolicy::Block {
                cursors.floor = Some(cursors.floor.map_or(up, |floor| floor.min(up)));
            }
        }
        for group in detached {
            self.write_counts(key, &group);
        }
        cursors
    }

    /// The last entry that is not among the newest `keep`, or an id just above it.
    fn bound(&self, key: &PartitionKey, last: EntryId, mut keep: u64) -> Result<Option<EntryId>, StoreError> {
        let mut id = last;
        while id.sequence < keep {
            keep -= id.sequence;
            match self.last_up_to(key, EntryId { sequence: 0, ..id })? {
                Some(entry) => id = entry.id,
                None => return Ok(None),
            }
        }
        Ok(Some(EntryId { sequence: id.sequence - keep, ..id }))
    }
}
