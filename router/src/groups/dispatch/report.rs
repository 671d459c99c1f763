//! What others learn of a dispatch: changes for the cursor, and figures for operators. Pure.

use penstock_common::store::{CursorChange, OpenEntry};

use super::{Dispatch, Standing, Tally};

impl Dispatch {
    /// What the cursor has to learn since the last call.
    pub fn change(&mut self, group: &str) -> Option<CursorChange> {
        if !self.changed {
            return None;
        }
        self.changed = false;
        self.dead_said = std::mem::take(&mut self.dead);
        let mut open = Vec::new();
        for held in self.held.iter_mut().filter(|held| held.dirty) {
            held.dirty = false;
            open.push((held.id, held.done.to_open(&held.deliveries)));
        }
        Some(CursorChange::Group {
            group: group.to_owned(),
            done_up_to: self.done_up_to,
            done_records: self.done_records,
            counts: self.counts,
            open,
            dead: self.dead_said.clone(),
        })
    }

    /// A change was not written: the next one says it again.
    pub fn say_again(&mut self) {
        self.changed = true;
        self.dead.splice(0..0, std::mem::take(&mut self.dead_said));
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
        let held: u64 = self.held.iter().map(|held| u64::from(held.done.done()) + held.known).sum();
        let stored: u64 = self.stored.values().map(OpenEntry::done).sum();
        Standing {
            done_up_to: self.done_up_to,
            done: self.done_records + held + stored,
            counts: self.counts,
            detached: false,
            open: self.book.records(),
            consumers: u32::try_from(self.book.consumers()).unwrap_or(u32::MAX),
            oldest: self.held.front().map(|held| held.received_at),
        }
    }

    /// What was done with records since the last call.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }
}
