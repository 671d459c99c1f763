//! What each producer last stored in one partition. Pure. This is what makes a re-sent batch be stored once: after taking a
//! term it is read back from the log's tail, afterwards it follows the appends.

use std::collections::VecDeque;

use hashbrown::HashMap;
use penstock_common::store::{ReadBack, Segment};

/// Producers remembered for a partition; a shard that comes back after that many others is "not known".
const MOST: usize = 16_384;

/// Runs of stored numbers remembered for a producer: refused numbers leave gaps between them.
const RUNS: usize = 64;

/// What is known of one producer.
#[derive(Debug, Default)]
struct Stored {
    /// Runs of stored numbers, first and last of each, ascending, not touching. What is below the first run was settled
    /// long ago.
    runs: VecDeque<(u64, u64)>,
    age: u64,
}

impl Stored {
    fn add(&mut self, first: u64, last: u64) {
        match self.runs.back_mut() {
            Some(run) if first <= run.1 + 1 && first >= run.0 => run.1 = run.1.max(last),
            Some(run) if first <= run.1 => {}
            _ => self.runs.push_back((first, last)),
        }
        if self.runs.len() > RUNS {
            self.runs.pop_front();
        }
    }

    /// First number that is remembered.
    fn begins(&self) -> u64 {
        self.runs.front().map_or(u64::MAX, |run| run.0)
    }

    /// Whether the number is stored, and the last number of which the same is true.
    fn look(&self, number: u64) -> (bool, u64) {
        for (first, last) in &self.runs {
            if number < *first {
                return (false, first - 1);
            }
            if number <= *last {
                return (true, *last);
            }
        }
        (false, u64::MAX)
    }
}

/// What each producer has stored in a partition.
#[derive(Debug, Default)]
pub struct Producers {
    stored: HashMap<u64, Stored>,
    /// Nothing was trimmed and all was read: who is not here has stored nothing.
    complete: bool,
    clock: u64,
}

/// What to do with numbers first .. first + count - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// None of them is stored.
    Fresh,
    /// All of them are stored.
    Stored,
    /// Some are stored: ask for each.
    Partly,
    /// Sent before, and nothing tells whether they were stored.
    Undecided,
}

impl Producers {
    /// From the log's tail. `whole`: nothing was ever trimmed from the log.
    pub fn from_tail(tail: &ReadBack, whole: bool) -> Self {
        let mut producers = Self { complete: tail.complete && whole, ..Self::default() };
        producers.learn(tail);
        producers
    }

    /// Adds what the log's tail tells.
    pub fn learn(&mut self, tail: &ReadBack) {
        for (_, segments) in tail.entries.iter().rev() {
            self.stored(segments);
        }
    }

    /// Follows an append.
    pub fn stored(&mut self, segments: &[Segment]) {
        // Producer 0 is no shard: see `Segment::only_for`.
        for segment in segments.iter().filter(|segment| segment.producer != 0) {
            self.clock += 1;
            let last = segment.first + u64::from(segment.count.max(1)) - 1;
            let stored = self.stored.entry(segment.producer).or_default();
            stored.add(segment.first, last);
            stored.age = self.clock;
        }
        if self.stored.len() > MOST {
            self.forget_oldest();
        }
    }

    /// What is known of these numbers.
    pub fn known(&self, segment: Segment, resent: bool) -> Known {
        let last = segment.first + u64::from(segment.count.max(1)) - 1;
        match self.look(segment.producer, segment.first, resent) {
            (known, to) if to >= last => known,
            _ => Known::Partly,
        }
    }

    /// What is known of one number; never `Partly`.
    pub fn known_one(&self, producer: u64, number: u64, resent: bool) -> Known {
        self.look(producer, number, resent).0
    }

    /// What is known of a number, and the last one of which the same is true.
    fn look(&self, producer: u64, number: u64, resent: bool) -> (Known, u64) {
        let unknown = if resent && !self.complete { Known::Undecided } else { Known::Fresh };
        let Some(stored) = self.stored.get(&producer) else { return (unknown, u64::MAX) };
        match stored.look(number) {
            (true, to) => (Known::Stored, to),
            // Below everything remembered: it may have been stored and trimmed.
            (false, to) if to.checked_add(1) == Some(stored.begins()) => (unknown, to),
            (false, to) => (Known::Fresh, to),
        }
    }

    fn forget_oldest(&mut self) {
        let mut ages: Vec<u64> = self.stored.values().map(|stored| stored.age).collect();
        let middle = ages.len() / 2;
        let (_, median, _) = ages.select_nth_unstable(middle);
        let median = *median;
        self.stored.retain(|_, stored| stored.age > median);
        self.complete = false;
    }
}

#[cfg(test)]
mod tests {
    use penstock_common::position::EntryId;

    use super::*;

    fn segment(producer: u64, first: u64, count: u32) -> Segment {
        Segment { producer, first, count }
    }

    #[test]
    fn a_resent_batch_is_known_in_part_or_whole() {
        let tail = ReadBack {
            entries: vec![
                (EntryId::new(1, 2), vec![segment(7, 5, 3), segment(8, 1, 1)]),
                (EntryId::new(1, 1), vec![segment(7, 1, 4)]),
            ],
            complete: true,
        };
        let mut producers = Producers::from_tail(&tail, true);
        assert_eq!(producers.known(segment(7, 5, 3), true), Known::Stored);
        assert_eq!(producers.known(segment(7, 6, 4), true), Known::Partly);
        assert_eq!(producers.known_one(7, 7, true), Known::Stored);
        assert_eq!(producers.known_one(7, 8, true), Known::Fresh);
        assert_eq!(producers.known(segment(7, 8, 1), false), Known::Fresh);
        assert_eq!(producers.known(segment(9, 1, 1), true), Known::Fresh);
        producers.stored(&[segment(7, 8, 1)]);
        assert_eq!(producers.known(segment(7, 8, 2), true), Known::Partly);
    }

    #[test]
    fn a_number_that_was_refused_between_stored_ones_is_not_stored() {
        let mut producers = Producers::from_tail(&ReadBack { entries: vec![], complete: true }, true);
        producers.stored(&[segment(1, 1, 3), segment(1, 6, 2)]);
        assert_eq!(producers.known(segment(1, 4, 2), true), Known::Fresh);
        assert_eq!(producers.known(segment(1, 3, 4), true), Known::Partly);
        assert_eq!(producers.known_one(1, 5, true), Known::Fresh);
        assert_eq!(producers.known_one(1, 6, true), Known::Stored);
    }

    #[test]
    fn a_producer_beyond_the_tail_is_undecided_only_when_resent() {
        let trimmed = Producers::from_tail(&ReadBack { entries: vec![], complete: true }, false);
        let cut = Producers::from_tail(&ReadBack { entries: vec![], complete: false }, true);
        for producers in [trimmed, cut] {
            assert_eq!(producers.known(segment(1, 5, 1), true), Known::Undecided);
            assert_eq!(producers.known(segment(1, 5, 1), false), Known::Fresh);
        }
    }

    #[test]
    fn what_lies_before_the_tail_is_undecided() {
        let tail = ReadBack { entries: vec![(EntryId::new(1, 9), vec![segment(1, 100, 5)])], complete: true };
        let producers = Producers::from_tail(&tail, false);
        assert_eq!(producers.known(segment(1, 90, 5), true), Known::Undecided);
        assert_eq!(producers.known(segment(1, 98, 4), true), Known::Partly);
        assert_eq!(producers.known_one(1, 99, true), Known::Undecided);
        assert_eq!(producers.known_one(1, 100, true), Known::Stored);
    }

    #[test]
    fn memory_is_bounded() {
        let mut producers = Producers::from_tail(&ReadBack { entries: vec![], complete: true }, true);
        for producer in 1..=(MOST as u64 * 3) {
            producers.stored(&[segment(producer, 1, 1)]);
        }
        assert!(producers.stored.len() <= MOST);
        assert_eq!(producers.known(segment(MOST as u64 * 3, 1, 1), true), Known::Stored);
        for number in 0..1_000 {
            producers.stored(&[segment(5, number * 2 + 1, 1)]);
        }
        assert_eq!(producers.stored[&5].runs.len(), RUNS);
    }
}
