//! Sizes and times as people write them.

use std::time::SystemTime;

use penstock_client::Start;
use time::{
    OffsetDateTime, format_description::BorrowedFormatItem, format_description::well_known::Rfc3339,
    macros::format_description,
};

const MILLIS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// `4096`, `64KiB`, `2MiB`, `1GiB`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("a size is a number and B, KiB, MiB or GiB, such as 64KiB".into()),
    };
    let number: u64 = number.parse().map_err(|_| "a size begins with a number, such as 64KiB".to_owned())?;
    number.checked_mul(factor).filter(|size| *size > 0).ok_or_else(|| "the size is out of range".into())
}

/// `latest`, `earliest`, or RFC 3339.
pub fn parse_start(text: &str) -> Result<Start, String> {
    match text {
        "latest" => Ok(Start::Latest),
        "earliest" => Ok(Start::Earliest),
        _ => OffsetDateTime::parse(text, &Rfc3339).map(|time| Start::Time(time.into())).map_err(|_| {
            "a start is latest, earliest, or a time with its offset such as 2026-11-22T18:00:00Z".into()
        }),
    }
}

/// RFC 3339 in UTC with milliseconds.
pub fn show_time(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(MILLIS).unwrap_or_else(|_| "unknown".into())
}

/// Milliseconds since 1970 as RFC 3339.
pub fn show_millis(ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(ms));
    time.map_or_else(|| "unknown".into(), show_time)
}

/// As it would be written for `--start`.
pub fn show_start(start: Start) -> String {
    match start {
        Start::Latest => "latest".into(),
        Start::Earliest => "earliest".into(),
        Start::Time(time) => show_time(time),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_have_units_and_bounds() {
        assert_eq!(parse_bytes("4096"), Ok(4_096));
        assert_eq!(parse_bytes("64KiB"), Ok(65_536));
        assert_eq!(parse_bytes("2GiB"), Ok(2 << 30));
        for bad in ["", "KiB", "0", "1 parsec", "1MB", "99999999999999999999", "18446744073709551615GiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_start_is_shown_as_it_is_written() {
        for text in ["latest", "earliest", "2026-11-22T18:00:00.250Z"] {
            assert_eq!(show_start(parse_start(text).unwrap()), text);
        }
        assert!(parse_start("yesterday").is_err());
        assert!(parse_start("2026-11-22T18:00:00").is_err(), "without an offset it is ambiguous");
    }
}
