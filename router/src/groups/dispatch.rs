//! Hands the records of one partition to the consumers of one group. Pure: entries, acks and the time (milliseconds) go
//! in, [`HandOut`]s and cursor changes come out. Does not read the log, does not write the cursor.
//!
//! Invariants:
//! * Records of a client are handed out in the order of the log (redeliveries aside), and while some are open, all go to
//!   the consumer that holds them; unless the group is unordered.
//! * Every record above done-up-to is waiting, handed out under one number, or done.
//! * What consumers hold since an earlier home stays with them, as if it had been handed out here.
//! * Records done since the group began here are those that [`Counts`] count.
//! * Bounded: at most [`LOOK_AHEAD_RECORDS`] records and [`LOOK_AHEAD_BYTES`] that wait, and [`ABOVE_ENTRIES`],
//!   [`ABOVE_RECORDS`] and [`ABOVE_BYTES`] of all above done-up-to, plus one entry. What is in consumers' hands is not what
//!   waits: a consumer that holds much holds up nobody else.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::BuildHasher,
    sync::Arc,
};

use penstock_common::{
    clock::UnixMillis,
    position::EntryId,
    store::{Counts, DeadLetter, GroupCursor, OpenEntry, StoredEntry},
};

pub use super::chunks::HandOut;
use super::{
    book::Book,
    clients::{Clients, ConsumerId},
    held::{Held, Place, Shape},
};

mod hand_out;
mod report;
mod reserve;
mod settle;

/// Records that wait to be handed out.
pub const LOOK_AHEAD_RECORDS: u64 = 10_000;
/// Their bytes.
pub const LOOK_AHEAD_BYTES: usize = 8 << 20;
/// Entries above done-up-to.
pub const ABOVE_ENTRIES: usize = 20_000;
/// Records above done-up-to, done or not.
pub const ABOVE_RECORDS: u64 = 200_000;
/// Bytes of entries above done-up-to that are not done.
pub const ABOVE_BYTES: usize = 64 << 20;
/// Dead letters that wait to be written; beyond it nothing is read.
const DEAD_WAITING: usize = 1_000;
/// An entry up to this size is passed on as it is.
const WHOLE_BYTES: usize = 2 << 20;
/// Ranges acked for entries that have not been read yet (they were handed out by an earlier home).
const EARLY_RANGES: usize = 10_000;

/// What a group is doing on a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Every record up to this entry is done.
    pub done_up_to: EntryId,
    /// Records done since the beginning of the log.
    pub done: u64,
    /// What was done with them since the group began here.
    pub counts: Counts,
    /// The group holds nothing back.
    pub detached: bool,
    /// Records in consumers' hands.
    pub open: u64,
    /// Consumers.
    pub consumers: u32,
    /// When the first record above `done_up_to` was received, if it has been read.
    pub oldest: Option<UnixMillis>,
}

/// Records by what was done with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Handed out for the first time.
    pub handed_out: u64,
    /// Handed out again.
    pub redelivered: u64,
    /// Acknowledged.
    pub acked: u64,
    /// Passed because no filter matches.
    pub filtered: u64,
    /// Given back by their consumer.
    pub nacked: u64,
    /// Passed because they can't be read.
    pub unreadable: u64,
    /// Made dead letters.
    pub dead: u64,
    /// Passed because they were trimmed.
    pub missed: u64,
}

/// How records are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// The group's number: entries for another group alone are passed.
    pub number: u64,
    /// Handed out so often and come back: a dead letter. 0: never.
    pub max_deliveries: u32,
    /// Each record stands alone: the order of clients is not kept.
    pub unordered: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Dispatch {
    filters: Vec<Vec<u8>>,
    rules: Rules,
    hasher: hashbrown::DefaultHashBuilder,
    held: VecDeque<Held>,
    held_records: u64,
    held_bytes: usize,
    /// No entry before this one is untouched.
    touched: usize,
    /// Stored state of entries that have not been read yet.
    stored: BTreeMap<EntryId, OpenEntry>,
    early: BTreeMap<EntryId, Vec<(u32, u32)>>,
    early_ranges: usize,
    clients: Clients,
    book: Book,
    reserved: reserve::Reserved,
    done_up_to: EntryId,
    done_records: u64,
    counts: Counts,
    read_to: EntryId,
    /// `Totals::records` at `read_to`.
    read_records: u64,
    /// Only what is handed out here can be acknowledged.
    strict: bool,
    dead: Vec<DeadLetter>,
    /// Of the last change, which may not have been written.
    dead_said: Vec<DeadLetter>,
    changed: bool,
    tally: Tally,
}

impl Dispatch {
    /// Goes on where the cursor stands. Filters are valid MQTT filters; none means every topic.
    pub fn new(filters: Vec<Vec<u8>>, cursor: GroupCursor) -> Self {
        Self {
            filters,
            rules: Rules::default(),
            hasher: hashbrown::DefaultHashBuilder::default(),
            held: VecDeque::new(),
            held_records: 0,
            held_bytes: 0,
            touched: 0,
            stored: cursor.open,
            early: BTreeMap::new(),
            early_ranges: 0,
            clients: Clients::default(),
            book: Book::default(),
            reserved: reserve::Reserved::default(),
            done_up_to: cursor.done_up_to,
            done_records: cursor.done_records,
            counts: cursor.counts,
            read_to: cursor.done_up_to,
            read_records: cursor.done_records,
            strict: false,
            dead: Vec::new(),
            dead_said: Vec::new(),
            // What is written attaches the group again.
            changed: cursor.detached,
            tally: Tally::default(),
        }
    }

    /// Goes on after a seek: what was handed out before it can't be acknowledged.
    pub fn sought(filters: Vec<Vec<u8>>, cursor: GroupCursor) -> Self {
        Self { strict: true, ..Self::new(filters, cursor) }
    }

    /// Sets the rules; entries that are told apart already stay as they are.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Entries above this are to be offered next.
    pub fn read_to(&self) -> EntryId {
        self.read_to
    }

    /// Whether more entries would be handed out. Ask after [`Self::pump`].
    pub fn wants(&self) -> bool {
        if self.reserved.unread() {
            return self.is_below_bounds();
        }
        (self.held.is_empty() || self.has_room())
            && self.dead.len() < DEAD_WAITING
            && self.book.most_free().is_some()
    }

    fn is_below_bounds(&self) -> bool {
        self.held.len() < ABOVE_ENTRIES && self.held_records < ABOVE_RECORDS && self.held_bytes < ABOVE_BYTES
    }

    fn has_room(&self) -> bool {
        if !self.is_below_bounds() {
            return false;
        }
        if self.held_records < LOOK_AHEAD_RECORDS && self.held_bytes < LOOK_AHEAD_BYTES {
            return true;
        }
        let waiting = self.held.iter().map(Held::waiting);
        let (records, bytes) = waiting.fold((0, 0), |all, own| (all.0 + own.0, all.1 + own.1));
        records < LOOK_AHEAD_RECORDS && bytes < LOOK_AHEAD_BYTES
    }

    /// Records up to an entry, of which there are so many with all before, were trimmed unless they have been read.
    pub fn pass(&mut self, up_to: EntryId, records: u64) {
        if up_to <= self.read_to {
            return;
        }
        let later = self.stored.split_off(&up_to);
        let mut gone = std::mem::replace(&mut self.stored, later);
        gone.extend(self.stored.remove_entry(&up_to));
        let later = self.early.split_off(&up_to);
        let ranges = std::mem::replace(&mut self.early, later);
        self.early_ranges -= ranges.values().map(Vec::len).sum::<usize>();
        self.reserved.pass(self.read_to, up_to);
        let between = records.saturating_sub(self.read_records);
        if between > 0 {
            let done = gone.values().map(OpenEntry::done).sum::<u64>().min(between);
            self.held.push_back(Held::gone(up_to, records, done, between - done));
        }
        (self.read_to, self.read_records) = (up_to, records.max(self.read_records));
        self.advance();
    }

    /// The next entry of the log. One that is not above [`Self::read_to`] is ignored.
    pub fn offer(&mut self, entry: &Arc<StoredEntry>) {
        if entry.id <= self.read_to {
            return;
        }
        let (totals, count) = (entry.entry.totals, u64::from(entry.entry.count));
        let before = EntryId { sequence: entry.id.sequence.saturating_sub(1), ..entry.id };
        self.pass(before, totals.records.saturating_sub(count));
        (self.read_to, self.read_records) = (entry.id, totals.records);
        let open = self.stored.remove(&entry.id);
        let held = Held::new(entry, open.as_ref());
        self.held_records += count;
        self.held_bytes += held.bytes();
        let foreign = entry.only_for().is_some_and(|group| group != self.rules.number);
        if foreign {
            let filtered = count - u64::from(held.done.done());
            self.counts.filtered += filtered;
            self.tally.filtered += filtered;
        }
        let complete = foreign || held.done.complete();
        self.held.push_back(held);
        let at = self.held.len() - 1;
        if complete {
            self.finish(at);
        } else if !self.filters.is_empty() {
            self.split(at);
        }
        if let Some(ranges) = self.early.remove(&entry.id) {
            self.early_ranges -= ranges.len();
            for (index, count) in ranges {
                self.ack(entry.id, index, count);
            }
        }
        self.advance();
    }

    /// A consumer comes. `credit` in records, `ack_timeout` in milliseconds.
    pub fn join(&mut self, consumer: ConsumerId, credit: u32, ack_timeout: u64) {
        if !self.reserved.arrives(consumer) {
            self.leave(consumer);
        }
        self.book.join(consumer, credit, ack_timeout);
        if self.book.consumers() == 2 {
            // From here on clients have to be told apart.
            for at in 0..self.held.len() {
                if self.held.get(at).is_some_and(|held| matches!(held.shape, Shape::WholeOut(_))) {
                    self.split(at);
                }
            }
            self.advance();
        }
    }

    /// A consumer is gone: what it held goes to others.
    pub fn leave(&mut self, consumer: ConsumerId) {
        self.reserved.leave(consumer);
        for number in self.book.held_by(consumer) {
            self.take_back(number);
        }
        self.book.leave(consumer);
        self.advance();
    }

    /// A new bound for records in a consumer's hands.
    pub fn set_credit(&mut self, consumer: ConsumerId, credit: u32) {
        self.book.set_credit(consumer, credit);
    }

    /// Whether the way to a consumer is full: it is handed nothing.
    pub fn set_blocked(&mut self, consumer: ConsumerId, blocked: bool) {
        self.book.set_blocked(consumer, blocked);
    }

    /// When [`Self::pump`] has something to do although nothing came in, milliseconds.
    pub fn deadline(&self) -> Option<u64> {
        let absent = self.reserved.deadline();
        self.book.deadline().into_iter().chain(self.clients.deadline()).chain(absent).min()
    }

    fn find(&self, entry: EntryId) -> Option<usize> {
        self.held.binary_search_by(|held| held.id.cmp(&entry)).ok()
    }

    /// Tells the records of an entry apart. One that can't be read is done.
    fn split(&mut self, at: usize) {
        let Some(held) = self.held.get_mut(at) else { return };
        if matches!(held.shape, Shape::Pieces(_) | Shape::Finished) {
            return;
        }
        let (hasher, entry, unordered) = (&self.hasher, held.id, self.rules.unordered);
        let hash = |index, client: &[u8]| match unordered {
            // Every record is a client of its own.
            true => hasher.hash_one((entry, index)),
            false => hasher.hash_one(client),
        };
        match held.split(&self.filters, hash) {
            Ok(filtered) => {
                self.tally.filtered += filtered;
                self.counts.filtered += filtered;
            }
            Err(_) => {
                let unreadable = u64::from(held.done.count() - held.done.done());
                self.tally.unreadable += unreadable;
                self.counts.dropped += unreadable;
                self.finish(at);
                return;
            }
        }
        self.changed |= held.dirty;
        self.reserved.apply(held, &mut self.book);
        if let Shape::Pieces(pieces) = &held.shape {
            for (index, piece) in (0u32..).zip(pieces) {
                match piece.place {
                    Place::Waiting => self.clients.add(piece.client, (entry, index)),
                    Place::Out(number) => {
                        let consumer = self.book.holder(number).map_or(0, |(consumer, _)| consumer);
                        self.clients.opened(piece.client, consumer);
                    }
                    Place::Done => {}
                }
            }
        }
        if held.done.complete() {
            self.finish(at);
        }
    }
}
