//! What "stored" means, as an operator writes it: `--durability memory|fsynced`. The class says when an append is
//! answered; what a backend can't honour it refuses when it opens, never silently.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Durability class: what has happened to an entry when its append is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Another process has it (Redis, or the kernel's page cache): survives this process, not the machine.
    Memory,
    /// On disk: survives the machine.
    Fsynced,
}

/// Not a durability class of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDurability {
    /// It is planned, but not here.
    #[error("durability {0} is not in this version: use memory or fsynced")]
    Replicated(String),
    /// It is none.
    #[error("durability {0:?} is unknown: use memory or fsynced")]
    Unknown(String),
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Fsynced => "fsynced",
        })
    }
}

impl FromStr for Durability {
    type Err = BadDurability;

    fn from_str(text: &str) -> Result<Self, BadDurability> {
        match text {
            "memory" => Ok(Self::Memory),
            "fsynced" => Ok(Self::Fsynced),
            _ if text.starts_with("replicated") => Err(BadDurability::Replicated(text.into())),
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
        for class in [Durability::Memory, Durability::Fsynced] {
            assert_eq!(class.to_string().parse(), Ok(class));
        }
    }

    #[test]
    fn a_class_that_can_not_be_honoured_is_refused() {
        let refused = "replicated:2".parse::<Durability>();
        assert_eq!(refused, Err(BadDurability::Replicated("replicated:2".into())));
        assert!("".parse::<Durability>().is_err());
        assert!("Memory".parse::<Durability>().is_err());
    }
}
