//! What the store keeps of groups: cursors with their counts, dead letters, and what holds a log's entries back.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Segment, StoredEntry, Totals};
use crate::{clock::UnixMillis, position::EntryId, registry::BacklogPolicy};

/// Dead letters kept of a group in one partition: beyond either, the oldest are dropped and counted.
pub const DEAD_LETTERS: u64 = 10_000;
/// Bytes of their records.
pub const DEAD_BYTES: u64 = 16 << 20;

/// Records of an entry that a group is not done with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OpenEntry {
    /// Bit i: record i is done (acked, filtered, dead). Least significant bit of byte 0 first.
    pub done: Vec<u8>,
    /// Records that were handed out and came back: index, times handed out so far.
    pub deliveries: Vec<(u32, u32)>,
}

impl OpenEntry {
    /// Records that are done.
    pub fn done(&self) -> u64 {
        self.done.iter().map(|byte| u64::from(byte.count_ones())).sum()
    }
}

/// Records of one partition by what a group did with them, since it began there: at its creation, or where it was last
/// sought. Done is all of these together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// `Totals::records` where it began.
    pub began: u64,
    /// Matched by no filter of the group.
    pub filtered: u64,
    /// Acknowledged.
    pub acked: u64,
    /// Handed out as often as allowed: now dead letters, or dropped from them.
    pub dead: u64,
    /// Removed before the group was done with them, by age or by its backlog policy; and what can't be read.
    pub dropped: u64,
}

impl Counts {
    /// Of a cursor that was written before there were counts: what is done was done before it began.
    pub(super) fn begin(cursor: &GroupCursor) -> Self {
        Self { began: cursor.done_records + cursor.done_in_open(), ..Self::default() }
    }

    /// Records done since it began.
    pub fn done(&self) -> u64 {
        self.filtered + self.acked + self.dead + self.dropped
    }
}

/// Where a group is in one partition.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GroupCursor {
    /// Every record up to and including this entry is done.
    pub done_up_to: EntryId,
    /// `Totals::records` at `done_up_to`.
    pub done_records: u64,
    /// See [`Counts`]; written together with what they count.
    pub counts: Counts,
    /// It holds nothing back, because the backlog was full and that is its policy; until its cursor moves again.
    pub detached: bool,
    /// Entries above it of which some records are done.
    pub open: BTreeMap<EntryId, OpenEntry>,
}

impl GroupCursor {
    /// Whether a record is done.
    pub fn is_done(&self, entry: EntryId, index: u32) -> bool {
        let bit =
            |open: &OpenEntry| open.done.get((index / 8) as usize).map(|byte| byte & (1 << (index % 8)));
        entry <= self.done_up_to || self.open.get(&entry).and_then(bit).is_some_and(|bit| bit != 0)
    }

    /// Records above `done_up_to` that are done.
    pub fn done_in_open(&self) -> u64 {
        self.open.values().map(OpenEntry::done).sum()
    }

    /// Records that were trimmed before the group was done with them, and are not yet among its counts.
    pub fn missed(&self, trimmed: (EntryId, Totals)) -> u64 {
        if trimmed.0 <= self.done_up_to {
            return 0;
        }
        let known: u64 = self.open.range(..=trimmed.0).map(|(_, open)| open.done()).sum();
        trimmed.1.records.saturating_sub(self.done_records + known)
    }
}

/// Cursors of one partition.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cursors {
    /// The fan-out cursor; None while the tenant has no filters.
    pub fan: Option<EntryId>,
    /// By group name.
    pub groups: BTreeMap<String, GroupCursor>,
    /// The last entry that was trimmed, and totals there.
    pub trimmed: (EntryId, Totals),
}

/// A record that was handed out as often as allowed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetter {
    /// Entry that it was in.
    pub entry: EntryId,
    /// Its index there.
    pub index: u32,
    /// Times it was handed out.
    pub deliveries: u32,
    /// A `RecordBatch` of it alone.
    pub record: Bytes,
}

/// A dead letter as kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptLetter {
    /// Grows; [`super::mail_time`] tells when it was written.
    pub number: u64,
    /// The record.
    pub letter: DeadLetter,
}

/// Dead letters of a group in one partition.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeadLetters {
    /// Those that were asked for, oldest first.
    pub letters: Vec<KeptLetter>,
    /// All that are kept.
    pub kept: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// Dropped at the limits, ever.
    pub dropped: u64,
}

/// One change of a cursor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CursorChange {
    /// Sets or removes the fan-out cursor.
    Fan(Option<EntryId>),
    /// Moves a group's cursor; ignored when the group was deleted. Open entries at or below `done_up_to` are dropped.
    Group {
        /// Name.
        group: String,
        /// New done-up-to.
        done_up_to: EntryId,
        /// `Totals::records` there.
        done_records: u64,
        /// Counts with this change.
        counts: Counts,
        /// Entries whose state is written.
        open: Vec<(EntryId, OpenEntry)>,
        /// Kept, unless the cursor as stored says that they are done: a change that is repeated keeps them once.
        dead: Vec<DeadLetter>,
    },
}

/// Where a group's cursor is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CursorStart {
    /// After the last stored entry.
    Latest,
    /// Before the oldest retained entry.
    Earliest,
    /// Before the first entry that may hold a record received then or later: the first whose `first_received_at` is not
    /// below this, or the one before when that has several records (some just before the time are then included).
    Time(UnixMillis),
}

/// What `trim` keeps, beside what the fan-out is not done with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keep {
    /// The newest entries, which a new home needs to tell what producers stored.
    pub entries: u64,
    /// Groups that are defined for the tenant, by count: fewer cursors in the slot than this and nothing is trimmed.
    pub groups: usize,
    /// At most about so many bytes of records, as far as blocking groups allow; once there are more, a sixteenth less.
    pub bytes: u64,
    /// Nothing that was received earlier, whoever is not done with it.
    pub received_since: UnixMillis,
    /// Groups that don't block.
    pub yielding: Vec<(String, BacklogPolicy)>,
}

/// Answer to `trim`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Trimmed {
    /// Totals before the first retained entry.
    pub totals: Totals,
    /// `Totals::bytes` where that begins which blocking groups or the fan-out hold back; None: nobody does.
    pub held: Option<u64>,
    /// Records that were removed although a group that is not detached was not done with them.
    pub lost: u64,
    /// They were too old; otherwise they were too many bytes.
    pub aged: bool,
}

impl Segment {
    /// Says that an entry of so many records is for one group alone, by its number.
    pub fn only_for(group: u64, count: u32) -> Self {
        // No shard has this incarnation.
        Self { producer: 0, first: group, count }
    }
}

impl StoredEntry {
    /// The number of the one group that the entry is for.
    pub fn only_for(&self) -> Option<u64> {
        let [Segment { producer: 0, first, .. }] = self.entry.segments.as_slice() else { return None };
        Some(*first)
    }
}
