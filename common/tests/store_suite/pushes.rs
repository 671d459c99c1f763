//! Pushes that wait for clients, with and without a session, and keys of pushes.

use std::sync::Arc;

use bytes::Bytes;
use penstock_common::{
    clock::Seams,
    epoch::Epoch,
    name::PartitionKey,
    position::{EntryId, Term},
    store::{
        Appended, Begun, MailLimits, MailStep, NewMail, NewPush, PushKey, PushRefused, PushStep, Queued,
        SessionError, SteppedMail, Store,
    },
};

use crate::fixture::{Fixture, partition, until};

const CLIENT: &[u8] = b"dev{ice}\0:1";
const DAY: u64 = 86_400_000;
const WIDE: MailLimits = MailLimits { messages: 1_000, bytes: 1 << 20 };

/// The home of a client's partition.
struct Home {
    store: Arc<dyn Store>,
    key: PartitionKey,
    term: Term,
}

impl Home {
    async fn take(store: &Arc<dyn Store>) -> Self {
        let key = partition("acme", 2);
        let term = store.take(&key, 1).await.unwrap().term;
        Self { store: Arc::clone(store), key, term }
    }

    async fn push_with(
        &self,
        record: &'static str,
        ttl_ms: u64,
        limits: MailLimits,
        key: Option<PushKey>,
    ) -> Queued {
        let push = NewPush { record: Bytes::from_static(record.as_bytes()), ttl_ms, key, limits };
        self.store.queue_push(&self.key, self.term, CLIENT, &push).await.unwrap()
    }

    async fn push(&self, record: &'static str, ttl_ms: u64) -> u64 {
        match self.push_with(record, ttl_ms, WIDE, None).await {
            Queued::Stored { number, expires_at } => {
                assert!(expires_at.abs_diff(Seams::real().now_ms() + ttl_ms) < 600_000);
                number
            }
            other => panic!("{other:?}"),
        }
    }

    /// What the owner of a client without a session gets.
    async fn step(&self, acknowledged: &[u64], received: u64, most: u32) -> SteppedMail {
        let step = PushStep { acknowledged: acknowledged.to_vec(), received, most, max_bytes: 1 << 20 };
        self.store.step_pushes(&self.key, self.term, CLIENT, &step).await.unwrap()
    }

    async fn open(&self, epoch: u64) -> Epoch {
        let epoch = Epoch::real(epoch);
        self.store.open_session(&self.key, self.term, CLIENT, epoch, DAY).await.unwrap();
        epoch
    }

    async fn append(&self, epoch: Epoch, sequence: u64, record: &'static str) {
        let mail =
            [NewMail { entry: EntryId::new(7, sequence), record: Bytes::from_static(record.as_bytes()) }];
        let kept = self.store.append_mail(&self.key, CLIENT, epoch.0, 1, &mail, WIDE).await.unwrap();
        assert_eq!(kept, Appended::Kept { appended: 1, dropped: 0 });
    }

    /// What the owner of a session gets.
    async fn mail(&self, epoch: Epoch, acknowledged: &[u64], received: u64, ids: &[u16]) -> SteppedMail {
        let step = MailStep {
            acknowledged: acknowledged.to_vec(),
            received,
            ids: ids.to_vec(),
            max_bytes: 1 << 20,
            age_ms: DAY,
            expiry_ms: DAY,
        };
        self.store.step_mail(&self.key, self.term, CLIENT, epoch, &step).await.unwrap()
    }
}

fn texts(stepped: &SteppedMail) -> Vec<&str> {
    stepped.mail.iter().map(|mail| std::str::from_utf8(&mail.record).unwrap()).collect()
}

pub async fn pushes_wait_for_a_client_without_a_session(fixture: Fixture) {
    let home = Home::take(&fixture.store()).await;
    let first = home.push("a", DAY).await;
    let second = home.push("b", DAY).await;
    let third = home.push("c", DAY).await;
    assert!(first < second && second < third);
    assert_eq!(texts(&home.step(&[], 0, 0).await), [""; 0], "nothing is asked for");
    let some = home.step(&[], 0, 2).await;
    assert_eq!((texts(&some), some.more), (vec!["a", "b"], true));
    assert!(some.mail.iter().all(|mail| mail.packet_id == 0 && !mail.again));
    assert_eq!(texts(&home.step(&[], second, 9).await), ["c"]);
    assert_eq!(texts(&home.step(&[second], 0, 9).await), ["a", "c"], "what is not acknowledged stays");
    let waits = async |number| home.store.waits(&home.key, CLIENT, number).await.unwrap();
    assert!(waits(first).await && !waits(second).await);
    assert!(!home.store.waits(&home.key, b"other", first).await.unwrap());
    let waiting = home.store.waiting_clients(&home.key).await.unwrap();
    assert_eq!(waiting.iter().map(|(client, _)| &client[..]).collect::<Vec<_>>(), [CLIENT]);
    let rest = home.step(&[first, third], u64::MAX, 9).await;
    assert_eq!((texts(&rest), rest.more), (vec![], false));
    let old = home.term;
    let home = Home::take(&home.store).await;
    let step = PushStep { most: 9, max_bytes: 9, ..PushStep::default() };
    let late = home.store.step_pushes(&home.key, old, CLIENT, &step).await;
    assert!(matches!(late, Err(SessionError::Fenced)), "{late:?}");
}

pub async fn pushes_outlive_sessions_and_mail_does_not(fixture: Fixture) {
    let home = Home::take(&fixture.store()).await;
    home.push("before", DAY).await;
    let epoch = home.open(5).await;
    let step = PushStep { most: 9, max_bytes: 9, ..PushStep::default() };
    let clean = home.store.step_pushes(&home.key, home.term, CLIENT, &step).await;
    assert!(matches!(clean, Err(SessionError::Gone)), "the session hands them out: {clean:?}");
    home.append(epoch, 1, "mail").await;
    home.push("during", DAY).await;
    home.append(epoch, 2, "more mail").await;
    let got = home.mail(epoch, &[], 0, &[1, 2, 3]).await;
    assert_eq!((texts(&got), got.more), (vec!["before", "mail", "during"], true), "one order");
    let state = home.store.session_state(&home.key, CLIENT).await.unwrap().unwrap();
    assert_eq!((state.mail, state.in_flight, state.mail_bytes), (4, 3, 6 + 4 + 6 + 9));
    home.mail(epoch, &[got.mail[0].number], u64::MAX, &[]).await;
    home.store.wipe_session(&home.key, home.term, CLIENT).await.unwrap();
    assert_eq!(texts(&home.step(&[], 0, 9).await), ["during"], "nobody acknowledged it");
    let next = home.open(6).await;
    let state = home.store.session_state(&home.key, CLIENT).await.unwrap().unwrap();
    assert_eq!((state.mail, state.in_flight, state.mail_bytes), (1, 0, 6));
    let got = home.mail(next, &[], 0, &[1, 2]).await;
    assert_eq!((texts(&got), got.mail[0].again), (vec!["during"], false));
}

pub async fn pushes_are_dropped_when_their_time_is_over(fixture: Fixture) {
    let home = Home::take(&fixture.store()).await;
    let short = home.push("short", 1).await;
    home.push("long", DAY).await;
    until("the short one's time is over", async || {
        Seams::real().now_ms() > penstock_common::store::mail_time(short) + 2
    })
    .await;
    let stepped = home.step(&[], 0, 9).await;
    assert_eq!((texts(&stepped), stepped.expired), (vec!["long"], 1));
    let none = home.store.expire_pushes(&home.key, home.term).await.unwrap();
    assert_eq!(none, (0, vec![]), "one waits still");
    let other = NewPush { record: Bytes::from_static(b"x"), ttl_ms: 1, key: None, limits: WIDE };
    home.store.queue_push(&home.key, home.term, b"other", &other).await.unwrap();
    until("the other client's are removed", async || {
        let (expired, clients) = home.store.expire_pushes(&home.key, home.term).await.unwrap();
        assert!(clients.is_empty() || (expired == 1 && clients == [&b"other"[..]]), "{clients:?}");
        !clients.is_empty()
    })
    .await;
    assert_eq!(home.store.waiting_clients(&home.key).await.unwrap().len(), 1);
}

pub async fn a_full_mailbox_refuses_pushes_until_old_ones_are_over(fixture: Fixture) {
    let home = Home::take(&fixture.store()).await;
    let two = MailLimits { messages: 2, bytes: 1 << 20 };
    let full = Queued::Refused(PushRefused::MailboxFull);
    home.push("a", DAY).await;
    home.push("b", 1).await;
    until("the second one makes room", async || home.push_with("c", DAY, two, None).await != full).await;
    assert_eq!(home.push_with("d", DAY, two, None).await, full);
    let bytes = MailLimits { messages: 1_000, bytes: 3 };
    assert_eq!(home.push_with("xx", DAY, bytes, None).await, full);
    assert_eq!(texts(&home.step(&[], 0, 9).await), ["a", "c"]);
}

pub async fn a_push_with_a_known_key_is_not_stored_again(mut fixture: Fixture) {
    let home = Home::take(&fixture.store()).await;
    let key = |name: &str, what: &str| Some(PushKey::new(name.into(), &[what.as_bytes()]));
    let Queued::Stored { number, expires_at } = home.push_with("a", DAY, WIDE, key("k", "a")).await else {
        panic!("not stored")
    };
    let known = format!("queued {number} {expires_at}");
    assert_eq!(home.push_with("a", DAY, WIDE, key("k", "a")).await, Queued::Repeated(known.clone()));
    assert_eq!(home.push_with("b", DAY, WIDE, key("k", "b")).await, Queued::Refused(PushRefused::KeyUsed));
    assert!(matches!(home.push_with("b", DAY, WIDE, key("other", "b")).await, Queued::Stored { .. }));
    assert_eq!(texts(&home.step(&[], 0, 9).await), ["a", "b"]);
    drop(home);
    fixture.restart().await;
    let home = Home::take(&fixture.store()).await;
    assert_eq!(home.push_with("a", DAY, WIDE, key("k", "a")).await, Queued::Repeated(known));
    assert_eq!(texts(&home.step(&[], 0, 9).await), ["a", "b"], "pushes survive a restart");
    assert_eq!(home.store.waiting_clients(&home.key).await.unwrap().len(), 1);
}

pub async fn a_key_of_a_push_that_does_not_wait_keeps_its_outcome(fixture: Fixture) {
    let home = Home::take(&fixture.store()).await;
    let key = PushKey::new("k:1".into(), &[b"topic", b"payload"]);
    let begin = async |key: &PushKey| home.store.begin_push(&home.key, home.term, CLIENT, key).await.unwrap();
    let end = async |outcome: Option<&str>| {
        home.store.end_push(&home.key, home.term, CLIENT, &key, outcome).await.unwrap();
    };
    assert_eq!(begin(&key).await, Begun::New);
    assert_eq!(begin(&key).await, Begun::Repeated(String::new()), "it is under way");
    end(None).await;
    assert_eq!(begin(&key).await, Begun::New, "it had no effect");
    end(Some("done 2 1")).await;
    assert_eq!(begin(&key).await, Begun::Repeated("done 2 1".into()));
    let other = PushKey::new("k:1".into(), &[b"topic", b"another payload"]);
    assert_eq!(begin(&other).await, Begun::Refused(PushRefused::KeyUsed));
    let elsewhere = home.store.begin_push(&home.key, home.term, b"other", &other).await.unwrap();
    assert_eq!(elsewhere, Begun::New, "keys are the client's");
}
