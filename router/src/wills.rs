//! The wills of one partition as its home knows them, and what is to be done to them in the store. Pure: `executor` drives
//! it. A will is named by the client and the epoch that its connection was attached with first.
//!
//! Invariants: what is queued is done in order, and after it the store holds what `held` says; a batch never fires or drops
//! what it keeps itself, so each can be repeated when its answer was lost; bytes of wills that wait to be kept are bounded.

use std::collections::VecDeque;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use penstock_common::{
    epoch::Epoch,
    store::{HeldWill, WillChange},
};

/// Bytes of wills that may wait to be kept: further ones are refused.
const QUEUED_BYTES: usize = 8 << 20;
/// Changes in one batch.
const BATCH: usize = 256;
/// Bytes of wills in one batch, unless a single one is larger: what fires is one entry of the log.
const BATCH_BYTES: usize = 1 << 20;
/// Bytes of a will in the log beside its record.
const FRAME: usize = 16;

/// Why a will is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its connection ended without a DISCONNECT.
    Connection,
    /// A newer connection of the client.
    Takeover,
    /// Its gateway is gone.
    GatewayLost,
}

/// How a connection ended, as its gateway says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The will is forgotten.
    Drop,
    /// The will is published.
    Fire(Cause),
}

/// An owner that was attached and is the present one.
#[derive(Debug, Clone)]
pub struct Attaching {
    /// Whose.
    pub client: Bytes,
    /// Of the ownership.
    pub epoch: Epoch,
    /// This home handed the epoch out itself: it is later than any that it knew.
    pub granted: bool,
    /// Names the connection's will; NONE: it has none.
    pub will_epoch: Epoch,
    /// To be kept; empty: nothing, or it is kept already.
    pub will: Bytes,
    /// Incarnation of its gateway.
    pub gateway: u64,
}

/// The will can't be kept: too much waits, or a will of a later connection is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// Changes to be made together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// In order.
    pub changes: Vec<WillChange>,
    /// For each, why it fires.
    pub causes: Vec<Option<Cause>>,
}

#[derive(Debug)]
struct Held {
    epoch: Epoch,
    gateway: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Queued {
    change: WillChange,
    cause: Option<Cause>,
    bytes: usize,
    ticket: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Wills {
    held: HashMap<Bytes, Held>,
    queue: VecDeque<Queued>,
    kept_bytes: usize,
    /// A batch is.
    under_way: bool,
    tickets: u64,
    done: u64,
}

impl Wills {
    /// What the store holds.
    pub fn new(held: Vec<HeldWill>) -> Self {
        let held = held.into_iter().map(|it| {
            let HeldWill { client, epoch, gateway, bytes } = it;
            (client, Held { epoch, gateway, bytes })
        });
        Self { held: held.collect(), ..Self::default() }
    }

    /// Nothing is held and nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.pending().is_none()
    }

    /// The number to wait for until all that is queued now is done; None: all is.
    pub fn pending(&self) -> Option<u64> {
        (self.done < self.tickets).then_some(self.tickets)
    }

    /// Everything up to this number is done.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// The batch that was under way is done.
    pub fn finished(&mut self) {
        self.under_way = false;
        self.count_done();
    }

    fn count_done(&mut self) {
        if !self.under_way {
            self.done = self.queue.front().map_or(self.tickets, |next| next.ticket - 1);
        }
    }

    /// Gateway of the older connection whose will this owner would end.
    pub fn predecessor(&self, owner: &Attaching) -> Option<u64> {
        let held = self.held.get(&owner.client)?;
        let older = held.epoch != owner.will_epoch && (held.epoch < owner.epoch || owner.granted);
        older.then_some(held.gateway)
    }

    /// A client has this owner now: the will of an older connection is due, its own is kept. Returns what to wait for
    /// before the owner is confirmed.
    pub fn attach(&mut self, owner: Attaching) -> Result<Option<u64>, Refused> {
        let other = self.held.get(&owner.client).filter(|held| held.epoch != owner.will_epoch);
        let fires = other.is_some();
        if let Some(other) = other {
            if other.epoch > owner.epoch && !owner.granted {
                // Of a connection that this owner is behind, though it is the only one that is known here.
                return if owner.will.is_empty() { Ok(None) } else { Err(Refused) };
            }
            self.fire(&owner.client, Cause::Takeover);
        }
        let keeps = !owner.will.is_empty() && !self.held.contains_key(&owner.client);
        if keeps {
            self.keep(&owner)?;
        }
        Ok(self.pending().filter(|_| fires || !owner.will.is_empty()))
    }

    fn keep(&mut self, owner: &Attaching) -> Result<(), Refused> {
        let bytes = owner.will.len();
        if self.kept_bytes + bytes > QUEUED_BYTES {
            return Err(Refused);
        }
        // A copy: a slice would hold the whole message that it came in.
        let client = Bytes::copy_from_slice(&owner.client);
        let (epoch, gateway) = (owner.will_epoch, owner.gateway);
        self.held.insert(client.clone(), Held { epoch, gateway, bytes });
        self.kept_bytes += bytes;
        self.push(WillChange::Keep { client, epoch, gateway, record: owner.will.clone() }, None, bytes);
        Ok(())
    }

    /// A connection has ended. Returns what to wait for before its gateway may forget it.
    pub fn end(&mut self, client: &Bytes, epoch: Epoch, end: End) -> Option<u64> {
        if self.held.get(client).is_some_and(|held| held.epoch == epoch) {
            match end {
                End::Fire(cause) => self.fire(client, cause),
                End::Drop => self.forget(client, epoch),
            }
        }
        self.pending()
    }

    /// Gateways are gone: the wills of their connections are due. Returns how many.
    pub fn fire_of(&mut self, is_gone: impl Fn(u64) -> bool) -> usize {
        let of_gone = |(client, held): (&Bytes, &Held)| is_gone(held.gateway).then(|| client.clone());
        let due: Vec<Bytes> = self.held.iter().filter_map(of_gone).collect();
        due.iter().for_each(|client| self.fire(client, Cause::GatewayLost));
        due.len()
    }

    /// Gateways whose connections have wills here.
    pub fn gateways(&self) -> HashSet<u64> {
        self.held.values().map(|held| held.gateway).collect()
    }

    fn fire(&mut self, client: &Bytes, cause: Cause) {
        let Some(held) = self.held.remove(client) else { return };
        let change = WillChange::Fire { client: client.clone(), epoch: held.epoch };
        self.push(change, Some(cause), held.bytes);
    }

    fn forget(&mut self, client: &Bytes, epoch: Epoch) {
        self.held.remove(client);
        let kept = |queued: &Queued| matches!(&queued.change, WillChange::Keep { client: of, epoch: own, .. } if of == client && *own == epoch);
        // Not kept yet: a store that doesn't answer must not make the queue grow with each new attempt of the client.
        match self.queue.iter().position(kept).and_then(|at| self.queue.remove(at)) {
            Some(queued) => {
                self.kept_bytes -= queued.bytes;
                self.count_done();
            }
            None => self.push(WillChange::Drop { client: client.clone(), epoch }, None, 0),
        }
    }

    fn push(&mut self, change: WillChange, cause: Option<Cause>, bytes: usize) {
        self.tickets += 1;
        self.queue.push_back(Queued { change, cause, bytes, ticket: self.tickets });
    }

    /// What is to be done next. One batch is under way at a time, and is repeated until it is done.
    pub fn next_batch(&mut self) -> Option<Batch> {
        let mut batch = Batch { changes: Vec::new(), causes: Vec::new() };
        let (mut kept, mut bytes) = (HashSet::new(), 0);
        while let Some(first) = self.queue.front() {
            let (client, keeps) = match &first.change {
                WillChange::Keep { client, .. } => (client, true),
                WillChange::Fire { client, .. } | WillChange::Drop { client, .. } => (client, false),
            };
            bytes += first.bytes + FRAME;
            let full = batch.changes.len() == BATCH || bytes > BATCH_BYTES;
            if kept.contains(client) || (full && !batch.changes.is_empty()) {
                break;
            }
            if keeps {
                kept.insert(client.clone());
                self.kept_bytes -= first.bytes;
            }
            let Some(first) = self.queue.pop_front() else { break };
            batch.changes.push(first.change);
            batch.causes.push(first.cause);
        }
        self.under_way = !batch.changes.is_empty();
        self.under_way.then_some(batch)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn owner(epoch: u64, will: &'static str) -> Attaching {
        let will_epoch = if will.is_empty() { Epoch::NONE } else { Epoch::real(epoch) };
        Attaching {
            client: Bytes::from_static(b"c"),
            epoch: Epoch::real(epoch),
            granted: false,
            will_epoch,
            will: Bytes::from_static(will.as_bytes()),
            gateway: epoch % 10,
        }
    }

    fn end(wills: &mut Wills, epoch: u64, end: End) -> Option<u64> {
        wills.end(&Bytes::from_static(b"c"), Epoch::real(epoch), end)
    }

    /// What is done next, as words.
    fn done(wills: &mut Wills) -> Vec<String> {
        let Some(batch) = wills.next_batch() else { return Vec::new() };
        wills.finished();
        let told = |(change, cause): (&WillChange, &Option<Cause>)| match change {
            WillChange::Keep { epoch, .. } => format!("keep {epoch}"),
            WillChange::Fire { epoch, .. } => format!("fire {epoch} {:?}", cause.unwrap()),
            WillChange::Drop { epoch, .. } => format!("drop {epoch}"),
        };
        batch.changes.iter().zip(&batch.causes).map(told).collect()
    }

    const CUT: End = End::Fire(Cause::Connection);

    #[test]
    fn an_owner_is_confirmed_when_its_will_is_kept_and_ends_once() {
        let mut wills = Wills::default();
        let ticket = wills.attach(owner(7, "bye")).unwrap().unwrap();
        assert_eq!((wills.attach(owner(7, "bye")), wills.done()), (Ok(Some(ticket)), 0), "told again");
        assert_eq!(done(&mut wills), ["keep 7"]);
        assert_eq!((wills.done(), wills.pending(), wills.is_empty()), (ticket, None, false));
        assert_eq!(wills.attach(owner(7, "bye")), Ok(None), "told again, and kept already");
        end(&mut wills, 7, CUT).unwrap();
        end(&mut wills, 7, End::Drop).unwrap();
        assert_eq!(wills.fire_of(|_| true), 0);
        assert_eq!(done(&mut wills), ["fire 7 Connection"]);
        assert_eq!((end(&mut wills, 7, CUT), wills.is_empty()), (None, true));
    }

    #[test]
    fn a_newer_connection_makes_the_older_will_due_whatever_else_is_told() {
        let mut wills = Wills::default();
        wills.attach(owner(7, "old")).unwrap();
        done(&mut wills);
        // Neither the renewal of the same connection nor one that is behind it.
        assert_eq!(
            wills.attach(Attaching { epoch: Epoch::real(8), will: Bytes::new(), ..owner(7, "old") }),
            Ok(None)
        );
        assert_eq!((wills.attach(owner(5, "")), wills.attach(owner(5, "late"))), (Ok(None), Err(Refused)));
        assert!(wills.attach(owner(9, "new")).unwrap().is_some());
        end(&mut wills, 7, End::Fire(Cause::Takeover));
        assert_eq!(wills.fire_of(|gateway| gateway == 7), 0);
        assert_eq!(done(&mut wills), ["fire 7 Takeover", "keep 9"]);
        assert!(wills.attach(owner(11, "")).unwrap().is_some(), "without a will of its own");
        assert_eq!(done(&mut wills), ["fire 9 Takeover"]);
        assert_eq!(wills.attach(owner(12, "")), Ok(None), "nothing to wait for");
    }

    #[test]
    fn an_epoch_that_this_home_granted_is_later_than_any() {
        let mut wills = Wills::default();
        wills.attach(owner(7, "old")).unwrap();
        let provisional = Epoch::provisional(penstock_common::position::Term(5), 1);
        let back = Attaching { epoch: provisional, will_epoch: provisional, ..owner(0, "new") };
        assert_eq!(wills.attach(back.clone()), Err(Refused));
        assert!(wills.attach(Attaching { granted: true, ..back }).unwrap().is_some());
        assert_eq!(done(&mut wills).len(), 1, "a batch that keeps a will does not fire it");
        assert_eq!(done(&mut wills).len(), 2);
    }

    #[test]
    fn the_death_of_a_gateway_fires_what_it_held_and_nothing_else() {
        let held = |client: &'static str, gateway| HeldWill {
            client: client.into(),
            epoch: Epoch::real(3),
            gateway,
            bytes: 700_000,
        };
        let mut wills = Wills::new(vec![held("a", 1), held("b", 2), held("c", 1)]);
        assert_eq!(wills.gateways().len(), 2);
        assert_eq!(wills.fire_of(|gateway| gateway == 1), 2);
        assert_eq!(done(&mut wills), ["fire 3 GatewayLost"], "an entry of the log is bounded");
        assert_eq!(done(&mut wills), ["fire 3 GatewayLost"]);
        assert!(!wills.is_empty() && wills.pending().is_none());
    }

    #[test]
    fn what_waits_for_the_store_is_bounded_and_cancelled_when_nobody_wants_it() {
        let mut wills = Wills::default();
        wills.attach(owner(1, "first")).unwrap();
        let first = wills.next_batch().unwrap();
        for epoch in 2..1_000 {
            // The client tries again and again.
            wills.attach(Attaching { will: vec![0; 60_000].into(), ..owner(epoch, "-") }).unwrap();
            end(&mut wills, epoch, End::Drop).unwrap();
        }
        assert_eq!((wills.queue.len(), wills.kept_bytes, first.changes.len()), (1, 0, 1));
        assert_eq!(wills.done(), 0);
        wills.finished();
        assert_eq!(done(&mut wills), ["fire 1 Takeover"]);
        assert!(wills.is_empty());
        let of = |n: u32| Attaching { client: n.to_be_bytes().to_vec().into(), ..owner(5, "-") };
        let will = Bytes::from(vec![0; 60_000]);
        let taken = (0..1_000).filter(|n| wills.attach(Attaching { will: will.clone(), ..of(*n) }).is_ok());
        assert_eq!(taken.count(), QUEUED_BYTES / will.len());
    }
}
