//! Rates, sizes and address ranges as people write them.

use std::net::{IpAddr, Ipv4Addr};

use crate::pace::Pace;

/// Addresses of one `--source-ips`, at most.
const ADDRESSES: u32 = 65_536;

/// `64B`, `1KiB`, `2MiB`, or a bare number of bytes.
pub(crate) fn bytes(text: &str) -> Result<usize, String> {
    let wrong = || format!("{text:?} is not a size such as 64B, 1KiB or 1MiB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: usize = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return Err(wrong()),
    };
    number.parse::<usize>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
}

/// `1000/s`, `50k/s`, `1.5M/s`; `/s` may be missing.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is not a rate such as 1000/s or 50k/s");
    let number = text.trim().strip_suffix("/s").unwrap_or(text.trim());
    let (number, factor) = match number.strip_suffix(['k', 'M']) {
        Some(rest) if number.ends_with('k') => (rest, 1e3),
        Some(rest) => (rest, 1e6),
        None => (number, 1.0),
    };
    let number = number.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number.map(|number| number * factor).ok_or_else(wrong)
}

/// A rate, `A..B` for one that changes evenly, or `max`.
pub(crate) fn pace(text: &str) -> Result<Pace, String> {
    if text.trim() == "max" {
        return Ok(Pace::Max);
    }
    match text.split_once("..") {
        Some((from, to)) => Ok(Pace::Ramp { from: rate(from)?, to: rate(to)? }),
        None => rate(text).map(Pace::steady),
    }
}

/// `127.0.0.2-127.0.0.20,10.0.0.1`.
pub(crate) fn addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    let mut all = Vec::new();
    for part in text.split(',').map(str::trim) {
        let wrong = || format!("{part:?} is not an address or a range such as 127.0.0.2-127.0.0.20");
        let Some((from, to)) = part.split_once('-') else {
            all.push(part.parse().map_err(|_| wrong())?);
            continue;
        };
        let end = |text: &str| text.trim().parse::<Ipv4Addr>().map(u32::from).map_err(|_| wrong());
        let (from, to) = (end(from)?, end(to)?);
        if from > to || to - from >= ADDRESSES {
            return Err(format!("{part:?} is not a range of 1 to {ADDRESSES} addresses"));
        }
        all.extend((from..=to).map(|address| IpAddr::from(Ipv4Addr::from(address))));
    }
    Ok(all)
}

/// `mqtt://host:port`; the port may be missing.
pub(crate) fn target(text: &str) -> Result<String, String> {
    let wrong = |why: &str| format!("{text:?} is not a target such as mqtt://127.0.0.1:1883: {why}");
    let rest = match text.split_once("://") {
        Some(("mqtt" | "tcp", rest)) => rest,
        Some(_) => return Err(wrong("this version speaks mqtt:// only")),
        None => text,
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (rest, "1883"),
    };
    let odd = |c: char| c.is_whitespace() || matches!(c, '/' | '@' | '?' | '#');
    match port.parse::<u16>() {
        Ok(port) if port > 0 && !host.is_empty() && !host.contains(odd) => Ok(format!("{host}:{port}")),
        Ok(_) => Err(wrong("the host or the port is missing")),
        Err(_) => Err(wrong("the port is not a number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_rates_have_units() {
        assert_eq!((bytes("64B"), bytes("1KiB"), bytes("17")), (Ok(64), Ok(1_024), Ok(17)));
        assert_eq!((rate("1000/s"), rate("50k/s"), rate("1.5M")), (Ok(1_000.0), Ok(50_000.0), Ok(1.5e6)));
        for bad in ["", "64 parsec", "-1", "64KB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        for bad in ["", "fast", "-1/s", "1/min", "inf", "NaN"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
        assert_eq!(pace("0/s..2k/s"), Ok(Pace::Ramp { from: 0.0, to: 2_000.0 }));
        assert_eq!((pace("max"), pace("5/s")), (Ok(Pace::Max), Ok(Pace::steady(5.0))));
    }

    #[test]
    fn ranges_of_addresses_are_spelled_out() {
        let all = addresses("127.0.0.2-127.0.0.4,10.0.0.1").unwrap_or_default();
        assert_eq!(
            all.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["127.0.0.2", "127.0.0.3", "127.0.0.4", "10.0.0.1"]
        );
        for bad in ["", "x", "127.0.0.4-127.0.0.2", "127.0.0.1-x", "0.0.0.0-255.0.0.0"] {
            assert!(addresses(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn targets_may_leave_the_port_out() {
        assert_eq!(target("mqtt://h:2883/"), Ok("h:2883".into()));
        assert_eq!((target("mqtt://h"), target("[::1]")), (Ok("h:1883".into()), Ok("[::1]:1883".into())));
        for bad in ["mqtts://h:1", "mqtt://", "mqtt://h:x", "mqtt://h:0", "mqtt://user@h:1"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }
}
