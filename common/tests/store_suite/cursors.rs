//! Cursors of groups and of the fan-out.

use penstock_common::{
    position::EntryId,
    store::{Counts, CursorChange, CursorStart, GroupCursor, OpenEntry},
};

use crate::fixture::{Fixture, Home, partition};

fn moved(group: &str, to: EntryId, records: u64, open: Vec<(EntryId, OpenEntry)>) -> CursorChange {
    let (group, counts) = (group.to_owned(), Counts::default());
    CursorChange::Group { group, done_up_to: to, done_records: records, counts, open, dead: vec![] }
}

fn open(done: u8) -> OpenEntry {
    OpenEntry { done: vec![done, 0], deliveries: vec![(3, 2), (9, 1)] }
}

pub async fn a_cursor_is_created_once_and_not_resurrected(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    // Before anyone took the partition, too.
    store.create_cursor(&key, "early", CursorStart::Latest).await.unwrap();
    let mut home = Home::take(&store, &key, 1).await;
    let first = home.append(3, 5, 10).await;
    home.append(3, 5, 10).await;
    store.create_cursor(&key, "g", CursorStart::Latest).await.unwrap();
    store.commit(&key, home.term, &[moved("g", first, 3, vec![])]).await.unwrap();
    store.create_cursor(&key, "g", CursorStart::Latest).await.unwrap();
    let cursors = store.cursors(&key).await.unwrap();
    let expected = GroupCursor { done_up_to: first, done_records: 3, ..GroupCursor::default() };
    assert_eq!(cursors.groups["g"], expected, "the second creation changes nothing");
    assert_eq!(cursors.groups["early"], GroupCursor::default());
    store.delete_cursor(&key, "g").await.unwrap();
    store.delete_cursor(&key, "g").await.unwrap();
    let changes =
        [moved("g", first, 3, vec![(home.ids().await[1], open(1))]), moved("early", first, 3, vec![])];
    store.commit(&key, home.term, &changes).await.unwrap();
    let cursors = store.cursors(&key).await.unwrap();
    assert!(!cursors.groups.contains_key("g"), "a deleted group comes back");
    assert_eq!(cursors.groups["early"], expected, "the rest of the commit counts");
}

pub async fn starts_are_latest_earliest_and_a_time(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let mut home = Home::take(&store, &key, 1).await;
    let mut ids = Vec::new();
    // Entries at 1000, 1100, … 2900; every third has several records.
    for n in 0..20u32 {
        ids.push(home.append(if n % 3 == 2 { 5 } else { 1 }, 1_000 + u64::from(n) * 100, 10).await);
    }
    let entries = store.read(&key, EntryId::ZERO, 99, usize::MAX).await.unwrap();
    let records = |id: EntryId| entries.iter().find(|e| e.id == id).map_or(0, |e| e.entry.totals.records);
    let cases = [
        (CursorStart::Earliest, EntryId::ZERO),
        (CursorStart::Latest, ids[19]),
        (CursorStart::Time(0), EntryId::ZERO),
        (CursorStart::Time(1_000), EntryId::ZERO),
        (CursorStart::Time(1_001), ids[0]),
        (CursorStart::Time(1_100), ids[0]),
        (CursorStart::Time(1_200), ids[1]),
        // The entry at 1200 has five records: later ones may be of 1300.
        (CursorStart::Time(1_300), ids[1]),
        (CursorStart::Time(1_350), ids[3]),
        (CursorStart::Time(2_900), ids[18]),
        (CursorStart::Time(9_999), ids[19]),
    ];
    for (number, (start, expected)) in cases.into_iter().enumerate() {
        let group = format!("g{number}");
        store.create_cursor(&key, &group, start).await.unwrap();
        let cursor = store.cursors(&key).await.unwrap().groups.remove(&group).unwrap();
        assert_eq!((cursor.done_up_to, cursor.done_records), (expected, records(expected)), "{start:?}");
    }
}

pub async fn a_time_is_found_across_terms(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let mut ids = Vec::new();
    for term in 0..7u64 {
        let mut home = Home::take(&store, &key, 1).await;
        // One term stays empty.
        for n in 0..if term == 3 { 0 } else { term + 1 } {
            ids.push((home.append(1, 1_000 + term * 100 + n, 10).await, 1_000 + term * 100 + n));
        }
    }
    for time in (990..1_700).step_by(7).chain([1_000, 1_001, 1_100, 1_300, 1_402, 1_606, 1_607]) {
        let before = ids.iter().rev().find(|(_, at)| *at < time).map_or(EntryId::ZERO, |(id, _)| *id);
        let group = time.to_string();
        store.create_cursor(&key, &group, CursorStart::Time(time)).await.unwrap();
        assert_eq!(store.cursors(&key).await.unwrap().groups[&group].done_up_to, before, "{time}");
    }
}

pub async fn open_entries_are_dropped_when_passed(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let mut home = Home::take(&store, &key, 1).await;
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(home.append(9, 5, 10).await);
    }
    store.create_cursor(&key, "g", CursorStart::Earliest).await.unwrap();
    let state = vec![(ids[1], open(1)), (ids[3], open(2)), (ids[10], open(3))];
    store.commit(&key, home.term, &[moved("g", EntryId::ZERO, 0, state)]).await.unwrap();
    let cursor = store.cursors(&key).await.unwrap().groups.remove("g").unwrap();
    assert_eq!(
        cursor.open.into_iter().collect::<Vec<_>>(),
        [(ids[1], open(1)), (ids[3], open(2)), (ids[10], open(3))]
    );
    // 1 and 3 are passed, 2 comes too late, 10 is replaced.
    let state = vec![(ids[2], open(9)), (ids[10], open(7))];
    store.commit(&key, home.term, &[moved("g", ids[3], 36, state)]).await.unwrap();
    let cursor = store.cursors(&key).await.unwrap().groups.remove("g").unwrap();
    assert_eq!((cursor.done_up_to, cursor.done_records), (ids[3], 36));
    assert_eq!(cursor.open.into_iter().collect::<Vec<_>>(), [(ids[10], open(7))]);
}

pub async fn the_fan_out_cursor_comes_and_goes(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let mut home = Home::take(&store, &key, 1).await;
    let id = home.append(1, 5, 10).await;
    assert_eq!(store.cursors(&key).await.unwrap().fan, None);
    for fan in [Some(EntryId::ZERO), Some(id), None, Some(id)] {
        store.commit(&key, home.term, &[CursorChange::Fan(fan)]).await.unwrap();
        assert_eq!(store.cursors(&key).await.unwrap().fan, fan);
    }
}

pub async fn names_of_groups_are_any_text(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let home = Home::take(&store, &key, 1).await;
    let names = ["a", "a:b", "a%3Ab", "{x}", "ä €", "*", "a/b c", "up"];
    for name in names {
        store.create_cursor(&key, name, CursorStart::Earliest).await.unwrap();
        let to = EntryId::new(1, name.len() as u64);
        store.commit(&key, home.term, &[moved(name, to, 1, vec![])]).await.unwrap();
    }
    let cursors = store.cursors(&key).await.unwrap();
    assert_eq!(cursors.groups.len(), names.len());
    for name in names {
        assert_eq!(cursors.groups[name].done_up_to.sequence, name.len() as u64);
    }
    store.delete_cursor(&key, "*").await.unwrap();
    assert_eq!(store.cursors(&key).await.unwrap().groups.len(), names.len() - 1);
}
