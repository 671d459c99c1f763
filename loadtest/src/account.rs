//! What one publisher sent and had acknowledged, and what each reader saw of it. Pure; the ledger finds accounts and locks
//! them.
//!
//! Memory: about a bit a message for what is acknowledged, and one for what a reader has seen, only above the first gap.
//! Where a group stored the latest [`RECALLED`] messages is remembered exactly; older ones are judged by the order of
//! positions.

use std::collections::{BTreeMap, VecDeque};

use penstock_client::Position;
use xxhash_rust::xxh3::xxh3_64;

use crate::{ledger::Sighting, marks::Marks, stamp::StampRef, verdict::Verdict};

/// Messages of one publisher whose place in the log a reader remembers.
const RECALLED: usize = 16_384;

/// One publisher.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) tenant: String,
    /// Sequences below this were sent.
    sent: u64,
    /// First new sequence of each connection.
    connections: Vec<(u64, u32)>,
    /// Last connection of what was sent more than once.
    again: BTreeMap<u64, u32>,
    acked: Marks,
    /// By reader.
    views: Vec<Option<Box<View>>>,
}

impl Account {
    /// A publisher of a tenant, which has sent nothing.
    pub(crate) fn new(tenant: &str) -> Self {
        Self { tenant: tenant.to_owned(), ..Self::default() }
    }

    /// A message is being sent, or sent again on a later connection.
    pub(crate) fn sent(&mut self, sequence: u64, connection: u32) {
        if sequence < self.sent {
            let last = self.again.entry(sequence).or_default();
            *last = connection.max(*last);
            return;
        }
        if self.connections.last().is_none_or(|(_, last)| *last != connection) {
            self.connections.push((sequence, connection));
        }
        self.sent = sequence + 1;
    }

    /// A message was acknowledged; false if it was before, or was never sent.
    pub(crate) fn acked(&mut self, sequence: u64) -> bool {
        sequence < self.sent && self.acked.insert(sequence)
    }

    /// The last connection that a message was sent on; None: it never was.
    fn last_connection(&self, sequence: u64) -> Option<u32> {
        if sequence >= self.sent {
            return None;
        }
        let after = self.connections.partition_point(|(first, _)| *first <= sequence);
        let first = self.connections.get(after.checked_sub(1)?)?.1;
        Some(self.again.get(&sequence).map_or(first, |again| first.max(*again)))
    }

    /// A reader was handed a message of this publisher; false: it never was sent.
    pub(crate) fn seen(&mut self, reader: usize, stamp: &StampRef<'_>, sighting: Sighting) -> bool {
        let sent = self.last_connection(stamp.sequence);
        if stamp.tenant != self.tenant || !sent.is_some_and(|last| (1..=last).contains(&stamp.connection)) {
            return false;
        }
        let again = self.again.contains_key(&stamp.sequence);
        if self.views.len() <= reader {
            self.views.resize_with(reader + 1, || None);
        }
        if let Some(view) = self.views.get_mut(reader) {
            view.get_or_insert_default().see(stamp, again, sighting);
        }
        true
    }

    /// Acknowledged messages that a reader has not seen.
    pub(crate) fn owed(&self, reader: usize) -> u64 {
        match self.view(reader) {
            Some(view) => self.acked.missing_from(&view.seen),
            None => self.acked.count(),
        }
    }

    pub(crate) fn acked_count(&self) -> u64 {
        self.acked.count()
    }

    fn view(&self, reader: usize) -> Option<&View> {
        self.views.get(reader)?.as_deref()
    }

    /// Adds this publisher to a reader's verdict.
    pub(crate) fn judge(&self, reader: usize, verdict: &mut Verdict) {
        verdict.sent += self.sent;
        verdict.acked += self.acked.count();
        verdict.lost += self.owed(reader);
        if let Some(view) = self.view(reader) {
            verdict.seen += view.seen.count();
            verdict.duplicated += view.duplicated;
            verdict.resent_duplicates += view.resent;
            verdict.redelivered += view.redelivered;
            verdict.reordered += view.reordered;
            verdict.misplaced += view.misplaced;
            verdict.stale += view.stale;
        }
    }
}

/// What one reader saw of the publisher.
#[derive(Debug, Default)]
struct View {
    seen: Marks,
    /// Highest sequence seen for the first time.
    highest: Option<u64>,
    duplicated: u64,
    resent: u64,
    redelivered: u64,
    reordered: u64,
    misplaced: u64,
    stale: u64,
    recall: Recall,
    log: Log,
}

impl View {
    fn see(&mut self, stamp: &StampRef<'_>, again: bool, sighting: Sighting) {
        let sequence = stamp.sequence;
        let first = self.seen.insert(sequence);
        if first {
            self.reordered += u64::from(self.highest.is_some_and(|highest| sequence < highest));
            self.highest = self.highest.max(Some(sequence));
        }
        match sighting {
            Sighting::Stored(position) => self.see_stored(stamp, again, position, first),
            _ if first => {}
            _ if again => self.resent += 1,
            Sighting::Delivered { dup: false } => self.duplicated += 1,
            Sighting::Delivered { dup: true } | Sighting::Untold => self.redelivered += 1,
        }
    }

    fn see_stored(&mut self, stamp: &StampRef<'_>, again: bool, position: Position, first: bool) {
        let place = Place::new(stamp.connection, position);
        if first {
            self.recall.put(stamp.sequence, place);
        } else {
            match self.recall.repeated(stamp.sequence, place) {
                Repeat::Same => self.redelivered += 1,
                Repeat::OtherConnection => self.resent += 1,
                Repeat::SameConnection => self.duplicated += 1,
                // Only what lies behind all that was seen can't be what was handed out before.
                Repeat::Forgotten if !self.log.is_behind(position) => self.redelivered += 1,
                Repeat::Forgotten if again => self.resent += 1,
                Repeat::Forgotten => self.duplicated += 1,
            }
            if !self.recall.news {
                return;
            }
        }
        let (misplaced, stale) = self.log.place(position, stamp, first);
        self.misplaced += u64::from(misplaced);
        self.stale += u64::from(stale);
    }
}

/// How far the log of a publisher is known.
#[derive(Debug, Default)]
struct Log {
    home: Option<u32>,
    /// The last of those that were the first of their sequence.
    first: Option<(Position, u64)>,
    highest: u64,
    /// The last of all.
    last: Option<Position>,
    newest: u32,
}

impl Log {
    fn is_behind(&self, position: Position) -> bool {
        self.last.is_none_or(|last| position > last)
    }

    /// Enters a stored record that was not known; whether it is misplaced, and whether it is stale.
    fn place(&mut self, position: Position, stamp: &StampRef<'_>, first: bool) -> (bool, bool) {
        let home = *self.home.get_or_insert(position.partition);
        if position.partition != home {
            return (true, false);
        }
        let behind = self.is_behind(position);
        let stale = behind && stamp.connection < self.newest;
        if behind {
            self.last = Some(position);
            self.newest = self.newest.max(stamp.connection);
        }
        if !first {
            return (false, stale);
        }
        let misplaced = match self.first {
            Some((last, sequence)) if position < last => stamp.sequence > sequence,
            Some(_) => stamp.sequence < self.highest,
            None => false,
        };
        if self.first.is_none_or(|(last, _)| position > last) {
            self.first = Some((position, stamp.sequence));
        }
        self.highest = self.highest.max(stamp.sequence);
        (misplaced, stale)
    }
}

/// A connection and a hash of a position: equal for the same stored record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place(u64);

impl Place {
    const NONE: Self = Self(0);
    const HASH: u32 = 48;

    fn new(connection: u32, position: Position) -> Self {
        let Position { partition, term, sequence, index } = position;
        let mut bytes = [0; 24];
        let parts = [u64::from(partition) << 32 | u64::from(index), term, sequence];
        for (slot, part) in bytes.chunks_exact_mut(8).zip(parts) {
            slot.copy_from_slice(&part.to_le_bytes());
        }
        let hash = xxh3_64(&bytes) >> (u64::BITS - Self::HASH);
        Self(u64::from(connection) << Self::HASH | hash.max(1))
    }

    fn connection(self) -> u64 {
        self.0 >> Self::HASH
    }
}

enum Repeat {
    Same,
    OtherConnection,
    SameConnection,
    Forgotten,
}

/// Where the latest messages were stored.
#[derive(Debug, Default)]
struct Recall {
    /// Sequence of the first of `places`.
    base: u64,
    places: VecDeque<Place>,
    /// Further places of messages that were stored more than once.
    more: BTreeMap<u64, Vec<Place>>,
    /// The last answer of `repeated` was about a record that had not been seen.
    news: bool,
}

impl Recall {
    fn put(&mut self, sequence: u64, place: Place) {
        let Some(at) = sequence.checked_sub(self.base) else { return };
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let excess = at.saturating_add(1).saturating_sub(RECALLED);
        if excess > 0 {
            self.places.drain(..excess.min(self.places.len()));
            self.base = self.base.saturating_add(excess as u64);
            self.more = self.more.split_off(&self.base);
        }
        let at = at - excess;
        if self.places.len() <= at {
            self.places.resize(at + 1, Place::NONE);
        }
        if let Some(slot) = self.places.get_mut(at) {
            *slot = place;
        }
    }

    fn repeated(&mut self, sequence: u64, place: Place) -> Repeat {
        let at = sequence.checked_sub(self.base).and_then(|at| usize::try_from(at).ok());
        let first = at.and_then(|at| self.places.get(at)).copied().filter(|first| *first != Place::NONE);
        let Some(first) = first else {
            self.news = true;
            return Repeat::Forgotten;
        };
        let more = self.more.get(&sequence).map_or(&[][..], Vec::as_slice);
        let known = || std::iter::once(first).chain(more.iter().copied());
        self.news = !known().any(|known| known == place);
        if !self.news {
            return Repeat::Same;
        }
        let same = known().any(|known| known.connection() == place.connection());
        self.more.entry(sequence).or_default().push(place);
        if same { Repeat::SameConnection } else { Repeat::OtherConnection }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(sequence: u64) -> StampRef<'static> {
        StampRef { tenant: "acme", publisher: 1, sequence, connection: 1, sent_at: 5 }
    }

    fn at(sequence: u64) -> Sighting {
        Sighting::Stored(Position { partition: 0, term: 1, sequence, index: 0 })
    }

    fn account(messages: u64) -> Account {
        let mut account = Account::new("acme");
        for sequence in 0..messages {
            account.sent(sequence, 1);
            account.acked(sequence);
            assert!(account.seen(0, &stamp(sequence), at(sequence)));
        }
        account
    }

    fn verdict(account: &Account) -> Verdict {
        let mut verdict = Verdict::default();
        account.judge(0, &mut verdict);
        verdict
    }

    #[test]
    fn memory_does_not_grow_with_the_messages() {
        let account = account(200_000);
        let view = account.view(0).unwrap();
        assert!(view.recall.places.len() <= RECALLED && view.recall.more.is_empty());
        assert_eq!(verdict(&account).faults(), []);
        assert_eq!(verdict(&account).seen, 200_000);
    }

    #[test]
    fn what_is_long_forgotten_is_judged_by_the_order_of_the_log() {
        let mut account = account(100_000);
        assert!(account.seen(0, &stamp(7), at(7)));
        assert_eq!(verdict(&account).redelivered, 1);
        assert!(account.seen(0, &stamp(7), at(100_001)));
        assert_eq!(verdict(&account).faults(), [("duplicated", 1)]);
    }

    #[test]
    fn a_message_that_was_sent_again_is_known_on_all_its_connections_and_no_other() {
        let mut account = account(3);
        account.sent(2, 4);
        account.sent(3, 4);
        for (sequence, connection, sent) in
            [(0, 1, true), (0, 4, false), (2, 1, true), (2, 4, true), (3, 5, false)]
        {
            let stamp = StampRef { connection, ..stamp(sequence) };
            assert_eq!(account.seen(0, &stamp, Sighting::Untold), sent, "{sequence} on {connection}");
        }
    }

    #[test]
    fn a_subscriber_that_is_told_of_no_repeat_has_a_duplicate() {
        let mut account = account(2);
        for dup in [true, false] {
            account.seen(1, &stamp(1), Sighting::Delivered { dup });
            account.seen(1, &stamp(1), Sighting::Delivered { dup });
        }
        let mut verdict = Verdict::default();
        account.judge(1, &mut verdict);
        assert_eq!((verdict.redelivered, verdict.duplicated, verdict.lost), (1, 2, 1));
    }
}
