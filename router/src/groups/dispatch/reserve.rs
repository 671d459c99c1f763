//! What consumers hold since an earlier home of the partition: it stays with them until they acknowledge it or it is
//! overdue, although they may be yet to join here. Pure; times in milliseconds.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use penstock_common::position::EntryId;

use super::{
    super::{
        book::Book,
        clients::ConsumerId,
        held::{Held, Place},
    },
    Dispatch,
};

/// A consumer that has not joined after this time is taken for gone.
pub const ARRIVES_WITHIN: u64 = 10_000;
/// Their entries are read within this, before anything is handed out; whose they are is not known before.
const READ_WITHIN: u64 = 2_000;
/// Ranges; those beyond are handed out again.
const RANGES: usize = 100_000;

#[derive(Debug, Clone, Copy)]
struct Reservation {
    consumer: ConsumerId,
    index: u32,
    count: u32,
    deadline: u64,
}

/// Records that are not handed out, in entries that are yet to be told apart.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    entries: BTreeMap<EntryId, Vec<Reservation>>,
    ranges: usize,
    absent: BTreeSet<ConsumerId>,
    absent_until: u64,
    /// Some entries are yet to be read, and waited for until then.
    read_until: Option<u64>,
}

impl Dispatch {
    /// Records index .. index + count - 1 of an entry above [`Self::read_to`] are in a consumer's hands since an earlier home,
    /// and overdue after `left`.
    pub fn reserve(
        &mut self,
        consumer: ConsumerId,
        entry: EntryId,
        (index, count): (u32, u32),
        left: u64,
        now: u64,
    ) {
        if entry <= self.read_to || self.reserved.ranges >= RANGES {
            return;
        }
        let deadline = now.saturating_add(left);
        self.reserved.entries.entry(entry).or_default().push(Reservation {
            consumer,
            index,
            count,
            deadline,
        });
        self.reserved.ranges += 1;
        self.reserved.read_until = Some(now.saturating_add(READ_WITHIN));
        if self.reserved.absent.insert(consumer) {
            self.reserved.absent_until = now.saturating_add(ARRIVES_WITHIN);
        }
    }

    /// Tells entries apart until it is known which clients consumers hold since an earlier home. False: more has to be read
    /// before anything is handed out.
    pub(super) fn settle_reserved(&mut self, now: u64) -> bool {
        let Some(until) = self.reserved.read_until else { return true };
        let first = self.first_untouched();
        for at in first..self.held.len() {
            self.split(at);
        }
        if self.reserved.entries.is_empty() || now >= until {
            self.reserved.read_until = None;
        }
        self.reserved.read_until.is_none()
    }
}

impl Reserved {
    /// Whether an entry may be handed out as it is.
    pub fn allow_whole(&self, entry: EntryId) -> bool {
        self.absent.is_empty() && !self.has(entry)
    }

    pub fn has(&self, entry: EntryId) -> bool {
        self.entries.contains_key(&entry)
    }

    /// A consumer joins; true: it holds records since an earlier home.
    pub fn arrives(&mut self, consumer: ConsumerId) -> bool {
        self.absent.remove(&consumer)
    }

    /// When consumers that have not joined are taken for gone, or what is yet to be read is waited for no longer.
    pub fn deadline(&self) -> Option<u64> {
        let absent = (!self.absent.is_empty()).then_some(self.absent_until);
        absent.into_iter().chain(self.read_until).min()
    }

    /// Entries are to be read before anything is handed out.
    pub fn unread(&self) -> bool {
        self.read_until.is_some()
    }

    /// Consumers that have not joined in time.
    pub fn overdue(&mut self, now: u64) -> BTreeSet<ConsumerId> {
        if now < self.absent_until { BTreeSet::new() } else { std::mem::take(&mut self.absent) }
    }

    /// Nothing is a consumer's any more.
    pub fn leave(&mut self, consumer: ConsumerId) {
        self.absent.remove(&consumer);
        if self.ranges > 0 {
            self.entries.values_mut().for_each(|ranges| ranges.retain(|own| own.consumer != consumer));
            self.entries.retain(|_, ranges| !ranges.is_empty());
            self.count();
        }
    }

    /// Entries above one and up to another are gone.
    pub fn pass(&mut self, above: EntryId, up_to: EntryId) {
        let between = (Bound::Excluded(above), Bound::Included(up_to));
        while let Some(gone) = self.entries.range(between).next().map(|(entry, _)| *entry) {
            self.take(gone);
        }
    }

    /// Records of an entry are nobody's any more.
    pub fn give(&mut self, entry: EntryId, index: u32, count: u32) {
        let Some(ranges) = self.entries.get_mut(&entry) else { return };
        let end = index.saturating_add(count);
        let left = |own: &Reservation| {
            let own_end = own.index.saturating_add(own.count);
            let before = Reservation { count: index.min(own_end).saturating_sub(own.index), ..*own };
            let from = end.max(own.index);
            let after = Reservation { index: from, count: own_end.saturating_sub(from), ..*own };
            [before, after].into_iter().filter(|part| part.count > 0)
        };
        *ranges = ranges.iter().flat_map(left).collect();
        self.entries.retain(|_, ranges| !ranges.is_empty());
        self.count();
    }

    /// An entry is done with.
    pub fn take(&mut self, entry: EntryId) {
        let taken = self.entries.remove(&entry);
        self.ranges -= taken.map_or(0, |ranges| ranges.len());
    }

    /// The records of an entry have been told apart: those that are reserved are in their holders' hands.
    pub fn apply(&mut self, held: &mut Held, book: &mut Book) {
        let Some(ranges) = self.entries.remove(&held.id) else { return };
        self.ranges -= ranges.len();
        for Reservation { consumer, index, count, deadline } in ranges {
            let number = book.open_until(consumer, held.id, deadline);
            let end = index.saturating_add(count).min(held.done.count());
            let mut out = 0;
            for index in index..end {
                if let Some(piece) = held.piece(index).filter(|piece| piece.place == Place::Waiting) {
                    piece.place = Place::Out(number);
                    out += 1;
                }
            }
            held.out += out;
            book.add(number, out);
            // One that holds nothing ends.
            book.release(number, 0);
        }
    }

    fn count(&mut self) {
        self.ranges = self.entries.values().map(Vec::len).sum();
    }
}
