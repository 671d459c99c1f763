//! One partition as a shard sees it: the growing batch, what is under way, and the route to the home. Decides what may be
//! sent when; sends nothing itself and knows no clock.
//!
//! Invariants: numbers of a producer leave in ascending order on every route; what was sent and is not settled is sent
//! again, first, whenever the route is opened anew; while the lane moves nothing new is sent.

use std::collections::{HashSet, VecDeque};

use penstock_common::name::PartitionKey;
use penstock_mqtt::session::PublishToken;
use penstock_proto::link;

use super::{
    batch::{BATCH_BYTES, BATCH_RECORDS, Batch, Receipt, Sealed, Size},
    record::NewRecord,
    wills::Endings,
};
use crate::{
    connection::table::ConnectionKey,
    link::table::{Home, LinkKey},
};

/// Most Appends of a lane under way.
const UNDER_WAY: usize = 4;

/// Where a lane's batches go.
#[derive(Debug)]
pub(crate) enum Route {
    /// Nowhere; nothing is tried.
    Closed,
    /// Nowhere until this time of the shard clock, milliseconds.
    Waiting {
        /// When to open again.
        until: u64,
    },
    /// OpenLane was sent.
    Opening {
        /// Where.
        link: LinkKey,
        /// Number of this opening.
        number: u32,
        /// Clients named in OpenLane: known to the home once it answers.
        owners: Vec<ConnectionKey>,
    },
    /// The home has answered.
    Open {
        /// Where.
        link: LinkKey,
        /// Number of this opening.
        number: u32,
        /// Bytes that may be sent now.
        credit: u64,
        /// A better home is known: nothing new is sent here.
        moving: bool,
    },
}

/// A Settle that does not continue where the last one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("settled {got}, but {expected} is next")]
pub(crate) struct OutOfOrder {
    got: u64,
    expected: u64,
}

/// A partition with its batches and route.
pub(crate) struct Lane {
    pub(crate) key: PartitionKey,
    /// Number of the next record.
    next: u64,
    waiting: VecDeque<Batch>,
    waiting_bytes: usize,
    waiting_records: usize,
    /// Of the batch that was sealed last.
    last_size: Size,
    /// Sent and not settled; the first `under_way` of them on the present route, the others are in doubt.
    sent: VecDeque<Sealed>,
    under_way: usize,
    pub(crate) route: Route,
    pub(crate) home: Home,
    /// Failures in a row, for the backoff.
    pub(crate) failures: u32,
    /// Shard clock at the last LaneOpened, milliseconds.
    pub(crate) opened_at: u64,
    /// Connections whose ownerships the home has to know.
    pub(crate) owners: HashSet<ConnectionKey>,
    /// Ownerships to be told at the end of the turn.
    pub(crate) attach: Vec<ConnectionKey>,
    pub(crate) detach: Vec<link::Owner>,
    /// Ends of connections that the home is told of, for operators. Bounded.
    pub(crate) ended: VecDeque<link::Ended>,
    /// Connections that hold their publishes until there is room.
    pub(crate) held: Vec<ConnectionKey>,
    /// Renewed epochs, each told only when all records before this number (under the older epoch) are settled.
    pub(crate) renewals: Vec<(u64, ConnectionKey)>,
    /// Wills of connections that have ended.
    pub(crate) endings: Endings,
    /// Provisional claims that need the home.
    pub(crate) visitors: usize,
    /// Sessions of the tenant have subscriptions here: what the partition holds is fanned out by its home.
    pub(crate) watched: bool,
    pub(crate) dirty: bool,
}

impl Lane {
    pub(crate) fn new(key: PartitionKey) -> Self {
        Self {
            key,
            next: 1,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            waiting_records: 0,
            last_size: Size::default(),
            sent: VecDeque::new(),
            under_way: 0,
            route: Route::Closed,
            home: Home::default(),
            failures: 0,
            opened_at: 0,
            owners: HashSet::new(),
            attach: Vec::new(),
            detach: Vec::new(),
            ended: VecDeque::new(),
            held: Vec::new(),
            renewals: Vec::new(),
            endings: Endings::default(),
            visitors: 0,
            watched: false,
            dirty: false,
        }
    }

    /// Number that the next record gets.
    pub(crate) fn next_number(&self) -> u64 {
        self.next
    }

    /// Number of the oldest record that is not settled, or of the next one.
    pub(crate) fn settled_below(&self) -> u64 {
        let first_waiting = self.next - self.waiting_records as u64;
        self.sent.front().map_or(first_waiting, Sealed::next)
    }

    /// Whether publishers have to wait.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting_bytes >= BATCH_BYTES || self.waiting_records >= BATCH_RECORDS
    }

    /// Bytes of records that were not sent yet.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Whether a home is needed.
    pub(crate) fn is_wanted(&self) -> bool {
        self.watched
            || !self.owners.is_empty()
            || self.visitors > 0
            || !self.is_settled()
            || !self.endings.is_empty()
    }

    /// Nothing of the present route's is unsettled: the lane may move.
    pub(crate) fn may_move(&self) -> bool {
        self.under_way == 0
    }

    /// Whether nothing waits and nothing is unsettled.
    pub(crate) fn is_settled(&self) -> bool {
        self.waiting.is_empty() && self.sent.is_empty()
    }

    /// Shard clock at the oldest unsettled record, microseconds.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.sent.front().map(Sealed::since).or_else(|| self.waiting.front().map(Batch::since))
    }

    /// Unsettled receipts of batches that began before `since`.
    pub(crate) fn overdue(&self, since: u64) -> impl Iterator<Item = &Receipt> {
        let sent = self.sent.iter().filter(move |batch| batch.since() < since);
        let waiting = self.waiting.iter().filter(move |batch| batch.since() < since);
        sent.flat_map(Sealed::receipts).chain(waiting.flat_map(Batch::receipts))
    }

    /// Adds a record to the growing batch. `now` is the shard clock, microseconds.
    pub(crate) fn push(
        &mut self,
        record: &NewRecord<'_>,
        connection: ConnectionKey,
        token: Option<PublishToken>,
        now: u64,
    ) {
        let measured = record.measured();
        let bytes = measured.encoded_len();
        if !self.waiting.back().is_some_and(|batch| batch.has_room(bytes)) {
            self.waiting.push_back(Batch::new(self.next, record.received_at, now, self.last_size));
        }
        if let Some(batch) = self.waiting.back_mut() {
            batch.push(&measured, connection, token);
            self.waiting_bytes += bytes;
            self.waiting_records += 1;
            self.next += 1;
        }
    }

    /// The next thing to send on the present route, if credit allows: what is in doubt first.
    pub(crate) fn next_append(&mut self) -> Option<link::Append> {
        let Route::Open { number, credit, moving: false, .. } = &mut self.route else { return None };
        if self.under_way >= UNDER_WAY {
            return None;
        }
        let resent = self.under_way < self.sent.len();
        let bytes = match self.sent.get(self.under_way) {
            Some(batch) => batch.rest().len(),
            None => self.waiting.front()?.bytes(),
        } as u64;
        // A single batch above the whole credit must not wait for ever.
        if bytes > *credit && self.under_way > 0 {
            return None;
        }
        *credit = credit.saturating_sub(bytes);
        let number = *number;
        if !resent {
            let batch = self.waiting.pop_front()?;
            self.waiting_bytes -= batch.bytes();
            self.waiting_records -= batch.count();
            self.last_size = batch.size();
            self.sent.push_back(batch.seal());
        }
        let batch = self.sent.get(self.under_way)?;
        self.under_way += 1;
        Some(link::Append {
            lane: number,
            first: batch.next(),
            count: u32::try_from(batch.open()).unwrap_or(u32::MAX),
            records: batch.rest(),
            resent,
            first_received_at: batch.first_received_at,
        })
    }

    /// Takes a Settle of the present route; calls `settled` for each receipt with the shard clock at which its batch
    /// began. A repetition is ignored.
    pub(crate) fn settle(
        &mut self,
        settle: &link::Settle,
        mut settled: impl FnMut(&Receipt, u64),
    ) -> Result<(), OutOfOrder> {
        if let Route::Open { credit, .. } = &mut self.route {
            *credit = credit.saturating_add(settle.credit);
        }
        let mut count = settle.count as usize;
        if settle.first.saturating_add(count as u64) <= self.settled_below() {
            return Ok(());
        }
        let mut first = settle.first;
        while count > 0 {
            let expected = self.settled_below();
            let batch = self.sent.front_mut().filter(|_| self.under_way > 0 && first == expected);
            let Some(batch) = batch else { return Err(OutOfOrder { got: first, expected }) };
            let since = batch.since();
            let receipts = batch.settle(count);
            receipts.iter().for_each(|receipt| settled(receipt, since));
            count -= receipts.len();
            first += receipts.len() as u64;
            if batch.open() == 0 {
                self.sent.pop_front();
                self.under_way -= 1;
            }
        }
        self.failures = 0;
        Ok(())
    }

    /// The home has answered an OpenLane.
    pub(crate) fn opened(&mut self, link: LinkKey, number: u32, credit: u64) {
        self.under_way = 0;
        self.route = Route::Open { link, number, credit, moving: false };
    }

    /// The route is gone: everything unsettled is in doubt.
    pub(crate) fn lose(&mut self, route: Route) {
        self.under_way = 0;
        self.attach.clear();
        self.detach.clear();
        self.endings.tell_again();
        self.route = route;
    }

    /// Bytes of credit on the present route.
    pub(crate) fn credit(&self) -> u64 {
        if let Route::Open { credit, .. } = self.route { credit } else { 0 }
    }

    /// Whether the home has answered.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.route, Route::Open { .. })
    }

    /// Link and number of the present route, opening or open.
    pub(crate) fn place(&self) -> Option<(LinkKey, u32)> {
        match self.route {
            Route::Opening { link, number, .. } | Route::Open { link, number, .. } => Some((link, number)),
            Route::Closed | Route::Waiting { .. } => None,
        }
    }

    /// Drops every record and keeps the numbers: the tenant is gone. Returns how many were dropped.
    pub(crate) fn abandon(&mut self) -> usize {
        let dropped = self.open_records();
        self.waiting.clear();
        (self.waiting_bytes, self.waiting_records) = (0, 0);
        self.sent.clear();
        self.under_way = 0;
        self.renewals.clear();
        self.endings = Endings::default();
        dropped
    }

    /// Forgets every record: the shard was paused and numbers anew. Returns how many were dropped. Wills of connections
    /// that have ended are still told.
    pub(crate) fn reset(&mut self) -> usize {
        let dropped = self.open_records();
        let mut endings = std::mem::take(&mut self.endings);
        endings.all_due();
        *self = Self { dirty: self.dirty, endings, ..Self::new(self.key.clone()) };
        dropped
    }

    /// Records that are not settled.
    fn open_records(&self) -> usize {
        self.waiting_records + self.sent.iter().map(Sealed::open).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use penstock_common::name::TenantName;

    use super::*;

    const LINK: LinkKey = LinkKey { slot: 0, life: 1 };
    const CONNECTION: ConnectionKey = ConnectionKey { slot: 0, life: 1 };

    fn lane() -> Lane {
        Lane::new(PartitionKey { tenant: TenantName::new("acme").unwrap(), partition: 0 })
    }

    fn push(lane: &mut Lane, payload: &[u8], token: u64) {
        let record = NewRecord {
            client: b"c",
            epoch: 7,
            topic: b"a",
            payload,
            qos: 1,
            user: b"u",
            received_at: 1,
            last_will: false,
        };
        lane.push(&record, CONNECTION, Some(PublishToken(token)), 5);
    }

    fn settle(lane: &mut Lane, first: u64, count: u32) -> Result<Vec<u64>, OutOfOrder> {
        let mut tokens = Vec::new();
        let settle = link::Settle { lane: 1, first, count, result: 1, credit: 0 };
        lane.settle(&settle, |receipt, _| tokens.push(receipt.token.unwrap().0))?;
        Ok(tokens)
    }

    #[test]
    fn a_batch_grows_while_credit_is_out_and_is_numbered_without_gaps() {
        let mut lane = lane();
        push(&mut lane, b"1", 1);
        assert!(lane.next_append().is_none(), "not open");
        lane.opened(LINK, 1, 1 << 20);
        let first = lane.next_append().unwrap();
        assert_eq!((first.first, first.count, first.resent), (1, 1, false));
        assert!(lane.next_append().is_none());
        push(&mut lane, b"2", 2);
        push(&mut lane, b"3", 3);
        let second = lane.next_append().unwrap();
        assert_eq!((second.first, second.count), (2, 2));
        assert_eq!(settle(&mut lane, 1, 2).unwrap(), [1, 2]);
        assert_eq!(settle(&mut lane, 3, 1).unwrap(), [3]);
        assert!(lane.is_settled());
    }

    #[test]
    fn a_lost_lane_sends_what_is_unsettled_first_with_its_numbers_and_says_so() {
        let mut lane = lane();
        lane.opened(LINK, 1, 1 << 20);
        for token in 1..=3 {
            push(&mut lane, b"x", token);
        }
        let whole = lane.next_append().unwrap();
        push(&mut lane, b"new", 4);
        assert_eq!(settle(&mut lane, 1, 1).unwrap(), [1]);
        lane.lose(Route::Closed);
        lane.opened(LINK, 2, 1 << 20);
        let again = lane.next_append().unwrap();
        assert_eq!((again.lane, again.first, again.count, again.resent), (2, 2, 2, true));
        assert!(whole.records.ends_with(&again.records));
        let new = lane.next_append().unwrap();
        assert_eq!((new.first, new.resent), (4, false));
        assert_eq!(settle(&mut lane, 2, 3).unwrap(), [2, 3, 4]);
    }

    #[test]
    fn a_moving_lane_sends_nothing_new_and_moves_when_all_is_settled() {
        let mut lane = lane();
        lane.opened(LINK, 1, 1 << 20);
        push(&mut lane, b"x", 1);
        lane.next_append().unwrap();
        push(&mut lane, b"y", 2);
        if let Route::Open { moving, .. } = &mut lane.route {
            *moving = true;
        }
        assert!(lane.next_append().is_none() && !lane.may_move());
        settle(&mut lane, 1, 1).unwrap();
        assert!(lane.next_append().is_none() && lane.may_move());
    }

    #[test]
    fn four_appends_are_under_way_at_most_and_credit_is_kept() {
        let mut lane = lane();
        lane.opened(LINK, 1, 250);
        for token in 1..=6 {
            push(&mut lane, &[0; 60], token);
            let _ = lane.next_append();
        }
        assert_eq!(lane.under_way, 3, "three records of some 80 bytes fit 250 bytes");
        lane.opened(LINK, 2, 1 << 20);
        while lane.next_append().is_some() {}
        assert_eq!(lane.under_way, UNDER_WAY);
    }

    #[test]
    fn batches_are_cut_at_their_limits() {
        let mut lane = lane();
        for token in 0..BATCH_RECORDS as u64 + 1 {
            push(&mut lane, b"", token);
        }
        assert!(lane.is_full());
        lane.opened(LINK, 1, 64 << 20);
        assert_eq!(lane.next_append().unwrap().count as usize, BATCH_RECORDS);
        assert_eq!(lane.next_append().unwrap().count, 1);
        push(&mut lane, &[0; 700_000], 1);
        push(&mut lane, &[0; 700_000], 2);
        assert_eq!(lane.next_append().unwrap().count, 1);
    }

    #[test]
    fn settles_out_of_order_are_an_error_and_repeated_ones_are_not() {
        let mut lane = lane();
        lane.opened(LINK, 1, 1 << 20);
        push(&mut lane, b"", 1);
        assert!(settle(&mut lane, 1, 1).is_err(), "nothing was sent");
        lane.next_append().unwrap();
        assert!(settle(&mut lane, 2, 1).is_err());
        assert_eq!(settle(&mut lane, 1, 1).unwrap(), [1]);
        assert_eq!(settle(&mut lane, 1, 1).unwrap(), [0; 0]);
    }
}
