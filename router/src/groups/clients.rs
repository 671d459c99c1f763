//! Which client may be handed its next record, and by whom: clients with open records stay with their consumer, held ones
//! wait for their delay, all others are free. Ordered by the place of the client's next record in the log. Pure.
//!
//! Invariant: a client is in exactly one of the indexes, or in none when it has nothing waiting.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;
use penstock_common::position::EntryId;

use super::held::ClientHash;

/// A consumer's number.
pub type ConsumerId = u64;
/// A record's place in the log.
pub type Position = (EntryId, u32);

#[derive(Debug, Default)]
struct Client {
    waiting: BTreeSet<Position>,
    open: u32,
    holder: Option<ConsumerId>,
    held_until: u64,
    indexed: Option<Index>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Index {
    Free(Position),
    With(ConsumerId, Position),
    Held(u64),
}

/// See the module. Times in milliseconds.
#[derive(Debug, Default)]
pub struct Clients {
    clients: HashMap<ClientHash, Client>,
    free: BTreeSet<(Position, ClientHash)>,
    with: BTreeMap<ConsumerId, BTreeSet<(Position, ClientHash)>>,
    held: BTreeSet<(u64, ClientHash)>,
    waiting: usize,
}

impl Clients {
    /// Records that wait to be handed out.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// A record waits, for the first time or again.
    pub fn add(&mut self, client: ClientHash, at: Position) {
        let entry = self.clients.entry(client).or_default();
        if entry.waiting.insert(at) {
            self.waiting += 1;
        }
        self.index(client);
    }

    /// A waiting record is done without having been handed out.
    pub fn remove(&mut self, client: ClientHash, at: Position) {
        if self.clients.get_mut(&client).is_some_and(|own| own.waiting.remove(&at)) {
            self.waiting -= 1;
        }
        self.index(client);
    }

    /// Nothing of the client is handed out before this time.
    pub fn hold(&mut self, client: ClientHash, until: u64) {
        if let Some(own) = self.clients.get_mut(&client) {
            own.held_until = own.held_until.max(until);
        }
        self.index(client);
    }

    /// Lets clients go whose delay is over.
    pub fn tick(&mut self, now: u64) {
        while let Some((until, client)) = self.held.first().copied().filter(|(until, _)| *until <= now) {
            self.held.remove(&(until, client));
            if let Some(own) = self.clients.get_mut(&client) {
                own.held_until = 0;
                own.indexed = None;
            }
            self.index(client);
        }
    }

    /// When the next delay is over.
    pub fn deadline(&self) -> Option<u64> {
        self.held.first().map(|(until, _)| *until)
    }

    /// The next record of a client that no consumer holds.
    pub fn next_free(&self) -> Option<(Position, ClientHash)> {
        self.free.first().copied()
    }

    /// The next record of a client that this consumer holds.
    pub fn next_with(&self, consumer: ConsumerId) -> Option<(Position, ClientHash)> {
        self.with.get(&consumer)?.first().copied()
    }

    /// A waiting record is handed out.
    pub fn hand_out(&mut self, client: ClientHash, at: Position, consumer: ConsumerId) {
        if let Some(own) = self.clients.get_mut(&client) {
            if own.waiting.remove(&at) {
                self.waiting -= 1;
            }
            own.open += 1;
            own.holder = Some(consumer);
        }
        self.index(client);
    }

    /// A record that was handed out as part of a whole entry is told apart.
    pub fn opened(&mut self, client: ClientHash, consumer: ConsumerId) {
        let own = self.clients.entry(client).or_default();
        own.open += 1;
        own.holder = Some(consumer);
        self.index(client);
    }

    /// An open record is done or comes back.
    pub fn closed(&mut self, client: ClientHash) {
        if let Some(own) = self.clients.get_mut(&client) {
            own.open = own.open.saturating_sub(1);
            if own.open == 0 {
                own.holder = None;
            }
        }
        self.index(client);
    }

    /// Puts a client where it belongs now, if that is another place than it has: most records wait behind others of theirs.
    fn index(&mut self, client: ClientHash) {
        let Some(own) = self.clients.get_mut(&client) else { return };
        let place = own.waiting.first().map(|first| match own.holder {
            _ if own.held_until > 0 => Index::Held(own.held_until),
            Some(consumer) => Index::With(consumer, *first),
            None => Index::Free(*first),
        });
        let is_idle = place.is_none() && own.open == 0;
        let before = std::mem::replace(&mut own.indexed, place);
        if is_idle {
            self.clients.remove(&client);
        }
        if before != place {
            self.leave(client, before);
            self.enter(client, place);
        }
    }

    fn leave(&mut self, client: ClientHash, place: Option<Index>) {
        match place {
            Some(Index::Free(at)) => {
                self.free.remove(&(at, client));
            }
            Some(Index::With(consumer, at)) => {
                if let Some(set) = self.with.get_mut(&consumer) {
                    set.remove(&(at, client));
                    if set.is_empty() {
                        self.with.remove(&consumer);
                    }
                }
            }
            Some(Index::Held(until)) => {
                self.held.remove(&(until, client));
            }
            None => {}
        }
    }

    fn enter(&mut self, client: ClientHash, place: Option<Index>) {
        match place {
            Some(Index::Free(at)) => {
                self.free.insert((at, client));
            }
            Some(Index::With(consumer, at)) => {
                self.with.entry(consumer).or_default().insert((at, client));
            }
            Some(Index::Held(until)) => {
                self.held.insert((until, client));
            }
            None => {}
        }
    }
}
