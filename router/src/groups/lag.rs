//! How far a group is behind on one partition: from the home that serves it, from a home that doesn't, or, when there is no
//! home, from the store read-only (asking must not move a partition).

use std::sync::Arc;

use penstock_common::{
    clock::UnixMillis,
    name::PartitionKey,
    position::EntryId,
    store::{Counts, Cursors, DeadLetters, Store, StoreError, StoredEntry, Totals},
};
use penstock_proto::messaging::PartitionStatus;

use super::{dispatch::Standing, home::PartitionHome, serve::Serving};

/// Bytes of the log's end that are read to find its last entry.
const LAST: usize = 1;

/// As the home on this router knows it.
pub async fn at_home(
    serving: &Serving,
    home: &Arc<dyn PartitionHome>,
    group: &str,
    now: UnixMillis,
) -> Result<PartitionStatus, StoreError> {
    let standing = match serving.standing(home.key(), group).await {
        Some(standing) => standing,
        None => standing_of(&home.cursors().await?, group),
    };
    let oldest = match standing.oldest {
        Some(oldest) => Some(oldest),
        None => {
            let next = home.read(standing.done_up_to, 1, 1).await?;
            next.first().map(|entry| entry.entry.first_received_at)
        }
    };
    let dead = serving.store.dead_letters(home.key(), group, 0, 0).await?;
    Ok(status(home.key().partition, standing, home.totals(), oldest, &dead, now))
}

/// As the store knows it.
pub async fn in_store(
    store: &dyn Store,
    key: &PartitionKey,
    group: &str,
    now: UnixMillis,
) -> Result<PartitionStatus, StoreError> {
    let standing = standing_of(&store.cursors(key).await?, group);
    let oldest = store.read(key, standing.done_up_to, 1, 1).await?;
    let totals = match last_entry(store, key).await? {
        Some(last) => last.entry.totals,
        None => Totals { records: standing.done, bytes: 0 },
    };
    let oldest = oldest.first().map(|entry| entry.entry.first_received_at);
    let dead = store.dead_letters(key, group, 0, 0).await?;
    Ok(status(key.partition, standing, totals, oldest, &dead, now))
}

async fn last_entry(store: &dyn Store, key: &PartitionKey) -> Result<Option<StoredEntry>, StoreError> {
    let Some((id, _)) = store.read_back(key, LAST).await?.entries.first().cloned() else { return Ok(None) };
    let before = EntryId { sequence: id.sequence.saturating_sub(1), ..id };
    Ok(store.read(key, before, 1, 1).await?.pop())
}

/// As a cursor says it.
pub(super) fn standing_of(cursors: &Cursors, group: &str) -> Standing {
    let Some(cursor) = cursors.groups.get(group) else { return Standing::default() };
    let missed = cursor.missed(cursors.trimmed);
    let counts = Counts { dropped: cursor.counts.dropped + missed, ..cursor.counts };
    Standing {
        done_up_to: cursor.done_up_to,
        done: cursor.done_records + cursor.done_in_open() + missed,
        counts,
        detached: cursor.detached,
        ..Standing::default()
    }
}

fn status(
    partition: u32,
    standing: Standing,
    totals: Totals,
    oldest: Option<UnixMillis>,
    dead: &DeadLetters,
    now: UnixMillis,
) -> PartitionStatus {
    let counts = standing.counts;
    let lag = totals.records.saturating_sub(standing.done);
    PartitionStatus {
        partition,
        lag_records: lag,
        open_records: standing.open,
        oldest_ms: oldest.filter(|_| lag > 0).map_or(0, |since| now.saturating_sub(since)),
        consumers: standing.consumers,
        appended_records: totals.records.saturating_sub(counts.began),
        filtered_records: counts.filtered,
        acked_records: counts.acked,
        dead_records: counts.dead,
        dropped_records: counts.dropped,
        detached: standing.detached,
        dead_letters: dead.kept,
        dead_letter_bytes: dead.bytes,
        dead_letters_dropped: dead.dropped,
    }
}
