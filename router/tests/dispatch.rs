//! The dispatch of a group against a naive model: nothing is lost, each client's records come in order, never two consumers
//! hold records of one client, done-up-to is exact, and a cursor that was stored resumes without repeating what is done.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use penstock_common::{
    position::EntryId,
    store::{CursorChange, Entry, GroupCursor, OpenEntry, StoredEntry, Totals},
};
use penstock_proto::record::{Record, RecordBatch};
use penstock_router::groups::dispatch::{Dispatch, HandOut, Rules};
use proptest::prelude::*;
use prost::Message;

#[path = "dispatch/cases.rs"]
mod cases;

type At = (EntryId, u32);

/// Entries of (client, wanted) records.
fn log(entries: &[Vec<(u8, bool)>]) -> Vec<Arc<StoredEntry>> {
    let mut records_so_far = 0;
    let mut log = Vec::new();
    for (entry, sequence) in entries.iter().zip(1..) {
        records_so_far += entry.len() as u64;
        let records = entry.iter().map(|(client, wanted)| Record {
            client: Bytes::from(vec![b'a' + client]),
            topic: Bytes::from_static(if *wanted { b"in/x" } else { b"out/x" }),
            ..Record::default()
        });
        let batch = RecordBatch { records: records.collect() };
        let entry = Entry {
            records: batch.encode_to_vec().into(),
            segments: vec![],
            count: entry.len() as u32,
            first_received_at: 0,
            totals: Totals { records: records_so_far, bytes: 0 },
        };
        log.push(Arc::new(StoredEntry { id: EntryId::new(1, sequence), entry }));
    }
    log
}

fn records_of(out: &HandOut, log: &[Arc<StoredEntry>]) -> Vec<(u32, u8)> {
    let clients: Vec<u8> = RecordBatch::decode(out.records.clone())
        .unwrap()
        .records
        .iter()
        .map(|r| r.client[0] - b'a')
        .collect();
    let entry = log.iter().find(|entry| entry.id == out.entry).unwrap();
    let all: Vec<u32> = (0..entry.entry.count).collect();
    let indexes = if out.indexes.is_empty() { all } else { out.indexes.clone() };
    assert_eq!(indexes.len(), clients.len());
    let whole = RecordBatch::decode(entry.entry.records.clone()).unwrap().records;
    for (index, client) in indexes.iter().zip(&clients) {
        assert_eq!(whole[*index as usize].client[0] - b'a', *client, "indexes name other records");
    }
    indexes.into_iter().zip(clients).collect()
}

fn apply(cursor: &mut GroupCursor, change: CursorChange) {
    let CursorChange::Group { done_up_to, done_records, counts, open, .. } = change else { panic!("fan") };
    assert!(done_up_to >= cursor.done_up_to, "done-up-to went back");
    cursor.done_up_to = done_up_to;
    cursor.done_records = done_records;
    cursor.open.extend(open);
    cursor.open.retain(|id, _| *id > done_up_to);
    cursor.counts = counts;
    assert_eq!(done_records + cursor.done_in_open(), counts.done(), "the ledger does not balance");
}

#[derive(Debug, Clone)]
enum Step {
    Offer,
    Join(u64, u32),
    Leave(u64),
    Ack(usize),
    AckStrange(usize, u32, u32),
    Nack(usize, u64),
    Wait(u64),
    Block(u64, bool),
    Credit(u64, u32),
    Restart,
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Offer),
        2 => (1..4u64, 1..20u32).prop_map(|(c, n)| Step::Join(c, n)),
        1 => (1..4u64).prop_map(Step::Leave),
        6 => any::<usize>().prop_map(Step::Ack),
        1 => (any::<usize>(), 0..6u32, 0..9u32).prop_map(|(e, i, n)| Step::AckStrange(e, i, n)),
        2 => (any::<usize>(), 0..50u64).prop_map(|(n, d)| Step::Nack(n, d)),
        2 => (1..60u64).prop_map(Step::Wait),
        1 => (1..4u64, any::<bool>()).prop_map(|(c, b)| Step::Block(c, b)),
        1 => (1..4u64, 1..20u32).prop_map(|(c, n)| Step::Credit(c, n)),
        1 => Just(Step::Restart),
        1 => Just(Step::Move),
    ]
}

const ACK_TIMEOUT: u64 = 100;

struct Model {
    rules: Rules,
    log: Vec<Arc<StoredEntry>>,
    filters: Vec<Vec<u8>>,
    wanted: BTreeSet<At>,
    client: BTreeMap<At, u8>,
    dispatch: Dispatch,
    cursor: GroupCursor,
    offered: usize,
    now: u64,
    joined: BTreeMap<u64, u32>,
    /// Consumers that hold records of an earlier home and have not joined the present one.
    absent: BTreeSet<u64>,
    /// What was held when the home moved: credit does not bound it.
    carried: BTreeSet<At>,
    /// Consumer and time by record.
    out: BTreeMap<At, (u64, u64)>,
    done: BTreeSet<At>,
    /// Highest record handed out for the first time, by client.
    highest: BTreeMap<u8, At>,
    seen: BTreeSet<At>,
    /// Nacked records that were not acked since, and when their delay is over.
    held_until: BTreeMap<At, u64>,
}

impl Model {
    fn new(entries: &[Vec<(u8, bool)>], filtered: bool, max_deliveries: u32) -> Self {
        let log = log(entries);
        let filters: Vec<Vec<u8>> = if filtered { vec![b"in/#".to_vec()] } else { vec![] };
        let (mut wanted, mut client) = (BTreeSet::new(), BTreeMap::new());
        for (entry, stored) in entries.iter().zip(&log) {
            for ((who, is_wanted), index) in entry.iter().zip(0u32..) {
                client.insert((stored.id, index), *who);
                if *is_wanted || !filtered {
                    wanted.insert((stored.id, index));
                }
            }
        }
        let rules = Rules { max_deliveries, ..Rules::default() };
        let mut dispatch = Dispatch::new(filters.clone(), GroupCursor::default());
        dispatch.set_rules(rules);
        Self {
            rules,
            log,
            filters,
            wanted,
            client,
            dispatch,
            cursor: GroupCursor::default(),
            offered: 0,
            now: 0,
            joined: BTreeMap::new(),
            absent: BTreeSet::new(),
            carried: BTreeSet::new(),
            out: BTreeMap::new(),
            done: BTreeSet::new(),
            highest: BTreeMap::new(),
            seen: BTreeSet::new(),
            held_until: BTreeMap::new(),
        }
    }

    fn forget_out(&mut self, gone: impl Fn(&At, &(u64, u64)) -> bool) {
        self.out.retain(|at, holder| !gone(at, holder));
    }

    fn acked(&mut self, entry: EntryId, index: u32, count: u32) {
        self.dispatch.ack(entry, index, count);
        for index in index..index + count {
            if self.wanted.contains(&(entry, index)) {
                self.done.insert((entry, index));
                self.held_until.remove(&(entry, index));
                self.out.remove(&(entry, index));
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Offer => {
                if let Some(entry) = self.log.get(self.offered) {
                    self.dispatch.offer(entry);
                    self.offered += 1;
                }
            }
            Step::Join(consumer, credit) => {
                if !self.absent.remove(&consumer) {
                    self.forget_out(|_, (who, _)| *who == consumer);
                }
                self.dispatch.join(consumer, credit, ACK_TIMEOUT);
                self.joined.insert(consumer, credit);
            }
            Step::Leave(consumer) => {
                self.absent.remove(&consumer);
                self.forget_out(|_, (who, _)| *who == consumer);
                self.dispatch.leave(consumer);
                self.joined.remove(&consumer);
            }
            Step::Ack(n) => {
                if let Some(at) = self.out.keys().nth(n % self.out.len().max(1)).copied() {
                    self.acked(at.0, at.1, 1);
                }
            }
            Step::AckStrange(n, index, count) => {
                let id = self.log[n % self.log.len()].id;
                self.acked(id, index, count);
            }
            Step::Nack(n, delay) => {
                if let Some(at) = self.out.keys().nth(n % self.out.len().max(1)).copied() {
                    // The delay of what this home has not read yet is not kept.
                    let delay = if at.0 > self.dispatch.read_to() { 0 } else { delay };
                    self.dispatch.nack(at.0, at.1, 1, delay, self.now);
                    self.out.remove(&at);
                    self.store();
                    // A dead letter holds nobody.
                    if !self.done.contains(&at) {
                        self.held_until.insert(at, if delay > 0 { self.now + delay } else { 0 });
                    }
                }
            }
            Step::Wait(time) => {
                // What consumers hold is read before time passes.
                while self.out.keys().any(|at| at.0 > self.dispatch.read_to()) {
                    self.dispatch.offer(&self.log[self.offered]);
                    self.offered += 1;
                }
                self.now += time;
                let now = self.now;
                self.forget_out(|_, (_, since)| since + ACK_TIMEOUT <= now);
            }
            Step::Block(consumer, blocked) => self.dispatch.set_blocked(consumer, blocked),
            Step::Credit(consumer, credit) => {
                if self.joined.contains_key(&consumer) {
                    self.joined.insert(consumer, credit);
                }
                self.dispatch.set_credit(consumer, credit);
            }
            Step::Restart => self.moves(false),
            Step::Move => self.moves(true),
        }
        self.pump();
        if self.rules.max_deliveries > 0 {
            // Which of them are dead letters now is told by the change.
            self.store();
        }
    }

    /// Another home, which may be told what is out.
    fn moves(&mut self, told: bool) {
        self.restart();
        if !told {
            self.out.clear();
        }
        self.absent = self.out.values().map(|(who, _)| *who).collect();
        self.carried = self.out.keys().copied().collect();
        for (at, (who, since)) in &self.out {
            let left = since + ACK_TIMEOUT - self.now;
            self.dispatch.reserve(*who, at.0, (at.1, 1), left, self.now);
        }
    }

    fn restart(&mut self) {
        self.store();
        // Acks for entries that were not read yet were in memory only.
        let read_to = self.dispatch.read_to();
        let cursor = &self.cursor;
        let stored = |at: &At| {
            let bit = |open: &OpenEntry| {
                open.done.get((at.1 / 8) as usize).is_some_and(|byte| byte & (1 << (at.1 % 8)) != 0)
            };
            at.0 <= cursor.done_up_to || cursor.open.get(&at.0).is_some_and(bit)
        };
        assert!(self.done.iter().all(|at| at.0 > read_to || stored(at)), "an ack was not stored");
        self.done.retain(stored);
        self.dispatch = Dispatch::new(self.filters.clone(), self.cursor.clone());
        self.dispatch.set_rules(self.rules);
        self.offered = self.log.iter().filter(|entry| entry.id <= self.dispatch.read_to()).count();
        self.joined.clear();
        self.held_until.clear();
    }

    fn store(&mut self) {
        if let Some(change) = self.dispatch.change("g") {
            let CursorChange::Group { dead, .. } = &change else { panic!("fan") };
            for letter in dead {
                let at = (letter.entry, letter.index);
                assert_eq!(letter.deliveries, self.rules.max_deliveries);
                let record = &RecordBatch::decode(letter.record.clone()).unwrap().records[0];
                assert_eq!(record.client[0] - b'a', self.client[&at]);
                assert!(!self.out.contains_key(&at) && self.done.insert(at), "twice, or not dead");
            }
            apply(&mut self.cursor, change);
        }
        let first_open =
            self.wanted.iter().find(|at| !self.done.contains(at)).map_or(EntryId::new(9, 9), |at| at.0);
        assert!(self.cursor.done_up_to < first_open, "a record that is not done was passed");
        let standing = self.dispatch.standing();
        // What is carried over counts when its entry is read and its holder is there.
        let (open, carried) = (self.out.len() as u64, self.carried.len() as u64);
        assert!(standing.open <= open && standing.open + carried >= open);
        assert_eq!(standing.done, standing.counts.done(), "the ledger does not balance");
    }

    fn pump(&mut self) {
        for out in self.dispatch.pump(self.now) {
            for (index, client) in records_of(&out, &self.log) {
                let at = (out.entry, index);
                assert!(self.wanted.contains(&at), "filtered record handed out");
                assert!(!self.done.contains(&at), "a done record handed out again");
                assert!(!self.out.contains_key(&at), "an open record handed out again");
                let held = |(at, until): (&At, &u64)| self.client[at] == client && *until > self.now;
                assert!(!self.held_until.iter().any(held), "a record of a held client");
                let others = self.out.iter().filter(|(at, _)| self.client[at] == client);
                for (_, (who, _)) in others {
                    assert_eq!(*who, out.consumer, "two consumers hold records of one client");
                }
                if self.seen.insert(at) {
                    let before = self.highest.insert(client, at);
                    assert!(before.is_none_or(|before| before < at), "out of order");
                }
                self.out.insert(at, (out.consumer, self.now));
            }
            let own =
                self.out.iter().filter(|(at, (who, _))| *who == out.consumer && !self.carried.contains(at));
            let open = own.count();
            assert!(open <= self.joined[&out.consumer] as usize, "more than the credit");
        }
    }

    /// One consumer takes and acks everything.
    fn drain(&mut self) {
        for consumer in 1..4 {
            self.step(Step::Leave(consumer));
        }
        self.step(Step::Wait(1_000));
        self.step(Step::Join(9, 1_000));
        for _ in 0..self.log.len() {
            self.step(Step::Offer);
        }
        for _ in 0..self.wanted.len() + 1 {
            let out: Vec<At> = self.out.keys().copied().collect();
            for at in out {
                self.acked(at.0, at.1, 1);
            }
            self.pump();
        }
        self.store();
        assert!(self.wanted.iter().all(|at| self.done.contains(at)), "lost");
        let last = self.log.last().unwrap();
        assert_eq!(self.cursor.done_up_to, last.id);
        assert_eq!(self.cursor.done_records, last.entry.totals.records);
        assert!(self.cursor.open.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn nothing_is_lost_doubled_or_out_of_order(
        entries in prop::collection::vec(prop::collection::vec((0..4u8, any::<bool>()), 1..7), 1..12),
        filtered in any::<bool>(),
        max_deliveries in 0..4u32,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut model = Model::new(&entries, filtered, max_deliveries);
        for step in steps {
            model.step(step);
        }
        model.drain();
    }
}
