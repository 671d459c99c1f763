//! Trimming: what is held back, and what is remembered of what went.

use penstock_common::{
    position::EntryId,
    store::{CursorChange, CursorStart, Totals},
};

use crate::fixture::{Fixture, Home, keep, moved, partition};

pub async fn every_cursor_holds_entries_back(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let mut home = Home::take(&store, &key, 1).await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(home.append(2, 5, 100).await);
    }
    let most = keep(0, 2);
    for group in ["a", "b"] {
        store.create_cursor(&key, group, CursorStart::Earliest).await.unwrap();
    }
    store.commit(&key, home.term, &[CursorChange::Fan(Some(ids[1])), moved("a", ids[5], 12)]).await.unwrap();
    assert_eq!(
        store.trim(&key, home.term, &most).await.unwrap().totals,
        Totals::default(),
        "b is at the beginning"
    );
    store.commit(&key, home.term, &[moved("b", ids[3], 8)]).await.unwrap();
    assert_eq!(store.trim(&key, home.term, &most).await.unwrap().totals, Totals { records: 4, bytes: 200 });
    assert_eq!(home.ids().await, ids[2..], "the fan-out holds back");
    store.commit(&key, home.term, &[CursorChange::Fan(None)]).await.unwrap();
    assert_eq!(store.trim(&key, home.term, &most).await.unwrap().totals, Totals { records: 8, bytes: 400 });
    assert_eq!(home.ids().await, ids[4..], "b holds back");
    assert_eq!(
        store.trim(&key, home.term, &most).await.unwrap().totals,
        Totals { records: 8, bytes: 400 },
        "again"
    );
    store.delete_cursor(&key, "b").await.unwrap();
    let most = keep(0, 1);
    assert_eq!(store.trim(&key, home.term, &most).await.unwrap().totals, Totals { records: 12, bytes: 600 });
    assert_eq!(home.ids().await, ids[6..], "a holds back");
    // What is gone is no start.
    store.create_cursor(&key, "c", CursorStart::Earliest).await.unwrap();
    store.create_cursor(&key, "d", CursorStart::Time(1)).await.unwrap();
    let cursors = store.cursors(&key).await.unwrap();
    for group in ["c", "d"] {
        assert_eq!((cursors.groups[group].done_up_to, cursors.groups[group].done_records), (ids[5], 12));
    }
}

pub async fn the_newest_entries_are_kept(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let mut ids = Vec::new();
    let mut home = Home::take(&store, &key, 1).await;
    for entries in [4, 1, 0, 3] {
        home = Home::take(&store, &key, 1).await;
        for _ in 0..entries {
            ids.push(home.append(1, 5, 10).await);
        }
    }
    for newest in (0..=9).rev() {
        store.trim(&key, home.term, &keep(newest, 0)).await.unwrap();
        let kept = usize::try_from(newest).unwrap().min(ids.len());
        assert_eq!(home.ids().await, ids[ids.len() - kept..], "{newest}");
    }
}

pub async fn a_defined_group_without_a_cursor_means_no_trim(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let mut home = Home::take(&store, &key, 1).await;
    let id = home.append(1, 5, 10).await;
    store.create_cursor(&key, "g", CursorStart::Latest).await.unwrap();
    let trimmed = store.trim(&key, home.term, &keep(0, 2)).await.unwrap().totals;
    assert_eq!(trimmed, Totals::default());
    assert_eq!(home.ids().await, [id]);
    let trimmed = store.trim(&key, home.term, &keep(0, 1)).await.unwrap().totals;
    assert_eq!(trimmed, home.totals);
    assert_eq!(home.ids().await, []);
}

pub async fn totals_survive_a_log_that_is_empty(mut fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let mut home = Home::take(&store, &key, 1).await;
    home.append(3, 5, 30).await;
    let last = home.append(4, 5, 40).await;
    let all = keep(0, 0);
    assert_eq!(store.trim(&key, home.term, &all).await.unwrap().totals, Totals { records: 7, bytes: 70 });
    assert_eq!(store.trim(&key, home.term, &all).await.unwrap().totals, Totals { records: 7, bytes: 70 });
    let next = home.append(1, 5, 10).await;
    assert_eq!(next, EntryId::new(home.term.0, 3), "a trim does not disturb the sequence");
    store.trim(&key, home.term, &all).await.unwrap();
    let totals = home.totals;
    drop((store, home));
    fixture.restart().await;
    let store = fixture.store();
    let took = store.take(&key, 2).await.unwrap();
    assert_eq!((took.last, took.totals, took.trimmed), (next, totals, totals));
    assert!(took.term.0 > last.term.0);
    store.create_cursor(&key, "g", CursorStart::Latest).await.unwrap();
    let cursor = store.cursors(&key).await.unwrap().groups.remove("g").unwrap();
    assert_eq!((cursor.done_up_to, cursor.done_records), (next, totals.records));
    assert!(store.read_back(&key, 1_000).await.unwrap().complete);
}
