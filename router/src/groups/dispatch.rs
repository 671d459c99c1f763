//! Hands the records of one partition to the consumers of one group. Pure: entries, acks and the time (milliseconds) go
//! in, [`HandOut`]s and cursor changes come out. Does not read the log, does not write the cursor.
//!
//! Invariants:
//! * Records of a client are handed out in the order of the log (redeliveries aside), and while some are open, all go to
//!   the consumer that holds them; unless the group is unordered.
//! * Every record above done-up-to is waiting, handed out under one number, or done.
//! * Bounded: at most [`LOOK_AHEAD_RECORDS`] records and [`LOOK_AHEAD_BYTES`] of entries above done-up-to, plus one entry.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::BuildHasher,
    sync::Arc,
};

use penstock_common::{
    clock::UnixMillis,
    position::EntryId,
    store::{GroupCursor, OpenEntry, StoredEntry},
};

pub use super::chunks::HandOut;
use super::{
    book::Book,
    clients::{Clients, ConsumerId},
    held::{Held, Place, Shape},
};

mod hand_out;
mod report;
mod settle;

/// Records above done-up-to that are looked at.
pub const LOOK_AHEAD_RECORDS: u64 = 10_000;
/// Bytes of entries that are held.
pub const LOOK_AHEAD_BYTES: usize = 8 << 20;
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
}

/// How records are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
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
    done_up_to: EntryId,
    done_records: u64,
    read_to: EntryId,
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
            done_up_to: cursor.done_up_to,
            done_records: cursor.done_records,
            read_to: cursor.done_up_to,
            changed: false,
            tally: Tally::default(),
        }
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
        let room = self.held.is_empty()
            || (self.held_records < LOOK_AHEAD_RECORDS && self.held_bytes < LOOK_AHEAD_BYTES);
        room && self.book.most_free().is_some()
    }

    /// The next entry of the log. One that is not above [`Self::read_to`] is ignored.
    pub fn offer(&mut self, entry: &Arc<StoredEntry>) {
        if entry.id <= self.read_to {
            return;
        }
        self.read_to = entry.id;
        self.stored = self.stored.split_off(&entry.id);
        let open = self.stored.remove(&entry.id);
        let held = Held::new(entry, open.as_ref());
        self.held_records += u64::from(held.done.count());
        self.held_bytes += held.bytes();
        let complete = held.done.complete();
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
        self.leave(consumer);
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
        for number in self.book.held_by(consumer) {
            self.take_back(number);
        }
        self.book.leave(consumer);
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
        self.book.deadline().into_iter().chain(self.clients.deadline()).min()
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
            Ok(filtered) => self.tally.filtered += filtered,
            Err(_) => {
                self.tally.unreadable += u64::from(held.done.count() - held.done.done());
                self.finish(at);
                return;
            }
        }
        self.changed |= held.dirty;
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
