//! Epochs: fencing numbers of ownerships. A real one comes from the registry's revision; a provisional one, handed out by
//! a partition's home while the registry doesn't answer, is below every real one.

use std::fmt;

/// Fencing number of an ownership of a client. Compared only between ownerships of one client. 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Epoch(pub u64);

const REAL: u64 = 1 << 62;
const COUNTER_BITS: u32 = 20;

impl Epoch {
    /// No ownership.
    pub const NONE: Self = Self(0);

    /// From a registry revision.
    pub fn real(revision: u64) -> Self {
        Self(REAL | revision)
    }

    /// From a home's term and its count of provisional epochs in that term.
    pub fn provisional(term: crate::position::Term, counter: u32) -> Self {
        let number = (term.0 << COUNTER_BITS) | u64::from(counter & ((1 << COUNTER_BITS) - 1));
        Self(number & (REAL - 1))
    }

    /// The registry revision, unless provisional.
    pub fn revision(self) -> Option<u64> {
        (self.0 & REAL != 0).then_some(self.0 & (REAL - 1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision() {
            Some(revision) => write!(f, "{revision}"),
            None => write!(f, "p{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Term;

    #[test]
    fn every_real_epoch_beats_every_provisional_one() {
        let late = Epoch::provisional(Term(4_000_000_000_000), u32::MAX);
        assert!(Epoch::real(1) > late);
        assert!(
            Epoch::provisional(Term(1_763_000_000_001), 0) > Epoch::provisional(Term(1_763_000_000_000), 9)
        );
        assert_eq!(Epoch::real(7).revision(), Some(7));
        assert_eq!(late.revision(), None);
    }
}
