//! From Redis' answers to the store's words. Nothing in an answer is trusted: what is not as written is `Corrupt`.

use bytes::Bytes;
use redis::Value;

use super::{connection::Failure, scripts::FENCED};
use crate::{
    position::EntryId,
    store::{AppendError, CommitError, Entry, Segment, StoreError, StoredEntry, Totals, encoding},
};

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Lost(reason) | Failure::Away(reason) => Self::Unavailable(reason),
            Failure::Refused { code, text } if code == "CORRUPT" => Self::Corrupt(text),
            Failure::Refused { text, .. } => Self::Refused(text),
            Failure::Unreadable(reason) => Self::Corrupt(reason),
        }
    }
}

impl From<Failure> for AppendError {
    fn from(failure: Failure) -> Self {
        match failure {
            // The one way in which XADD refuses an id that it can read.
            Failure::Refused { text, .. } if text.contains("equal or smaller") => Self::Fenced,
            Failure::Refused { code, .. } if code == FENCED => Self::Fenced,
            Failure::Refused { text, .. } | Failure::Away(text) => Self::Refused(text),
            Failure::Lost(reason) | Failure::Unreadable(reason) => Self::Lost(reason),
        }
    }
}

impl From<Failure> for CommitError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused { code, .. } if code == FENCED => Self::Fenced,
            other => Self::Store(other.into()),
        }
    }
}

pub(super) fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(what.into())
}

/// An array, or what a script gives for one.
pub(super) fn array(value: Value) -> Result<Vec<Value>, StoreError> {
    match value {
        Value::Array(values) => Ok(values),
        Value::Nil => Ok(Vec::new()),
        _ => Err(corrupt("an answer is no list")),
    }
}

/// An array of known length.
pub(super) fn fixed<const N: usize>(value: Value) -> Result<[Value; N], StoreError> {
    array(value)?.try_into().map_err(|_| corrupt("an answer has the wrong length"))
}

pub(super) fn bytes(value: Value) -> Result<Vec<u8>, StoreError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.into_bytes()),
        Value::Int(number) => Ok(number.to_string().into_bytes()),
        _ => Err(corrupt("an answer is no text")),
    }
}

pub(super) fn text(value: Value) -> Result<String, StoreError> {
    String::from_utf8(bytes(value)?).map_err(|_| corrupt("an answer is no UTF-8"))
}

pub(super) fn number(value: Value) -> Result<u64, StoreError> {
    text(value)?.parse().map_err(|_| corrupt("an answer is no number"))
}

pub(super) fn id(value: Value) -> Result<EntryId, StoreError> {
    text(value)?.parse().map_err(|_| corrupt("an answer is no entry id"))
}

/// Id and fields of each entry in the answer to XRANGE or XREVRANGE.
pub(super) fn entries(value: Value) -> Result<Vec<(EntryId, Vec<Value>)>, StoreError> {
    let entry = |value| {
        let [at, fields] = fixed(value)?;
        Ok((id(at)?, array(fields)?))
    };
    array(value)?.into_iter().map(entry).collect()
}

/// An entry from its fields.
pub(super) fn stored(at: EntryId, fields: Vec<Value>) -> Result<StoredEntry, StoreError> {
    let (mut records, mut segments) = (None, None);
    let (mut count, mut first_received_at, mut totals) = (None, None, Totals::default());
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        match bytes(name)?.as_slice() {
            b"b" => records = Some(Bytes::from(bytes(value)?)),
            b"s" => segments = Some(segments_of(value)?),
            b"n" => count = u32::try_from(number(value)?).ok(),
            b"t" => first_received_at = Some(number(value)?),
            b"r" => totals.records = number(value)?,
            b"o" => totals.bytes = number(value)?,
            // Of a later version.
            _ => {}
        }
    }
    let entry = (|| {
        Some(Entry {
            records: records?,
            segments: segments?,
            count: count?,
            first_received_at: first_received_at?,
            totals,
        })
    })();
    let entry = entry.ok_or_else(|| StoreError::Corrupt(format!("entry {at} lacks fields")))?;
    Ok(StoredEntry { id: at, entry })
}

/// Segments and bytes of the records of an entry.
pub(super) fn tail(at: EntryId, fields: Vec<Value>) -> Result<(Vec<Segment>, usize), StoreError> {
    let (mut segments, mut len) = (None, 0);
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        match bytes(name)?.as_slice() {
            b"b" => len = bytes(value)?.len(),
            b"s" => segments = Some(segments_of(value)?),
            _ => {}
        }
    }
    let segments = segments.ok_or_else(|| StoreError::Corrupt(format!("entry {at} lacks segments")))?;
    Ok((segments, len))
}

fn segments_of(value: Value) -> Result<Vec<Segment>, StoreError> {
    encoding::segments(&bytes(value)?).ok_or_else(|| corrupt("segments are unreadable"))
}
