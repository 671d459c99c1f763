//! Encodes a publish as a `Record` of a `RecordBatch`, once, straight into the batch. The bytes are what the router
//! stores; nothing re-encodes them. Checked against the generated decoder below.

/// A publish with the fields that the gateway adds.
pub(crate) struct NewRecord<'a> {
    pub(crate) client: &'a [u8],
    pub(crate) epoch: u64,
    pub(crate) topic: &'a [u8],
    pub(crate) payload: &'a [u8],
    pub(crate) qos: u8,
    pub(crate) user: &'a [u8],
    /// Milliseconds since 1970.
    pub(crate) received_at: u64,
    pub(crate) last_will: bool,
}

const LENGTH_DELIMITED: u8 = 2;
/// AUTH_TYPE_PASSWORD.
const PASSWORD: u64 = 1;

fn varint_len(value: u64) -> usize {
    // 7 bits a byte, at least one byte.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes_len(value: &[u8]) -> usize {
    if value.is_empty() { 0 } else { 1 + varint_len(value.len() as u64) + value.len() }
}

fn put_bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    if !value.is_empty() {
        out.push(field << 3 | LENGTH_DELIMITED);
        put_varint(out, value.len() as u64);
        out.extend_from_slice(value);
    }
}

fn number_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value) }
}

fn put_number(out: &mut Vec<u8>, field: u8, value: u64) {
    if value != 0 {
        out.push(field << 3);
        put_varint(out, value);
    }
}

impl NewRecord<'_> {
    fn body_len(&self) -> usize {
        bytes_len(self.client)
            + number_len(self.epoch)
            + bytes_len(self.topic)
            + bytes_len(self.payload)
            + number_len(u64::from(self.qos))
            + bytes_len(self.user)
            + number_len(self.received_at)
            + number_len(u64::from(self.last_will))
            + number_len(PASSWORD)
    }

    /// Measures the record once, for the bound of the batch and for its own length prefix.
    pub(crate) fn measured(&self) -> Measured<'_> {
        Measured { record: self, body: self.body_len() }
    }
}

/// A record whose length is known.
pub(crate) struct Measured<'a> {
    record: &'a NewRecord<'a>,
    body: usize,
}

impl Measured<'_> {
    /// Bytes that `encode` adds to a batch.
    pub(crate) fn encoded_len(&self) -> usize {
        1 + varint_len(self.body as u64) + self.body
    }

    /// Appends the record to a batch.
    pub(crate) fn encode(&self, batch: &mut Vec<u8>) {
        batch.reserve(self.encoded_len());
        batch.push(1 << 3 | LENGTH_DELIMITED);
        put_varint(batch, self.body as u64);
        self.encode_body(batch);
    }

    /// Appends the record alone.
    pub(crate) fn encode_body(&self, batch: &mut Vec<u8>) {
        let record = self.record;
        batch.reserve(self.body);
        put_bytes(batch, 1, record.client);
        put_number(batch, 2, record.epoch);
        put_bytes(batch, 3, record.topic);
        put_bytes(batch, 4, record.payload);
        put_number(batch, 5, u64::from(record.qos));
        put_bytes(batch, 6, record.user);
        put_number(batch, 7, record.received_at);
        put_number(batch, 8, u64::from(record.last_will));
        put_number(batch, 9, PASSWORD);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use penstock_proto::record::{AuthType, RecordBatch};
    use prost::Message;

    use super::*;

    #[test]
    fn what_is_encoded_by_hand_is_decoded_by_the_contract() {
        let mut batch = Vec::new();
        for size in [0usize, 1, 127, 128, 20_000] {
            let payload = vec![7; size];
            let record = NewRecord {
                client: b"c",
                epoch: u64::MAX - size as u64,
                topic: b"a/b",
                payload: &payload,
                qos: (size % 2) as u8,
                user: b"device",
                received_at: 1_763_000_000_000,
                last_will: size == 0,
            };
            let before = batch.len();
            let record = record.measured();
            record.encode(&mut batch);
            assert_eq!(batch.len() - before, record.encoded_len());
        }
        let decoded = RecordBatch::decode(batch.as_slice()).unwrap();
        assert_eq!(decoded.records.len(), 5);
        let last = decoded.records.last().unwrap();
        assert_eq!(last.payload.len(), 20_000);
        assert_eq!(last.epoch, u64::MAX - 20_000);
        assert_eq!(
            (&last.client[..], &last.topic[..], &last.user[..]),
            (&b"c"[..], &b"a/b"[..], &b"device"[..])
        );
        assert_eq!(last.auth_type(), AuthType::Password);
        assert!(decoded.records.first().unwrap().last_will && !last.last_will);
    }
}
