//! What comes back of records that were handed out: done, or to be handed out again. Pure.

use bytes::Bytes;
use penstock_common::{position::EntryId, store::DeadLetter};

use super::{
    super::held::{ClientHash, Held, Place, Shape},
    Dispatch, EARLY_RANGES,
};

/// What becomes of a record that comes back.
enum Back {
    /// It waits, as the next one of its client.
    Waits(ClientHash),
    /// It is a dead letter.
    Dead,
}

impl Dispatch {
    /// Records index .. index + count - 1 of an entry are done, whoever says so: also those that an earlier home handed out.
    pub fn ack(&mut self, entry: EntryId, index: u32, count: u32) {
        let Some(at) = self.find(entry) else {
            if entry > self.read_to && self.early_ranges < EARLY_RANGES && !self.strict {
                self.early.entry(entry).or_default().push((index, count));
                self.early_ranges += 1;
            }
            return;
        };
        let Some(held) = self.held.get(at) else { return };
        match held.shape {
            Shape::Finished => return,
            Shape::Untouched if self.strict => return,
            Shape::WholeOut(_) if index == 0 && count >= held.done.count() => {
                self.tally.acked += u64::from(held.done.count());
                self.counts.acked += u64::from(held.done.count());
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
        self.finish_if_complete(at);
        self.advance();
    }

    /// Records come back and wait; nothing of their clients is handed out for `delay` milliseconds.
    pub fn nack(&mut self, entry: EntryId, index: u32, count: u32, delay: u64, now: u64) {
        let Some(at) = self.find(entry) else { return self.reserved.give(entry, index, count) };
        let untouched = self.held.get(at).is_none_or(|held| matches!(held.shape, Shape::Untouched));
        if untouched && !self.reserved.has(entry) {
            return;
        }
        self.split_to(at);
        let end = index.saturating_add(count).min(self.held.get(at).map_or(0, |held| held.done.count()));
        for index in index..end {
            let Some(back) = self.give_back(at, index) else { continue };
            self.tally.nacked += 1;
            if let Back::Waits(client) = back
                && delay > 0
            {
                self.clients.hold(client, now.saturating_add(delay));
            }
        }
        self.finish_if_complete(at);
        self.advance();
    }

    /// Tells the records of an entry apart, and of all before it that are untouched: its records must not overtake theirs.
    fn split_to(&mut self, at: usize) {
        for before in self.first_untouched()..at {
            self.split(before);
        }
        self.split(at);
    }

    fn record_done(&mut self, at: usize, index: u32) {
        let Some(held) = self.held.get_mut(at) else { return };
        let entry = held.id;
        let strict = self.strict;
        let Some(piece) = held.piece(index) else { return };
        if piece.place == Place::Done || (strict && piece.place == Place::Waiting) {
            return;
        }
        let (client, place) = (piece.client, std::mem::replace(&mut piece.place, Place::Done));
        self.tally.acked += 1;
        self.counts.acked += 1;
        held.done.set(index);
        held.deliveries.remove(&index);
        held.dirty = true;
        self.changed = true;
        match place {
            Place::Waiting => self.clients.remove(client, (entry, index)),
            Place::Out(number) => {
                held.out -= 1;
                self.clients.closed(client);
                self.book.release(number, 1);
            }
            Place::Done => {}
        }
    }

    /// A record that was handed out waits again, or was handed out often enough. None: it is not out.
    fn give_back(&mut self, at: usize, index: u32) -> Option<Back> {
        let held = self.held.get_mut(at)?;
        let entry = held.id;
        let piece = held.piece(index)?;
        let Place::Out(number) = piece.place else { return None };
        let client = piece.client;
        let times = held.deliveries.get(&index).map_or(1, |times| times.saturating_add(1));
        let dead = self.rules.max_deliveries > 0 && times >= self.rules.max_deliveries;
        if let Some(piece) = held.piece(index) {
            piece.place = if dead { Place::Done } else { Place::Waiting };
        }
        held.out -= 1;
        held.dirty = true;
        self.changed = true;
        self.clients.closed(client);
        self.book.release(number, 1);
        if dead {
            // A copy: a slice would keep the whole entry.
            let record = Bytes::copy_from_slice(&held.gather(&[index]));
            self.dead.push(DeadLetter { entry, index, deliveries: times, record });
            held.deliveries.remove(&index);
            held.done.set(index);
            self.counts.dead += 1;
            self.tally.dead += 1;
            return Some(Back::Dead);
        }
        held.deliveries.insert(index, times);
        self.clients.add(client, (entry, index));
        Some(Back::Waits(client))
    }

    fn finish_if_complete(&mut self, at: usize) {
        let complete = |held: &Held| held.done.complete() && !matches!(held.shape, Shape::Finished);
        if self.held.get(at).is_some_and(complete) {
            self.finish(at);
        }
    }

    /// Everything that is still out under a number waits again.
    pub(super) fn take_back(&mut self, number: u64) {
        let Some(at) = self.book.holder(number).and_then(|(_, entry)| self.find(entry)) else { return };
        self.split(at);
        let Some(Shape::Pieces(pieces)) = self.held.get(at).map(|held| &held.shape) else { return };
        let out = (0u32..).zip(pieces).filter(|(_, piece)| piece.place == Place::Out(number));
        for index in out.map(|(index, _)| index).collect::<Vec<_>>() {
            self.give_back(at, index);
        }
        self.finish_if_complete(at);
    }

    /// All of an entry is done: whatever is out or waiting of it is settled, its bytes go.
    pub(super) fn finish(&mut self, at: usize) {
        let Some(held) = self.held.get_mut(at) else { return };
        let number = if let Shape::WholeOut(number) = held.shape { Some(number) } else { None };
        let count = held.done.count();
        self.held_bytes -= held.bytes();
        self.reserved.take(held.id);
        held.finish();
        held.out = 0;
        self.changed = true;
        if let Some(number) = number {
            self.book.release(number, count);
        }
    }

    pub(super) fn advance(&mut self) {
        while let Some(done) = self.held.front().filter(|held| matches!(held.shape, Shape::Finished)) {
            self.done_up_to = done.id;
            self.done_records = done.totals.records;
            self.counts.dropped += done.missed;
            self.tally.missed += done.missed;
            self.held_records -= u64::from(done.done.count());
            self.changed = true;
            self.held.pop_front();
            self.touched = self.touched.saturating_sub(1);
        }
    }
}
