//! Records of one partition that leave together, with what each one's publisher is waiting for. Knows no lane.

use bytes::Bytes;
use penstock_mqtt::session::PublishToken;

use super::record::Measured;
use crate::connection::table::ConnectionKey;

/// Most bytes of records in a batch, unless a single record is larger.
pub(crate) const BATCH_BYTES: usize = 1 << 20;
/// Most records in a batch.
pub(crate) const BATCH_RECORDS: usize = 4_096;

/// Most room that a batch begins with: a lane may have many records once and few ever after.
const ROOM_BYTES: usize = 64 * 1_024;
const ROOM_RECORDS: usize = 512;

/// What a batch holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Size {
    bytes: usize,
    records: usize,
}

/// What a record's publisher waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Receipt {
    /// Where the record ends in its batch.
    end: u32,
    /// Whose it is.
    pub(crate) connection: ConnectionKey,
    /// Some for QoS 1.
    pub(crate) token: Option<PublishToken>,
}

/// Records first .. first + count - 1 of the producer's count for a partition.
#[derive(Debug)]
pub(crate) struct Batch {
    first: u64,
    records: Vec<u8>,
    receipts: Vec<Receipt>,
    first_received_at: u64,
    /// Shard clock at the first record, microseconds.
    since: u64,
}

impl Batch {
    /// An empty batch with room for as much as `like` took: batches of a lane are much alike, and growing copies.
    pub(crate) fn new(first: u64, received_at: u64, since: u64, like: Size) -> Self {
        let Size { bytes, records } = like;
        Self {
            first,
            records: Vec::with_capacity(bytes.min(ROOM_BYTES)),
            receipts: Vec::with_capacity(records.min(ROOM_RECORDS)),
            first_received_at: received_at,
            since,
        }
    }

    /// What it holds.
    pub(crate) fn size(&self) -> Size {
        Size { bytes: self.records.len(), records: self.receipts.len() }
    }

    /// Whether a record of this many bytes may join.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.receipts.is_empty()
            || (self.receipts.len() < BATCH_RECORDS && self.records.len() + bytes <= BATCH_BYTES)
    }

    pub(crate) fn push(
        &mut self,
        record: &Measured<'_>,
        connection: ConnectionKey,
        token: Option<PublishToken>,
    ) {
        record.encode(&mut self.records);
        // A batch is at most 1 MiB, or one record of about that size.
        let end = u32::try_from(self.records.len()).unwrap_or(u32::MAX);
        self.receipts.push(Receipt { end, connection, token });
    }

    pub(crate) fn bytes(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn count(&self) -> usize {
        self.receipts.len()
    }

    pub(crate) fn since(&self) -> u64 {
        self.since
    }

    pub(crate) fn receipts(&self) -> &[Receipt] {
        &self.receipts
    }

    /// No more records: from now on it is sent, and sent again, until settled.
    pub(crate) fn seal(self) -> Sealed {
        Sealed {
            first: self.first,
            records: Bytes::from(self.records),
            receipts: self.receipts,
            done: 0,
            first_received_at: self.first_received_at,
            since: self.since,
        }
    }
}

/// A batch that was sent and is not settled in full.
#[derive(Debug)]
pub(crate) struct Sealed {
    first: u64,
    records: Bytes,
    receipts: Vec<Receipt>,
    done: usize,
    pub(crate) first_received_at: u64,
    since: u64,
}

impl Sealed {
    /// Number of the first record that is not settled.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.done as u64
    }

    /// Records that are not settled.
    pub(crate) fn open(&self) -> usize {
        self.receipts.len() - self.done
    }

    /// Bytes of the records that are not settled.
    pub(crate) fn rest(&self) -> Bytes {
        let done = self.done.checked_sub(1).and_then(|last| self.receipts.get(last));
        let from = done.map_or(0, |receipt| receipt.end as usize);
        self.records.slice(from.min(self.records.len())..)
    }

    pub(crate) fn since(&self) -> u64 {
        self.since
    }

    /// Receipts that are not settled.
    pub(crate) fn receipts(&self) -> &[Receipt] {
        self.receipts.get(self.done..).unwrap_or_default()
    }

    /// Takes the next `count` receipts (or fewer if there are no more).
    pub(crate) fn settle(&mut self, count: usize) -> &[Receipt] {
        let from = self.done;
        self.done = (from + count).min(self.receipts.len());
        self.receipts.get(from..self.done).unwrap_or_default()
    }
}
