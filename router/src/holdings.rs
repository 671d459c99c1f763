//! What consumers that reached this router have in their hands, by partition and group: a partition's new home asks for it
//! before it hands anything out, so that nobody's next record goes to one consumer while another still holds an earlier one.
//!
//! Invariant: what a home has asked for is all that there is: a batch of an earlier home that comes later is thrown away.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::future::join_all;
use hashbrown::HashMap;
use penstock_common::{name::PartitionKey, position::Term};
use penstock_proto::{
    messaging::{Batch, Range},
    peer::{AskHoldings, HeldHere, Holder, PartitionGroup},
};
use tokio::{sync::Notify, time::Instant};

use crate::{
    groups::home::{Holders, Homes},
    hands::Hands,
    peers::Peers,
};

/// Acknowledgements that are remembered for the next home, for so long and so many ranges of one consumer and partition. The
/// present home writes them within 100 ms, unless it is paused or cut off.
const RECENT: Duration = Duration::from_secs(15);
const RECENT_RANGES: usize = 20_000;
/// An earlier home that is found again and again is no earlier one: the store has lost its terms.
const REFUSED: u32 = 8;
/// Ranges in one answer; what is beyond is handed out again.
const ANSWER_RANGES: usize = 100_000;

type Slot = (PartitionKey, String);

/// See the module.
#[derive(Default)]
pub struct Holdings {
    all: Mutex<HashMap<Slot, Vec<Arc<Holding>>>>,
}

/// What one consumer holds of one partition.
pub struct Holding {
    consumer: u64,
    state: Mutex<State>,
    asked: Notify,
}

struct State {
    hands: Hands,
    recent: VecDeque<(Instant, Range)>,
    /// Of the home that serves the consumer now.
    term: Term,
    /// Homes with a lower one are void.
    least: Term,
    /// How often one was found in a row.
    refused: u32,
}

/// A holding that is told of while this lives.
pub struct Entered {
    holdings: Arc<Holdings>,
    slot: Slot,
    /// See [`Holding`].
    pub holding: Arc<Holding>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Holdings {
    /// A consumer comes, with empty hands.
    pub fn enter(self: &Arc<Self>, slot: Slot, consumer: u64, ack_timeout_ms: u32) -> Entered {
        let state = State {
            hands: Hands::new(u32::MAX, ack_timeout_ms),
            recent: VecDeque::new(),
            term: Term(0),
            least: Term(0),
            refused: 0,
        };
        let holding = Arc::new(Holding { consumer, state: Mutex::new(state), asked: Notify::new() });
        lock(&self.all).entry(slot.clone()).or_default().push(Arc::clone(&holding));
        Entered { holdings: Arc::clone(self), slot, holding }
    }

    /// What is held here, for the home with this term.
    pub fn ask(&self, slot: &Slot, term: Term) -> HeldHere {
        let all = lock(&self.all).get(slot).cloned().unwrap_or_default();
        let mut held = HeldHere::default();
        for own in all {
            own.tell(term, &mut held);
        }
        bound(&mut held);
        held
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut all = lock(&self.holdings.all);
        if let Some(of_slot) = all.get_mut(&self.slot) {
            of_slot.retain(|own| !Arc::ptr_eq(own, &self.holding));
            if of_slot.is_empty() {
                all.remove(&self.slot);
            }
        }
    }
}

impl Holding {
    /// A home with this term serves the consumer from now on; false: a later one has asked, this one is void.
    pub fn joined(&self, term: Term) -> bool {
        let mut state = lock(&self.state);
        state.term = term;
        if term < state.least && state.refused < REFUSED {
            state.refused += 1;
            return false;
        }
        (state.least, state.refused) = (state.least.min(term), 0);
        true
    }

    /// A batch comes from the home that was joined last; false: it is void, and the batch is nobody's.
    pub fn take(&self, batch: &Batch) -> bool {
        let mut state = lock(&self.state);
        // Credit is the consumer's, over all partitions.
        state.term >= state.least && state.hands.take(batch, Instant::now())
    }

    /// Records are done.
    pub fn acked(&self, ranges: &[Range]) {
        let (mut state, now) = (lock(&self.state), Instant::now());
        for range in ranges {
            state.hands.give(range);
            state.recent.push_back((now, *range));
        }
        while state.recent.len() > RECENT_RANGES
            || state.recent.front().is_some_and(|(said, _)| *said + RECENT < now)
        {
            state.recent.pop_front();
        }
    }

    /// Records are given back.
    pub fn nacked(&self, ranges: &[Range]) {
        let mut state = lock(&self.state);
        ranges.iter().for_each(|range| state.hands.give(range));
    }

    /// The consumer leaves: nothing is in its hands any more, and no home keeps anything for it. What it acknowledged is told
    /// still.
    pub fn left(&self) {
        lock(&self.state).hands = Hands::new(u32::MAX, 0);
    }

    /// Ends when the home that was joined last is void.
    pub async fn void(&self) {
        loop {
            let asked = self.asked.notified();
            {
                let state = lock(&self.state);
                if state.term < state.least {
                    return;
                }
            }
            asked.await;
        }
    }

    fn tell(&self, term: Term, held: &mut HeldHere) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        state.least = state.least.max(term);
        let ranges = state.hands.ranges(now);
        held.acked.extend(state.recent.iter().map(|(_, range)| *range));
        drop(state);
        self.asked.notify_one();
        if ranges.is_empty() {
            return;
        }
        let (ranges, left): (Vec<_>, Vec<_>) = ranges.into_iter().unzip();
        let left_ms = left.into_iter().map(|left| u32::try_from(left.as_millis()).unwrap_or(u32::MAX));
        held.holders.push(Holder { consumer: self.consumer, ranges, left_ms: left_ms.collect() });
    }
}

fn bound(held: &mut HeldHere) {
    let mut room = ANSWER_RANGES;
    for holder in &mut held.holders {
        holder.ranges.truncate(room);
        room -= holder.ranges.len();
    }
    held.acked.truncate(room);
}

/// A router that has no others beside it.
#[async_trait]
impl Holders for Holdings {
    async fn holdings(&self, key: &PartitionKey, group: &str, term: Term) -> HeldHere {
        self.ask(&(key.clone(), group.to_owned()), term)
    }
}

/// This router and all others.
pub struct Everywhere {
    /// Here.
    pub own: Arc<Holdings>,
    /// The others.
    pub peers: Arc<Peers>,
    /// Who they are.
    pub homes: Arc<dyn Homes>,
}

#[async_trait]
impl Holders for Everywhere {
    async fn holdings(&self, key: &PartitionKey, group: &str, term: Term) -> HeldHere {
        let named = PartitionGroup {
            tenant: key.tenant.to_string(),
            partition: key.partition,
            group: group.to_owned(),
        };
        let ask = AskHoldings { group: Some(named), term: term.0 };
        let (members, own) = (self.homes.members(), self.homes.incarnation());
        let others = members.routers.values().filter(|member| member.incarnation != own);
        let answers = join_all(others.map(|member| self.peers.holdings(member, ask.clone()))).await;
        let mut all = self.own.holdings(key, group, term).await;
        for held in answers.into_iter().flatten() {
            all.holders.extend(held.holders);
            all.acked.extend(held.acked);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use penstock_common::name::TenantName;

    use super::*;

    fn batch(sequence: u64, indexes: &[u32]) -> Batch {
        Batch { partition: 0, term: 1, sequence, indexes: indexes.to_vec(), ..Batch::default() }
    }

    #[tokio::test]
    async fn a_home_that_has_asked_makes_earlier_ones_void() {
        let slot = (PartitionKey { tenant: TenantName::new("demo").unwrap(), partition: 0 }, "g".to_owned());
        let holdings = Arc::<Holdings>::default();
        let entered = holdings.enter(slot.clone(), 7, 60_000);
        let own = Arc::clone(&entered.holding);
        assert!(own.joined(Term(1)) && own.take(&batch(1, &[0, 1, 2])) && own.take(&batch(2, &[5])));
        let range = |sequence, index| Range { partition: 0, term: 1, sequence, index, count: 1 };
        own.acked(&[range(1, 1)]);
        own.nacked(&[range(2, 5)]);
        let held = holdings.ask(&slot, Term(2));
        assert_eq!(held.acked, [range(1, 1)]);
        assert_eq!((held.holders.len(), held.holders[0].consumer), (1, 7));
        assert_eq!(held.holders[0].ranges, [range(1, 0), range(1, 2)]);
        assert!(held.holders[0].left_ms.iter().all(|left| (1..=60_000).contains(left)));
        own.void().await;
        assert!(!own.take(&batch(3, &[0])), "of an earlier home, after the later one was told");
        assert!(!own.joined(Term(1)) && own.joined(Term(2)) && own.take(&batch(3, &[0])));
        let found = (0..=REFUSED).filter(|_| own.joined(Term(1))).count();
        assert_eq!(found, 1, "terms that begin anew are found out");
        own.left();
        let held = holdings.ask(&slot, Term(3));
        assert_eq!((held.holders.len(), &held.acked[..]), (0, &[range(1, 1)][..]));
        drop(entered);
        assert!(holdings.ask(&slot, Term(3)).holders.is_empty() && lock(&holdings.all).is_empty());
    }
}
