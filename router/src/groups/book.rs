//! Who holds how much: the consumers of a group on one partition with their credit, and each hand-out that is not settled
//! with the time it is overdue. Pure; times in milliseconds.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;
use penstock_common::position::EntryId;

use super::clients::ConsumerId;

#[derive(Debug)]
struct Consumer {
    credit: u32,
    out: u32,
    ack_timeout: u64,
    blocked: bool,
}

impl Consumer {
    fn free(&self) -> u32 {
        if self.blocked { 0 } else { self.credit.saturating_sub(self.out) }
    }
}

#[derive(Debug)]
struct Open {
    consumer: ConsumerId,
    entry: EntryId,
    left: u32,
    deadline: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Book {
    consumers: BTreeMap<ConsumerId, Consumer>,
    open: HashMap<u64, Open>,
    deadlines: BTreeSet<(u64, u64)>,
    numbers: u64,
}

impl Book {
    /// A consumer comes. What is open under its number already is in its hands.
    pub fn join(&mut self, consumer: ConsumerId, credit: u32, ack_timeout: u64) {
        let own = self.open.values().filter(|open| open.consumer == consumer);
        let out = own.map(|open| open.left).fold(0, u32::saturating_add);
        self.consumers.insert(consumer, Consumer { credit, out, ack_timeout, blocked: false });
    }

    /// A consumer goes.
    pub fn leave(&mut self, consumer: ConsumerId) {
        self.consumers.remove(&consumer);
    }

    /// A new bound for what is in its hands.
    pub fn set_credit(&mut self, consumer: ConsumerId, credit: u32) {
        if let Some(own) = self.consumers.get_mut(&consumer) {
            own.credit = credit;
        }
    }

    /// A blocked consumer has no credit.
    pub fn set_blocked(&mut self, consumer: ConsumerId, blocked: bool) {
        if let Some(own) = self.consumers.get_mut(&consumer) {
            own.blocked = blocked;
        }
    }

    /// Consumers.
    pub fn consumers(&self) -> usize {
        self.consumers.len()
    }

    /// Records in the hands of all.
    pub fn records(&self) -> u64 {
        self.consumers.values().map(|consumer| u64::from(consumer.out)).sum()
    }

    /// Consumers that have credit.
    pub fn ready(&self) -> impl Iterator<Item = ConsumerId> {
        self.consumers.iter().filter(|(_, own)| own.free() > 0).map(|(id, _)| *id)
    }

    /// The consumer with the most credit, and how much.
    pub fn most_free(&self) -> Option<(ConsumerId, u32)> {
        let free = self.consumers.iter().map(|(id, own)| (*id, own.free()));
        free.filter(|(_, free)| *free > 0).max_by_key(|(_, free)| *free)
    }

    /// Begins a hand-out. Returns its number.
    pub fn open(&mut self, consumer: ConsumerId, entry: EntryId, now: u64) -> u64 {
        let timeout = self.consumers.get(&consumer).map_or(0, |own| own.ack_timeout);
        self.open_until(consumer, entry, now.saturating_add(timeout))
    }

    /// A hand-out that an earlier home began, to a consumer that may be yet to join. Returns its number.
    pub fn open_until(&mut self, consumer: ConsumerId, entry: EntryId, deadline: u64) -> u64 {
        self.numbers += 1;
        self.open.insert(self.numbers, Open { consumer, entry, left: 0, deadline });
        self.deadlines.insert((deadline, self.numbers));
        self.numbers
    }

    /// Records go out under a number.
    pub fn add(&mut self, number: u64, records: u32) {
        let Some(open) = self.open.get_mut(&number) else { return };
        open.left = open.left.saturating_add(records);
        if let Some(own) = self.consumers.get_mut(&open.consumer) {
            own.out = own.out.saturating_add(records);
        }
    }

    /// Records of a number are done or have come back.
    pub fn release(&mut self, number: u64, records: u32) {
        let Some(open) = self.open.get_mut(&number) else { return };
        open.left = open.left.saturating_sub(records);
        if let Some(own) = self.consumers.get_mut(&open.consumer) {
            own.out = own.out.saturating_sub(records);
        }
        if open.left == 0 {
            self.deadlines.remove(&(open.deadline, number));
            self.open.remove(&number);
        }
    }

    /// Who holds a number, and of which entry.
    pub fn holder(&self, number: u64) -> Option<(ConsumerId, EntryId)> {
        self.open.get(&number).map(|open| (open.consumer, open.entry))
    }

    /// Numbers that a consumer holds, oldest first.
    pub fn held_by(&self, consumer: ConsumerId) -> Vec<u64> {
        let own = self.open.iter().filter(|(_, open)| open.consumer == consumer);
        let mut numbers: Vec<u64> = own.map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// The next number that is overdue; it is told once.
    pub fn overdue(&mut self, now: u64) -> Option<u64> {
        let (deadline, number) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now)?;
        self.deadlines.remove(&(deadline, number));
        Some(number)
    }

    /// When the next one is overdue.
    pub fn deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}
