//! The state of all partitions and the batch that is being gathered: what each verb changes. Runs in the committer's
//! thread only, one verb at a time; what a verb returns is told to its caller after the batch is stored.

use fjall::{Guard, OwnedWriteBatch as WriteBatch, PersistMode};
use hashbrown::HashMap;

use super::{
    committer::Failure,
    disk::{Disk, corrupt, failed},
    keys,
    mail::Sessions,
    partition::{Partition, advance, encode_cursor},
    wills::Wills,
};
use crate::{
    clock::Seams,
    name::{PartitionKey, TenantName},
    position::{EntryId, Term},
    store::{
        AppendError, CommitError, Counts, CursorChange, CursorStart, Cursors, GroupCursor, StoreError, Took,
        Totals, User,
    },
};

/// Bytes of a batch after which it is written.
const BATCH_BYTES: usize = 16 << 20;
/// Keys that are removed in one batch.
const REMOVE_STEP: usize = 10_000;

/// State and batch.
pub(super) struct Machine {
    pub(super) disk: Disk,
    pub(super) partitions: HashMap<PartitionKey, Partition>,
    pub(super) sessions: Sessions,
    pub(super) wills: Wills,
    pub(super) batch: WriteBatch,
    pub(super) batch_bytes: usize,
    /// Batches that were written.
    pub(super) writes: u64,
    mode: PersistMode,
    pub(super) clock: Seams,
    failure: Option<Failure>,
}

impl Machine {
    pub(super) fn new(
        disk: Disk,
        partitions: HashMap<PartitionKey, Partition>,
        sessions: Sessions,
        wills: Wills,
        synced: bool,
    ) -> Self {
        let mode = if synced { PersistMode::SyncData } else { PersistMode::Buffer };
        let batch = disk.database.batch();
        Self {
            disk,
            partitions,
            sessions,
            wills,
            batch,
            batch_bytes: 0,
            writes: 1,
            mode,
            clock: Seams::real(),
            failure: None,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.batch_bytes >= BATCH_BYTES
    }

    /// Writes the batch. After a failure it fails for ever.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        self.batch_bytes = 0;
        self.writes += 1;
        let batch = std::mem::replace(&mut self.batch, self.disk.database.batch());
        let written = batch.durability(Some(self.mode)).commit();
        written.map_err(|error| self.failure.insert(Failure(error.to_string())).clone())
    }

    /// Writes the batch, so that what is read from disk is all there is.
    pub(super) fn settle(&mut self) -> Result<(), StoreError> {
        self.flush().map_err(|Failure(reason)| StoreError::Unavailable(reason))
    }

    fn write_settings(&mut self, key: &PartitionKey) {
        if let Some(partition) = self.partitions.get(key) {
            self.batch.insert(&self.disk.state, keys::settings(key), partition.encode());
        }
    }

    fn write_cursor(&mut self, key: &PartitionKey, group: &str) {
        let partition = self.partitions.get(key);
        if let Some(cursor) = partition.and_then(|partition| partition.groups.get(group)) {
            let bytes = encode_cursor(cursor);
            self.batch_bytes += bytes.len();
            self.batch.insert(&self.disk.state, keys::group(key, group), bytes);
        }
    }

    /// The partition, if this is its term.
    pub(super) fn held(&mut self, key: &PartitionKey, term: Term) -> Option<&mut Partition> {
        self.partitions.get_mut(key).filter(|partition| partition.term == term)
    }

    pub(super) fn take(&mut self, key: PartitionKey, holder: u64) -> Took {
        let now = self.clock.now_ms();
        let partition = self.partitions.entry(key.clone()).or_default();
        let previous = std::mem::replace(&mut partition.holder, holder);
        partition.term = partition.next_term(now);
        let took = Took {
            term: partition.term,
            previous_holder: (previous != 0).then_some(previous),
            last: partition.last.0,
            totals: partition.last.1,
            trimmed: partition.trimmed.1,
        };
        self.write_settings(&key);
        took
    }

    pub(super) fn append(
        &mut self,
        key: &PartitionKey,
        term: Term,
        totals: Totals,
        entry: Vec<u8>,
    ) -> Result<EntryId, AppendError> {
        let partition = self.held(key, term).ok_or(AppendError::Fenced)?;
        let id = partition.next_id();
        partition.last = (id, totals);
        self.batch_bytes += entry.len();
        self.batch.insert(&self.disk.log, keys::entry(key, id), entry);
        Ok(id)
    }

    pub(super) fn holder(&self, key: &PartitionKey) -> Option<(Term, u64)> {
        let partition = self.partitions.get(key)?;
        (partition.holder != 0).then_some((partition.term, partition.holder))
    }

    pub(super) fn cursors(&self, key: &PartitionKey) -> Cursors {
        let cursors = |p: &Partition| Cursors { fan: p.fan, groups: p.groups.clone(), trimmed: p.trimmed };
        self.partitions.get(key).map(cursors).unwrap_or_default()
    }

    pub(super) fn create_cursor(
        &mut self,
        key: PartitionKey,
        group: String,
        start: CursorStart,
    ) -> Result<(), StoreError> {
        if self.partitions.get(&key).is_some_and(|partition| partition.groups.contains_key(&group)) {
            return Ok(());
        }
        self.set_cursor(key, group, start)
    }

    fn set_cursor(&mut self, key: PartitionKey, group: String, start: CursorStart) -> Result<(), StoreError> {
        let partition = self.partitions.get(&key);
        let (last, trimmed) = partition.map(|own| (own.last, own.trimmed)).unwrap_or_default();
        let (done_up_to, totals) = match start {
            CursorStart::Latest => last,
            CursorStart::Earliest => trimmed,
            CursorStart::Time(time) => self.before(&key, time)?.unwrap_or(trimmed),
        };
        let counts = Counts { began: totals.records, ..Counts::default() };
        let cursor =
            GroupCursor { done_up_to, done_records: totals.records, counts, ..GroupCursor::default() };
        self.partitions.entry(key.clone()).or_default().groups.insert(group.clone(), cursor);
        self.write_cursor(&key, &group);
        self.write_counts(&key, &group);
        Ok(())
    }

    pub(super) fn seek(
        &mut self,
        key: PartitionKey,
        term: Term,
        group: String,
        to: CursorStart,
    ) -> Result<(), CommitError> {
        let partition = self.held(&key, term).ok_or(CommitError::Fenced)?;
        match partition.groups.contains_key(&group) {
            true => Ok(self.set_cursor(key, group, to)?),
            false => Ok(()),
        }
    }

    pub(super) fn delete_cursor(&mut self, key: &PartitionKey, group: &str) {
        let partition = self.partitions.get_mut(key);
        if partition.is_some_and(|partition| partition.groups.remove(group).is_some()) {
            self.batch.remove(&self.disk.state, keys::group(key, group));
            self.forget_dead(key, group);
        }
    }

    pub(super) fn commit(
        &mut self,
        key: &PartitionKey,
        term: Term,
        changes: &[CursorChange],
    ) -> Result<(), CommitError> {
        for change in changes {
            let partition = self.held(key, term).ok_or(CommitError::Fenced)?;
            match change {
                CursorChange::Fan(fan) => {
                    partition.fan = *fan;
                    self.write_settings(key);
                }
                CursorChange::Group { group, done_up_to, done_records, counts, open, dead } => {
                    self.bury(key, group, dead);
                    let partition = self.held(key, term).ok_or(CommitError::Fenced)?;
                    if let Some(cursor) = partition.groups.get_mut(group) {
                        advance(cursor, *done_up_to, *done_records, open);
                        cursor.counts = *counts;
                        self.write_cursor(key, group);
                        self.write_counts(key, group);
                    }
                }
            }
        }
        self.held(key, term).map(drop).ok_or(CommitError::Fenced)
    }

    /// Removes the entries after the last trimmed one up to `bound`, some of them if they are many.
    pub(super) fn remove_entries(
        &mut self,
        key: &PartitionKey,
        trimmed: EntryId,
        bound: EntryId,
    ) -> Result<(), StoreError> {
        let removed = self.next_entries(key, trimmed, bound)?;
        for id in &removed {
            self.batch.remove(&self.disk.log, keys::entry(key, *id));
        }
        let Some(last) = removed.last().copied() else { return Ok(()) };
        let entry = self.disk.last_up_to(key, trimmed, last)?.ok_or_else(|| corrupt("an entry"))?;
        if let Some(partition) = self.partitions.get_mut(key) {
            partition.trimmed = (last, entry.entry.totals);
        }
        self.write_settings(key);
        Ok(())
    }

    /// The entries after one up to another, some of them if they are many. Within a term none is read: its sequences are dense.
    fn next_entries(
        &self,
        key: &PartitionKey,
        after: EntryId,
        to: EntryId,
    ) -> Result<Vec<EntryId>, StoreError> {
        if after.term == to.term {
            let sequences = (after.sequence + 1..=to.sequence).take(REMOVE_STEP);
            return Ok(sequences.map(|sequence| EntryId { sequence, ..to }).collect());
        }
        let entries = self.disk.range(key, after, to).take(REMOVE_STEP);
        let id =
            |item: Guard| keys::entry_id(&item.key().map_err(failed)?).ok_or_else(|| corrupt("an entry"));
        entries.map(id).collect()
    }

    pub(super) fn put_user(
        &mut self,
        tenant: &TenantName,
        user: &User,
        create: bool,
    ) -> Result<bool, StoreError> {
        self.settle()?;
        let json = serde_json::to_vec(user).map_err(|_| corrupt("a user"))?;
        if create && self.disk.user(tenant, &user.name)?.is_some() {
            return Ok(false);
        }
        self.batch.insert(&self.disk.users, keys::user(tenant, &user.name), json);
        Ok(true)
    }

    pub(super) fn delete_user(&mut self, tenant: &TenantName, name: &str) -> Result<bool, StoreError> {
        self.settle()?;
        let key = keys::user(tenant, name);
        let found = self.disk.users.contains_key(&key).map_err(failed)?;
        if found {
            self.batch.remove(&self.disk.users, key);
        }
        Ok(found)
    }

    /// Entries first and terms last: a deletion that was cut off can be repeated.
    pub(super) fn delete_tenant(&mut self, tenant: &TenantName) -> Result<(), StoreError> {
        // Fences every home of it off.
        self.partitions.retain(|key, _| key.tenant != *tenant);
        self.sessions.forget(tenant);
        self.wills.forget(tenant);
        for keyspace in self.disk.keyspaces() {
            self.settle()?;
            for (number, item) in keyspace.prefix(keys::tenant(tenant)).enumerate() {
                if number > 0 && number % REMOVE_STEP == 0 {
                    self.settle()?;
                }
                self.batch.remove(&keyspace, item.key().map_err(failed)?);
            }
        }
        Ok(())
    }
}
