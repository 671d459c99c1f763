//! What a run must hold: `puback_p99<10ms,lost=0`. Parsing and comparing; the figures come from the report.

/// Latencies that can be bounded.
pub(crate) const LATENCIES: [&str; 5] = ["puback", "one_way", "receipt", "connect", "takeover"];
/// What is known of each.
pub(crate) const STATISTICS: [&str; 7] = ["min", "mean", "p50", "p90", "p99", "p999", "max"];
/// Rates, per second.
pub(crate) const RATES: [&str; 4] = ["sent_rate", "acked_rate", "received_rate", "connect_rate"];
/// Kinds of faults of a verdict.
pub(crate) const FAULTS: [&str; 10] = [
    "lost",
    "duplicated",
    "reordered",
    "misplaced",
    "stale",
    "leaked",
    "misrouted",
    "invented",
    "corrupt",
    "acked_out_of_order",
];
/// Other counts.
pub(crate) const COUNTS: [&str; 7] =
    ["redelivered", "resent_duplicates", "unacked", "unsent", "refused", "broken", "errors"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Below,
    AtMost,
    Equal,
    AtLeast,
    Above,
}

/// One thing that must hold.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Slo {
    /// As written.
    pub(crate) text: String,
    /// Name of the figure.
    pub(crate) metric: String,
    comparison: Comparison,
    /// Milliseconds, a number a second, seconds, or a count.
    bound: f64,
}

impl Slo {
    /// Whether a figure holds it.
    pub(crate) fn holds(&self, actual: f64) -> bool {
        match self.comparison {
            Comparison::Below => actual < self.bound,
            Comparison::AtMost => actual <= self.bound,
            Comparison::Equal => (actual - self.bound).abs() < f64::EPSILON,
            Comparison::AtLeast => actual >= self.bound,
            Comparison::Above => actual > self.bound,
        }
    }
}

/// Reads a list; every fault in it.
pub(crate) fn parse(list: &str) -> Result<Vec<Slo>, Vec<String>> {
    let (mut slos, mut faults) = (Vec::new(), Vec::new());
    for text in list.split(',').map(str::trim) {
        match one(text) {
            Ok(slo) => slos.push(slo),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(slos) } else { Err(faults) }
}

fn one(text: &str) -> Result<Slo, String> {
    let at = text.find(['<', '=', '>']).ok_or_else(|| {
        format!("{text:?} compares nothing; an SLO is written as puback_p99<10ms or lost=0")
    })?;
    let (metric, rest) = text.split_at(at);
    let (comparison, value) = [
        ("<=", Comparison::AtMost),
        (">=", Comparison::AtLeast),
        ("==", Comparison::Equal),
        ("<", Comparison::Below),
        (">", Comparison::Above),
        ("=", Comparison::Equal),
    ]
    .into_iter()
    .find_map(|(sign, comparison)| Some((comparison, rest.strip_prefix(sign)?)))
    .unwrap_or((Comparison::Equal, rest));
    let metric = metric.trim();
    let bound = bound(metric, value.trim()).map_err(|fault| format!("{text:?}: {fault}"))?;
    Ok(Slo { text: text.to_owned(), metric: metric.to_owned(), comparison, bound })
}

fn bound(metric: &str, value: &str) -> Result<f64, String> {
    let latency = metric
        .rsplit_once('_')
        .is_some_and(|(name, statistic)| LATENCIES.contains(&name) && STATISTICS.contains(&statistic));
    if latency {
        return millis(value);
    }
    if metric == "seconds" {
        return millis(value).map(|millis| millis / 1e3);
    }
    if RATES.contains(&metric) {
        return crate::quantity::rate(value);
    }
    if FAULTS.contains(&metric) || COUNTS.contains(&metric) {
        return value.parse::<u32>().map(f64::from).map_err(|_| format!("{value:?} is not a count"));
    }
    Err(format!(
        "there is no {metric:?}; known are {{{}}}_{{{}}}, seconds, {}, {}, {}",
        LATENCIES.join(","),
        STATISTICS.join(","),
        RATES.join(", "),
        FAULTS.join(", "),
        COUNTS.join(", ")
    ))
}

fn millis(value: &str) -> Result<f64, String> {
    let wrong = || format!("{value:?} is not a time such as 500us, 10ms or 2s");
    let unit = value.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = value.split_at(unit);
    let factor = match unit {
        "us" | "µs" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        _ => return Err(wrong()),
    };
    number.parse::<f64>().map(|number| number * factor).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bounds_are_read_with_their_units() {
        let slos =
            parse("puback_p99<10ms, one_way_max<=2s,acked_rate>=50k/s,lost=0,connect_p50>500us").unwrap();
        let bounds: Vec<_> = slos.iter().map(|slo| slo.bound).collect();
        assert_eq!(bounds, [10.0, 2_000.0, 50_000.0, 0.0, 0.5]);
        assert!(slos[0].holds(9.99) && !slos[0].holds(10.0));
        assert!(slos[1].holds(2_000.0) && slos[2].holds(5e4) && slos[4].holds(0.6));
        assert!(slos[3].holds(0.0) && !slos[3].holds(1.0));
    }

    #[test]
    fn every_fault_is_told() {
        let faults = parse("puback_p98<10ms,lost=0,lost<x,puback_p99<10,nothing").unwrap_err();
        assert_eq!(faults.len(), 4, "{faults:#?}");
        assert!(faults[0].contains("puback_p98") && faults[2].contains("10ms"));
    }
}
