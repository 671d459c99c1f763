//! The text frames of the door: to a consumer `<ackId>\n<base64>`, back the bare `<ackId>`; from a producer
//! `<seq>\n<base64>`, back `<seq>`, or `<seq>\n<reason>` when the message was not taken.

use std::{fmt, str::FromStr};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use penstock_proto::messaging::Range;

/// What a consumer says to delete its group.
pub const UNSUBSCRIBE: &str = "unsubscribe_subscriber";
/// Longest sequence number of a producer, bytes.
const SEQUENCE_MAX: usize = 64;
/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Names one record: where it is in the tenant's logs. It stays good on other sockets of the group and other routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AckId {
    /// Partition.
    pub partition: u32,
    /// Term of the entry.
    pub term: u64,
    /// Number of the entry in its term.
    pub sequence: u64,
    /// Record of the entry.
    pub index: u32,
}

impl fmt::Display for AckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, term, sequence, index } = self;
        write!(f, "{partition}.{term}.{sequence}.{index}")
    }
}

/// A frame that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Nonsense(pub &'static str);

impl FromStr for AckId {
    type Err = Nonsense;

    fn from_str(text: &str) -> Result<Self, Nonsense> {
        let wrong = Nonsense("a consumer says an ackId that it was given, or unsubscribe_subscriber");
        let mut parts = text.trim().split('.');
        let mut next = || parts.next().and_then(|part| part.parse::<u64>().ok()).ok_or(wrong);
        let (partition, term, sequence, index) = (next()?, next()?, next()?, next()?);
        let small = |number: u64| u32::try_from(number).map_err(|_| wrong);
        let id = Self { partition: small(partition)?, term, sequence, index: small(index)? };
        if parts.next().is_none() { Ok(id) } else { Err(wrong) }
    }
}

impl AckId {
    /// The record as a range of one.
    pub fn range(&self) -> Range {
        let Self { partition, term, sequence, index } = *self;
        Range { partition, term, sequence, index, count: 1 }
    }
}

/// A frame for a consumer.
pub fn to_consumer(id: &impl fmt::Display, avro: &[u8]) -> String {
    let mut frame = String::with_capacity(avro.len() * 4 / 3 + 64);
    // Writing to a String can't fail.
    let _ = fmt::write(&mut frame, format_args!("{id}\n"));
    BASE64.encode_string(avro, &mut frame);
    frame
}

/// A frame of a producer: its sequence number and the Avro bytes.
pub fn from_producer(frame: &str) -> Result<(&str, Result<Bytes, Nonsense>), Nonsense> {
    let (sequence, encoded) = frame
        .split_once('\n')
        .ok_or(Nonsense("a producer says a sequence number, a line feed and base64"))?;
    let sequence = sequence.trim();
    if !(1..=SEQUENCE_MAX).contains(&sequence.len()) || sequence.chars().any(char::is_control) {
        return Err(Nonsense("the sequence number is 1 to 64 printable bytes"));
    }
    let decoded = BASE64.decode(encoded.trim_end()).or_else(|_| BASE64.decode(in_one_line(encoded)));
    let decoded = decoded.map(Bytes::from);
    Ok((sequence, decoded.map_err(|_| Nonsense("what follows the sequence number is not base64"))))
}

/// Encoders made for mail break lines after 76 characters.
fn in_one_line(encoded: &str) -> Vec<u8> {
    encoded.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_those_of_the_vectors() {
        let vectors = include_str!("../../../../docs/avro/vectors.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        for vector in vectors["vectors"].as_array().unwrap() {
            for generation in ["newer", "older"] {
                let hex = vector[format!("{generation}_hex")].as_str().unwrap();
                let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
                let avro: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
                let frame = vector[format!("{generation}_frame")].as_str().unwrap();
                assert_eq!(to_consumer(&17, &avro), frame);
                assert_eq!(from_producer(frame), Ok(("17", Ok(avro.clone().into()))));
                let bare = frame.trim_end_matches('=');
                assert_eq!(from_producer(bare), Ok(("17", Ok(avro.into()))));
            }
        }
    }

    #[test]
    fn nonsense_is_told() {
        for wrong in ["", "1.2.3", "1.2.3.4.5", "4294967296.1.1.1", "1.1.1.-1", "a.b.c.d", "1.2.3.4\n1.2.3.5"]
        {
            assert!(wrong.parse::<AckId>().is_err(), "{wrong:?}");
        }
        for wrong in ["AAAA", "\nAAAA", "a\u{7}\nAAAA", &format!("{}\nAAAA", "1".repeat(65))] {
            assert!(from_producer(wrong).is_err(), "{wrong:?}");
        }
        for wrong in ["1\nAA*A", "1\nAA\n*A", "1\nA"] {
            assert!(matches!(from_producer(wrong), Ok(("1", Err(_)))), "{wrong:?}");
        }
        assert!(matches!(from_producer("1\nAAAA\r\n"), Ok(("1", Ok(_)))));
        let broken = "7\nMjEu\r\nNQ==\r\n";
        assert_eq!(from_producer(broken), Ok(("7", Ok(Bytes::from_static(b"21.5")))));
    }

    proptest! {
        #[test]
        fn an_ack_comes_back_as_it_was_given(partition: u32, term: u64, sequence: u64, index: u32) {
            let id = AckId { partition, term, sequence, index };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(format!(" {id}\r\n").parse(), Ok(id));
        }
    }
}
