//! What was written to a client and is still on its way into its hands, as far as its acks and pongs tell. A client reads in
//! order, so who acknowledges a record, or answers a ping that followed it, has read it and all before it. A second copy of
//! what is unread would only be worked off twice: clients that take records one by one answer nothing meanwhile.

use std::collections::{HashSet, VecDeque};

use penstock_proto::messaging::Range;

use super::frame::AckId;

/// Records; of more the oldest are taken for read, and may come twice. A client that answers no pings and acknowledges nothing
/// could have ever more of them.
const MOST: usize = 4_096;

/// See the module. It holds what the client neither acknowledges nor, by answering pings, shows to have read.
#[derive(Debug, Default)]
pub struct Unread {
    /// In the order of writing, with the number of the ping before.
    order: VecDeque<(AckId, u64)>,
    ids: HashSet<AckId>,
}

impl Unread {
    /// A record is written, after so many pings.
    pub fn written(&mut self, id: AckId, pings: u64) {
        if self.ids.insert(id) {
            self.order.push_back((id, pings));
            if self.order.len() > MOST {
                self.read_one();
            }
        }
    }

    /// Whether a copy of it is on its way.
    pub fn contains(&self, id: &AckId) -> bool {
        self.ids.contains(id)
    }

    /// The client has answered the ping of this number.
    pub fn ponged(&mut self, ping: u64) {
        while self.order.front().is_some_and(|(_, before)| *before < ping) {
            self.read_one();
        }
    }

    /// The client has acknowledged these.
    pub fn acked(&mut self, range: &Range) {
        for index in (range.index..range.index.saturating_add(range.count)).rev() {
            let id = AckId { partition: range.partition, term: range.term, sequence: range.sequence, index };
            while self.ids.contains(&id) {
                self.read_one();
            }
        }
    }

    fn read_one(&mut self) {
        if let Some((id, _)) = self.order.pop_front() {
            self.ids.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn id(index: u32) -> AckId {
        AckId { partition: 0, term: 1, sequence: 2, index }
    }

    fn unread(unread: &Unread) -> Vec<u32> {
        (0..10).filter(|index| unread.contains(&id(*index))).collect()
    }

    #[test]
    fn of_too_much_the_oldest_is_forgotten() {
        let mut own = Unread::default();
        let most = u32::try_from(MOST).unwrap();
        (0..=most).for_each(|index| own.written(id(index), 0));
        assert!(!own.contains(&id(0)) && own.contains(&id(1)) && own.contains(&id(most)));
        assert_eq!((own.order.len(), own.ids.len()), (MOST, MOST));
    }

    #[test]
    fn who_acks_or_answers_has_read_all_before() {
        let mut own = Unread::default();
        for (index, pings) in [(5, 0), (1, 0), (2, 1), (3, 1), (4, 2)] {
            own.written(id(index), pings);
        }
        own.ponged(0);
        assert_eq!(unread(&own), [1, 2, 3, 4, 5]);
        own.ponged(1);
        assert_eq!(unread(&own), [2, 3, 4], "the first ping followed two");
        own.acked(&Range { count: 2, ..id(8).range() });
        assert_eq!(unread(&own), [2, 3, 4], "others");
        own.acked(&Range { count: 2, ..id(2).range() });
        assert_eq!(unread(&own), [4]);
        own.written(id(4), 3);
        own.ponged(7);
        assert!(own.order.is_empty() && own.ids.is_empty());
    }
}
