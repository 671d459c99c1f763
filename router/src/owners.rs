//! Who owns which client of one partition, as the links attached them. Pure. The home's memory of owners is what pushes,
//! kicks and provisional epochs are decided by; `S` names a shard's link.
//!
//! Invariant: an attach never replaces a later ownership; the loser of each pair is named, so that it can be kicked.

use hashbrown::HashMap;
use penstock_common::epoch::Epoch;

/// An ownership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership<S> {
    /// Fencing number.
    pub epoch: Epoch,
    /// The link that attached it.
    pub link: S,
}

/// What an attach found.
#[derive(Debug, PartialEq, Eq)]
pub enum Attached<S> {
    /// First, or the same link again.
    Alone,
    /// It replaced this one, of another link: kick that one.
    Replaced(Ownership<S>),
    /// A later ownership is there: the one that was attached is void. `below`: connections with a lower epoch close.
    Void {
        /// Bound for the kick.
        below: Epoch,
    },
}

/// Owners of one partition.
#[derive(Debug)]
pub struct Owners<S> {
    clients: HashMap<Box<[u8]>, Ownership<S>>,
    /// Provisional epochs handed out: (provisional, superseded).
    granted: HashMap<Box<[u8]>, (Epoch, Epoch)>,
    counter: u32,
}

/// Provisional epochs remembered at most.
const GRANTED_MOST: usize = 65_536;

impl<S> Default for Owners<S> {
    fn default() -> Self {
        Self { clients: HashMap::new(), granted: HashMap::new(), counter: 0 }
    }
}

impl<S: Clone + PartialEq> Owners<S> {
    /// Hands out a provisional epoch and names the one that it supersedes.
    pub fn grant(&mut self, client: &[u8], term: penstock_common::position::Term) -> (Epoch, Epoch) {
        if self.granted.len() >= GRANTED_MOST {
            self.granted.clear();
        }
        self.counter = self.counter.wrapping_add(1);
        let epoch = Epoch::provisional(term, self.counter);
        let superseded = self.clients.get(client).map_or(Epoch::NONE, |own| own.epoch);
        self.granted.insert(client.into(), (epoch, superseded));
        (epoch, superseded)
    }

    /// Whether this provisional epoch was handed out here and is not superseded by a later one.
    pub fn has_granted(&self, client: &[u8], epoch: Epoch) -> bool {
        self.granted.get(client).is_some_and(|(provisional, _)| *provisional == epoch)
    }

    /// An ownership is told.
    pub fn attach(&mut self, client: &[u8], epoch: Epoch, link: S) -> Attached<S> {
        let new = Ownership { epoch, link };
        let Some(present) = self.clients.get_mut(client) else {
            self.clients.insert(client.into(), new);
            return Attached::Alone;
        };
        let granted = self
            .granted
            .get(client)
            .is_some_and(|(provisional, superseded)| *provisional == epoch && *superseded == present.epoch);
        if !granted && epoch < present.epoch {
            // The bound is one above the loser: a provisional winner is numerically below a real loser.
            return Attached::Void { below: Epoch(epoch.0 + 1) };
        }
        if granted {
            self.granted.remove(client);
        }
        let old = std::mem::replace(present, new);
        if old.link == present.link || old.epoch == present.epoch {
            Attached::Alone
        } else {
            Attached::Replaced(old)
        }
    }

    /// An ownership ends; ignored unless it is the present one.
    pub fn detach(&mut self, client: &[u8], epoch: Epoch) {
        if self.clients.get(client).is_some_and(|own| own.epoch == epoch) {
            self.clients.remove(client);
        }
    }

    /// The present owner.
    pub fn get(&self, client: &[u8]) -> Option<&Ownership<S>> {
        self.clients.get(client)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Ownership<S>)> {
        self.clients.iter().map(|(client, own)| (&**client, own))
    }

    /// Forgets what a link attached: it is closed, and its shard attaches again when it is back.
    pub fn forget(&mut self, gone: impl Fn(&S) -> bool) {
        self.clients.retain(|_, own| !gone(&own.link));
    }

    /// How many clients are owned.
    pub fn count(&self) -> usize {
        self.clients.len()
    }
}

#[cfg(test)]
mod tests {
    use penstock_common::position::Term;

    use super::*;

    #[test]
    fn the_later_ownership_wins_in_either_order() {
        let mut owners = Owners::default();
        assert_eq!(owners.attach(b"c", Epoch::real(10), 'a'), Attached::Alone);
        let Attached::Replaced(old) = owners.attach(b"c", Epoch::real(11), 'b') else { panic!() };
        assert_eq!((old.epoch, old.link), (Epoch::real(10), 'a'));
        let Attached::Void { below } = owners.attach(b"c", Epoch::real(10), 'a') else { panic!() };
        assert!(below > Epoch::real(10) && below <= Epoch::real(11));
        owners.detach(b"c", Epoch::real(10));
        assert_eq!(owners.get(b"c").map(|own| own.link), Some('b'));
        owners.forget(|link| *link == 'b');
        assert_eq!(owners.count(), 0);
    }

    #[test]
    fn a_provisional_epoch_replaces_what_it_supersedes_and_nothing_later() {
        let mut owners = Owners::default();
        owners.attach(b"c", Epoch::real(10), 'a');
        let (provisional, superseded) = owners.grant(b"c", Term(5));
        assert_eq!(superseded, Epoch::real(10));
        assert!(matches!(owners.attach(b"c", provisional, 'b'), Attached::Replaced(_)));
        // The registry is back: the same connection gets a real epoch.
        assert_eq!(owners.attach(b"c", Epoch::real(12), 'b'), Attached::Alone);
        let (late, _) = owners.grant(b"c", Term(5));
        owners.attach(b"c", Epoch::real(13), 'c');
        assert!(matches!(owners.attach(b"c", late, 'b'), Attached::Void { .. }));
    }

    #[test]
    fn two_provisional_connects_are_ordered_by_their_home() {
        let mut owners = Owners::default();
        let (first, _) = owners.grant(b"c", Term(5));
        owners.attach(b"c", first, 'a');
        let (second, superseded) = owners.grant(b"c", Term(5));
        assert_eq!(superseded, first);
        assert!(matches!(owners.attach(b"c", second, 'b'), Attached::Replaced(_)));
        assert!(matches!(owners.attach(b"c", first, 'a'), Attached::Void { .. }));
    }
}
