//! What every payload begins with, so that whoever sees it can tell where it belongs. Text, so that a person reading a
//! trace can, too: `PL1 <tenant> <publisher> <sequence> <connection> <sent, ms since 1970> ` and filler.

use bytes::Bytes;

const MAGIC: &str = "PL1";
const FILLER: u8 = b'.';

/// Where a payload comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Tenant of the publisher.
    pub tenant: String,
    /// Number of the publisher, unique in a ledger.
    pub publisher: u64,
    /// Number of the message, from 0.
    pub sequence: u64,
    /// Which of its connections the publisher sent it on, from 1: a message that is sent again after a reconnect carries
    /// a higher one.
    pub connection: u32,
    /// Milliseconds since 1970.
    pub sent_at: u64,
}

/// Not a stamped payload, or a damaged one.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[error("the payload is not as it was sent")]
pub struct BadStamp;

impl Stamp {
    /// The payload, filled up to `size` bytes if the stamp is shorter.
    pub fn encode(&self, size: usize) -> Bytes {
        let Self { tenant, publisher, sequence, connection, sent_at } = self;
        let text = format!("{MAGIC} {tenant} {publisher} {sequence} {connection} {sent_at} ");
        let mut bytes = text.into_bytes();
        if bytes.len() < size {
            bytes.resize(size, FILLER);
        }
        bytes.into()
    }

    /// Reads a payload; the filler must be whole.
    pub fn decode(payload: &[u8]) -> Result<Self, BadStamp> {
        let end = payload.iter().rposition(|byte| *byte != FILLER).map_or(0, |last| last + 1);
        let text = payload.get(..end).ok_or(BadStamp)?;
        let text = std::str::from_utf8(text).map_err(|_| BadStamp)?.strip_suffix(' ').ok_or(BadStamp)?;
        let mut parts = text.split(' ');
        let mut next = || parts.next().ok_or(BadStamp);
        if next()? != MAGIC {
            return Err(BadStamp);
        }
        let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let tenant = Some(next()?).filter(|tenant| tenant.chars().all(named)).ok_or(BadStamp)?.to_owned();
        let mut number = || next()?.parse::<u64>().map_err(|_| BadStamp);
        let (publisher, sequence) = (number()?, number()?);
        let connection = u32::try_from(number()?).map_err(|_| BadStamp)?;
        let sent_at = number()?;
        match parts.next() {
            Some(_) => Err(BadStamp),
            None => Ok(Self { tenant, publisher, sequence, connection, sent_at }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> Stamp {
        Stamp { tenant: "acme".into(), publisher: 3, sequence: 77, connection: 2, sent_at: 1_763_000_000_000 }
    }

    #[test]
    fn what_is_encoded_is_decoded_at_any_size() {
        for size in [0, 40, 64, 4_096] {
            let payload = stamp().encode(size);
            assert!(payload.len() >= size);
            assert_eq!(Stamp::decode(&payload), Ok(stamp()));
        }
    }

    #[test]
    fn damage_is_noticed() {
        let whole = stamp().encode(100).to_vec();
        for at in [0, 1, 4, 60, 99] {
            let mut torn = whole.clone();
            torn[at] = 0;
            assert_eq!(Stamp::decode(&torn), Err(BadStamp), "byte {at}");
        }
        for foreign in [b"".as_slice(), b"hello", b"....", b"PL1 a 1 2 3 ", b"PL1 a 1 2 3 4 5 "] {
            assert_eq!(Stamp::decode(foreign), Err(BadStamp));
        }
    }
}
