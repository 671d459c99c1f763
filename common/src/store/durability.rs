//! What "stored" means, as an operator writes it: `--durability memory|replicated:N|fsynced`. The class says when an append is
//! answered; what a backend can't honour it refuses when it opens, never silently.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Durability class: what has happened to an entry when its append is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Another process has it (Redis, or the kernel's page cache): survives this process, not the machine.
    Memory,
    /// So many replicas have it in memory as well: survives the primary and its machine.
    Replicated(u32),
    /// On disk: survives the machine.
    Fsynced,
}

/// Most replicas that may be asked for: beyond that it is a slip of the pen.
const MOST_REPLICAS: u32 = 16;

/// Not a durability class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDurability {
    /// How many replicas?
    #[error(
        "durability {0} names no number of replicas from 1 to 16: replicated:1 means one beside the primary"
    )]
    Replicated(String),
    /// It is none.
    #[error("durability {0:?} is unknown: use memory, replicated:N or fsynced")]
    Unknown(String),
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Replicated(replicas) => write!(f, "replicated:{replicas}"),
            Self::Fsynced => f.write_str("fsynced"),
        }
    }
}

impl FromStr for Durability {
    type Err = BadDurability;

    fn from_str(text: &str) -> Result<Self, BadDurability> {
        match text {
            "memory" => Ok(Self::Memory),
            "fsynced" => Ok(Self::Fsynced),
            _ if text.starts_with("replicated") => {
                let number = text.strip_prefix("replicated:").and_then(|number| number.parse().ok());
                let number = number.filter(|number| (1..=MOST_REPLICAS).contains(number));
                number.map(Self::Replicated).ok_or_else(|| BadDurability::Replicated(text.into()))
            }
            _ => Err(BadDurability::Unknown(text.into())),
        }
    }
}

impl Serialize for Durability {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Durability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        for class in [Durability::Memory, Durability::Replicated(2), Durability::Fsynced] {
            assert_eq!(class.to_string().parse(), Ok(class));
        }
    }

    #[test]
    fn what_is_no_class_is_refused() {
        for text in ["replicated", "replicated:", "replicated:0", "replicated:17", "replicated:x"] {
            assert_eq!(text.parse::<Durability>(), Err(BadDurability::Replicated(text.into())));
        }
        assert!("".parse::<Durability>().is_err());
        assert!("Memory".parse::<Durability>().is_err());
    }
}
