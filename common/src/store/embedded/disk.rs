//! The database and what is read from it directly, beside the committer: entries and users. What is visible here is
//! stored at the configured durability.

use std::{ops::Bound, path::Path};

use bytes::Bytes;
use fjall::{Database, Guard, Keyspace, KeyspaceCreateOptions};
use hashbrown::HashMap;

use super::{
    dead::decode_counts,
    keys::{self, StateKey},
    partition::{Partition, decode_cursor},
};
use crate::{
    name::{PartitionKey, TenantName},
    position::{EntryId, Term},
    store::{
        Entry, ReadBack, StoreError, StoredEntry, Totals, User,
        encoding::{self, Reader},
    },
};

/// Above every entry.
const MAX: EntryId = EntryId { term: Term(u64::MAX), sequence: u64::MAX };

/// The database. Cheap to clone.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) database: Database,
    pub(super) log: Keyspace,
    pub(super) state: Keyspace,
    pub(super) users: Keyspace,
    pub(super) sessions: Keyspace,
    pub(super) mail: Keyspace,
    pub(super) filters: Keyspace,
    pub(super) push_keys: Keyspace,
    /// Dead letters, with keys as mail has, of a group in place of a client.
    pub(super) dead: Keyspace,
    pub(super) wills: Keyspace,
}

pub(super) fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(what.into())
}

/// What the database says of a read that failed.
pub(super) fn failed(error: fjall::Error) -> StoreError {
    match error {
        fjall::Error::Io(error) => StoreError::Unavailable(error.to_string()),
        other => StoreError::Corrupt(other.to_string()),
    }
}

impl Disk {
    pub(super) fn open(directory: &Path) -> fjall::Result<Self> {
        let database = Database::builder(directory).open()?;
        let keyspace = |name| database.keyspace(name, KeyspaceCreateOptions::default);
        let (log, state, users) = (keyspace("log")?, keyspace("state")?, keyspace("users")?);
        let (sessions, mail, filters) = (keyspace("sessions")?, keyspace("mail")?, keyspace("filters")?);
        let (push_keys, dead) = (keyspace("push-keys")?, keyspace("dead")?);
        let wills = keyspace("wills")?;
        Ok(Self { database, log, state, users, sessions, mail, filters, push_keys, dead, wills })
    }

    /// All keyspaces, in the order in which a tenant is removed from them: what fences it last.
    pub(super) fn keyspaces(&self) -> [Keyspace; 9] {
        [
            &self.log,
            &self.users,
            &self.filters,
            &self.push_keys,
            &self.mail,
            &self.dead,
            &self.wills,
            &self.sessions,
            &self.state,
        ]
        .map(Clone::clone)
    }

    /// All partitions with their last entries.
    pub(super) fn partitions(&self) -> Result<HashMap<PartitionKey, Partition>, StoreError> {
        let mut partitions: HashMap<PartitionKey, Partition> = HashMap::new();
        for item in self.state.iter() {
            let (key, value) = item.into_inner().map_err(failed)?;
            let (key, kind) = keys::state(&key).ok_or_else(|| corrupt("a key of a partition"))?;
            let partition = partitions.entry(key).or_default();
            let read = match kind {
                StateKey::Settings => partition.restore(&value),
                StateKey::Group(name) => {
                    decode_cursor(&value).map(|cursor| drop(partition.groups.insert(name, cursor)))
                }
                // Sorts behind the cursor of its group.
                StateKey::Counts(name) => decode_counts(&value).map(|(counts, detached, dead)| {
                    if let Some(cursor) = partition.groups.get_mut(&name) {
                        (cursor.counts, cursor.detached) = (counts, detached);
                        partition.dead.insert(name, dead);
                    }
                }),
            };
            read.ok_or_else(|| corrupt("the state of a partition"))?;
        }
        self.bury_again(&mut partitions)?;
        for (key, partition) in &mut partitions {
            partition.last = match self.last_up_to(key, partition.trimmed.0, MAX)? {
                Some(entry) => (entry.id, entry.entry.totals),
                None => partition.trimmed,
            };
        }
        Ok(partitions)
    }

    /// Entries above `after` up to and including `to`. Where entries were removed, the database walks over each that it has not
    /// yet compacted away: `after` is never below what was trimmed, if that is known.
    pub(super) fn range(
        &self,
        partition: &PartitionKey,
        after: EntryId,
        to: EntryId,
    ) -> impl DoubleEndedIterator<Item = Guard> + use<> {
        // The database panics on a range that ends before it begins.
        let keys = (after < to).then(|| (keys::entry(partition, after), keys::entry(partition, to)));
        let range = keys.map(|(after, to)| self.log.range((Bound::Excluded(after), Bound::Included(to))));
        range.into_iter().flatten()
    }

    /// The last entry at or below an id, above what was trimmed.
    pub(super) fn last_up_to(
        &self,
        partition: &PartitionKey,
        trimmed: EntryId,
        id: EntryId,
    ) -> Result<Option<StoredEntry>, StoreError> {
        self.range(partition, trimmed, id).next_back().map(stored).transpose()
    }

    /// The first entry at or above an id, above what was trimmed.
    pub(super) fn first_from(
        &self,
        partition: &PartitionKey,
        trimmed: EntryId,
        id: EntryId,
    ) -> Result<Option<StoredEntry>, StoreError> {
        let below = match id.sequence.checked_sub(1) {
            Some(sequence) => EntryId { sequence, ..id },
            None => EntryId { term: Term(id.term.0.saturating_sub(1)), sequence: u64::MAX },
        };
        self.range(partition, below.max(trimmed), MAX).next().map(stored).transpose()
    }

    pub(super) fn read(
        &self,
        partition: &PartitionKey,
        after: EntryId,
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let (mut entries, mut bytes) = (Vec::new(), 0usize);
        for item in self.range(partition, after, MAX).take(max_entries) {
            let entry = stored(item)?;
            bytes = bytes.saturating_add(entry.entry.records.len());
            entries.push(entry);
            if bytes >= max_bytes {
                break;
            }
        }
        Ok(entries)
    }

    /// Up to where a partition is trimmed.
    fn trimmed(&self, partition: &PartitionKey) -> Result<EntryId, StoreError> {
        let mut known = Partition::default();
        if let Some(settings) = self.state.get(keys::settings(partition)).map_err(failed)? {
            known.restore(&settings).ok_or_else(|| corrupt("the state of a partition"))?;
        }
        Ok(known.trimmed.0)
    }

    pub(super) fn read_back(
        &self,
        partition: &PartitionKey,
        max_bytes: usize,
    ) -> Result<ReadBack, StoreError> {
        let (mut back, mut bytes) = (ReadBack::default(), 0usize);
        for item in self.range(partition, self.trimmed(partition)?, MAX).rev() {
            if bytes >= max_bytes {
                return Ok(back);
            }
            let entry = stored(item)?;
            bytes = bytes.saturating_add(entry.entry.records.len());
            back.entries.push((entry.id, entry.entry.segments));
        }
        back.complete = true;
        Ok(back)
    }

    pub(super) fn user(&self, tenant: &TenantName, name: &str) -> Result<Option<User>, StoreError> {
        let found = self.users.get(keys::user(tenant, name)).map_err(failed)?;
        found.map(|json| parse_user(&json)).transpose()
    }

    pub(super) fn all_users(&self, tenant: &TenantName) -> Result<Vec<User>, StoreError> {
        let found = self.users.prefix(keys::tenant(tenant));
        found.map(|item| parse_user(&item.value().map_err(failed)?)).collect()
    }
}

fn parse_user(json: &[u8]) -> Result<User, StoreError> {
    // What the parser says may quote the verifier.
    serde_json::from_slice(json).map_err(|_| corrupt("a user"))
}

/// Bytes of an entry as stored.
pub(super) fn encode_entry(entry: &Entry) -> Vec<u8> {
    let header = 32 + entry.segments.len() * encoding::SEGMENT_BYTES;
    let mut bytes = Vec::with_capacity(header + entry.records.len());
    bytes.extend_from_slice(&entry.count.to_le_bytes());
    for number in [entry.first_received_at, entry.totals.records, entry.totals.bytes] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    let segments = u32::try_from(entry.segments.len() * encoding::SEGMENT_BYTES).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&segments.to_le_bytes());
    encoding::put_segments(&mut bytes, &entry.segments);
    bytes.extend_from_slice(&entry.records);
    bytes
}

fn decode_entry(bytes: &[u8]) -> Option<Entry> {
    let mut reader = Reader(bytes);
    let (count, first_received_at) = (reader.u32()?, reader.u64()?);
    let totals = Totals { records: reader.u64()?, bytes: reader.u64()? };
    let segments = encoding::segments(reader.prefixed()?)?;
    // A copy: a slice would keep the block of the cache that it lies in.
    let records = Bytes::copy_from_slice(reader.0);
    Some(Entry { records, segments, count, first_received_at, totals })
}

fn stored(item: Guard) -> Result<StoredEntry, StoreError> {
    let (key, value) = item.into_inner().map_err(failed)?;
    let read = || Some(StoredEntry { id: keys::entry_id(&key)?, entry: decode_entry(&value)? });
    read().ok_or_else(|| corrupt("an entry"))
}
