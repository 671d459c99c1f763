//! What a group is done with inside one entry: a bitmap of records, and how often records that came back were handed out.
//! Pure. Bitmaps come from the store and may be shorter or longer than the entry: missing bits are not done.

use std::collections::BTreeMap;

use penstock_common::store::OpenEntry;

/// Done records of one entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Done {
    bits: Vec<u8>,
    count: u32,
    done: u32,
}

impl Done {
    /// Nothing is done of `count` records.
    pub fn none(count: u32) -> Self {
        Self { bits: vec![0; count.div_ceil(8) as usize], count, done: 0 }
    }

    /// From a stored bitmap; bits beyond `count` are ignored.
    pub fn from_stored(stored: &[u8], count: u32) -> Self {
        let mut own = Self::none(count);
        for index in 0..count {
            if stored.get((index / 8) as usize).is_some_and(|byte| byte & (1 << (index % 8)) != 0) {
                own.set(index);
            }
        }
        own
    }

    /// Marks a record; false: it was done already, or there is no such record.
    pub fn set(&mut self, index: u32) -> bool {
        let mask = 1 << (index % 8);
        match self.bits.get_mut((index / 8) as usize) {
            Some(byte) if index < self.count && *byte & mask == 0 => {
                *byte |= mask;
                self.done += 1;
                true
            }
            _ => false,
        }
    }

    /// Marks all.
    pub fn set_all(&mut self) {
        for index in 0..self.count {
            self.set(index);
        }
    }

    /// Whether a record is done.
    pub fn contains(&self, index: u32) -> bool {
        self.bits.get((index / 8) as usize).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
    }

    /// Records that are done.
    pub fn done(&self) -> u32 {
        self.done
    }

    /// Records in the entry.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Nothing is left.
    pub fn complete(&self) -> bool {
        self.done == self.count
    }

    /// As the store keeps it.
    pub fn to_open(&self, deliveries: &BTreeMap<u32, u32>) -> OpenEntry {
        let left = deliveries.iter().filter(|(index, _)| !self.contains(**index));
        OpenEntry {
            done: self.bits.clone(),
            deliveries: left.map(|(index, times)| (*index, *times)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_bitmap_of_any_length_is_read() {
        let done = Done::from_stored(&[0b101], 10);
        assert_eq!(
            (done.done(), done.contains(2), done.contains(1), done.contains(9)),
            (2, true, false, false)
        );
        let long = Done::from_stored(&[0xff; 9], 3);
        assert!(long.complete() && !long.contains(3));
        assert!(Done::none(0).complete());
    }

    #[test]
    fn a_record_is_done_once_and_its_count_is_forgotten() {
        let mut done = Done::none(9);
        assert!(done.set(8) && !done.set(8) && !done.set(9));
        let open = done.to_open(&BTreeMap::from([(8, 3), (1, 2)]));
        assert_eq!(open, OpenEntry { done: vec![0, 1], deliveries: vec![(1, 2)] });
        done.set_all();
        assert!(done.complete());
    }
}
