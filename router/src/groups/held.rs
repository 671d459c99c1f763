//! An entry in the hands of the dispatch: what is done of it, and where each of its records is. Decoded only when records
//! have to be told apart. Pure.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use penstock_common::{
    clock::UnixMillis,
    position::EntryId,
    store::{OpenEntry, StoredEntry, Totals},
};

use super::cursor::Done;
use crate::batch::{self, Malformed};

/// A client within a group: a hash of its identifier. A collision keeps two clients in one order, nothing worse.
pub type ClientHash = u64;

/// Where a record is, unless it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// To be handed out.
    Waiting,
    /// Handed out, under this number.
    Out(u64),
    /// Acknowledged, filtered or unreadable.
    Done,
}

/// One record of a decoded entry.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Whose it is.
    pub client: ClientHash,
    /// Where it is.
    pub place: Place,
    /// Its bytes in the entry's batch.
    range: Range<usize>,
}

/// How far an entry is told apart.
#[derive(Debug)]
pub enum Shape {
    /// Undecoded, nothing handed out.
    Untouched,
    /// Undecoded, all of it handed out under one number.
    WholeOut(u64),
    /// Record by record.
    Pieces(Vec<Piece>),
    /// All done; the bytes are gone, it waits for what is before it.
    Finished,
}

/// See the module.
#[derive(Debug)]
pub struct Held {
    /// Which entry.
    pub id: EntryId,
    /// When its first record was received.
    pub received_at: UnixMillis,
    /// Totals with it.
    pub totals: Totals,
    /// What is done of it.
    pub done: Done,
    /// How often records that came back were handed out, by index.
    pub deliveries: BTreeMap<u32, u32>,
    /// To be written.
    pub dirty: bool,
    /// Records in consumers' hands.
    pub out: u32,
    /// Records before it, if it stands for entries that are gone: done by then.
    pub known: u64,
    /// And not done by then.
    pub missed: u64,
    /// See [`Shape`].
    pub shape: Shape,
    records: Bytes,
}

impl Held {
    /// Takes an entry up, with what the cursor knows of it.
    pub fn new(entry: &Arc<StoredEntry>, open: Option<&OpenEntry>) -> Self {
        let count = entry.entry.count;
        let stored = open.map(|open| Done::from_stored(&open.done, count));
        let deliveries = open.map(|open| open.deliveries.iter().copied().collect()).unwrap_or_default();
        Self {
            id: entry.id,
            received_at: entry.entry.first_received_at,
            totals: entry.entry.totals,
            done: stored.unwrap_or_else(|| Done::none(count)),
            deliveries,
            dirty: false,
            out: 0,
            known: 0,
            missed: 0,
            shape: Shape::Untouched,
            records: entry.entry.records.clone(),
        }
    }

    /// Stands for entries up to this one that are gone.
    pub fn gone(up_to: EntryId, records: u64, known: u64, missed: u64) -> Self {
        Self {
            id: up_to,
            received_at: 0,
            totals: Totals { records, bytes: 0 },
            done: Done::none(0),
            deliveries: BTreeMap::new(),
            dirty: false,
            out: 0,
            known,
            missed,
            shape: Shape::Finished,
            records: Bytes::new(),
        }
    }

    /// Records that wait to be handed out, and about their bytes.
    pub fn waiting(&self) -> (u64, usize) {
        let (count, left) = (self.done.count(), self.done.count() - self.done.done() - self.out);
        (u64::from(left), self.bytes() / (count.max(1) as usize) * left as usize)
    }

    /// Bytes of records that it holds.
    pub fn bytes(&self) -> usize {
        self.records.len()
    }

    /// Nothing of it was touched, in this life or an earlier one.
    pub fn fresh(&self) -> bool {
        matches!(self.shape, Shape::Untouched) && self.done.done() == 0 && self.deliveries.is_empty()
    }

    /// Tells its records apart. Records that no filter matches are done: returns how
    /// many. The clients come in the order of the records.
    pub fn split(&mut self, filters: &[Vec<u8>], hash: impl Fn(u32, &[u8]) -> u64) -> Result<u64, Malformed> {
        let out = match &self.shape {
            Shape::Untouched => None,
            Shape::WholeOut(number) => Some(*number),
            Shape::Pieces(_) | Shape::Finished => return Ok(0),
        };
        let mut pieces = Vec::with_capacity(self.done.count() as usize);
        let mut wanted = Vec::with_capacity(pieces.capacity());
        for (index, frame) in (0u32..).zip(batch::frames(&self.records)) {
            let frame = frame?;
            let head = batch::head(frame.body)?;
            let place = out.map_or(Place::Waiting, Place::Out);
            wanted.push(filters.is_empty() || matches_any(filters, head.topic));
            pieces.push(Piece { client: hash(index, head.client), place, range: frame.range });
        }
        if pieces.len() != self.done.count() as usize {
            return Err(Malformed);
        }
        let mut filtered = 0;
        for ((index, piece), wanted) in (0u32..).zip(&mut pieces).zip(wanted) {
            if !wanted && self.done.set(index) {
                self.dirty = true;
                filtered += 1;
            }
            if self.done.contains(index) {
                piece.place = Place::Done;
            }
        }
        self.shape = Shape::Pieces(pieces);
        Ok(filtered)
    }

    /// A record of a decoded entry.
    pub fn piece(&mut self, index: u32) -> Option<&mut Piece> {
        match &mut self.shape {
            Shape::Pieces(pieces) => pieces.get_mut(index as usize),
            _ => None,
        }
    }

    /// All is done: lets the bytes go.
    pub fn finish(&mut self) {
        self.done.set_all();
        self.dirty = true;
        self.deliveries.clear();
        self.records = Bytes::new();
        self.shape = Shape::Finished;
    }

    /// All records, undecoded.
    pub fn all(&self) -> Bytes {
        self.records.clone()
    }

    /// Bytes of one record with its tag and length.
    pub fn size(&self, index: u32) -> usize {
        match &self.shape {
            Shape::Pieces(pieces) => pieces.get(index as usize).map_or(0, |piece| piece.range.len()),
            _ => 0,
        }
    }

    /// A batch of some of its records.
    pub fn gather(&self, indexes: &[u32]) -> Bytes {
        let Shape::Pieces(pieces) = &self.shape else { return Bytes::new() };
        let found = || indexes.iter().filter_map(|index| pieces.get(*index as usize));
        // Neighbours are one slice: no copy when the records are one run.
        let ranges: Vec<_> = found().map(|piece| piece.range.clone()).collect();
        if let (Some(first), Some(last)) = (ranges.first(), ranges.last())
            && ranges.windows(2).all(|pair| matches!(pair, [a, b] if a.end == b.start))
        {
            return self.records.slice(first.start..last.end);
        }
        let mut joined = BytesMut::with_capacity(ranges.iter().map(Range::len).sum());
        ranges
            .into_iter()
            .filter_map(|range| self.records.get(range))
            .for_each(|r| joined.extend_from_slice(r));
        joined.freeze()
    }
}

fn matches_any(filters: &[Vec<u8>], topic: &[u8]) -> bool {
    filters.iter().any(|filter| penstock_mqtt::topic::matches(filter, topic))
}
