//! Reads a `RecordBatch` without decoding it: where each record begins and ends, and the few fields that routing asks for.
//! Input comes from a gateway or the store and may be broken: every read is bounded and answers `Malformed`.

use std::ops::Range;

/// The bytes are no `RecordBatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no batch of records")]
pub struct Malformed;

/// Field 1, length-delimited: a record inside a batch.
const RECORD_TAG: u8 = 0x0a;

/// One record inside a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its bytes in the batch, tag and length included: frames can be copied one by one into another batch.
    pub range: Range<usize>,
    /// The encoded `Record`.
    pub body: &'a [u8],
}

/// What routing asks of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head<'a> {
    /// Client identifier.
    pub client: &'a [u8],
    /// Epoch of the ownership.
    pub epoch: u64,
    /// Topic name.
    pub topic: &'a [u8],
    /// QoS of the publish.
    pub qos: u64,
}

/// The records of a batch, one after the other.
pub fn frames(batch: &[u8]) -> impl Iterator<Item = Result<Frame<'_>, Malformed>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= batch.len() {
            return None;
        }
        let frame = frame_at(batch, at);
        at = frame.as_ref().map_or(batch.len(), |frame| frame.range.end);
        Some(frame)
    })
}

/// How many records a batch holds.
pub fn count(batch: &[u8]) -> Result<u32, Malformed> {
    let mut records = 0u32;
    for frame in frames(batch) {
        frame?;
        records = records.checked_add(1).ok_or(Malformed)?;
    }
    Ok(records)
}

/// Reads client, epoch, topic and QoS of an encoded `Record`.
pub fn head(body: &[u8]) -> Result<Head<'_>, Malformed> {
    let mut head = Head::default();
    let mut rest = body;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        match (key >> 3, key & 7) {
            (1, 2) => head.client = delimited(&mut rest)?,
            (2, 0) => head.epoch = varint(&mut rest)?,
            (3, 2) => head.topic = delimited(&mut rest)?,
            (5, 0) => {
                head.qos = varint(&mut rest)?;
                break;
            }
            // Fields are in order: past QoS there is nothing to find.
            (field, _) if field > 5 => break,
            (_, 0) => drop(varint(&mut rest)?),
            (_, 2) => drop(delimited(&mut rest)?),
            _ => return Err(Malformed),
        }
    }
    Ok(head)
}

fn frame_at(batch: &[u8], at: usize) -> Result<Frame<'_>, Malformed> {
    let mut rest = batch.get(at..).ok_or(Malformed)?;
    let whole = rest.len();
    let (tag, after) = rest.split_first().ok_or(Malformed)?;
    if *tag != RECORD_TAG {
        return Err(Malformed);
    }
    rest = after;
    let body = delimited(&mut rest)?;
    Ok(Frame { range: at..at + (whole - rest.len()), body })
}

fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().ok_or(Malformed)?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

fn delimited<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = usize::try_from(varint(rest)?).map_err(|_| Malformed)?;
    let (value, after) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = after;
    Ok(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use penstock_proto::record::{Record, RecordBatch};
    use prost::Message;

    use super::*;

    fn batch(topics: &[&str]) -> Vec<u8> {
        let records = topics
            .iter()
            .map(|topic| Record {
                client: Bytes::from_static(b"c1"),
                epoch: 7,
                topic: Bytes::copy_from_slice(topic.as_bytes()),
                payload: Bytes::from_static(b"hello"),
                qos: 1,
                user: Bytes::from_static(b"u"),
                received_at: 5,
                ..Record::default()
            })
            .collect();
        RecordBatch { records }.encode_to_vec()
    }

    #[test]
    fn frames_join_by_concatenation() {
        let mut joined = batch(&["a", "b"]);
        joined.extend(batch(&["c"]));
        assert_eq!(count(&joined), Ok(3));
        let topics: Vec<_> = frames(&joined).map(|f| head(f.unwrap().body).unwrap().topic.to_vec()).collect();
        assert_eq!(topics, [b"a", b"b", b"c"]);
        let second = frames(&joined).nth(1).unwrap().unwrap();
        assert_eq!(&joined[second.range], &batch(&["b"])[..]);
        let first = frames(&joined).next().unwrap().unwrap();
        assert_eq!(head(first.body).unwrap(), Head { client: b"c1", epoch: 7, topic: b"a", qos: 1 });
    }

    #[test]
    fn every_cut_is_malformed_or_shorter_and_never_panics() {
        let whole = batch(&["some/topic", "other"]);
        for cut in 0..whole.len() {
            let part = &whole[..cut];
            let got = count(part);
            assert!(got.is_err() || got.unwrap() < 2, "cut at {cut}");
            for frame in frames(part).flatten() {
                let _ = head(frame.body);
            }
        }
        for byte in 0..=255u8 {
            let _ = head(&[byte; 40]);
            let _ = count(&[byte; 40]);
        }
    }
}
