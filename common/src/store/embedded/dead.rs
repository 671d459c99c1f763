//! Dead letters and the counts of groups, as the committer keeps them: what each verb changes. The records are on disk only.

use std::collections::BTreeMap;

use bytes::Bytes;
use hashbrown::HashMap;

use super::{
    disk::{Disk, corrupt, failed},
    keys,
    machine::Machine,
    partition::Partition,
    session::number_after,
};
use crate::{
    name::PartitionKey,
    position::EntryId,
    store::{
        Counts, DEAD_BYTES, DEAD_LETTERS, DeadLetter, DeadLetters, KeptLetter, StoreError, encoding::Reader,
    },
};

/// What is known of a group's dead letters in one partition.
#[derive(Default, Clone, Debug, PartialEq, Eq)]
pub(super) struct Dead {
    /// Bytes of each record by number.
    letters: BTreeMap<u64, u64>,
    bytes: u64,
    last: u64,
    dropped: u64,
}

/// Bytes of a group's counts.
fn encode_counts(counts: &Counts, detached: bool, dead: &Dead) -> Vec<u8> {
    let Counts { began, filtered, acked, dead: buried, dropped } = *counts;
    let numbers = [began, filtered, acked, buried, dropped, u64::from(detached), dead.last, dead.dropped];
    numbers.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// Reads what `encode_counts` wrote, but for the letters; None: unreadable.
pub(super) fn decode_counts(bytes: &[u8]) -> Option<(Counts, bool, Dead)> {
    let mut reader = Reader(bytes);
    let mut next = || reader.u64();
    let (began, filtered, acked, dead, dropped) = (next()?, next()?, next()?, next()?, next()?);
    let detached = next()? == 1;
    let letters = Dead { last: next()?, dropped: next()?, ..Dead::default() };
    Some((Counts { began, filtered, acked, dead, dropped }, detached, letters))
}

fn encode_letter(letter: &DeadLetter) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24 + letter.record.len());
    bytes.extend_from_slice(&letter.entry.term.0.to_le_bytes());
    bytes.extend_from_slice(&letter.entry.sequence.to_le_bytes());
    bytes.extend_from_slice(&letter.index.to_le_bytes());
    bytes.extend_from_slice(&letter.deliveries.to_le_bytes());
    bytes.extend_from_slice(&letter.record);
    bytes
}

fn decode_letter(bytes: &[u8]) -> Option<DeadLetter> {
    let mut reader = Reader(bytes);
    let entry = EntryId::new(reader.u64()?, reader.u64()?);
    let (index, deliveries) = (reader.u32()?, reader.u32()?);
    Some(DeadLetter { entry, index, deliveries, record: Bytes::copy_from_slice(reader.0) })
}

impl Disk {
    /// Learns which dead letters there are.
    pub(super) fn bury_again(
        &self,
        partitions: &mut HashMap<PartitionKey, Partition>,
    ) -> Result<(), StoreError> {
        for item in self.dead.iter() {
            let (key, value) = item.into_inner().map_err(failed)?;
            let unreadable = || corrupt("a dead letter");
            let ((key, group), number) = keys::number_of_mail(&key).ok_or_else(unreadable)?;
            let letter = decode_letter(&value).ok_or_else(unreadable)?;
            let group = String::from_utf8(group.to_vec()).map_err(|_| unreadable())?;
            let Some(partition) = partitions.get_mut(&key) else { continue };
            let dead = partition.dead.entry(group).or_default();
            dead.letters.insert(number, letter.record.len() as u64);
            dead.bytes += letter.record.len() as u64;
            dead.last = dead.last.max(number);
        }
        Ok(())
    }

    /// The dead letters of these numbers, as far as they are there.
    pub(super) fn letters(
        &self,
        key: &PartitionKey,
        group: &str,
        numbers: &[u64],
    ) -> Result<Vec<KeptLetter>, StoreError> {
        let mut letters = Vec::with_capacity(numbers.len());
        for number in numbers {
            let found = self.dead.get(keys::mail(key, group.as_bytes(), *number)).map_err(failed)?;
            if let Some(bytes) = found {
                let letter = decode_letter(&bytes).ok_or_else(|| corrupt("a dead letter"))?;
                letters.push(KeptLetter { number: *number, letter });
            }
        }
        Ok(letters)
    }
}

impl Machine {
    pub(super) fn write_counts(&mut self, key: &PartitionKey, group: &str) {
        let Some(partition) = self.partitions.get(key) else { return };
        if let Some(cursor) = partition.groups.get(group) {
            let none = Dead::default();
            let dead = partition.dead.get(group).unwrap_or(&none);
            let bytes = encode_counts(&cursor.counts, cursor.detached, dead);
            self.batch.insert(&self.disk.state, keys::counts(key, group), bytes);
        }
    }

    /// Keeps dead letters that the cursor, as it was, does not know as done.
    pub(super) fn bury(&mut self, key: &PartitionKey, group: &str, letters: &[DeadLetter]) {
        let now = self.clock.now_ms();
        let Some(partition) = self.partitions.get_mut(key) else { return };
        let Some(cursor) = partition.groups.get(group) else { return };
        let dead = partition.dead.entry(group.to_owned()).or_default();
        for letter in letters.iter().filter(|letter| !cursor.is_done(letter.entry, letter.index)) {
            dead.last = number_after(dead.last, now);
            dead.letters.insert(dead.last, letter.record.len() as u64);
            dead.bytes += letter.record.len() as u64;
            let bytes = encode_letter(letter);
            self.batch_bytes += bytes.len();
            self.batch.insert(&self.disk.dead, keys::mail(key, group.as_bytes(), dead.last), bytes);
            while dead.letters.len() as u64 > DEAD_LETTERS || dead.bytes > DEAD_BYTES {
                let Some((number, bytes)) = dead.letters.pop_first() else { break };
                dead.bytes -= bytes;
                dead.dropped += 1;
                self.batch.remove(&self.disk.dead, keys::mail(key, group.as_bytes(), number));
            }
        }
    }

    /// Numbers of dead letters above one, and what is known of all; the letters are yet to be read.
    pub(super) fn dead_letters(
        &mut self,
        key: &PartitionKey,
        group: &str,
        after: u64,
        max: usize,
    ) -> Result<DeadLetters, StoreError> {
        self.settle()?;
        let Some(dead) = self.partitions.get(key).and_then(|partition| partition.dead.get(group)) else {
            return Ok(DeadLetters::default());
        };
        let numbers: Vec<u64> = match after.checked_add(1) {
            Some(first) => dead.letters.range(first..).take(max).map(|(number, _)| *number).collect(),
            None => Vec::new(),
        };
        let (kept, bytes, dropped) = (dead.letters.len() as u64, dead.bytes, dead.dropped);
        Ok(DeadLetters { letters: self.disk.letters(key, group, &numbers)?, kept, bytes, dropped })
    }

    pub(super) fn delete_dead(&mut self, key: &PartitionKey, group: &str, numbers: &[u64]) {
        let partition = self.partitions.get_mut(key);
        let Some(dead) = partition.and_then(|partition| partition.dead.get_mut(group)) else { return };
        for number in numbers {
            if let Some(bytes) = dead.letters.remove(number) {
                dead.bytes -= bytes;
                self.batch.remove(&self.disk.dead, keys::mail(key, group.as_bytes(), *number));
            }
        }
    }

    /// The group is gone.
    pub(super) fn forget_dead(&mut self, key: &PartitionKey, group: &str) {
        self.batch.remove(&self.disk.state, keys::counts(key, group));
        let dead = self.partitions.get_mut(key).and_then(|partition| partition.dead.remove(group));
        for number in dead.into_iter().flat_map(|dead| dead.letters.into_keys()) {
            self.batch.remove(&self.disk.dead, keys::mail(key, group.as_bytes(), number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_letters_come_back_and_cut_bytes_do_not() {
        let counts = Counts { began: 1, filtered: 2, acked: 3, dead: 4, dropped: 5 };
        let dead = Dead { last: 6, dropped: 7, ..Dead::default() };
        let bytes = encode_counts(&counts, true, &dead);
        assert_eq!(decode_counts(&bytes), Some((counts, true, dead)));
        assert_eq!(decode_counts(&bytes[..63]), None);
        let record = Bytes::from_static(b"record");
        let letter = DeadLetter { entry: EntryId::new(1, 2), index: 3, deliveries: 4, record };
        assert_eq!(decode_letter(&encode_letter(&letter)), Some(letter));
        assert_eq!(decode_letter(&[0; 23]), None);
    }
}
