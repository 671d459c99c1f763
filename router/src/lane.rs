//! A lane: what waits to be appended to one partition, and how it becomes entries. Pure: `home` drives it and owns the
//! store. `L` names a link.
//!
//! Invariants: batches of a link leave in the order in which they came; at most one entry is under way; a number that is
//! stored already is settled and not appended again; settles of a lane leave in the order of their numbers.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use penstock_common::{
    position::EntryId,
    store::{Entry, Segment, Totals},
};
use penstock_proto::link::SettleResult;
use tokio::time::Instant;

use crate::{
    batch::{self, Malformed},
    producers::{Known, Producers},
    stale::Stale,
};

/// Most bytes of records in an entry; a single batch may exceed it by one record.
pub const ENTRY_BYTES: usize = 1 << 20;
/// Most records in an entry.
pub const ENTRY_RECORDS: u32 = 4_096;

/// Gives its share of the ingest budget back when it is dropped.
pub type Held = Box<dyn std::any::Any + Send + Sync>;

/// A batch that a link sent for the partition.
#[derive(Debug)]
pub struct Batch<L> {
    /// Who sent it.
    pub link: L,
    /// The link's number for its opening of this lane.
    pub lane: u32,
    /// Numbers of the records.
    pub segment: Segment,
    /// The records, undecoded.
    pub records: Bytes,
    /// Sent before and never settled.
    pub resent: bool,
    /// Arrival of the first record at the gateway.
    pub first_received_at: u64,
    /// The backlog was full when it came: what of it is not stored already is refused, in its turn.
    pub refused: bool,
    /// Dropped when the batch is settled or given up.
    pub held: Option<Held>,
}

/// Numbers that have their result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled<L> {
    /// Whom to tell.
    pub link: L,
    /// Its number for the lane.
    pub lane: u32,
    /// First number.
    pub first: u64,
    /// How many.
    pub count: u32,
    /// What became of them.
    pub result: SettleResult,
    /// Credit that comes back.
    pub credit: u64,
}

/// An entry under way, with what it was made of.
#[derive(Debug)]
pub struct Flight<L> {
    /// What is appended; None when every record of the batches is settled without.
    pub entry: Option<Entry>,
    batches: Vec<Batch<L>>,
    settled: Vec<Settled<L>>,
}

/// Counts for metrics, of one flight.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Screened {
    /// Records that were stored before.
    pub duplicates: u64,
    /// Records with a void epoch.
    pub stale: u64,
    /// QoS 0 records dropped because nothing tells whether they were stored.
    pub undecided_dropped: u64,
    /// QoS 1 records appended though nothing tells whether they were stored.
    pub undecided_stored: u64,
}

impl<L> Flight<L> {
    /// A copy of these numbers is under way already: it must be stored, and known as stored, first.
    fn overlaps(&self, next: Segment) -> bool {
        let ends_behind = |own: &Segment| own.first + u64::from(own.count) > next.first;
        self.batches
            .iter()
            .any(|batch| batch.segment.producer == next.producer && ends_behind(&batch.segment))
    }
}

/// What waits for one partition.
#[derive(Debug)]
pub struct Lane<L> {
    waiting: VecDeque<Batch<L>>,
    /// What producers stored.
    pub producers: Producers,
    /// Void epochs.
    pub stale: Stale,
    /// Totals at the last stored entry.
    pub totals: Totals,
}

impl<L: Clone> Lane<L> {
    /// A lane that continues a log.
    pub fn new(producers: Producers, totals: Totals) -> Self {
        Self { waiting: VecDeque::new(), producers, stale: Stale::default(), totals }
    }

    /// Takes a batch. Its length is bounded by the credit that the link was given.
    pub fn accept(&mut self, batch: Batch<L>) {
        self.waiting.push_back(batch);
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Joins what waits into the next entry. `outdated` tells, for records that were sent before, whether their client has
    /// a later owner by now.
    pub fn next(
        &mut self,
        outdated: impl Fn(&[u8], u64) -> bool,
        screened: &mut Screened,
    ) -> Option<Flight<L>> {
        let mut joined = Joined::default();
        let mut flight = Flight { entry: None, batches: Vec::new(), settled: Vec::new() };
        let (mut bytes, mut records) = (0usize, 0u32);
        while let Some(batch) = self.waiting.front() {
            bytes += batch.records.len();
            records = records.saturating_add(batch.segment.count);
            let full = bytes > ENTRY_BYTES || records > ENTRY_RECORDS;
            if !flight.batches.is_empty() && (full || flight.overlaps(batch.segment)) {
                break;
            }
            let Some(batch) = self.waiting.pop_front() else { break };
            self.screen(&batch, &outdated, &mut joined, &mut flight.settled, screened);
            flight.batches.push(batch);
        }
        if flight.batches.is_empty() {
            return None;
        }
        flight.entry = joined.entry(self.totals);
        Some(flight)
    }

    /// The flight's entry is stored (or it had none): what to tell the links.
    pub fn stored(&mut self, flight: Flight<L>, id: Option<EntryId>) -> Vec<Settled<L>> {
        if let (Some(entry), Some(_)) = (&flight.entry, id) {
            self.totals = entry.totals;
            self.producers.stored(&entry.segments);
        }
        flight.settled
    }

    /// Nobody knows whether the flight's entry was stored: its batches wait again, in front, until a new term tells.
    pub fn in_doubt(&mut self, flight: Flight<L>) {
        for mut batch in flight.batches.into_iter().rev() {
            batch.resent = true;
            self.waiting.push_front(batch);
        }
    }

    /// The flight's entry was certainly not stored: its batches wait again, in front, as they were.
    pub fn not_sent(&mut self, flight: Flight<L>) {
        for batch in flight.batches.into_iter().rev() {
            self.waiting.push_front(batch);
        }
    }

    /// Gives everything up.
    pub fn abandon(&mut self) {
        self.waiting.clear();
    }

    /// Sorts the records of a batch into those to append and those that have their result.
    fn screen(
        &self,
        batch: &Batch<L>,
        outdated: &impl Fn(&[u8], u64) -> bool,
        joined: &mut Joined,
        settled: &mut Vec<Settled<L>>,
        screened: &mut Screened,
    ) {
        let known = self.producers.known(batch.segment, batch.resent);
        let mut runs = Runs { batch, from: settled.len(), settled };
        match known {
            Known::Fresh if batch.refused => {
                runs.push(batch.segment.first, batch.segment.count, SettleResult::BacklogFull);
            }
            Known::Fresh if self.stale.is_empty() && !batch.resent => {
                joined.add_whole(batch);
                runs.push(batch.segment.first, batch.segment.count, SettleResult::Stored);
            }
            Known::Stored => {
                screened.duplicates += u64::from(batch.segment.count);
                runs.push(batch.segment.first, batch.segment.count, SettleResult::Stored);
            }
            known => {
                // A malformed batch was refused when it came; one that is cut short all the same ends here.
                let _ = self.screen_each((batch, known), outdated, joined, &mut runs, screened);
            }
        }
        runs.grant();
    }

    fn screen_each(
        &self,
        (batch, known): (&Batch<L>, Known),
        outdated: &impl Fn(&[u8], u64) -> bool,
        joined: &mut Joined,
        runs: &mut Runs<'_, '_, L>,
        screened: &mut Screened,
    ) -> Result<(), Malformed> {
        for (index, frame) in (0u32..).zip(batch::frames(&batch.records)) {
            let frame = frame?;
            let number = batch.segment.first + u64::from(index);
            let known = match known {
                Known::Partly => self.producers.known_one(batch.segment.producer, number, batch.resent),
                known => known,
            };
            if known == Known::Stored {
                screened.duplicates += 1;
                runs.push(number, 1, SettleResult::Stored);
                continue;
            }
            if batch.refused {
                runs.push(number, 1, SettleResult::BacklogFull);
                continue;
            }
            let undecided = known == Known::Undecided;
            let head = batch::head(frame.body)?;
            let late = (batch.resent && outdated(head.client, head.epoch))
                || self.stale.holds(head.client, head.epoch);
            if late {
                screened.stale += 1;
                runs.push(number, 1, SettleResult::Stale);
            } else if undecided && head.qos == 0 {
                screened.undecided_dropped += 1;
                runs.push(number, 1, SettleResult::Stored);
            } else {
                screened.undecided_stored += u64::from(undecided);
                joined.add_one(batch, number, batch.records.slice(frame.range));
                runs.push(number, 1, SettleResult::Stored);
            }
        }
        Ok(())
    }
}

/// Settles of one batch, neighbours with the same result joined.
struct Runs<'a, 'b, L> {
    batch: &'a Batch<L>,
    from: usize,
    settled: &'b mut Vec<Settled<L>>,
}

impl<L: Clone> Runs<'_, '_, L> {
    fn push(&mut self, first: u64, count: u32, result: SettleResult) {
        let own = self.settled.get_mut(self.from..).and_then(<[_]>::last_mut);
        match own {
            Some(last) if last.result == result && last.first + u64::from(last.count) == first => {
                last.count += count;
            }
            _ => self.settled.push(Settled {
                link: self.batch.link.clone(),
                lane: self.batch.lane,
                first,
                count,
                result,
                credit: 0,
            }),
        }
    }

    /// The batch's credit comes back with its last settle.
    fn grant(self) {
        if let Some(last) = self.settled.get_mut(self.from..).and_then(<[_]>::last_mut) {
            last.credit = self.batch.records.len() as u64;
        }
    }
}

/// Records on their way into one entry.
#[derive(Default)]
struct Joined {
    parts: Vec<Bytes>,
    segments: Vec<Segment>,
    count: u32,
    first_received_at: u64,
}

impl Joined {
    fn add_whole<L>(&mut self, batch: &Batch<L>) {
        self.add(batch.segment, batch.records.clone(), batch.first_received_at);
    }

    fn add_one<L>(&mut self, batch: &Batch<L>, number: u64, frame: Bytes) {
        let segment = Segment { producer: batch.segment.producer, first: number, count: 1 };
        self.add(segment, frame, batch.first_received_at);
    }

    fn add(&mut self, segment: Segment, records: Bytes, received_at: u64) {
        if self.parts.is_empty() {
            self.first_received_at = received_at;
        }
        self.count += segment.count;
        self.parts.push(records);
        match self.segments.last_mut() {
            Some(last)
                if last.producer == segment.producer
                    && last.first + u64::from(last.count) == segment.first =>
            {
                last.count += segment.count;
            }
            _ => self.segments.push(segment),
        }
    }

    fn entry(self, before: Totals) -> Option<Entry> {
        let bytes: usize = self.parts.iter().map(Bytes::len).sum();
        let records = match <[Bytes; 1]>::try_from(self.parts) {
            Ok([only]) => only,
            Err(parts) if parts.is_empty() => return None,
            Err(parts) => {
                let mut joined = BytesMut::with_capacity(bytes);
                parts.iter().for_each(|part| joined.extend_from_slice(part));
                joined.freeze()
            }
        };
        let totals =
            Totals { records: before.records + u64::from(self.count), bytes: before.bytes + bytes as u64 };
        Some(Entry {
            records,
            segments: self.segments,
            count: self.count,
            first_received_at: self.first_received_at,
            totals,
        })
    }
}

/// Marks an epoch void, so that records under it are refused from now on.
impl<L> Lane<L> {
    /// See `Stale::add`.
    pub fn void(&mut self, client: &[u8], epoch: penstock_common::epoch::Epoch, now: Instant) {
        self.stale.add(client, epoch, now);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use penstock_common::{epoch::Epoch, store::ReadBack};
    use penstock_proto::record::{Record, RecordBatch};
    use prost::Message;

    use super::*;

    fn records(from: u64, qos: &[u32], epoch: u64) -> Bytes {
        let records = (from..)
            .zip(qos)
            .map(|(n, qos)| Record {
                client: Bytes::from_static(b"c"),
                epoch,
                topic: Bytes::from(format!("t/{n}")),
                qos: *qos,
                ..Record::default()
            })
            .collect();
        RecordBatch { records }.encode_to_vec().into()
    }

    fn batch(link: char, producer: u64, first: u64, qos: &[u32], resent: bool) -> Batch<char> {
        let count = qos.len() as u32;
        Batch {
            link,
            lane: 1,
            segment: Segment { producer, first, count },
            records: records(first, qos, 9),
            resent,
            first_received_at: 0,
            refused: false,
            held: None,
        }
    }

    fn lane(complete: bool) -> Lane<char> {
        Lane::new(Producers::from_tail(&ReadBack { entries: vec![], complete }, true), Totals::default())
    }

    fn topics(entry: &Entry) -> Vec<String> {
        batch::frames(&entry.records)
            .map(|f| String::from_utf8(batch::head(f.unwrap().body).unwrap().topic.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn batches_of_many_links_join_into_one_entry() {
        let mut lane = lane(true);
        lane.accept(batch('a', 1, 1, &[1, 1], false));
        lane.accept(batch('b', 2, 5, &[1], false));
        lane.accept(batch('a', 1, 3, &[0], false));
        let flight = lane.next(|_, _| false, &mut Screened::default()).unwrap();
        let entry = flight.entry.clone().unwrap();
        assert_eq!(topics(&entry), ["t/1", "t/2", "t/5", "t/3"]);
        assert_eq!((entry.count, entry.totals.records), (4, 4));
        let settled = lane.stored(flight, Some(EntryId::new(1, 1)));
        let told: Vec<_> = settled.iter().map(|s| (s.link, s.first, s.count, s.credit > 0)).collect();
        assert_eq!(told, [('a', 1, 2, true), ('b', 5, 1, true), ('a', 3, 1, true)]);
        assert!(lane.next(|_, _| false, &mut Screened::default()).is_none());
    }

    #[test]
    fn what_was_not_sent_is_sent_as_it_was() {
        let mut lane = lane(false);
        lane.accept(batch('a', 1, 1, &[0, 1], false));
        lane.accept(batch('a', 1, 3, &[1], false));
        let flight = lane.next(|_, _| false, &mut Screened::default()).unwrap();
        lane.not_sent(flight);
        let mut screened = Screened::default();
        let flight = lane.next(|_, _| false, &mut screened).unwrap();
        assert_eq!(topics(&flight.entry.clone().unwrap()), ["t/1", "t/2", "t/3"]);
        assert_eq!(screened, Screened::default(), "nothing is in doubt: QoS 0 is not dropped");
    }

    #[test]
    fn a_batch_in_doubt_that_was_stored_is_settled_without_an_append() {
        let mut lane = lane(true);
        lane.accept(batch('a', 1, 1, &[1, 1], false));
        let flight = lane.next(|_, _| false, &mut Screened::default()).unwrap();
        let entry = flight.entry.clone().unwrap();
        lane.in_doubt(flight);
        lane.accept(batch('a', 1, 3, &[1], false));
        lane.producers.stored(&entry.segments);
        let mut screened = Screened::default();
        let flight = lane.next(|_, _| false, &mut screened).unwrap();
        assert_eq!(topics(flight.entry.as_ref().unwrap()), ["t/3"]);
        assert_eq!(screened.duplicates, 2);
        assert_eq!(lane.stored(flight, Some(EntryId::new(2, 1))).len(), 2);
    }

    #[test]
    fn two_copies_of_a_batch_that_wait_together_are_stored_once() {
        let mut lane = lane(true);
        lane.accept(batch('a', 1, 1, &[1, 1], false));
        lane.accept(batch('b', 1, 1, &[1, 1], true));
        let flight = lane.next(|_, _| false, &mut Screened::default()).unwrap();
        assert_eq!(flight.entry.as_ref().unwrap().count, 2);
        lane.stored(flight, Some(EntryId::new(1, 1)));
        let flight = lane.next(|_, _| false, &mut Screened::default()).unwrap();
        assert_eq!(flight.entry, None);
        assert_eq!(lane.stored(flight, None)[0].link, 'b');
    }

    #[test]
    fn a_batch_that_was_stored_in_part_appends_the_rest() {
        let mut lane = lane(true);
        lane.producers.stored(&[Segment { producer: 1, first: 1, count: 2 }]);
        lane.accept(batch('a', 1, 1, &[1, 1, 1, 1], true));
        let flight = lane.next(|_, _| false, &mut Screened::default()).unwrap();
        let entry = flight.entry.as_ref().unwrap();
        assert_eq!(topics(entry), ["t/3", "t/4"]);
        assert_eq!(entry.segments, [Segment { producer: 1, first: 3, count: 2 }]);
        let settled = lane.stored(flight, Some(EntryId::new(2, 1)));
        assert_eq!((settled.len(), settled[0].first, settled[0].count), (1, 1, 4));
    }

    #[test]
    fn records_of_a_void_epoch_are_refused_one_by_one() {
        let mut lane = lane(true);
        lane.void(b"c", Epoch(9), Instant::now());
        lane.accept(batch('a', 1, 1, &[1, 1], false));
        let mut fresh = batch('b', 2, 1, &[1], false);
        fresh.records = records(7, &[1], 10);
        lane.accept(fresh);
        let mut screened = Screened::default();
        let flight = lane.next(|_, _| false, &mut screened).unwrap();
        assert_eq!(topics(flight.entry.as_ref().unwrap()), ["t/7"]);
        assert_eq!(screened.stale, 2);
        let settled = lane.stored(flight, Some(EntryId::new(1, 1)));
        assert_eq!(settled[0].result, SettleResult::Stale);
        assert_eq!(settled[1].result, SettleResult::Stored);
    }

    #[test]
    fn a_refused_batch_is_settled_in_its_turn() {
        let mut lane = lane(true);
        lane.accept(batch('a', 1, 1, &[1], false));
        lane.accept(Batch { refused: true, ..batch('a', 1, 2, &[1, 1], false) });
        let flight = lane.next(|_, _| false, &mut Screened::default()).unwrap();
        assert_eq!(flight.entry.as_ref().unwrap().count, 1);
        let settled = lane.stored(flight, Some(EntryId::new(1, 1)));
        let told: Vec<_> = settled.iter().map(|s| (s.first, s.count, s.result)).collect();
        assert_eq!(told, [(1, 1, SettleResult::Stored), (2, 2, SettleResult::BacklogFull)]);
    }

    #[test]
    fn a_resent_record_of_a_client_that_has_moved_on_is_refused() {
        let mut lane = lane(true);
        lane.accept(batch('a', 1, 1, &[1, 1], true));
        let mut screened = Screened::default();
        let flight = lane.next(|client, epoch| client == b"c" && epoch == 9, &mut screened).unwrap();
        assert_eq!((flight.entry.is_none(), screened.stale), (true, 2));
        lane.accept(batch('a', 1, 3, &[1], false));
        assert!(lane.next(|_, _| true, &mut screened).unwrap().entry.is_some());
    }

    #[test]
    fn what_cannot_be_decided_is_stored_for_qos_1_and_dropped_for_qos_0() {
        let mut lane = lane(false);
        lane.accept(batch('a', 1, 8, &[1, 0, 1], true));
        let mut screened = Screened::default();
        let flight = lane.next(|_, _| false, &mut screened).unwrap();
        assert_eq!(topics(flight.entry.as_ref().unwrap()), ["t/8", "t/10"]);
        assert_eq!((screened.undecided_dropped, screened.undecided_stored), (1, 2));
        assert_eq!(lane.stored(flight, Some(EntryId::new(1, 1)))[0].count, 3);
    }

    #[test]
    fn an_entry_is_bounded() {
        let mut lane = lane(true);
        for n in 0..5_000 {
            lane.accept(batch('a', 1, n + 1, &[1], false));
        }
        let flight = lane.next(|_, _| false, &mut Screened::default()).unwrap();
        assert_eq!(flight.entry.unwrap().count, ENTRY_RECORDS);
    }
}
