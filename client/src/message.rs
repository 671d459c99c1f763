//! What a consumer gets: batches as stored, and single messages made of them.

use std::{fmt, time::SystemTime};

use bytes::Bytes;
use penstock_proto::{
    messaging as wire,
    record::{Record, RecordBatch},
};
use prost::Message as _;

pub use penstock_proto::record::{AuthType, Properties};

use crate::group::from_unix_millis;

/// Where a message is in its tenant's log: the same at every redelivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// Partition of the tenant.
    pub partition: u32,
    /// Term of the entry.
    pub term: u64,
    /// Place of the entry in its term.
    pub sequence: u64,
    /// Place in the entry.
    pub index: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}/{}", self.partition, self.term, self.sequence, self.index)
    }
}

/// One publish of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// MQTT topic.
    pub topic: String,
    /// Client identifier of the publisher.
    pub client_id: String,
    /// Its user, without the tenant.
    pub user: String,
    /// How the user proved who it is.
    pub auth_type: AuthType,
    /// QoS of the publish.
    pub qos: u8,
    /// Any bytes.
    pub payload: Bytes,
    /// Arrival at the gateway, to the millisecond.
    pub received_at: SystemTime,
    /// Where it is stored.
    pub position: Position,
    /// How often it has been handed out, this time included.
    pub delivery_count: u32,
    /// It is a last will.
    pub last_will: bool,
    /// What MQTT 5 adds; None for 3.1.1.
    pub properties: Option<Properties>,
}

/// Records of one entry, undecoded: the fast path for consumers that don't need every field.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    inner: wire::Batch,
}

/// The batch is not what its contract says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadBatch {
    #[error("a batch holds no RecordBatch: {0}")]
    Records(#[from] prost::DecodeError),
    #[error("a batch of {records} records has {given} {what}")]
    Count { records: usize, given: usize, what: &'static str },
}

impl Batch {
    pub(crate) fn new(inner: wire::Batch) -> Self {
        Self { inner }
    }

    /// Partition of the tenant.
    pub fn partition(&self) -> u32 {
        self.inner.partition
    }

    /// The bytes of a `penstock.record.v1.RecordBatch`.
    pub fn records(&self) -> &Bytes {
        &self.inner.records
    }

    /// Decodes the records, without copying payloads and topics.
    pub fn decode(&self) -> Result<Vec<(Position, u32, Record)>, crate::ConsumeError> {
        self.parts().map_err(|error| crate::ConsumeError::Unreadable(error.to_string()))
    }

    fn parts(&self) -> Result<Vec<(Position, u32, Record)>, BadBatch> {
        let records = RecordBatch::decode(self.inner.records.clone())?.records;
        let fits = |given: usize, what| {
            let fine = given == 0 || given == records.len();
            if fine { Ok(()) } else { Err(BadBatch::Count { records: records.len(), given, what }) }
        };
        fits(self.inner.indexes.len(), "indexes")?;
        fits(self.inner.delivery_counts.len(), "delivery counts")?;
        let numbered = (0u32..).zip(records).map(|(place, record)| {
            let at = place as usize;
            let index = self.inner.indexes.get(at).copied().unwrap_or(place);
            let count = self.inner.delivery_counts.get(at).copied().unwrap_or(1);
            (self.position(index), count, record)
        });
        Ok(numbered.collect())
    }

    fn position(&self, index: u32) -> Position {
        let wire::Batch { partition, term, sequence, .. } = self.inner;
        Position { partition, term, sequence, index }
    }

    /// The messages in it.
    pub fn messages(&self) -> Result<Vec<Message>, crate::ConsumeError> {
        let parts = self.decode()?;
        Ok(parts
            .into_iter()
            .map(|(position, delivery_count, record)| message(position, delivery_count, record))
            .collect())
    }
}

/// What MQTT says is text is text; anything else would be a fault of the gateway and is shown with replacement characters.
fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn message(position: Position, delivery_count: u32, record: Record) -> Message {
    Message {
        topic: text(&record.topic),
        client_id: text(&record.client),
        user: text(&record.user),
        auth_type: record.auth_type(),
        qos: u8::try_from(record.qos).unwrap_or(u8::MAX),
        received_at: from_unix_millis(record.received_at),
        position,
        delivery_count,
        last_will: record.last_will,
        payload: record.payload,
        properties: record.properties,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn batch(records: usize, indexes: Vec<u32>, delivery_counts: Vec<u32>) -> Batch {
        let record = |n| Record {
            client: "c".into(),
            topic: format!("t/{n}").into(),
            payload: "p".into(),
            ..Record::default()
        };
        let records = RecordBatch { records: (0..records).map(record).collect() };
        let records = records.encode_to_vec().into();
        Batch::new(wire::Batch { partition: 2, term: 9, sequence: 4, records, indexes, delivery_counts })
    }

    #[test]
    fn empty_columns_mean_untouched() {
        let messages = batch(3, vec![], vec![]).messages().unwrap();
        let places: Vec<_> = messages.iter().map(|m| (m.position.index, m.delivery_count)).collect();
        assert_eq!(places, [(0, 1), (1, 1), (2, 1)]);
        assert_eq!(messages[2].position.to_string(), "2/9-4/2");
    }

    #[test]
    fn given_columns_are_used() {
        let messages = batch(2, vec![3, 7], vec![1, 4]).messages().unwrap();
        let places: Vec<_> = messages.iter().map(|m| (m.position.index, m.delivery_count)).collect();
        assert_eq!(places, [(3, 1), (7, 4)]);
    }

    #[test]
    fn what_breaks_the_contract_is_an_error() {
        assert!(batch(2, vec![3], vec![]).messages().is_err());
        assert!(batch(2, vec![], vec![1, 1, 1]).messages().is_err());
        let torn = wire::Batch { records: vec![0x0a, 0xff].into(), ..wire::Batch::default() };
        assert!(Batch::new(torn).messages().is_err());
    }
}
