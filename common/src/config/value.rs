//! Typed values with their units, as people write them: `127.0.0.1:1883`, `250ms`, `8MiB`, `a,b`.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

/// Something that a setting can be.
pub trait Value: Sized {
    /// Reads it; the error completes the sentence "… is not …".
    fn parse(text: &str) -> Result<Self, String>;

    /// Stands in for a faulty value until the faults are told; nobody ever runs with it.
    fn placeholder() -> Self;
}

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Size(pub u64);

const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

impl Size {
    /// As a length in memory; what is longer than memory can be is cut to its limit.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |bits: u32| self.0 != 0 && self.0.trailing_zeros() >= bits;
        match UNITS.iter().rev().find(|(_, bits)| whole(*bits)) {
            Some((unit, bits)) => write!(f, "{}{unit}", self.0 >> bits),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Value for Size {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "a size like 64KiB or 8MiB".to_owned();
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let bits = match unit.trim() {
            "" | "B" => 0,
            unit => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, bits)| *bits).ok_or_else(wrong)?,
        };
        number.checked_mul(1 << bits).map(Self).ok_or_else(wrong)
    }

    fn placeholder() -> Self {
        Self::default()
    }
}

impl Value for Duration {
    fn parse(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map_err(|_| "a duration like 250ms, 30s or 2h".to_owned())
    }

    fn placeholder() -> Self {
        Self::ZERO
    }
}

impl Value for SocketAddr {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "an address like 127.0.0.1:1883, 0.0.0.0:1883 or [::]:1883".to_owned())
    }

    fn placeholder() -> Self {
        Self::from(([127, 0, 0, 1], 0))
    }
}

impl Value for bool {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "true or false".to_owned())
    }

    fn placeholder() -> Self {
        false
    }
}

impl Value for String {
    fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            Err("a text of at least one character".to_owned())
        } else {
            Ok(text.to_owned())
        }
    }

    fn placeholder() -> Self {
        Self::new()
    }
}

impl Value for PathBuf {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("a path".to_owned()) } else { Ok(Self::from(text)) }
    }

    fn placeholder() -> Self {
        Self::new()
    }
}

impl Value for u32 {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("a number of 0 to {}", Self::MAX))
    }

    fn placeholder() -> Self {
        0
    }
}

impl Value for f64 {
    fn parse(text: &str) -> Result<Self, String> {
        let number = text.parse::<Self>().ok().filter(|number| number.is_finite());
        number.ok_or_else(|| "a number like 0.01".to_owned())
    }

    fn placeholder() -> Self {
        0.0
    }
}

impl<T: Value> Value for Vec<T> {
    fn parse(text: &str) -> Result<Self, String> {
        text.split(',').map(|part| T::parse(part.trim())).collect()
    }

    fn placeholder() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("0", 0), ("17", 17), ("17B", 17), ("64KiB", 65_536), ("8 MiB", 8 << 20)] {
            assert_eq!(Size::parse(text), Ok(Size(bytes)), "{text}");
        }
        for wrong in ["", "MiB", "8MB", "-1", "1.5MiB", "8Mib", "99999999999TiB", "1e3"] {
            assert!(Size::parse(wrong).is_err(), "{wrong}");
        }
        for size in [0, 1, 1_000, 1 << 10, 3 << 20, 5 << 40] {
            assert_eq!(Size::parse(&Size(size).to_string()), Ok(Size(size)));
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(Duration::parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(Duration::parse("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(Duration::parse("30").is_err(), "a bare number has no unit");
        assert!(Duration::parse("-3s").is_err());
    }

    #[test]
    fn lists_are_separated_by_commas() {
        let parsed = Vec::<String>::parse("http://a:1, http://b:2");
        assert_eq!(parsed, Ok(vec!["http://a:1".to_owned(), "http://b:2".to_owned()]));
        assert!(Vec::<String>::parse("a,,b").is_err());
    }
}
