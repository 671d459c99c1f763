//! What each producer last stored in one partition. Pure. This is what makes a re-sent batch be stored once: after taking a
//! term it is read back from the log's tail, afterwards it follows the appends.

use hashbrown::HashMap;
use penstock_common::store::{ReadBack, Segment};

/// Producers remembered for a partition; a shard that comes back after that many others is "not known".
const MOST: usize = 16_384;

/// The last stored number of each producer of a partition.
#[derive(Debug, Default)]
pub struct Producers {
    last: HashMap<u64, (u64, u64)>,
    /// The log was read back whole: who is not here has stored nothing that matters.
    complete: bool,
    clock: u64,
}

/// What to do with numbers first .. first + count - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// This many of them, from the front, are stored; the rest is not.
    Stored(u32),
    /// Sent before, and nothing tells whether they were stored.
    Undecided,
}

impl Producers {
    /// From the log's tail.
    pub fn from_tail(tail: &ReadBack) -> Self {
        let mut producers = Self { complete: tail.complete, ..Self::default() };
        for (_, segments) in tail.entries.iter().rev() {
            producers.stored(segments);
        }
        producers
    }

    /// Follows an append.
    pub fn stored(&mut self, segments: &[Segment]) {
        for segment in segments {
            self.clock += 1;
            let number = segment.first + u64::from(segment.count.max(1)) - 1;
            let entry = self.last.entry(segment.producer).or_default();
            *entry = (entry.0.max(number), self.clock);
        }
        if self.last.len() > MOST {
            self.forget_oldest();
        }
    }

    /// How many of these numbers are stored already.
    pub fn known(&self, segment: Segment, resent: bool) -> Known {
        match self.last.get(&segment.producer) {
            Some((last, _)) if *last >= segment.first => {
                let stored = (last - segment.first + 1).min(u64::from(segment.count));
                Known::Stored(u32::try_from(stored).unwrap_or(segment.count))
            }
            Some(_) => Known::Stored(0),
            None if resent && !self.complete => Known::Undecided,
            None => Known::Stored(0),
        }
    }

    fn forget_oldest(&mut self) {
        let mut ages: Vec<u64> = self.last.values().map(|(_, age)| *age).collect();
        let middle = ages.len() / 2;
        let (_, median, _) = ages.select_nth_unstable(middle);
        let median = *median;
        self.last.retain(|_, (_, age)| *age > median);
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
        let mut producers = Producers::from_tail(&tail);
        assert_eq!(producers.known(segment(7, 5, 3), true), Known::Stored(3));
        assert_eq!(producers.known(segment(7, 6, 4), true), Known::Stored(2));
        assert_eq!(producers.known(segment(7, 8, 1), false), Known::Stored(0));
        assert_eq!(producers.known(segment(9, 1, 1), true), Known::Stored(0));
        producers.stored(&[segment(7, 8, 1)]);
        assert_eq!(producers.known(segment(7, 8, 2), true), Known::Stored(1));
    }

    #[test]
    fn a_producer_beyond_the_tail_is_undecided_only_when_resent() {
        let producers = Producers::from_tail(&ReadBack { entries: vec![], complete: false });
        assert_eq!(producers.known(segment(1, 5, 1), true), Known::Undecided);
        assert_eq!(producers.known(segment(1, 5, 1), false), Known::Stored(0));
    }

    #[test]
    fn memory_is_bounded() {
        let mut producers = Producers::from_tail(&ReadBack { entries: vec![], complete: true });
        for producer in 1..=(MOST as u64 * 3) {
            producers.stored(&[segment(producer, 1, 1)]);
        }
        assert!(producers.last.len() <= MOST);
        assert_eq!(producers.known(segment(MOST as u64 * 3, 1, 1), true), Known::Stored(1));
    }
}
