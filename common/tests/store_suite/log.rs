//! Terms, appends, reads.

use std::collections::BTreeMap;

use penstock_common::{
    position::{EntryId, Term},
    store::{AppendError, CommitError, CursorChange, CursorStart},
};

use crate::fixture::{Fixture, Home, keep, moved, partition, tenant, user};

pub async fn ids_are_dense_and_begin_at_one_in_every_term(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    assert_eq!(store.holder(&key).await.unwrap(), None);
    let first = store.take(&key, 7).await.unwrap();
    assert_eq!((first.previous_holder, first.last), (None, EntryId::ZERO));
    assert_eq!((first.totals, first.trimmed), Default::default());
    assert!(first.term.0 > 1_600_000_000_000, "about milliseconds: {}", first.term);
    let mut home = Home::take(&store, &key, u64::MAX).await;
    assert!(home.term > first.term);
    for sequence in 1..=5 {
        assert_eq!(home.append(2, 1_000, 10).await, EntryId::new(home.term.0, sequence));
    }
    assert_eq!(store.holder(&key).await.unwrap(), Some((home.term, u64::MAX)));
    let took = store.take(&key, 9).await.unwrap();
    assert!(took.term > home.term);
    assert_eq!(took.previous_holder, Some(u64::MAX));
    assert_eq!(took.last, EntryId::new(home.term.0, 5));
    assert_eq!(took.totals, home.totals);
    let mut again = Home::take(&store, &key, 9).await;
    assert_eq!(again.append(1, 1_000, 10).await, EntryId::new(again.term.0, 1));
}

pub async fn an_old_holder_writes_nothing(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 1));
    let mut old = Home::take(&store, &key, 1).await;
    let kept = old.append(1, 5, 10).await;
    store.create_cursor(&key, "g", CursorStart::Earliest).await.unwrap();
    let mut new = Home::take(&store, &key, 2).await;
    assert!(matches!(old.try_append(1, 5, 10).await, Err(AppendError::Fenced)));
    let change = [CursorChange::Fan(Some(kept))];
    let commit = store.commit(&key, old.term, &change).await;
    assert!(matches!(commit, Err(CommitError::Fenced)), "{commit:?}");
    let change = [moved("g", kept, 1)];
    assert!(matches!(store.commit(&key, old.term, &change).await, Err(CommitError::Fenced)));
    assert!(matches!(store.trim(&key, old.term, &keep(0, 0)).await, Err(CommitError::Fenced)));
    let cursors = store.cursors(&key).await.unwrap();
    assert_eq!(cursors.fan, None);
    assert_eq!(cursors.groups["g"].done_up_to, EntryId::ZERO);
    assert_eq!(new.ids().await, [kept]);
    new.append(1, 5, 10).await;
    assert!(
        matches!(old.try_append(1, 5, 10).await, Err(AppendError::Fenced)),
        "after the new one wrote, too"
    );
}

pub async fn what_is_appended_is_what_is_read(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 2));
    let mut home = Home::take(&store, &key, 1).await;
    let (mut written, mut ids) = (Vec::new(), Vec::new());
    for bytes in [0, 1, 1_000, 1 << 20] {
        written.push(home.entry(3, 1_700_000_000_000 + bytes as u64, bytes));
        ids.push(home.append(3, 1_700_000_000_000 + bytes as u64, bytes).await);
    }
    let read = store.read(&key, EntryId::ZERO, 100, usize::MAX).await.unwrap();
    assert_eq!(read.iter().map(|e| e.id).collect::<Vec<_>>(), ids);
    assert!(read.into_iter().map(|e| e.entry).eq(written));
    assert_eq!(store.read(&key, ids[3], 100, usize::MAX).await.unwrap(), []);
    assert_eq!(store.read(&key, ids[1], 100, usize::MAX).await.unwrap().len(), 2);
    assert_eq!(store.read(&partition("acme", 3), EntryId::ZERO, 9, 9).await.unwrap(), []);
}

pub async fn pages_are_bounded_in_entries_and_bytes(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let mut home = Home::take(&store, &key, 1).await;
    for _ in 0..50 {
        home.append(1, 5, 1_000).await;
    }
    let all = home.ids().await;
    let mut paged = Vec::new();
    loop {
        let after = paged.last().copied().unwrap_or(EntryId::ZERO);
        let page = store.read(&key, after, 7, usize::MAX).await.unwrap();
        assert!(page.len() <= 7);
        if page.is_empty() {
            break;
        }
        paged.extend(page.into_iter().map(|entry| entry.id));
    }
    assert_eq!(paged, all);
    assert_eq!(store.read(&key, EntryId::ZERO, 0, 9).await.unwrap(), []);
    for (max_bytes, entries) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (30_000, 30), (99_999, 50)] {
        assert_eq!(
            store.read(&key, EntryId::ZERO, 100, max_bytes).await.unwrap().len(),
            entries,
            "{max_bytes}"
        );
    }
}

pub async fn read_back_tells_what_producers_stored(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let nothing = store.read_back(&key, 1_000).await.unwrap();
    assert!(nothing.complete && nothing.entries.is_empty());
    let mut home = Home::take(&store, &key, 1).await;
    for _ in 0..40 {
        home.append(2, 5, 1_000).await;
    }
    let mut home = Home::take(&store, &key, 2).await;
    home.append(2, 5, 1_000).await;
    let mut newest_first = home.ids().await;
    newest_first.reverse();
    let back = store.read_back(&key, usize::MAX).await.unwrap();
    assert!(back.complete);
    assert!(back.entries.iter().map(|(id, _)| *id).eq(newest_first.iter().copied()));
    assert_eq!(back.entries[0].1[0].first, 81);
    assert_eq!(back.entries[40].1[0].first, 1);
    let some = store.read_back(&key, 5_000).await.unwrap();
    assert!(!some.complete);
    assert!((5..=17).contains(&some.entries.len()), "{}", some.entries.len());
    assert_eq!(some.entries[..], back.entries[..some.entries.len()]);
}

pub async fn appends_of_many_partitions_do_not_mix(fixture: Fixture) {
    let store = fixture.store();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..64 {
        let store = fixture.store();
        tasks.spawn(async move {
            let mut home = Home::take(&store, &partition("acme", number), u64::from(number) + 1).await;
            for _ in 0..20 {
                home.append(number + 1, 5, 100).await;
            }
            (number, home.term)
        });
    }
    let terms: BTreeMap<u32, Term> = tasks.join_all().await.into_iter().collect();
    for (number, term) in terms {
        let entries = store.read(&partition("acme", number), EntryId::ZERO, 99, usize::MAX).await.unwrap();
        let ids = (1..=20).map(|sequence| EntryId { term, sequence });
        assert!(entries.iter().map(|e| e.id).eq(ids));
        assert!(entries.iter().all(|e| e.entry.count == number + 1));
    }
}

pub async fn everything_survives_a_restart(mut fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let mut home = Home::take(&store, &key, 1).await;
    let (first, second) = (home.append(1, 5, 10).await, home.append(4, 5, 10).await);
    store.create_cursor(&key, "g", CursorStart::Latest).await.unwrap();
    store.commit(&key, home.term, &[CursorChange::Fan(Some(first))]).await.unwrap();
    let trimmed = store.trim(&key, home.term, &keep(0, 1)).await.unwrap().totals;
    store.put_user(&tenant("acme"), &user("u", "v"), true).await.unwrap();
    let (term, totals) = (home.term, home.totals);
    drop((store, home));
    fixture.restart().await;
    let store = fixture.store();
    assert_eq!(store.holder(&key).await.unwrap(), Some((term, 1)));
    let cursors = store.cursors(&key).await.unwrap();
    assert_eq!(cursors.fan, Some(first));
    assert_eq!((cursors.groups["g"].done_up_to, cursors.groups["g"].done_records), (second, 5));
    assert_eq!(store.user(&tenant("acme"), "u").await.unwrap(), Some(user("u", "v")));
    let took = store.take(&key, 2).await.unwrap();
    assert!(took.term > term);
    assert_eq!((took.previous_holder, took.last), (Some(1), second));
    assert_eq!((took.totals, took.trimmed), (totals, trimmed));
    let mut home = Home::take(&store, &key, 3).await;
    let third = home.append(1, 5, 10).await;
    assert_eq!(home.ids().await, [second, third]);
}
