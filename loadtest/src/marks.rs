//! A set of sequences that are entered roughly in order: everything below a base, and a bitmap above it. Costs a bit for
//! each sequence above the first gap, and nothing below it.

use std::collections::VecDeque;

const BITS: u64 = u64::BITS as u64;

/// Sequences that something has happened to.
#[derive(Debug, Default, Clone)]
pub(crate) struct Marks {
    /// All below are in the set. A multiple of 64.
    base: u64,
    /// From `base` on.
    words: VecDeque<u64>,
    count: u64,
}

impl Marks {
    /// Enters one; false if it was in already.
    pub(crate) fn insert(&mut self, sequence: u64) -> bool {
        let Some((at, bit)) = self.place(sequence) else { return false };
        if self.words.len() <= at {
            self.words.resize(at + 1, 0);
        }
        let Some(word) = self.words.get_mut(at) else { return false };
        let new = *word & bit == 0;
        *word |= bit;
        self.count += u64::from(new);
        while self.words.front() == Some(&u64::MAX) {
            self.words.pop_front();
            self.base += BITS;
        }
        new
    }

    /// Whether it is in the set.
    #[cfg(test)]
    pub(crate) fn contains(&self, sequence: u64) -> bool {
        self.place(sequence).is_none_or(|(at, bit)| self.words.get(at).is_some_and(|word| word & bit != 0))
    }

    /// None: below the base.
    fn place(&self, sequence: u64) -> Option<(usize, u64)> {
        let above = sequence.checked_sub(self.base)?;
        Some((usize::try_from(above / BITS).unwrap_or(usize::MAX - 1), 1 << (above % BITS)))
    }

    /// How many are in the set.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// How many of this set are not in the other.
    pub(crate) fn missing_from(&self, other: &Self) -> u64 {
        let end = self.base + self.words.len() as u64 * BITS;
        let mut at = other.base;
        let mut missing = 0;
        while at < end {
            missing += u64::from((self.word(at) & !other.word(at)).count_ones());
            at += BITS;
        }
        missing
    }

    /// The 64 from `at`, a multiple of 64.
    fn word(&self, at: u64) -> u64 {
        match self.place(at) {
            None => u64::MAX,
            Some((place, _)) => self.words.get(place).copied().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_entered_is_in_and_full_words_are_forgotten() {
        let mut marks = Marks::default();
        for sequence in 0..10_000 {
            assert!(!marks.contains(sequence));
            assert!(marks.insert(sequence));
            assert!(!marks.insert(sequence));
            assert!(marks.contains(sequence));
        }
        assert_eq!(marks.count(), 10_000);
        assert!(marks.words.len() <= 1);
        assert!(marks.insert(20_000) && !marks.contains(19_999));
    }

    #[test]
    fn differences_are_counted_over_different_bases() {
        let (mut acked, mut seen) = (Marks::default(), Marks::default());
        for sequence in 0..1_000 {
            acked.insert(sequence);
            if ![3, 64, 700, 999].contains(&sequence) {
                seen.insert(sequence);
            }
        }
        assert_eq!(acked.missing_from(&seen), 4);
        assert_eq!(seen.missing_from(&acked), 0);
        seen.insert(1_001);
        assert_eq!(seen.missing_from(&acked), 1);
    }
}
