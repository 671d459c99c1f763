//! What groups leave behind and what becomes of a log that is full or old: dead letters, seeking, policies, counts.

use bytes::Bytes;
use penstock_common::{
    position::EntryId,
    registry::BacklogPolicy,
    store::{
        Counts, CursorChange, CursorStart, DEAD_BYTES, DEAD_LETTERS, DeadLetter, Keep, OpenEntry, Totals,
        Trimmed,
    },
};

use crate::fixture::{Fixture, Home, keep, moved, partition};

fn letter(entry: EntryId, index: u32, bytes: usize) -> DeadLetter {
    DeadLetter { entry, index, deliveries: 3, record: Bytes::from(vec![index as u8; bytes]) }
}

fn buried(to: EntryId, open: Vec<(EntryId, OpenEntry)>, dead: Vec<DeadLetter>) -> CursorChange {
    let counts = Counts { dead: dead.len() as u64, ..Counts::default() };
    CursorChange::Group { group: "g".into(), done_up_to: to, done_records: 0, counts, open, dead }
}

pub async fn a_dead_letter_is_kept_once_until_it_is_removed(mut fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let mut home = Home::take(&store, &key, 1).await;
    let (first, second) = (home.append(9, 5, 90).await, home.append(9, 5, 90).await);
    store.create_cursor(&key, "g", CursorStart::Earliest).await.unwrap();
    let open = |done: &[u8]| OpenEntry { done: done.to_vec(), deliveries: vec![] };
    // Records 1 and 8 of the second entry; a change whose answer was lost is said again, with more.
    let letters = vec![letter(second, 1, 10), letter(second, 8, 20)];
    let change = buried(EntryId::ZERO, vec![(second, open(&[2, 1]))], letters.clone());
    store.commit(&key, home.term, &[change]).await.unwrap();
    let mut again = letters.clone();
    again.push(letter(first, 0, 30));
    let state = vec![(first, open(&[1, 0])), (second, open(&[2, 1]))];
    store.commit(&key, home.term, &[buried(EntryId::ZERO, state, again)]).await.unwrap();
    let passed = buried(first, vec![], vec![letter(first, 0, 30)]);
    store.commit(&key, home.term, &[passed]).await.unwrap();
    let dead = store.dead_letters(&key, "g", 0, 10).await.unwrap();
    assert_eq!((dead.kept, dead.bytes, dead.dropped), (3, 60, 0));
    let found: Vec<_> = dead.letters.iter().map(|kept| kept.letter.clone()).collect();
    assert_eq!(found, [letters[0].clone(), letters[1].clone(), letter(first, 0, 30)]);
    assert!(dead.letters.is_sorted_by_key(|kept| kept.number));
    let page = store.dead_letters(&key, "g", dead.letters[0].number, 1).await.unwrap();
    assert_eq!(page.letters, [dead.letters[1].clone()]);
    let old = Home::take(&store, &key, 2).await;
    assert!(
        store.commit(&key, home.term, &[buried(first, vec![], vec![letter(second, 2, 1)])]).await.is_err()
    );
    let last = dead.letters[2].number;
    store.delete_dead(&key, "g", &[dead.letters[0].number, last, last + 1]).await.unwrap();
    drop((store, home, old));
    fixture.restart().await;
    let store = fixture.store();
    let left = store.dead_letters(&key, "g", 0, 10).await.unwrap();
    assert_eq!((left.kept, left.bytes, left.letters), (1, 20, vec![dead.letters[1].clone()]));
    assert_eq!(store.cursors(&key).await.unwrap().groups["g"].counts.dead, 1, "as last said");
    // All removed, and the next one still comes after them.
    store.delete_dead(&key, "g", &[dead.letters[1].number]).await.unwrap();
    let home = Home::take(&store, &key, 3).await;
    let change = buried(first, vec![(second, open(&[4, 0]))], vec![letter(second, 2, 5)]);
    store.commit(&key, home.term, &[change]).await.unwrap();
    let next = store.dead_letters(&key, "g", last, 10).await.unwrap();
    assert_eq!((next.kept, next.bytes, next.letters.len()), (1, 5, 1));
    store.delete_cursor(&key, "g").await.unwrap();
    store.create_cursor(&key, "g", CursorStart::Earliest).await.unwrap();
    assert_eq!(store.dead_letters(&key, "g", 0, 10).await.unwrap(), Default::default(), "they went with it");
}

pub async fn dead_letters_are_bounded_and_the_oldest_are_dropped(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let mut home = Home::take(&store, &key, 1).await;
    let count = u32::try_from(DEAD_LETTERS).unwrap() + 2;
    let id = home.append(count, 5, 90).await;
    store.create_cursor(&key, "g", CursorStart::Earliest).await.unwrap();
    let many = (0..count).map(|index| letter(id, index, 1)).collect();
    store.commit(&key, home.term, &[buried(EntryId::ZERO, vec![], many)]).await.unwrap();
    let dead = store.dead_letters(&key, "g", 0, 1).await.unwrap();
    assert_eq!((dead.kept, dead.dropped, dead.letters[0].letter.index), (DEAD_LETTERS, 2, 2));
    let large = letter(id, 7, usize::try_from(DEAD_BYTES).unwrap());
    store.commit(&key, home.term, &[buried(EntryId::ZERO, vec![], vec![large])]).await.unwrap();
    let dead = store.dead_letters(&key, "g", 0, 10).await.unwrap();
    assert_eq!((dead.kept, dead.bytes, dead.dropped), (1, DEAD_BYTES, DEAD_LETTERS + 2));
}

pub async fn a_group_that_is_sought_begins_anew_there(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let mut home = Home::take(&store, &key, 1).await;
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(home.append(1, 1_000 + n * 100, 10).await);
    }
    store.create_cursor(&key, "g", CursorStart::Earliest).await.unwrap();
    let open = vec![(ids[7], OpenEntry { done: vec![1], deliveries: vec![] })];
    let change = buried(ids[4], open, vec![letter(ids[7], 0, 1)]);
    store.commit(&key, home.term, &[change]).await.unwrap();
    let old = home.term;
    let home = Home::take(&store, &key, 2).await;
    assert!(store.seek(&key, old, "g", CursorStart::Earliest).await.is_err(), "an old home");
    store.seek(&key, home.term, "nobody", CursorStart::Earliest).await.unwrap();
    for (to, up, records) in [
        (CursorStart::Time(1_200), ids[1], 2),
        (CursorStart::Latest, ids[9], 10),
        (CursorStart::Earliest, EntryId::ZERO, 0),
    ] {
        store.seek(&key, home.term, "g", to).await.unwrap();
        let cursors = store.cursors(&key).await.unwrap();
        let cursor = &cursors.groups["g"];
        assert_eq!((cursor.done_up_to, cursor.done_records, cursor.open.len()), (up, records, 0), "{to:?}");
        assert_eq!(cursor.counts, Counts { began: records, ..Counts::default() });
        assert!(!cursors.groups.contains_key("nobody"));
    }
    let dead = store.dead_letters(&key, "g", 0, 10).await.unwrap();
    assert_eq!((dead.kept, dead.bytes), (1, 1), "dead letters stay");
}

/// Ten entries of 100 bytes and two records each, received at 1000, 2000, …
async fn ten(fixture: &Fixture) -> (Home, Vec<EntryId>) {
    let mut home = Home::take(&fixture.store(), &partition("acme", 0), 1).await;
    let mut ids = Vec::new();
    for n in 1..=10 {
        ids.push(home.append(2, n * 1_000, 100).await);
    }
    (home, ids)
}

pub async fn a_full_log_goes_as_far_as_blocking_groups_allow(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let (mut home, mut ids) = ten(&fixture).await;
    for group in ["blocks", "drops"] {
        store.create_cursor(&key, group, CursorStart::Earliest).await.unwrap();
    }
    store.commit(&key, home.term, &[moved("blocks", ids[2], 6)]).await.unwrap();
    let yielding = vec![("drops".to_owned(), BacklogPolicy::DropOldest)];
    let most = Keep { bytes: 1_000, yielding, ..keep(0, 2) };
    let trim = async |home: &Home, most: &Keep| store.trim(&key, home.term, most).await.unwrap();
    let expected = Trimmed { held: Some(300), ..Trimmed::default() };
    assert_eq!(trim(&home, &most).await, expected, "it is not full");
    let most = Keep { bytes: 640, ..most };
    let totals = Totals { records: 6, bytes: 300 };
    let expected = Trimmed { totals, held: Some(300), lost: 6, aged: false };
    assert_eq!(trim(&home, &most).await, expected, "one blocks");
    store.commit(&key, home.term, &[moved("blocks", ids[9], 20)]).await.unwrap();
    // 1000 - 640 + 40: what begins below 400 goes.
    let totals = Totals { records: 8, bytes: 400 };
    let expected = Trimmed { totals, held: Some(1_000), lost: 2, aged: false };
    assert_eq!(trim(&home, &most).await, expected);
    let cursors = store.cursors(&key).await.unwrap();
    assert_eq!(cursors.trimmed, (ids[3], totals));
    assert_eq!(
        (cursors.groups["drops"].missed(cursors.trimmed), cursors.groups["blocks"].missed(cursors.trimmed)),
        (8, 0)
    );
    assert_eq!(home.ids().await, ids[4..]);
    // Nobody blocks: nothing is held.
    store.delete_cursor(&key, "blocks").await.unwrap();
    let most = Keep { groups: 1, ..most };
    assert_eq!(trim(&home, &most).await.held, None);
    store.commit(&key, home.term, &[CursorChange::Fan(Some(ids[5]))]).await.unwrap();
    ids.push(home.append(2, 11_000, 900).await);
    let trimmed = trim(&home, &most).await;
    assert_eq!((trimmed.totals.bytes, trimmed.held), (600, Some(600)), "the fan-out holds back as well");
    store.commit(&key, home.term, &[CursorChange::Fan(None)]).await.unwrap();
    assert_eq!(trim(&home, &most).await.totals.bytes, 1_900, "larger than the limit alone");
    assert_eq!(home.ids().await, []);
}

pub async fn a_group_that_is_detached_holds_nothing_until_it_is_consumed(mut fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let (home, ids) = ten(&fixture).await;
    for group in ["leaves", "stays"] {
        store.create_cursor(&key, group, CursorStart::Earliest).await.unwrap();
    }
    store.commit(&key, home.term, &[moved("stays", ids[8], 18)]).await.unwrap();
    let yielding =
        vec![("leaves".to_owned(), BacklogPolicy::Detach), ("stays".to_owned(), BacklogPolicy::Detach)];
    let most = Keep { bytes: 800, yielding, ..keep(0, 2) };
    let trimmed = store.trim(&key, home.term, &most).await.unwrap();
    let expected = Trimmed { totals: Totals { records: 18, bytes: 900 }, held: None, lost: 0, aged: false };
    assert_eq!(trimmed, expected, "as far as the one that stays is done");
    let term = home.term;
    drop((store, home));
    fixture.restart().await;
    let store = fixture.store();
    let cursors = store.cursors(&key).await.unwrap();
    assert_eq!((cursors.groups["leaves"].detached, cursors.groups["stays"].detached), (true, false));
    assert_eq!(cursors.groups["leaves"].missed(cursors.trimmed), 18);
    store.commit(&key, term, &[moved("leaves", ids[8], 18)]).await.unwrap();
    assert!(!store.cursors(&key).await.unwrap().groups["leaves"].detached);
    store.commit(&key, term, &[moved("stays", ids[9], 20)]).await.unwrap();
    store.trim(&key, term, &most).await.unwrap();
    assert_eq!(store.cursors(&key).await.unwrap().trimmed.0, ids[8], "it holds back again");
}

pub async fn what_is_too_old_goes_whoever_needs_it(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let (home, ids) = ten(&fixture).await;
    store.create_cursor(&key, "blocks", CursorStart::Earliest).await.unwrap();
    let aged = |received_since| Keep { bytes: u64::MAX, received_since, ..keep(0, 1) };
    assert_eq!(store.trim(&key, home.term, &aged(1_000)).await.unwrap().totals, Totals::default());
    let trimmed = store.trim(&key, home.term, &aged(4_500)).await.unwrap();
    let totals = Totals { records: 8, bytes: 400 };
    assert_eq!(trimmed, Trimmed { totals, held: Some(400), lost: 8, aged: true });
    assert_eq!(home.ids().await, ids[4..]);
    let newest = Keep { entries: 3, ..aged(99_000) };
    store.trim(&key, home.term, &newest).await.unwrap();
    assert_eq!(home.ids().await, ids[7..], "but for the newest");
}

pub async fn a_log_without_groups_keeps_what_fits(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let (home, ids) = ten(&fixture).await;
    let most = |bytes| Keep { bytes, ..keep(0, 0) };
    assert_eq!(store.trim(&key, home.term, &most(1_000)).await.unwrap(), Trimmed::default());
    let trimmed = store.trim(&key, home.term, &most(500)).await.unwrap();
    let totals = Totals { records: 12, bytes: 600 };
    assert_eq!(trimmed, Trimmed { totals, held: None, lost: 0, aged: false });
    assert_eq!(home.ids().await, ids[6..]);
}
