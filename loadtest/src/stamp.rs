//! What every payload begins with, so that whoever sees it can tell where it belongs. Text, so that a person reading a
//! trace can, too: `PL2 <tenant> <publisher> <sequence> <connection> <sent, µs since 1970> <check> ` and filler.
//!
//! Encoding and decoding allocate nothing: both are on the path of every message.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8] = b"PL2 ";
const FILLER: u8 = b'.';
/// Hexadecimal digits of the check, and the space after it.
const CHECK: usize = 5;
/// Digits of the largest number.
const DIGITS: usize = 20;

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
    /// Microseconds since 1970. Under a rate: when it was due.
    pub sent_at: u64,
}

/// As [`Stamp`], with a tenant that lies elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StampRef<'a> {
    /// Tenant of the publisher.
    pub tenant: &'a str,
    /// Number of the publisher.
    pub publisher: u64,
    /// Number of the message, from 0.
    pub sequence: u64,
    /// Connection of the publisher, from 1.
    pub connection: u32,
    /// Microseconds since 1970.
    pub sent_at: u64,
}

/// Not a stamped payload, or a damaged one.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[error("the payload is not as it was sent")]
pub struct BadStamp;

/// Bytes that the longest stamp of a tenant may take with sequences below 10^10.
pub fn stamp_bytes(tenant: &str, publishers: u64) -> usize {
    let publisher = publishers.to_string().len();
    MAGIC.len() + tenant.len() + 1 + publisher + 1 + 10 + 1 + 4 + 1 + 16 + 1 + CHECK
}

impl Stamp {
    /// The payload, filled up to `size` bytes if the stamp is shorter.
    pub fn encode(&self, size: usize) -> Bytes {
        let mut bytes = Vec::with_capacity(size);
        self.borrowed().write(&mut bytes, size);
        bytes.into()
    }

    /// Reads a payload; the filler must be whole.
    pub fn decode(payload: &[u8]) -> Result<Self, BadStamp> {
        let StampRef { tenant, publisher, sequence, connection, sent_at } = StampRef::decode(payload)?;
        Ok(Self { tenant: tenant.to_owned(), publisher, sequence, connection, sent_at })
    }

    fn borrowed(&self) -> StampRef<'_> {
        let Self { tenant, publisher, sequence, connection, sent_at } = self;
        StampRef {
            tenant,
            publisher: *publisher,
            sequence: *sequence,
            connection: *connection,
            sent_at: *sent_at,
        }
    }
}

impl<'a> StampRef<'a> {
    /// Bytes without filler.
    pub fn length(&self) -> usize {
        let numbers = [self.publisher, self.sequence, u64::from(self.connection), self.sent_at];
        let digits = |number: u64| number.checked_ilog10().unwrap_or(0) as usize + 2;
        MAGIC.len() + self.tenant.len() + 1 + numbers.map(digits).iter().sum::<usize>() + CHECK
    }

    /// Appends the payload, filled up to `size` bytes if the stamp is shorter.
    pub fn write(&self, out: &mut Vec<u8>, size: usize) {
        let start = out.len();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(self.tenant.as_bytes());
        out.push(b' ');
        for number in [self.publisher, self.sequence, u64::from(self.connection), self.sent_at] {
            decimal(out, number);
        }
        let check = check(out.get(start..).unwrap_or_default());
        out.extend_from_slice(&check);
        out.push(b' ');
        if out.len() < start + size {
            out.resize(start + size, FILLER);
        }
    }

    /// Reads a payload; the filler must be whole.
    pub fn decode(payload: &'a [u8]) -> Result<Self, BadStamp> {
        let mut rest = payload.strip_prefix(MAGIC).ok_or(BadStamp)?;
        let tenant = word(&mut rest)?;
        let named = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let tenant = Some(tenant).filter(|tenant| tenant.iter().all(named)).ok_or(BadStamp)?;
        let tenant = std::str::from_utf8(tenant).map_err(|_| BadStamp)?;
        let mut number = || parse(word(&mut rest)?);
        let (publisher, sequence, connection, sent_at) = (number()?, number()?, number()?, number()?);
        let connection = u32::try_from(connection).map_err(|_| BadStamp)?;
        let covered = payload.len() - rest.len();
        let given = word(&mut rest)?;
        let whole = given == check(payload.get(..covered).ok_or(BadStamp)?);
        if !whole || rest.iter().any(|byte| *byte != FILLER) {
            return Err(BadStamp);
        }
        Ok(Self { tenant, publisher, sequence, connection, sent_at })
    }
}

fn decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [b' '; DIGITS + 1];
    let mut at = DIGITS;
    for slot in digits.iter_mut().take(DIGITS).rev() {
        // A digit is below 10.
        *slot = b'0' + (number % 10) as u8;
        number /= 10;
        at -= 1;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

fn check(text: &[u8]) -> [u8; CHECK - 1] {
    let sum = xxh3_64(text);
    let digit = |shift: u32| {
        // Four bits.
        let value = ((sum >> shift) & 15) as u8;
        if value < 10 { b'0' + value } else { b'a' + value - 10 }
    };
    [digit(12), digit(8), digit(4), digit(0)]
}

/// Up to the next space, which is taken, too.
fn word<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], BadStamp> {
    let end = rest.iter().position(|byte| *byte == b' ').ok_or(BadStamp)?;
    let (word, after) = rest.split_at(end);
    *rest = after.get(1..).ok_or(BadStamp)?;
    Some(word).filter(|word| !word.is_empty()).ok_or(BadStamp)
}

fn parse(digits: &[u8]) -> Result<u64, BadStamp> {
    digits.iter().try_fold(0u64, |number, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10).ok_or(BadStamp)?;
        number.checked_mul(10).and_then(|tens| tens.checked_add(u64::from(digit))).ok_or(BadStamp)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> Stamp {
        Stamp {
            tenant: "acme".into(),
            publisher: 3,
            sequence: 77,
            connection: 2,
            sent_at: 1_763_000_000_000_000,
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_at_any_size() {
        for size in [0, 40, 64, 4_096] {
            let payload = stamp().encode(size);
            assert_eq!(payload.len(), size.max(stamp().borrowed().length()));
            assert_eq!(Stamp::decode(&payload), Ok(stamp()));
        }
        let largest = Stamp { publisher: u64::MAX, sequence: 0, connection: u32::MAX, ..stamp() };
        assert_eq!(Stamp::decode(&largest.encode(0)), Ok(largest));
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let whole = stamp().encode(100).to_vec();
        for at in 0..whole.len() {
            for damage in [0, b'1', b'7', b' ', b'a'] {
                let mut torn = whole.clone();
                if std::mem::replace(&mut torn[at], damage) != damage {
                    assert_eq!(Stamp::decode(&torn), Err(BadStamp), "byte {at} as {damage}");
                }
            }
        }
        assert_eq!(Stamp::decode(&whole[..30]), Err(BadStamp));
        for foreign in [b"".as_slice(), b"hello", b"....", b"PL2 a 1 2 3 ", b"PL2 a 1 2 3 4 5 "] {
            assert_eq!(Stamp::decode(foreign), Err(BadStamp));
        }
    }

    #[test]
    fn a_stamp_fits_into_what_is_reserved_for_it() {
        let long = Stamp { publisher: 99, sequence: 9_999_999_999, connection: 9_999, ..stamp() };
        assert!(long.encode(0).len() <= stamp_bytes("acme", 100));
    }
}
