//! Reserved topics: names below these prefixes, and these whole names, belong to the platform: devices neither publish nor
//! subscribe to them. A value, so that an operator can configure the list.

/// Prefixes and whole names that devices may not use. Compared bytewise, case counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reserved {
    prefixes: Vec<Box<[u8]>>,
    names: Vec<Box<[u8]>>,
}

/// Prefixes that are reserved unless configured otherwise.
pub const PREFIXES: [&str; 8] = [
    "s/",
    "t/",
    "q/",
    "c/",
    "alarm/alarms/",
    "event/events/",
    "measurement/measurements/",
    "inventory/managedObjects/",
];

/// Whole names that are reserved unless configured otherwise.
pub const NAMES: [&str; 2] = ["error", "devicecontrol/notifications"];

impl Default for Reserved {
    fn default() -> Self {
        Self::new(&PREFIXES, &NAMES)
    }
}

impl Reserved {
    /// A list of one's own. Empty prefixes are left out: they would reserve everything.
    pub fn new<P: AsRef<str>, N: AsRef<str>>(prefixes: &[P], names: &[N]) -> Self {
        let own = |text: &str| (!text.is_empty()).then(|| text.as_bytes().into());
        Self {
            prefixes: prefixes.iter().filter_map(|p| own(p.as_ref())).collect(),
            names: names.iter().filter_map(|n| own(n.as_ref())).collect(),
        }
    }

    /// Whether this topic name or filter is reserved, as it is written: `s/+` is, `+/us` and `#` are not (they can't
    /// receive what nobody may publish).
    pub fn contains(&self, topic: &[u8]) -> bool {
        self.prefixes.iter().any(|prefix| topic.starts_with(prefix))
            || self.names.iter().any(|name| **name == *topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_counts_at_the_beginning_and_a_name_as_a_whole() {
        let reserved = Reserved::default();
        for yes in ["s/us", "s/", "s/+", "c/#", "error", "devicecontrol/notifications", "alarm/alarms/1"] {
            assert!(reserved.contains(yes.as_bytes()), "{yes}");
        }
        for no in ["sensors/1", "s", "errortopic", "error/1", "a/s/us", "S/us", "alarm/alarms", "#", "+/us"] {
            assert!(!reserved.contains(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn an_empty_prefix_does_not_reserve_everything() {
        assert!(!Reserved::new(&[""], &[""]).contains(b"a"));
        assert!(Reserved::new(&["x/"], &["y"]).contains(b"x/1"));
        assert!(!Reserved::new(&["x/"], &["y"]).contains(b"s/us"));
    }
}
