//! Scripts while the slot of their keys is on its way from one node of a cluster to another, some keys here and some there:
//! each is done whole, or waits and has done nothing.

use std::{fmt::Debug, sync::Arc};

use bytes::Bytes;
use penstock_common::{
    clock::Seams,
    epoch::Epoch,
    name::PartitionKey,
    position::{EntryId, Term},
    registry::BacklogPolicy,
    store::{
        AppendError, Appended, Begun, CommitError, Counts, CursorChange, CursorStart, DeadLetter, Keep,
        MailLimits, MailStep, NewMail, NewPush, OpenEntry, PushKey, PushStep, Queued, SessionError, Store,
        StoreError, WillChange, WillChanges,
    },
};

use crate::{
    fixture::{Home, keep, moved, open_cluster, partition, until},
    redis_cluster::RedisCluster,
};

const DAY: u64 = 86_400_000;
const WIDE: MailLimits = MailLimits { messages: 1_000, bytes: 1 << 20 };
const CLIENT: &[u8] = b"device";

/// A slot between two nodes.
struct Move<'a> {
    cluster: &'a RedisCluster,
    slot: String,
    from: usize,
    to: usize,
}

impl<'a> Move<'a> {
    fn begin(cluster: &'a RedisCluster, key: &PartitionKey) -> Self {
        let slot = cluster.on(0, &format!("CLUSTER KEYSLOT {{{key}}}")).trim()[1..].to_owned();
        let from = cluster.owner(slot.parse().unwrap()).unwrap();
        let to = (from + 1) % 3;
        cluster.on(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {}", cluster.id(from)));
        cluster.on(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {}", cluster.id(to)));
        Self { cluster, slot, from, to }
    }

    /// Keys that are still where they were, with this in their names.
    fn left(&self, part: &str) -> Vec<String> {
        let keys = self.cluster.on(self.from, &format!("CLUSTER GETKEYSINSLOT {} 100", self.slot));
        let keys = keys.lines().filter(|line| line.starts_with("ps:") && line.contains(part));
        keys.map(str::to_owned).collect()
    }

    fn carry(&self, part: &str) {
        let keys = self.left(part);
        assert!(!keys.is_empty(), "no key with {part}");
        for key in keys {
            let port = self.cluster.nodes()[self.to].port();
            let carried = self.cluster.on(self.from, &format!("MIGRATE 127.0.0.1 {port} {key} 0 10000"));
            assert_eq!(carried, "+OK\r\n", "{key}");
        }
    }

    fn end(self) {
        if !self.left("").is_empty() {
            self.carry("");
        }
        let (cluster, slot) = (self.cluster, &self.slot);
        for node in [self.to, self.from] {
            cluster.on(node, &format!("CLUSTER SETSLOT {slot} NODE {}", cluster.id(self.to)));
        }
    }
}

/// The kind of error that callers repeat: nothing was done. Never a refusal.
trait Stalled {
    fn stalled(&self) -> bool;
}

impl Stalled for StoreError {
    fn stalled(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

impl Stalled for SessionError {
    fn stalled(&self) -> bool {
        matches!(self, Self::Store(error) if error.stalled())
    }
}

impl Stalled for CommitError {
    fn stalled(&self) -> bool {
        matches!(self, Self::Store(error) if error.stalled())
    }
}

async fn stalls<T: Debug, E: Stalled + Debug>(call: impl Future<Output = Result<T, E>>) {
    let outcome = call.await;
    assert!(matches!(&outcome, Err(error) if error.stalled()), "{outcome:?}");
}

/// The home of clients.
struct Clients {
    store: Arc<dyn Store>,
    key: PartitionKey,
    term: Term,
}

impl Clients {
    async fn take(store: &Arc<dyn Store>, tenant: &str) -> Self {
        let key = partition(tenant, 0);
        let term = store.take(&key, 1).await.unwrap().term;
        Self { store: Arc::clone(store), key, term }
    }

    async fn begin(&self, key: &PushKey) -> Result<Begun, SessionError> {
        self.store.begin_push(&self.key, self.term, CLIENT, key).await
    }

    async fn end(&self, key: &PushKey, outcome: Option<&str>) -> Result<(), SessionError> {
        self.store.end_push(&self.key, self.term, CLIENT, key, outcome).await
    }

    async fn queue(
        &self,
        client: &[u8],
        record: &'static str,
        ttl_ms: u64,
        key: Option<PushKey>,
    ) -> Result<Queued, SessionError> {
        let push = NewPush { record: Bytes::from_static(record.as_bytes()), ttl_ms, key, limits: WIDE };
        self.store.queue_push(&self.key, self.term, client, &push).await
    }

    async fn waiting(&self, client: &[u8]) -> Vec<Bytes> {
        let step = PushStep { most: 9, max_bytes: 1 << 20, ..PushStep::default() };
        let stepped = self.store.step_pushes(&self.key, self.term, client, &step).await.unwrap();
        stepped.mail.into_iter().map(|mail| mail.record).collect()
    }

    async fn open(&self, client: &[u8], mail: &'static str) -> (Epoch, u64) {
        let epoch = Epoch::real(5);
        let opened = self.store.open_session(&self.key, self.term, client, epoch, DAY).await.unwrap();
        let incarnation = opened.filters.incarnation;
        let mail = [NewMail { entry: EntryId::new(7, 1), record: Bytes::from_static(mail.as_bytes()) }];
        let kept = self.store.append_mail(&self.key, client, incarnation, 1, &mail, WIDE).await.unwrap();
        assert_eq!(kept, Appended::Kept { appended: 1, dropped: 0 });
        (epoch, incarnation)
    }
}

fn named(name: &str) -> PushKey {
    PushKey::new(name.into(), &[name.as_bytes()])
}

/// The key is the only one of its hash: removing it to write it anew would remove the hash, which then is elsewhere.
async fn a_key_of_a_push_is_never_lost(cluster: &RedisCluster, store: &Arc<dyn Store>) {
    let home = Clients::take(store, "keys").await;
    let (key, other) = (named("k"), named("other"));
    assert_eq!(home.begin(&key).await.unwrap(), Begun::New);
    let on_its_way = Move::begin(cluster, &home.key);
    let ended = home.end(&key, Some("done 2 1")).await;
    // At the border of two stretches of time its hash is the one before, and the present one might be elsewhere.
    assert!(matches!(&ended, Ok(())) || ended.as_ref().is_err_and(Stalled::stalled), "{ended:?}");
    let again = home.begin(&key).await;
    assert!(!matches!(again, Ok(Begun::New)), "accepted a second time");
    on_its_way.carry(":idem:");
    tokio::join!(stalls(home.begin(&key)), stalls(home.begin(&other)), stalls(home.end(&key, None)));
    on_its_way.end();
    let known = home.begin(&key).await.unwrap();
    let expected = if ended.is_ok() { "done 2 1" } else { "" };
    assert_eq!(known, Begun::Repeated(expected.into()));
    home.end(&key, Some("done 3 1")).await.unwrap();
    assert_eq!(home.begin(&key).await.unwrap(), Begun::Repeated("done 3 1".into()));
    assert_eq!(home.begin(&other).await.unwrap(), Begun::New, "what stalled had begun nothing");
}

async fn a_push_that_waits_is_stored_once(cluster: &RedisCluster, store: &Arc<dyn Store>) {
    let home = Clients::take(store, "queue").await;
    let stored = home.queue(CLIENT, "a", DAY, Some(named("a"))).await.unwrap();
    let Queued::Stored { number, expires_at } = stored else { panic!("{stored:?}") };
    let known = Queued::Repeated(format!("queued {number} {expires_at}"));
    let on_its_way = Move::begin(cluster, &home.key);
    stalls(home.queue(CLIENT, "b", DAY, Some(named("b")))).await;
    on_its_way.carry(":idem:");
    stalls(home.queue(CLIENT, "a", DAY, Some(named("a")))).await;
    on_its_way.carry(":mb:");
    tokio::join!(stalls(home.queue(CLIENT, "c", DAY, None)), async {
        assert!(store.waits(&home.key, CLIENT, number).await.unwrap(), "reads go on");
    });
    on_its_way.end();
    assert_eq!(home.queue(CLIENT, "a", DAY, Some(named("a"))).await.unwrap(), known);
    let stored = home.queue(CLIENT, "b", DAY, Some(named("b"))).await.unwrap();
    assert!(matches!(stored, Queued::Stored { .. }), "{stored:?}");
    assert_eq!(home.waiting(CLIENT).await, ["a", "b"]);
}

async fn pushes_expire_together_or_not_at_all(cluster: &RedisCluster, store: &Arc<dyn Store>) {
    let home = Clients::take(store, "expire").await;
    let mut numbers = Vec::new();
    for client in [b"x1", b"x2"] {
        let stored = home.queue(client, "short", 1, None).await.unwrap();
        let Queued::Stored { number, expires_at } = stored else { panic!("{stored:?}") };
        until("its time is over", async || Seams::real().now_ms() > expires_at + 2).await;
        numbers.push(number);
    }
    let on_its_way = Move::begin(cluster, &home.key);
    on_its_way.carry(":s:x2");
    stalls(store.expire_pushes(&home.key, home.term)).await;
    for (client, number) in [b"x1", b"x2"].into_iter().zip(numbers) {
        assert!(store.waits(&home.key, client, number).await.unwrap(), "removed and not told");
    }
    on_its_way.end();
    let (expired, clients) = store.expire_pushes(&home.key, home.term).await.unwrap();
    assert_eq!((expired, clients.len()), (2, 2));
}

async fn the_last_mail_goes_whole(cluster: &RedisCluster, store: &Arc<dyn Store>) {
    let home = Clients::take(store, "mail").await;
    let (epoch, _) = home.open(CLIENT, "m").await;
    let (_, incarnation) = home.open(b"wiped", "w").await;
    let step = async |acknowledged: &[u64], received| {
        let step = MailStep {
            acknowledged: acknowledged.to_vec(),
            received,
            ids: vec![1, 2],
            max_bytes: 1 << 20,
            age_ms: DAY,
            expiry_ms: DAY,
        };
        store.step_mail(&home.key, home.term, CLIENT, epoch, &step).await
    };
    let got = step(&[], 0).await.unwrap();
    let on_its_way = Move::begin(cluster, &home.key);
    let number = got.mail[0].number;
    assert_eq!(step(&[number], number).await.unwrap().mail, [], "its mailbox goes with it");
    let wiped = store.wipe_session(&home.key, home.term, b"wiped").await.unwrap();
    assert_eq!(wiped, Some(incarnation));
    stalls(step(&[], number)).await;
    on_its_way.end();
    assert_eq!(step(&[], number).await.unwrap().mail, []);
    let state = store.session_state(&home.key, CLIENT).await.unwrap().unwrap();
    assert_eq!((state.mail, state.in_flight, state.mail_bytes), (0, 0, 0));
    assert!(store.session_state(&home.key, b"wiped").await.unwrap().is_none());
}

fn letter(entry: EntryId, index: u32) -> DeadLetter {
    DeadLetter { entry, index, deliveries: 3, record: Bytes::from_static(b"dead") }
}

fn buried(group: &str, to: EntryId, dead: Vec<DeadLetter>, open: Vec<(EntryId, OpenEntry)>) -> CursorChange {
    let counts = Counts { dead: dead.len() as u64, ..Counts::default() };
    CursorChange::Group { group: group.into(), done_up_to: to, done_records: 0, counts, open, dead }
}

/// Two groups with cursors, `g` with a dead letter and an open entry, a fan-out cursor, and entries of which one is trimmed.
async fn groups(store: &Arc<dyn Store>, tenant: &str) -> (Home, Vec<EntryId>) {
    let key = partition(tenant, 0);
    let mut home = Home::take(store, &key, 1).await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(home.append(2, 5, 100).await);
    }
    for group in ["g", "h"] {
        store.create_cursor(&key, group, CursorStart::Earliest).await.unwrap();
    }
    let open = vec![(ids[3], OpenEntry { done: vec![1], deliveries: vec![] })];
    let changes = [
        CursorChange::Fan(Some(ids[5])),
        buried("g", ids[0], vec![letter(ids[3], 0)], open),
        moved("h", ids[0], 2),
    ];
    store.commit(&key, home.term, &changes).await.unwrap();
    store.trim(&key, home.term, &keep(0, 2)).await.unwrap();
    assert_eq!(home.ids().await, ids[1..]);
    (home, ids)
}

async fn cursors_move_together_or_not_at_all(cluster: &RedisCluster, store: &Arc<dyn Store>) {
    let (home, ids) = groups(store, "cursors").await;
    let (key, term) = (&home.partition, home.term);
    let ups = async || {
        let groups = store.cursors(key).await.unwrap().groups;
        (groups["g"].done_up_to, groups["h"].done_up_to)
    };
    let commit = async |changes: &[CursorChange]| store.commit(key, term, changes).await;
    let on_its_way = Move::begin(cluster, key);
    // Nothing is elsewhere yet: all goes on.
    commit(&[moved("g", ids[1], 4), moved("h", ids[1], 4), CursorChange::Fan(Some(ids[5]))]).await.unwrap();
    assert_eq!(ups().await, (ids[1], ids[1]));
    store.trim(key, term, &keep(0, 2)).await.unwrap();
    assert_eq!(home.ids().await, ids[2..]);
    on_its_way.carry(":c:h");
    let changes = [moved("g", ids[3], 8), moved("h", ids[3], 8)];
    let detach = |group: &str| (group.to_owned(), BacklogPolicy::Detach);
    let full = Keep { yielding: vec![detach("g"), detach("h")], ..keep(0, 2) };
    tokio::join!(stalls(commit(&changes)), stalls(store.cursors(key)), stalls(store.trim(key, term, &full)));
    commit(&[moved("g", ids[2], 6)]).await.unwrap();
    on_its_way.end();
    assert_eq!(ups().await, (ids[2], ids[1]), "g went alone, and not with h");
    assert!(!store.cursors(key).await.unwrap().groups["g"].detached, "half a trim");
    commit(&changes).await.unwrap();
    assert_eq!(ups().await, (ids[3], ids[3]));
    store.trim(key, term, &keep(0, 2)).await.unwrap();
    assert_eq!(home.ids().await, ids[4..]);
}

async fn a_group_is_sought_and_its_dead_are_kept(cluster: &RedisCluster, store: &Arc<dyn Store>) {
    let (home, ids) = groups(store, "seek").await;
    let (key, term) = (&home.partition, home.term);
    let dead = async || store.dead_letters(key, "g", 0, 9).await.unwrap();
    let on_its_way = Move::begin(cluster, key);
    store.seek(key, term, "g", CursorStart::Latest).await.unwrap();
    let sought = store.cursors(key).await.unwrap().groups["g"].clone();
    assert_eq!((sought.done_up_to, sought.open.len()), (ids[5], 0));
    assert_eq!((dead().await.kept, dead().await.bytes), (1, 4));
    on_its_way.carry(":dead:g");
    let bury = buried("g", ids[5], vec![letter(EntryId::new(u64::MAX >> 12, 1), 1)], vec![]);
    let number = [dead().await.letters[0].number];
    let changes = [moved("h", ids[2], 6), bury.clone()];
    tokio::join!(stalls(store.commit(key, term, &changes)), stalls(store.delete_dead(key, "g", &number)));
    assert_eq!(store.cursors(key).await.unwrap().groups["h"].done_up_to, ids[0], "half a commit");
    on_its_way.carry(":c:g");
    stalls(store.seek(key, term, "g", CursorStart::Earliest)).await;
    on_its_way.end();
    assert_eq!(store.cursors(key).await.unwrap().groups["g"], sought);
    store.commit(key, term, &[bury]).await.unwrap();
    assert_eq!((dead().await.kept, dead().await.bytes), (2, 8), "buried once");
    store.delete_dead(key, "g", &number).await.unwrap();
    store.seek(key, term, "g", CursorStart::Earliest).await.unwrap();
    assert_eq!(store.cursors(key).await.unwrap().groups["g"].done_up_to, ids[0]);
    assert_eq!((dead().await.kept, dead().await.bytes), (1, 4));
}

/// The hash of wills is emptied by one change, and never written again by the same.
async fn a_will_fires_once(cluster: &RedisCluster, store: &Arc<dyn Store>) {
    let key = partition("wills", 0);
    let mut home = Home::take(store, &key, 1).await;
    let client = |name: &'static str| Bytes::from_static(name.as_bytes());
    let held = |name| WillChange::Keep {
        client: client(name),
        epoch: Epoch::real(1),
        gateway: 1,
        record: client("will"),
    };
    let fire = |name| WillChange::Fire { client: client(name), epoch: Epoch::real(1) };
    let change = async |home: &Home, changes: Vec<WillChange>| {
        let suffix = Bytes::from_static(b"+");
        let changes = WillChanges { changes, before: home.totals, received_at: 5, suffix };
        store.change_wills(&key, home.term, &changes).await
    };
    change(&home, vec![held("a")]).await.unwrap();
    let on_its_way = Move::begin(cluster, &key);
    // Whichever of them a script comes to first.
    for (gone, new) in [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")] {
        let fired = change(&home, vec![fire(gone), held(new)]).await.unwrap();
        assert_eq!(fired.fired, [true, false]);
        home.totals = fired.entry.unwrap().1;
    }
    assert_eq!(change(&home, vec![fire("e"), fire("a")]).await.unwrap().fired, [true, false]);
    let refused = change(&home, vec![held("f")]).await;
    assert!(matches!(refused, Err(AppendError::Refused(_))), "{refused:?}");
    on_its_way.end();
    assert!(store.wills(&key).await.unwrap().is_empty());
    let home = Home::take(store, &key, 1).await;
    assert_eq!(home.totals.records, 5, "each once");
    change(&home, vec![held("f")]).await.unwrap();
    assert_eq!(store.wills(&key).await.unwrap().len(), 1);
}

/// One cluster for all of them, one after the other: forming one takes seconds, and so does each call that stalls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_done_by_halves_while_a_slot_moves() {
    let cluster = RedisCluster::start(3, 0, &[]);
    let store: Arc<dyn Store> = open_cluster(&cluster).await;
    a_key_of_a_push_is_never_lost(&cluster, &store).await;
    a_push_that_waits_is_stored_once(&cluster, &store).await;
    pushes_expire_together_or_not_at_all(&cluster, &store).await;
    the_last_mail_goes_whole(&cluster, &store).await;
    cursors_move_together_or_not_at_all(&cluster, &store).await;
    a_group_is_sought_and_its_dead_are_kept(&cluster, &store).await;
    a_will_fires_once(&cluster, &store).await;
}
