//! Terms and entry ids: where something is in a partition's log, and under whose hand it was written.

use std::{fmt, str::FromStr};

/// Fencing number of a home. Grows with every taking; about the store's time in milliseconds, but no time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Term(pub u64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Id of an entry, `<term>-<sequence>`; within a term sequences are dense and begin at 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct EntryId {
    /// Term under which it was appended.
    pub term: Term,
    /// Place within the term.
    pub sequence: u64,
}

impl EntryId {
    /// Before every entry.
    pub const ZERO: Self = Self { term: Term(0), sequence: 0 };

    /// An id from its parts.
    pub fn new(term: u64, sequence: u64) -> Self {
        Self { term: Term(term), sequence }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.term, self.sequence)
    }
}

/// Not `<number>-<number>`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an entry id is <term>-<sequence>")]
pub struct BadEntryId;

impl FromStr for EntryId {
    type Err = BadEntryId;

    fn from_str(text: &str) -> Result<Self, BadEntryId> {
        let (term, sequence) = text.split_once('-').ok_or(BadEntryId)?;
        let number = |part: &str| part.parse::<u64>().map_err(|_| BadEntryId);
        Ok(Self::new(number(term)?, number(sequence)?))
    }
}
