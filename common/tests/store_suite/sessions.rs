//! Persistent sessions, their mail, and the table of filters.

use std::sync::Arc;

use bytes::Bytes;
use penstock_common::{
    epoch::Epoch,
    name::PartitionKey,
    position::{EntryId, Term},
    store::{
        Appended, FilterChanges, FilterTable, MailLimits, MailStep, NewMail, SessionError, SessionFilter,
        SessionFilters, SteppedMail, Store, mail_time,
    },
};

use crate::fixture::{Fixture, partition, tenant, until};

const CLIENT: &[u8] = b"dev{ice}\0:1";
const DAY: u64 = 86_400_000;
const WIDE: MailLimits = MailLimits { messages: 1_000, bytes: 1 << 20 };

/// A session as its owner and the fan-outs of its tenant use it.
struct Owned {
    store: Arc<dyn Store>,
    key: PartitionKey,
    term: Term,
    epoch: Epoch,
    incarnation: u64,
}

impl Owned {
    async fn open(store: &Arc<dyn Store>, epoch: u64) -> Self {
        let key = partition("acme", 2);
        let term = store.take(&key, 1).await.unwrap().term;
        let epoch = Epoch::real(epoch);
        let opened = store.open_session(&key, term, CLIENT, epoch, DAY).await.unwrap();
        Self { store: Arc::clone(store), key, term, epoch, incarnation: opened.filters.incarnation }
    }

    async fn append_with(&self, mail: &[(u64, &'static str)], limits: MailLimits) -> Appended {
        let new = |(sequence, record): &(u64, &'static str)| NewMail {
            entry: EntryId::new(7, *sequence),
            record: Bytes::from_static(record.as_bytes()),
        };
        let mail: Vec<_> = mail.iter().map(new).collect();
        self.store.append_mail(&self.key, CLIENT, self.incarnation, 1, &mail, limits).await.unwrap()
    }

    async fn append(&self, mail: &[(u64, &'static str)]) -> Appended {
        self.append_with(mail, WIDE).await
    }

    async fn try_step(&self, step: &MailStep) -> Result<SteppedMail, SessionError> {
        self.store.step_mail(&self.key, self.term, CLIENT, self.epoch, step).await
    }

    /// Acknowledges, has received up to a number, gives identifiers.
    async fn step(&self, acknowledged: &[u64], received: u64, ids: &[u16]) -> SteppedMail {
        let step = MailStep { acknowledged: acknowledged.to_vec(), received, ids: ids.to_vec(), ..wide() };
        self.try_step(&step).await.unwrap()
    }
}

fn wide() -> MailStep {
    MailStep { max_bytes: 1 << 20, age_ms: DAY, expiry_ms: DAY, ..MailStep::default() }
}

fn kept(appended: u32, dropped: u32) -> Appended {
    Appended::Kept { appended, dropped }
}

fn shown(stepped: &SteppedMail) -> Vec<(String, u16, bool)> {
    let text = |record: &Bytes| String::from_utf8(record.to_vec()).unwrap();
    stepped.mail.iter().map(|mail| (text(&mail.record), mail.packet_id, mail.again)).collect()
}

fn mail(record: &str, id: u16, again: bool) -> (String, u16, bool) {
    (record.into(), id, again)
}

fn filter(text: &'static str, qos: u8) -> SessionFilter {
    SessionFilter { filter: Bytes::from_static(text.as_bytes()), qos }
}

pub async fn a_session_is_created_resumed_and_wiped(fixture: Fixture) {
    let store = fixture.store();
    let key = partition("acme", 2);
    let term = store.take(&key, 1).await.unwrap().term;
    let open = |epoch| store.open_session(&key, term, CLIENT, Epoch::real(epoch), DAY);
    let first = open(5).await.unwrap();
    assert!(!first.present && first.unacknowledged.is_empty() && first.filters.filters.is_empty());
    assert_eq!(first.filters.incarnation, Epoch::real(5).0);
    assert_eq!(open(5).await.unwrap(), first, "the same question again: nothing was there before");
    let filters = [filter("a/#", 1), filter("b", 0)];
    let set = store.set_filters(&key, term, CLIENT, Epoch::real(5), &filters).await.unwrap();
    assert!(set.version > first.filters.version);
    let again = open(9).await.unwrap();
    assert!(again.present);
    assert_eq!(again.filters, set, "its incarnation stays");
    assert_eq!(store.wipe_session(&key, term, CLIENT).await.unwrap(), Some(set.incarnation));
    assert_eq!(store.wipe_session(&key, term, CLIENT).await.unwrap(), None);
    let next = open(10).await.unwrap();
    assert!(!next.present && next.filters.filters.is_empty());
    assert_eq!(next.filters.incarnation, Epoch::real(10).0);
    assert!(next.filters.version > set.version, "versions go on");
    let other = store.open_session(&key, term, b"other", Epoch::real(11), DAY).await.unwrap();
    assert!(!other.present);
}

pub async fn mail_is_appended_once_and_only_to_its_incarnation(fixture: Fixture) {
    let owned = Owned::open(&fixture.store(), 5).await;
    assert_eq!(owned.append(&[(1, "a"), (1, "b"), (3, "c")]).await, kept(3, 0));
    // What a new home repeats, and what a home that slept says late.
    assert_eq!(owned.append(&[(1, "a"), (1, "b"), (3, "c"), (4, "d")]).await, kept(1, 0));
    assert_eq!(owned.append(&[(2, "late")]).await, kept(0, 0));
    let elsewhere = [NewMail { entry: EntryId::new(7, 1), record: Bytes::from_static(b"e") }];
    let store = &owned.store;
    let from =
        |source, incarnation| store.append_mail(&owned.key, CLIENT, incarnation, source, &elsewhere, WIDE);
    assert_eq!(from(0, owned.incarnation).await.unwrap(), kept(1, 0), "another partition");
    assert_eq!(from(3, owned.incarnation + 1).await.unwrap(), Appended::Gone);
    let stepped = owned.step(&[], 0, &[1, 2, 3, 4, 5, 6]).await;
    let records: Vec<_> = shown(&stepped).into_iter().map(|(record, ..)| record).collect();
    assert_eq!(records, ["a", "b", "c", "d", "e"]);
    assert!(stepped.mail.is_sorted_by_key(|mail| mail.number) && !stepped.more);
    let now = fixture_now();
    assert!(stepped.mail.iter().all(|mail| mail_time(mail.number).abs_diff(now) < 600_000));
}

fn fixture_now() -> u64 {
    penstock_common::clock::Seams::real().now_ms()
}

pub async fn nothing_of_a_wiped_session_is_repeated_into_the_next(fixture: Fixture) {
    let owned = Owned::open(&fixture.store(), 5).await;
    assert_eq!(owned.append(&[(1, "a"), (2, "b")]).await, kept(2, 0));
    let before = owned.step(&[], 0, &[1]).await.mail.pop().unwrap().number;
    owned.store.wipe_session(&owned.key, owned.term, CLIENT).await.unwrap();
    assert_eq!(owned.append(&[(3, "c")]).await, Appended::Gone);
    let next = Owned::open(&owned.store, 6).await;
    assert_eq!(next.append(&[(1, "a"), (2, "b"), (3, "c")]).await, kept(1, 0));
    let stepped = next.step(&[], 0, &[1, 2, 3]).await;
    assert_eq!(shown(&stepped), [mail("c", 1, false)]);
    assert!(stepped.mail[0].number > before, "numbers go on");
}

pub async fn what_was_handed_out_comes_again_with_its_identifier(fixture: Fixture) {
    let owned = Owned::open(&fixture.store(), 5).await;
    owned.append(&[(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "e")]).await;
    let first = owned.step(&[], 0, &[10, 11, 12]).await;
    assert_eq!(shown(&first), [mail("a", 10, false), mail("b", 11, false), mail("c", 12, false)]);
    assert!(first.more);
    let numbers: Vec<_> = first.mail.iter().map(|mail| mail.number).collect();
    // The answer did not arrive: the same, and what is in use is no free identifier.
    let lost = owned.step(&[], 0, &[11, 13]).await;
    let again = [mail("a", 10, true), mail("b", 11, true), mail("c", 12, true), mail("d", 13, false)];
    assert_eq!(shown(&lost), again);
    let last = lost.mail[3].number;
    assert_eq!(
        owned.step(&[numbers[1], 99], last, &[]).await,
        SteppedMail { more: true, ..Default::default() }
    );
    // Another connection resumes.
    let resumed =
        owned.store.open_session(&owned.key, owned.term, CLIENT, Epoch::real(8), DAY).await.unwrap();
    assert_eq!(resumed.unacknowledged, [(numbers[0], 10), (numbers[2], 12), (last, 13)]);
    let owned = Owned { epoch: Epoch::real(8), ..owned };
    let step = MailStep { max_bytes: 1, ids: vec![1, 2], ..wide() };
    let small = owned.try_step(&step).await.unwrap();
    assert_eq!(shown(&small), [mail("a", 10, true)], "one at least, and nothing new before the rest");
    assert!(small.more);
    let rest = owned.step(&[], small.mail[0].number, &[10, 1, 2]).await;
    assert_eq!(shown(&rest), [mail("c", 12, true), mail("d", 13, true), mail("e", 1, false)]);
    assert!(!rest.more);
    let all: Vec<_> = rest.mail.iter().map(|mail| mail.number).chain([numbers[0]]).collect();
    assert_eq!(owned.step(&all, all[2], &[1]).await, SteppedMail::default());
    // An empty mailbox goes on where it was.
    owned.append(&[(5, "e"), (6, "f")]).await;
    let next = owned.step(&[], all[2], &[1]).await;
    assert_eq!(shown(&next), [mail("f", 1, false)]);
    assert!(next.mail[0].number > all[2]);
}

pub async fn the_newest_mail_is_dropped_at_the_limits(fixture: Fixture) {
    let owned = Owned::open(&fixture.store(), 5).await;
    let few = MailLimits { messages: 3, bytes: 1_000 };
    assert_eq!(owned.append_with(&[(1, "a"), (2, "b"), (3, "c"), (4, "d")], few).await, kept(3, 1));
    let stepped = owned.step(&[], 0, &[1, 2]).await;
    assert_eq!(owned.append_with(&[(5, "e")], few).await, kept(0, 1), "in flight counts");
    let numbers: Vec<_> = stepped.mail.iter().map(|mail| mail.number).collect();
    owned.step(&numbers, numbers[1], &[]).await;
    assert_eq!(owned.append_with(&[(5, "e"), (6, "f")], few).await, kept(1, 0), "what was dropped stays so");
    let small = MailLimits { messages: 100, bytes: 5 };
    assert_eq!(owned.append_with(&[(7, "1234"), (8, "123"), (9, "4")], small).await, kept(1, 2));
    let rest = owned.step(&[], numbers[1], &[1, 2, 3, 4]).await;
    assert_eq!(shown(&rest), [mail("c", 1, false), mail("f", 2, false), mail("123", 3, false)]);
    let numbers: Vec<_> = rest.mail.iter().map(|mail| mail.number).collect();
    owned.step(&numbers, numbers[2], &[]).await;
    assert_eq!(owned.append_with(&[(10, "12345")], small).await, kept(1, 0), "all bytes came back");
}

pub async fn mail_that_is_too_old_is_dropped_when_its_turn_comes(fixture: Fixture) {
    let owned = Owned::open(&fixture.store(), 5).await;
    owned.append(&[(1, "a"), (2, "b")]).await;
    let sent = owned.step(&[], 0, &[1]).await.mail[0].number;
    let short = MailStep { age_ms: 0, received: sent, ids: vec![2, 3], ..wide() };
    let mut expired = 0;
    // In the millisecond in which it was appended it is not too old.
    for _ in 0..1_000 {
        let stepped = owned.try_step(&short).await.unwrap();
        expired += stepped.expired;
        if expired > 0 {
            assert_eq!(stepped.mail, []);
            break;
        }
        for one in &stepped.mail {
            owned.step(&[one.number], one.number, &[]).await;
        }
        owned.append(&[(expired_sequence(), "c")]).await;
    }
    assert!(expired > 0, "nothing was ever too old");
    let again = owned.step(&[], 0, &[]).await;
    assert_eq!(shown(&again), [mail("a", 1, true)], "what is in flight stays");
}

/// A sequence above all before.
fn expired_sequence() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(10);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

pub async fn other_connections_and_older_terms_are_refused(fixture: Fixture) {
    let store = fixture.store();
    let old = Owned::open(&store, 5).await;
    let new = Owned { epoch: Epoch::real(6), incarnation: old.incarnation, ..Owned::open(&store, 6).await };
    let set = |owned: &Owned| {
        let (store, key, term, epoch) = (Arc::clone(&store), owned.key.clone(), owned.term, owned.epoch);
        async move { store.set_filters(&key, term, CLIENT, epoch, &[filter("a", 1)]).await }
    };
    assert!(matches!(old.try_step(&wide()).await, Err(SessionError::Fenced)));
    assert!(matches!(set(&old).await, Err(SessionError::Fenced)));
    assert!(matches!(store.wipe_session(&old.key, old.term, CLIENT).await, Err(SessionError::Fenced)));
    let open = store.open_session(&old.key, old.term, CLIENT, Epoch::real(7), DAY).await;
    assert!(matches!(open, Err(SessionError::Fenced)));
    let stale = Owned { epoch: old.epoch, store: Arc::clone(&store), key: new.key.clone(), ..new };
    assert!(matches!(stale.try_step(&wide()).await, Err(SessionError::Gone)));
    assert!(matches!(set(&stale).await, Err(SessionError::Gone)));
    let new = Owned { epoch: Epoch::real(6), ..stale };
    set(&new).await.unwrap();
    store.wipe_session(&new.key, new.term, CLIENT).await.unwrap();
    assert!(matches!(new.try_step(&wide()).await, Err(SessionError::Gone)));
}

pub async fn a_session_expires_with_its_mail(fixture: Fixture) {
    let owned = Owned::open(&fixture.store(), 5).await;
    owned.append(&[(1, "a")]).await;
    let step = MailStep { expiry_ms: 40, ..wide() };
    owned.try_step(&step).await.unwrap();
    // An append does not make it live longer.
    until("the session expires", || async {
        owned.append(&[(expired_sequence(), "b")]).await == Appended::Gone
    })
    .await;
    let next = Owned::open(&owned.store, 6).await;
    assert_eq!(next.incarnation, Epoch::real(6).0);
    assert_eq!(next.step(&[], 0, &[1]).await, SteppedMail::default());
}

pub async fn sessions_survive_a_restart(mut fixture: Fixture) {
    let owned = Owned::open(&fixture.store(), 5).await;
    let store = &owned.store;
    let filters =
        store.set_filters(&owned.key, owned.term, CLIENT, owned.epoch, &[filter("+/é", 1)]).await.unwrap();
    store.publish_filters(&tenant("acme"), CLIENT, &filters).await.unwrap();
    owned.append(&[(1, "a"), (2, "b"), (3, "c")]).await;
    let first = owned.step(&[], 0, &[4, 5]).await;
    let numbers: Vec<_> = first.mail.iter().map(|mail| mail.number).collect();
    owned.step(&numbers[..1], numbers[1], &[]).await;
    drop(owned);
    fixture.restart().await;
    let store = fixture.store();
    let table = store.filter_table(&tenant("acme")).await.unwrap();
    assert_eq!(table.sessions, [(Bytes::from_static(CLIENT), filters.clone())]);
    let changes = store.filter_changes(&tenant("acme"), table.up_to).await.unwrap();
    assert_eq!(changes, FilterChanges::Known { up_to: table.up_to, changes: vec![] });
    let key = partition("acme", 2);
    let term = store.take(&key, 1).await.unwrap().term;
    let opened = store.open_session(&key, term, CLIENT, Epoch::real(9), DAY).await.unwrap();
    assert!(opened.present);
    assert_eq!((opened.filters.clone(), opened.unacknowledged), (filters, vec![(numbers[1], 5)]));
    let incarnation = opened.filters.incarnation;
    let owned = Owned { store, key, term, epoch: Epoch::real(9), incarnation };
    assert_eq!(owned.append(&[(3, "c"), (4, "d")]).await, kept(1, 0), "it knows what it has seen");
    let stepped = owned.step(&[], 0, &[4, 5, 6, 7]).await;
    assert_eq!(shown(&stepped), [mail("b", 5, true), mail("c", 4, false), mail("d", 6, false)]);
}

fn wanted(incarnation: u64, version: u64, filters: &[SessionFilter]) -> SessionFilters {
    SessionFilters { incarnation, version, filters: filters.to_vec() }
}

pub async fn the_table_of_filters_is_followed_by_its_changes(fixture: Fixture) {
    let (store, acme) = (fixture.store(), tenant("acme"));
    assert_eq!(store.filter_table(&acme).await.unwrap(), FilterTable::default());
    let none = FilterChanges::Known { up_to: 0, changes: vec![] };
    assert_eq!(store.filter_changes(&acme, 0).await.unwrap(), none);
    let (one, two) = (wanted(u64::MAX, 1, &[filter("a/#", 1)]), wanted(7, 4, &[]));
    let first = store.publish_filters(&acme, CLIENT, &one).await.unwrap();
    let second = store.publish_filters(&acme, b"two", &two).await.unwrap();
    assert!(0 < first && first < second);
    assert_eq!(store.publish_filters(&acme, b"two", &two).await.unwrap(), second, "no change");
    let late = store.publish_filters(&acme, b"two", &wanted(7, 3, &[filter("x", 0)])).await.unwrap();
    assert_eq!(late, second, "an older version");
    assert_eq!(store.withdraw_filters(&acme, b"two", 6).await.unwrap(), second, "another incarnation");
    let (client, other) = (Bytes::from_static(CLIENT), Bytes::from_static(b"two"));
    let all = vec![(client.clone(), Some(one.clone())), (other.clone(), Some(two.clone()))];
    let known = FilterChanges::Known { up_to: second, changes: all.clone() };
    assert_eq!(store.filter_changes(&acme, 0).await.unwrap(), known);
    let mut table = store.filter_table(&acme).await.unwrap();
    table.sessions.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(table, FilterTable { up_to: second, sessions: vec![(client, one), (other.clone(), two)] });
    let third = store.withdraw_filters(&acme, b"two", 7).await.unwrap();
    let known = FilterChanges::Known { up_to: third, changes: vec![(other, None)] };
    assert_eq!(store.filter_changes(&acme, second).await.unwrap(), known);
    assert_eq!(store.filter_table(&acme).await.unwrap().sessions.len(), 1);
    assert_eq!(store.filter_table(&tenant("acme-2")).await.unwrap(), FilterTable::default());
    store.delete_tenant(&acme, 4).await.unwrap();
    assert_eq!(store.filter_table(&acme).await.unwrap(), FilterTable::default());
}

pub async fn a_reader_that_is_too_far_behind_loads_the_table(fixture: Fixture) {
    let (store, acme) = (fixture.store(), tenant("acme"));
    let first = store.publish_filters(&acme, b"c", &wanted(1, 1, &[])).await.unwrap();
    let writes = (2..6_000).map(|version| {
        let (store, acme) = (Arc::clone(&store), acme.clone());
        async move { store.publish_filters(&acme, b"c", &wanted(1, version, &[])).await.unwrap() }
    });
    let numbers = futures::future::join_all(writes).await;
    let last = *numbers.iter().max().unwrap();
    assert_eq!(store.filter_changes(&acme, first).await.unwrap(), FilterChanges::Forgotten);
    // Of a store that has lost its newest writes.
    assert_eq!(store.filter_changes(&acme, last + 5).await.unwrap(), FilterChanges::Forgotten);
    assert_eq!(store.filter_table(&acme).await.unwrap().up_to, last);
    let known = FilterChanges::Known { up_to: last, changes: vec![] };
    assert_eq!(store.filter_changes(&acme, last).await.unwrap(), known);
}

pub async fn the_state_of_a_session_is_shown(fixture: Fixture) {
    let owned = Owned::open(&fixture.store(), 5).await;
    let state = || async { owned.store.session_state(&owned.key, CLIENT).await.unwrap() };
    let fresh = state().await.unwrap();
    assert_eq!((fresh.mail, fresh.mail_bytes, fresh.in_flight, fresh.oldest), (0, 0, 0, None));
    assert!(fresh.expires_in_ms > DAY / 2 && fresh.expires_in_ms <= DAY, "{fresh:?}");
    let filters = [filter("a/#", 1), filter("b", 0)];
    owned.store.set_filters(&owned.key, owned.term, CLIENT, owned.epoch, &filters).await.unwrap();
    owned.append(&[(1, "abc"), (2, "de"), (3, "f")]).await;
    let first = owned.step(&[], 0, &[1, 2]).await.mail;
    let full = state().await.unwrap();
    assert_eq!(full.filters.filters, filters);
    assert_eq!(full.filters.incarnation, owned.incarnation);
    assert_eq!((full.mail, full.mail_bytes, full.in_flight), (3, 6, 2));
    assert!(full.oldest.unwrap().abs_diff(fixture_now()) < 600_000);
    owned.step(&[first[0].number, first[1].number], u64::MAX, &[]).await;
    let rest = state().await.unwrap();
    assert_eq!((rest.mail, rest.mail_bytes, rest.in_flight), (1, 1, 0));
    assert_eq!(owned.store.session_state(&owned.key, b"other").await.unwrap(), None);
    owned.store.wipe_session(&owned.key, owned.term, CLIENT).await.unwrap();
    assert_eq!(state().await, None);
}
