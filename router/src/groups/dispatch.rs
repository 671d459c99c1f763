//! Hands the records of one partition to the consumers of one group. Pure: entries, acks and the time (milliseconds) go
//! in, [`HandOut`]s and cursor changes come out. Does not read the log, does not write the cursor.
//!
//! Invariants:
//! * Records of a client are handed out in the order of the log (redeliveries aside), and while some are open, all go to
//!   the consumer that holds them.
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
    store::{CursorChange, GroupCursor, OpenEntry, StoredEntry},
};

pub use super::chunks::HandOut;
use super::{
    book::Book,
    chunks::Chunks,
    clients::{Clients, ConsumerId, Position},
    cursor::done_in_open,
    held::{ClientHash, Held, Place, Shape},
};

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

/// See the module.
#[derive(Debug)]
pub struct Dispatch {
    filters: Vec<Vec<u8>>,
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

    /// Records index .. index + count - 1 of an entry are done, whoever says so: also those that an earlier home handed out.
    pub fn ack(&mut self, entry: EntryId, index: u32, count: u32) {
        let Some(at) = self.find(entry) else {
            if entry > self.read_to && self.early_ranges < EARLY_RANGES {
                self.early.entry(entry).or_default().push((index, count));
                self.early_ranges += 1;
            }
            return;
        };
        let Some(held) = self.held.get(at) else { return };
        match held.shape {
            Shape::Finished => return,
            Shape::WholeOut(_) if index == 0 && count >= held.done.count() => {
                self.tally.acked += u64::from(held.done.count());
                self.finish(at);
                self.advance();
                return;
            }
            _ => {}
        }
        let end = index.saturating_add(count).min(held.done.count());
        self.split_to(at);
        for index in index..end {
            self.record_done(at, index);
        }
        if self.held.get(at).is_some_and(|held| held.done.complete()) {
            self.finish(at);
        }
        self.advance();
    }

    /// Records come back and wait; nothing of their clients is handed out for `delay` milliseconds.
    pub fn nack(&mut self, entry: EntryId, index: u32, count: u32, delay: u64, now: u64) {
        let Some(at) = self.find(entry) else { return };
        if self.held.get(at).is_none_or(|held| matches!(held.shape, Shape::Untouched)) {
            return;
        }
        self.split(at);
        let end = index.saturating_add(count).min(self.held.get(at).map_or(0, |held| held.done.count()));
        for index in index..end {
            let Some(client) = self.give_back(at, index) else { continue };
            self.tally.nacked += 1;
            if delay > 0 {
                self.clients.hold(client, now.saturating_add(delay));
            }
        }
        self.advance();
    }

    /// Hands out what can be handed out: acknowledgements that are overdue come back first.
    pub fn pump(&mut self, now: u64) -> Vec<HandOut> {
        self.clients.tick(now);
        while let Some(number) = self.book.overdue(now) {
            self.take_back(number);
        }
        let (mut chunks, mut whole) = (Chunks::default(), Vec::new());
        loop {
            if let Some((at, client, consumer)) = self.next() {
                self.hand_out(&mut chunks, at, client, consumer, now);
            } else if !self.take_up(&mut whole, now) {
                break;
            }
        }
        self.advance();
        let mut all = whole;
        all.extend(chunks.build(|entry| self.find(entry).and_then(|at| self.held.get(at))));
        // To each consumer in the order of the log; the chunks of an entry stay as they are.
        all.sort_by_key(|hand_out| (hand_out.consumer, hand_out.entry));
        all
    }

    /// When [`Self::pump`] has something to do although nothing came in, milliseconds.
    pub fn deadline(&self) -> Option<u64> {
        self.book.deadline().into_iter().chain(self.clients.deadline()).min()
    }

    /// What the cursor has to learn since the last call.
    pub fn change(&mut self, group: &str) -> Option<CursorChange> {
        if !self.changed {
            return None;
        }
        self.changed = false;
        let mut open = Vec::new();
        for held in self.held.iter_mut().filter(|held| held.dirty) {
            held.dirty = false;
            open.push((held.id, held.done.to_open(&held.deliveries)));
        }
        Some(CursorChange::Group {
            group: group.to_owned(),
            done_up_to: self.done_up_to,
            done_records: self.done_records,
            open,
        })
    }

    /// A change was not written: the next one says it again.
    pub fn say_again(&mut self) {
        self.changed = true;
        for held in &mut self.held {
            held.dirty = held.done.done() > 0 || !held.deliveries.is_empty();
        }
    }

    /// Whether there is something for the cursor.
    pub fn has_change(&self) -> bool {
        self.changed
    }

    /// For operators.
    pub fn standing(&self) -> Standing {
        let held: u64 = self.held.iter().map(|held| u64::from(held.done.done())).sum();
        let stored = GroupCursor { open: self.stored.clone(), ..GroupCursor::default() };
        Standing {
            done_up_to: self.done_up_to,
            done: self.done_records + held + done_in_open(&stored),
            open: self.book.records(),
            consumers: u32::try_from(self.book.consumers()).unwrap_or(u32::MAX),
            oldest: self.held.front().map(|held| held.received_at),
        }
    }

    /// What was done with records since the last call.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    fn find(&self, entry: EntryId) -> Option<usize> {
        self.held.binary_search_by(|held| held.id.cmp(&entry)).ok()
    }

    /// The oldest waiting record that some consumer may have.
    fn next(&self) -> Option<(Position, ClientHash, ConsumerId)> {
        let (most, _) = self.book.most_free()?;
        let free = self.clients.next_free().map(|(at, client)| (at, client, most));
        let with = |id| self.clients.next_with(id).map(|(at, client)| (at, client, id));
        self.book.ready().filter_map(with).chain(free).min_by_key(|(at, ..)| *at)
    }

    fn hand_out(
        &mut self,
        chunks: &mut Chunks,
        at: Position,
        client: ClientHash,
        consumer: ConsumerId,
        now: u64,
    ) {
        let (entry, index) = at;
        self.clients.hand_out(client, at, consumer);
        let Some(place) = self.find(entry) else { return };
        let Some(held) = self.held.get_mut(place) else { return };
        match held.deliveries.contains_key(&index) {
            true => self.tally.redelivered += 1,
            false => self.tally.handed_out += 1,
        }
        let size = held.size(index);
        let key = chunks.key(consumer, entry, size);
        let number = match chunks.number(&key) {
            Some(number) => number,
            None => self.book.open(consumer, entry, now),
        };
        chunks.add(key, number, index, size);
        self.book.add(number, 1);
        if let Some(piece) = self.held.get_mut(place).and_then(|held| held.piece(index)) {
            piece.place = Place::Out(number);
        }
    }

    /// Makes the records of the next untouched entry available, or hands all of it out as it is. False: there is none, or
    /// nobody has credit.
    fn take_up(&mut self, whole: &mut Vec<HandOut>, now: u64) -> bool {
        let Some((consumer, free)) = self.book.most_free() else { return false };
        let at = self.first_untouched();
        let alone = self.book.consumers() == 1 && self.clients.waiting() == 0;
        let Some(held) = self.held.get(at) else { return false };
        let (count, entry) = (held.done.count(), held.id);
        if !(alone && held.fresh() && count <= free && held.bytes() <= WHOLE_BYTES) {
            self.split(at);
            return true;
        }
        let records = held.all();
        let number = self.book.open(consumer, entry, now);
        self.book.add(number, count);
        self.tally.handed_out += u64::from(count);
        if let Some(held) = self.held.get_mut(at) {
            held.shape = Shape::WholeOut(number);
        }
        whole.push(HandOut { consumer, entry, records, indexes: Vec::new(), counts: Vec::new() });
        true
    }

    fn first_untouched(&mut self) -> usize {
        let touched = |held: &Held| !matches!(held.shape, Shape::Untouched);
        while self.held.get(self.touched).is_some_and(touched) {
            self.touched += 1;
        }
        self.touched
    }

    /// Tells the records of an entry apart, and of all before it that are untouched: its records must not overtake theirs.
    fn split_to(&mut self, at: usize) {
        for before in self.first_untouched()..at {
            self.split(before);
        }
        self.split(at);
    }

    /// Tells the records of an entry apart. One that can't be read is done.
    fn split(&mut self, at: usize) {
        let Some(held) = self.held.get_mut(at) else { return };
        if matches!(held.shape, Shape::Pieces(_) | Shape::Finished) {
            return;
        }
        let hasher = &self.hasher;
        match held.split(&self.filters, |client| hasher.hash_one(client)) {
            Ok(filtered) => self.tally.filtered += filtered,
            Err(_) => {
                self.tally.unreadable += u64::from(held.done.count() - held.done.done());
                self.finish(at);
                return;
            }
        }
        self.changed |= held.dirty;
        let entry = held.id;
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

    fn record_done(&mut self, at: usize, index: u32) {
        let Some(held) = self.held.get_mut(at) else { return };
        let entry = held.id;
        let Some(piece) = held.piece(index) else { return };
        let (client, place) = (piece.client, std::mem::replace(&mut piece.place, Place::Done));
        if place == Place::Done {
            return;
        }
        self.tally.acked += 1;
        held.done.set(index);
        held.deliveries.remove(&index);
        held.dirty = true;
        self.changed = true;
        match place {
            Place::Waiting => self.clients.remove(client, (entry, index)),
            Place::Out(number) => {
                self.clients.closed(client);
                self.book.release(number, 1);
            }
            Place::Done => {}
        }
    }

    /// A record that was handed out waits again. Returns its client.
    fn give_back(&mut self, at: usize, index: u32) -> Option<ClientHash> {
        let held = self.held.get_mut(at)?;
        let entry = held.id;
        let piece = held.piece(index)?;
        let Place::Out(number) = piece.place else { return None };
        piece.place = Place::Waiting;
        let client = piece.client;
        let times = held.deliveries.entry(index).or_default();
        *times = times.saturating_add(1);
        held.dirty = true;
        self.changed = true;
        self.clients.closed(client);
        self.clients.add(client, (entry, index));
        self.book.release(number, 1);
        Some(client)
    }

    /// Everything that is still out under a number waits again.
    fn take_back(&mut self, number: u64) {
        let Some(at) = self.book.holder(number).and_then(|(_, entry)| self.find(entry)) else { return };
        self.split(at);
        let Some(Shape::Pieces(pieces)) = self.held.get(at).map(|held| &held.shape) else { return };
        let out = (0u32..).zip(pieces).filter(|(_, piece)| piece.place == Place::Out(number));
        for index in out.map(|(index, _)| index).collect::<Vec<_>>() {
            self.give_back(at, index);
        }
    }

    /// All of an entry is done: whatever is out or waiting of it is settled, its bytes go.
    fn finish(&mut self, at: usize) {
        let Some(held) = self.held.get_mut(at) else { return };
        let number = if let Shape::WholeOut(number) = held.shape { Some(number) } else { None };
        let count = held.done.count();
        self.held_bytes -= held.bytes();
        held.finish();
        self.changed = true;
        if let Some(number) = number {
            self.book.release(number, count);
        }
    }

    fn advance(&mut self) {
        while let Some(done) = self.held.front().filter(|held| matches!(held.shape, Shape::Finished)) {
            self.done_up_to = done.id;
            self.done_records = done.totals.records;
            self.held_records -= u64::from(done.done.count());
            self.changed = true;
            self.held.pop_front();
            self.touched = self.touched.saturating_sub(1);
        }
    }
}
