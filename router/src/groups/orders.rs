//! What a home is told to do to a group on its partition: go elsewhere in the log, or hand dead letters out again.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use penstock_common::store::{CursorStart, KeptLetter, Store, StoreError};

use super::{
    home::PartitionHome,
    serve::{JoinError, Serving},
};

/// Dead letters that are read at a time.
const PAGE: usize = 100;
/// Bytes of records of one entry of re-driven letters; a single record may be larger.
const ENTRY_BYTES: usize = 1 << 20;

/// One order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Go on from there.
    Seek(CursorStart),
    /// Hand dead letters out again; no numbers: all that are there now.
    Redrive(Vec<u64>),
}

/// Follows an order. Returns how many dead letters are handed out again.
pub async fn follow(
    serving: &Arc<Serving>,
    home: &Arc<dyn PartitionHome>,
    group: &str,
    order: Order,
) -> Result<u64, JoinError> {
    match order {
        Order::Seek(to) => serving.seek(home, group, to).await.map(|()| 0),
        Order::Redrive(numbers) => redrive(serving, home, group, &numbers).await,
    }
}

async fn redrive(
    serving: &Arc<Serving>,
    home: &Arc<dyn PartitionHome>,
    group: &str,
    numbers: &[u64],
) -> Result<u64, JoinError> {
    let number = serving.group(home.key(), group).ok_or(JoinError::NoGroup)?.number();
    let store = &*serving.store;
    // What dies again meanwhile is not driven round and round.
    let mut left = store.dead_letters(home.key(), group, 0, 0).await?.kept;
    let (mut after, mut redriven) = (0, 0);
    while left > 0 {
        let page = store.dead_letters(home.key(), group, after, PAGE).await?.letters;
        let Some(last) = page.last() else { break };
        after = last.number;
        left = left.saturating_sub(page.len() as u64);
        let mut wanted: Vec<KeptLetter> = page;
        wanted.retain(|kept| numbers.is_empty() || numbers.contains(&kept.number));
        for part in parts(&wanted) {
            redriven += append(store, home, (group, number), part).await?;
        }
    }
    Ok(redriven)
}

/// Parts that fit an entry.
fn parts(letters: &[KeptLetter]) -> Vec<&[KeptLetter]> {
    let (mut parts, mut from, mut bytes) = (Vec::new(), 0, 0);
    for (at, kept) in letters.iter().enumerate() {
        if at > from && bytes + kept.letter.record.len() > ENTRY_BYTES {
            parts.extend(letters.get(from..at));
            (from, bytes) = (at, 0);
        }
        bytes += kept.letter.record.len();
    }
    parts.extend(letters.get(from..).filter(|rest| !rest.is_empty()));
    parts
}

/// Appended first and removed then: a failure in between leaves letters that can be re-driven again.
async fn append(
    store: &dyn Store,
    home: &Arc<dyn PartitionHome>,
    (group, number): (&str, u64),
    part: &[KeptLetter],
) -> Result<u64, StoreError> {
    let mut records = BytesMut::new();
    part.iter().for_each(|kept| records.extend_from_slice(&kept.letter.record));
    let records: Bytes = records.freeze();
    let numbers: Vec<u64> = part.iter().map(|kept| kept.number).collect();
    home.append_for(number, records, u32::try_from(numbers.len()).unwrap_or(u32::MAX)).await?;
    store.delete_dead(home.key(), group, &numbers).await?;
    Ok(numbers.len() as u64)
}

#[cfg(test)]
mod tests {
    use penstock_common::{position::EntryId, store::DeadLetter};

    use super::*;

    #[test]
    fn letters_are_parted_by_their_bytes() {
        let letter = |bytes: usize| KeptLetter {
            number: 1,
            letter: DeadLetter {
                entry: EntryId::ZERO,
                index: 0,
                deliveries: 1,
                record: Bytes::from(vec![0; bytes]),
            },
        };
        let all = [letter(600_000), letter(400_000), letter(100_000), letter(2 << 20), letter(1)];
        assert_eq!(parts(&all).into_iter().map(<[_]>::len).collect::<Vec<_>>(), [2, 1, 1, 1]);
        assert!(parts(&[]).is_empty());
    }
}
