//! What is in a consumer's hands, over all partitions: keeps it within the credit, whatever homes hand out while they
//! change. A record that comes again while it is there counts once.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use penstock_proto::messaging::{Batch, Range};
use tokio::time::Instant;

/// Settled entries that may stay in the queue before it is swept.
const SETTLED: usize = 1_024;
/// An entry of records as small as possible, and as large as any store takes, has fewer.
const INDEX_MOST: u32 = 1 << 22;

/// (partition, term, sequence).
type EntryKey = (u32, u64, u64);

#[derive(Debug)]
struct Held {
    bits: Vec<u64>,
    since: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Hands {
    credit: u32,
    forget_after: Duration,
    entries: HashMap<EntryKey, Held>,
    oldest: VecDeque<(Instant, EntryKey)>,
    count: u64,
}

impl Hands {
    /// Empty. A record that isn't acknowledged after the ack timeout is the home's again.
    pub fn new(credit: u32, ack_timeout_ms: u32) -> Self {
        let forget_after = Duration::from_millis(u64::from(ack_timeout_ms));
        Self { credit, forget_after, entries: HashMap::new(), oldest: VecDeque::new(), count: 0 }
    }

    /// Records in the consumer's hands.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// A new bound.
    pub fn set_credit(&mut self, credit: u32) {
        self.credit = credit;
    }

    /// Takes a batch, if it is within the credit; one that is larger than all of it (which has shrunk since) is taken by
    /// empty hands.
    pub fn take(&mut self, batch: &Batch, now: Instant) -> bool {
        self.forget(now);
        let key = (batch.partition, batch.term, batch.sequence);
        let held = self.entries.get(&key);
        let indexes = indexes(batch);
        let new =
            indexes.iter().filter(|index| !held.is_some_and(|held| held.contains(**index))).count() as u64;
        if self.count > 0 && self.count + new > u64::from(self.credit) {
            return false;
        }
        let held = self.entries.entry(key).or_insert_with(|| Held { bits: Vec::new(), since: now });
        held.since = now;
        for index in indexes {
            held.set(index);
        }
        self.oldest.push_back((now, key));
        self.count += new;
        if self.oldest.len() > 2 * self.entries.len() + SETTLED {
            let entries = &self.entries;
            self.oldest.retain(|(since, key)| entries.get(key).is_some_and(|held| held.since == *since));
        }
        true
    }

    /// Records leave the hands.
    pub fn give(&mut self, range: &Range) {
        let key = (range.partition, range.term, range.sequence);
        let Some(held) = self.entries.get_mut(&key) else { return };
        self.count -= held.clear(range.index, range.count);
        if held.bits.iter().all(|bits| *bits == 0) {
            self.entries.remove(&key);
        }
    }

    /// Everything that is held, each run of records of an entry as one range, and how long until it is forgotten.
    pub fn ranges(&mut self, now: Instant) -> Vec<(Range, Duration)> {
        self.forget(now);
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_unstable_by_key(|(key, _)| **key);
        let all = entries.into_iter().flat_map(|(key, held)| {
            let (partition, term, sequence) = *key;
            let left = (held.since + self.forget_after).saturating_duration_since(now);
            let range = move |(index, count)| Range { partition, term, sequence, index, count };
            held.runs().into_iter().map(move |run| (range(run), left))
        });
        all.collect()
    }

    /// Waits until something is forgotten.
    pub async fn relief(&self) {
        match self.oldest.front() {
            Some((since, _)) => tokio::time::sleep_until(*since + self.forget_after).await,
            None => std::future::pending().await,
        }
    }

    fn forget(&mut self, now: Instant) {
        while let Some((since, key)) = self.oldest.front().copied() {
            // Settled entries leave the queue as soon as they are at its front.
            let current = self.entries.get(&key).is_some_and(|held| held.since == since);
            if current && now < since + self.forget_after {
                return;
            }
            self.oldest.pop_front();
            if current && let Some(held) = self.entries.remove(&key) {
                self.count -= held.bits.iter().map(|bits| u64::from(bits.count_ones())).sum::<u64>();
            }
        }
    }
}

impl Held {
    fn contains(&self, index: u32) -> bool {
        self.bits.get((index / 64) as usize).is_some_and(|bits| bits & (1 << (index % 64)) != 0)
    }

    /// First and number of records that follow one another.
    fn runs(&self) -> Vec<(u32, u32)> {
        let most = u32::try_from(self.bits.len() * 64).unwrap_or(u32::MAX);
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for index in (0..most).filter(|index| self.contains(*index)) {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == index => *count += 1,
                _ => runs.push((index, 1)),
            }
        }
        runs
    }

    fn set(&mut self, index: u32) {
        if index > INDEX_MOST {
            return;
        }
        let word = (index / 64) as usize;
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        if let Some(bits) = self.bits.get_mut(word) {
            *bits |= 1 << (index % 64);
        }
    }

    /// Returns how many were set.
    fn clear(&mut self, first: u32, count: u32) -> u64 {
        let most = u32::try_from(self.bits.len() * 64).unwrap_or(u32::MAX);
        let mut cleared = 0;
        for index in first..first.saturating_add(count).min(most) {
            if self.contains(index)
                && let Some(bits) = self.bits.get_mut((index / 64) as usize)
            {
                *bits &= !(1 << (index % 64));
                cleared += 1;
            }
        }
        cleared
    }
}

/// Index of each record of a batch; those of homes of this cluster, so they are small.
fn indexes(batch: &Batch) -> Vec<u32> {
    if !batch.indexes.is_empty() {
        return batch.indexes.clone();
    }
    (0..crate::batch::count(&batch.records).unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(sequence: u64, indexes: &[u32]) -> Batch {
        Batch { partition: 0, term: 1, sequence, indexes: indexes.to_vec(), ..Batch::default() }
    }

    fn range(sequence: u64, index: u32, count: u32) -> Range {
        Range { partition: 0, term: 1, sequence, index, count }
    }

    #[test]
    fn credit_bounds_what_is_held_and_time_gives_it_back() {
        let mut hands = Hands::new(3, 1_000);
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        assert!(hands.take(&batch(1, &[0, 1]), now));
        assert!(!hands.take(&batch(2, &[0, 1]), now));
        assert!(hands.take(&batch(1, &[1, 70]), now), "a record that is there counts once");
        assert_eq!(hands.count(), 3);
        hands.give(&range(1, 0, u32::MAX));
        hands.give(&range(1, 0, 1));
        assert_eq!(hands.count(), 0);
        assert!(hands.take(&batch(2, &[0, 1, 2, 3]), now), "larger than the credit, by empty hands");
        assert!(!hands.take(&batch(3, &[0]), now));
        assert!(hands.take(&batch(3, &[0]), later));
        assert_eq!(hands.count(), 1);
    }

    #[test]
    fn what_is_held_is_told_in_runs_with_the_time_that_is_left() {
        let mut hands = Hands::new(u32::MAX, 1_000);
        let now = Instant::now();
        assert!(hands.take(&batch(2, &[0, 1, 2, 64, 65, 70]), now));
        assert!(hands.take(&batch(1, &[3]), now + Duration::from_millis(600)));
        hands.give(&range(2, 1, 1));
        let ranges = hands.ranges(now + Duration::from_millis(900));
        let (short, long) = (Duration::from_millis(100), Duration::from_millis(700));
        let of_two = [(0, 1), (2, 1), (64, 2), (70, 1)].map(|(index, count)| (range(2, index, count), short));
        assert_eq!(ranges, [vec![(range(1, 3, 1), long)], of_two.to_vec()].concat());
        assert_eq!(
            hands.ranges(now + Duration::from_secs(1)),
            [(range(1, 3, 1), Duration::from_millis(600))]
        );
    }
}
