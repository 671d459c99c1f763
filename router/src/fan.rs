//! How far the fan-out of one partition is, per shard. Pure: `fanout` drives it.
//!
//! A shard that is linked (with its snapshot of filters) is served up to `head`. A shard that is registered and not linked,
//! or whose link is full, is *behind*: the log is its buffer, and it is caught up from where it was. The stored cursor is
//! the least of all these, so that a new home repeats what may be missing and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use penstock_common::position::EntryId;
use tokio::time::Instant;

/// How long a shard may be behind before the cursor moves on without it (counted).
pub const PATIENCE: Duration = Duration::from_secs(15);

/// One shard of one life of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId {
    /// Gateway incarnation.
    pub gateway: u64,
    /// Shard number.
    pub shard: u32,
}

#[derive(Debug, Clone, Copy)]
struct Behind {
    from: EntryId,
    since: Instant,
}

/// Fan-out state of a partition.
#[derive(Debug)]
pub struct Fan {
    /// Shards that are not behind have been sent everything up to here.
    pub head: EntryId,
    /// Everything up to here is in the mailboxes that want it.
    pub mailed: EntryId,
    /// What the store holds.
    pub stored: Option<EntryId>,
    behind: BTreeMap<ShardId, Behind>,
    /// Per shard, for each Deliver that its link has not taken, the position before it.
    untaken: BTreeMap<ShardId, VecDeque<EntryId>>,
    abandoned: BTreeSet<ShardId>,
}

impl Fan {
    /// Begins at the stored cursor, or at the log's end.
    pub fn new(stored: Option<EntryId>, last: EntryId) -> Self {
        Self {
            head: stored.unwrap_or(last),
            mailed: stored.unwrap_or(last),
            stored,
            behind: BTreeMap::new(),
            untaken: BTreeMap::new(),
            abandoned: BTreeSet::new(),
        }
    }

    /// Brings the shards up to date: `present` have a link and a snapshot, `registered` are alive by at least one witness.
    pub fn observe(&mut self, present: impl Fn(&ShardId) -> bool, registered: &[ShardId], now: Instant) {
        for shard in registered {
            if !present(shard) && !self.abandoned.contains(shard) {
                self.leave_behind(*shard, now);
            }
        }
        self.abandoned.retain(|shard| registered.contains(shard) || present(shard));
        self.behind.retain(|shard, _| registered.contains(shard) || present(shard));
        self.untaken.retain(|shard, _| registered.contains(shard) || present(shard));
    }

    /// The shard's link has no room for the entry after `before`: it will be caught up from there.
    pub fn is_full(&mut self, shard: ShardId, before: EntryId, now: Instant) {
        self.behind.entry(shard).or_insert(Behind { from: before, since: now });
    }

    /// The shard has no link: it will be caught up from what it has not taken.
    pub fn leave_behind(&mut self, shard: ShardId, now: Instant) {
        let untaken = self.untaken.remove(&shard).and_then(|mut all| all.pop_front());
        let from = untaken.unwrap_or(self.head);
        let behind = self.behind.entry(shard).or_insert(Behind { from, since: now });
        behind.from = behind.from.min(from);
    }

    /// Shards that are behind, with where they are.
    pub fn behind(&self) -> Vec<(ShardId, EntryId)> {
        self.behind.iter().map(|(shard, behind)| (*shard, behind.from)).collect()
    }

    /// Whether the shard is behind.
    pub fn is_behind(&self, shard: &ShardId) -> bool {
        self.behind.contains_key(shard)
    }

    /// A shard that is behind was caught up to here.
    pub fn caught_up(&mut self, shard: ShardId, to: EntryId) {
        if to >= self.head {
            self.behind.remove(&shard);
        } else if let Some(behind) = self.behind.get_mut(&shard) {
            behind.from = to;
        }
    }

    /// Shards that were behind for too long are given up: the cursor moves on without them. Each must be told that it
    /// missed something as soon as it can be told.
    pub fn give_up(&mut self, now: Instant) -> usize {
        let late = |behind: &Behind| now.duration_since(behind.since) >= PATIENCE;
        let given_up: Vec<ShardId> =
            self.behind.iter().filter(|(_, behind)| late(behind)).map(|(shard, _)| *shard).collect();
        for shard in &given_up {
            self.behind.remove(shard);
            self.abandoned.insert(*shard);
        }
        given_up.len()
    }

    /// Whether the shard was given up since it was asked for the last time.
    pub fn was_abandoned(&mut self, shard: &ShardId) -> bool {
        self.abandoned.remove(shard)
    }

    /// Whether any shard was given up and not told.
    pub fn any_abandoned(&self) -> bool {
        !self.abandoned.is_empty()
    }

    /// Nobody is behind, nothing is under way: without filters there is nothing to remember.
    pub fn is_idle(&self) -> bool {
        self.behind.is_empty() && self.untaken.is_empty() && self.abandoned.is_empty()
    }

    /// A Deliver for this shard is under way; `before` is the position before its entry.
    pub fn sent(&mut self, shard: ShardId, before: EntryId) {
        self.untaken.entry(shard).or_default().push_back(before);
    }

    /// The shard has taken this entry, and those before it.
    pub fn taken(&mut self, shard: ShardId, entry: EntryId) {
        if let Some(untaken) = self.untaken.get_mut(&shard) {
            while untaken.front().is_some_and(|before| *before < entry) {
                untaken.pop_front();
            }
            if untaken.is_empty() {
                self.untaken.remove(&shard);
            }
        }
    }

    /// Where a new home would have to go on.
    pub fn cursor(&self) -> EntryId {
        let untaken = self.untaken.values().filter_map(VecDeque::front).copied();
        let behind = self.behind.values().map(|behind| behind.from);
        untaken.chain(behind).chain([self.mailed]).fold(self.head, EntryId::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ShardId = ShardId { gateway: 1, shard: 0 };
    const B: ShardId = ShardId { gateway: 2, shard: 0 };

    fn id(sequence: u64) -> EntryId {
        EntryId::new(1, sequence)
    }

    fn advance(fan: &mut Fan, to: u64) {
        (fan.head, fan.mailed) = (id(to), id(to));
    }

    #[test]
    fn the_cursor_waits_for_mailboxes() {
        let mut fan = Fan::new(None, id(5));
        fan.head = id(9);
        assert_eq!(fan.cursor(), id(5));
        fan.mailed = id(7);
        assert_eq!(fan.cursor(), id(7));
    }

    #[test]
    fn the_cursor_waits_for_what_is_not_taken() {
        let mut fan = Fan::new(None, id(5));
        fan.sent(A, id(5));
        fan.sent(B, id(5));
        fan.sent(A, id(6));
        advance(&mut fan, 7);
        assert_eq!(fan.cursor(), id(5));
        fan.taken(B, id(6));
        fan.taken(A, id(6));
        assert_eq!(fan.cursor(), id(6));
        fan.taken(A, id(7));
        assert_eq!(fan.cursor(), id(7));
    }

    #[test]
    fn a_shard_that_loses_its_link_is_caught_up_from_what_it_did_not_take() {
        let now = Instant::now();
        let mut fan = Fan::new(None, id(5));
        fan.sent(A, id(5));
        advance(&mut fan, 9);
        fan.observe(|shard| *shard == B, &[A, B], now);
        assert_eq!(fan.behind(), [(A, id(5))]);
        advance(&mut fan, 20);
        fan.observe(|_| true, &[A, B], now);
        assert_eq!(fan.cursor(), id(5));
        fan.caught_up(A, id(12));
        assert!(fan.is_behind(&A));
        fan.caught_up(A, id(20));
        assert!(!fan.is_behind(&A));
        assert_eq!(fan.cursor(), id(20));
    }

    #[test]
    fn a_shard_that_is_gone_by_both_witnesses_holds_nothing() {
        let now = Instant::now();
        let mut fan = Fan::new(None, id(5));
        fan.sent(A, id(5));
        advance(&mut fan, 9);
        fan.observe(|_| false, &[A], now);
        assert_eq!(fan.cursor(), id(5));
        fan.observe(|_| false, &[], now);
        assert_eq!(fan.cursor(), id(9));
    }

    #[test]
    fn a_full_link_is_caught_up_from_the_log_and_keeps_what_is_under_way() {
        let now = Instant::now();
        let mut fan = Fan::new(None, id(5));
        fan.sent(A, id(5));
        fan.is_full(A, id(6), now);
        fan.is_full(A, id(7), now);
        advance(&mut fan, 8);
        assert_eq!((fan.behind(), fan.cursor()), (vec![(A, id(6))], id(5)));
        fan.taken(A, id(6));
        assert_eq!(fan.cursor(), id(6));
    }

    #[test]
    fn patience_ends() {
        let now = Instant::now();
        let mut fan = Fan::new(Some(id(3)), id(5));
        assert_eq!(fan.head, id(3));
        fan.leave_behind(A, now);
        advance(&mut fan, 9);
        assert_eq!(fan.give_up(now), 0);
        assert_eq!(fan.give_up(now + PATIENCE), 1);
        assert_eq!(fan.cursor(), id(9));
        fan.observe(|_| false, &[A], now);
        assert!(!fan.is_behind(&A), "it is told when it is back, not waited for again");
        assert!(fan.was_abandoned(&A) && !fan.was_abandoned(&A));
    }
}
