//! What a ledger says in the end.

use std::fmt;

use serde::Serialize;

/// Counts over one reader's tenant. Faults are those that [`Verdict::faults`] lists; the rest is allowed and told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Messages sent, each counted once.
    pub sent: u64,
    /// Messages acknowledged to their publishers.
    pub acked: u64,
    /// Messages that the reader has seen, each counted once.
    pub seen: u64,
    /// Fault: acknowledged and never seen.
    pub lost: u64,
    /// Fault: stored twice, though sent once on that connection.
    pub duplicated: u64,
    /// Allowed: stored again because the publisher sent it again after a reconnect.
    pub resent_duplicates: u64,
    /// Allowed: the same stored record handed out again.
    pub redelivered: u64,
    /// Fault: handed out for the first time after a later message of the same publisher.
    pub reordered: u64,
    /// Fault: stored after a later message of the same publisher, or in another partition.
    pub misplaced: u64,
    /// Fault: stored after something that the same publisher sent on a later connection.
    pub stale: u64,
    /// Fault: seen by a reader of another tenant.
    pub leaked: u64,
    /// Fault: a message for one client, seen by another of its tenant.
    pub misrouted: u64,
    /// Fault: seen and never sent.
    pub invented: u64,
    /// Fault: a payload that is not as it was sent.
    pub corrupt: u64,
}

impl Verdict {
    /// Each kind of fault that happened, with its count.
    pub fn faults(&self) -> Vec<(&'static str, u64)> {
        let all = [
            ("lost", self.lost),
            ("duplicated", self.duplicated),
            ("reordered", self.reordered),
            ("misplaced", self.misplaced),
            ("stale", self.stale),
            ("leaked", self.leaked),
            ("misrouted", self.misrouted),
            ("invented", self.invented),
            ("corrupt", self.corrupt),
        ];
        all.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            acked: self.acked + other.acked,
            seen: self.seen + other.seen,
            lost: self.lost + other.lost,
            duplicated: self.duplicated + other.duplicated,
            resent_duplicates: self.resent_duplicates + other.resent_duplicates,
            redelivered: self.redelivered + other.redelivered,
            reordered: self.reordered + other.reordered,
            misplaced: self.misplaced + other.misplaced,
            stale: self.stale + other.stale,
            leaked: self.leaked + other.leaked,
            misrouted: self.misrouted + other.misrouted,
            invented: self.invented + other.invented,
            corrupt: self.corrupt + other.corrupt,
        }
    }

    /// No fault at all.
    pub fn balanced(&self) -> bool {
        self.faults().is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, acked, seen, resent_duplicates, redelivered, .. } = self;
        write!(
            f,
            "sent={sent} acked={acked} seen={seen} resent={resent_duplicates} redelivered={redelivered}"
        )?;
        for (fault, count) in self.faults() {
            write!(f, " {fault}={count}")?;
        }
        f.write_str(if self.balanced() { " balanced" } else { " NOT BALANCED" })
    }
}
