//! The oracle: publishers enter what they send and what is acknowledged, readers enter what they see, and the verdict is
//! a comparison. It knows nothing of how messages travel; time and order come only from the calls.
//!
//! Invariant: what a reader is judged by are the publishers of its own tenant; everything else that it sees is a fault.
//! A reader must be there before the publishers begin. Memory: some 60 bytes a message and reader.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use penstock_client::Position;

use crate::{stamp::Stamp, verdict::Verdict};

/// One reader of a ledger: a group, or a subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderId(usize);

/// Shared by publishers and readers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    publishers: HashMap<u64, Publisher>,
    readers: Vec<Reader>,
}

#[derive(Debug, Default)]
struct Publisher {
    tenant: String,
    /// By sequence, from 0.
    messages: Vec<Sent>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    connection: u32,
    acked: bool,
}

#[derive(Debug, Default)]
struct Reader {
    tenant: String,
    publishers: HashMap<u64, Seen>,
    redelivered: u64,
    reordered: u64,
    leaked: u64,
    invented: u64,
    corrupt: u64,
    /// Acknowledged messages of the tenant that were not seen yet. Below 0: seen before they were acknowledged.
    owed: i64,
}

/// What a reader saw of one publisher.
#[derive(Debug, Default)]
struct Seen {
    /// By sequence.
    sightings: HashMap<u64, Vec<Sighting>>,
    /// Highest sequence seen for the first time.
    highest: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sighting {
    connection: u32,
    /// None where the reader is not told: a subscriber.
    position: Option<Position>,
}

impl Ledger {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A reader of a tenant's messages.
    pub fn reader(&self, tenant: &str) -> ReaderId {
        self.with(|inner| {
            inner.readers.push(Reader { tenant: tenant.to_owned(), ..Reader::default() });
            ReaderId(inner.readers.len() - 1)
        })
    }

    /// A message is being sent, or sent again on a later connection.
    pub fn sent(&self, stamp: &Stamp) {
        self.with(|inner| {
            let publisher = inner.publishers.entry(stamp.publisher).or_default();
            publisher.tenant.clone_from(&stamp.tenant);
            let at = usize::try_from(stamp.sequence).unwrap_or(usize::MAX);
            if publisher.messages.len() <= at {
                publisher.messages.resize(at + 1, Sent::default());
            }
            if let Some(sent) = publisher.messages.get_mut(at) {
                sent.connection = sent.connection.max(stamp.connection);
            }
        });
    }

    /// A message was acknowledged to its publisher.
    pub fn acked(&self, publisher: u64, sequence: u64) {
        self.with(|inner| {
            let Some(entry) = inner.publishers.get_mut(&publisher) else { return };
            let at = usize::try_from(sequence).unwrap_or(usize::MAX);
            let Some(sent) = entry.messages.get_mut(at).filter(|sent| !sent.acked) else { return };
            sent.acked = true;
            for reader in inner.readers.iter_mut().filter(|reader| reader.tenant == entry.tenant) {
                reader.owed += i64::from(!reader.has_seen(publisher, sequence));
            }
        });
    }

    /// A reader was handed a message.
    pub fn seen(&self, reader: ReaderId, payload: &[u8], position: Option<Position>) {
        self.with(|inner| {
            let Some(reader) = inner.readers.get_mut(reader.0) else { return };
            let Ok(stamp) = Stamp::decode(payload) else {
                reader.corrupt += 1;
                return;
            };
            let sent = inner.publishers.get(&stamp.publisher).and_then(|publisher| publisher.sent(&stamp));
            if stamp.tenant != reader.tenant {
                reader.leaked += 1;
            } else if let Some(sent) = sent {
                reader.see(&stamp, sent, position);
            } else {
                reader.invented += 1;
            }
        });
    }

    /// Whether the reader has seen everything that was acknowledged so far.
    pub fn complete(&self, reader: ReaderId) -> bool {
        self.with(|inner| inner.readers.get(reader.0).is_some_and(|reader| reader.owed <= 0))
    }

    /// Messages acknowledged so far, over all publishers of a tenant.
    pub fn acked_count(&self, tenant: &str) -> u64 {
        self.with(|inner| {
            let own = inner.publishers.values().filter(|publisher| publisher.tenant == tenant);
            own.map(Publisher::acked).sum()
        })
    }

    /// The comparison.
    pub fn verdict(&self, reader: ReaderId) -> Verdict {
        self.with(|inner| {
            inner
                .readers
                .get(reader.0)
                .map_or_else(Verdict::default, |reader| reader.verdict(&inner.publishers))
        })
    }
}

impl Publisher {
    /// None: no such message was ever sent.
    fn sent(&self, stamp: &Stamp) -> Option<Sent> {
        let sent = self.messages.get(usize::try_from(stamp.sequence).ok()?)?;
        (self.tenant == stamp.tenant && (1..=sent.connection).contains(&stamp.connection)).then_some(*sent)
    }

    fn acked(&self) -> u64 {
        self.messages.iter().filter(|sent| sent.acked).count() as u64
    }
}

impl Reader {
    fn has_seen(&self, publisher: u64, sequence: u64) -> bool {
        self.publishers.get(&publisher).is_some_and(|seen| seen.sightings.contains_key(&sequence))
    }

    fn see(&mut self, stamp: &Stamp, sent: Sent, position: Option<Position>) {
        let seen = self.publishers.entry(stamp.publisher).or_default();
        let sightings = seen.sightings.entry(stamp.sequence).or_default();
        if sightings.is_empty() {
            self.owed -= i64::from(sent.acked);
            if seen.highest.is_some_and(|highest| stamp.sequence < highest) {
                self.reordered += 1;
            }
            seen.highest = seen.highest.max(Some(stamp.sequence));
        }
        let sighting = Sighting { connection: stamp.connection, position };
        if sightings.contains(&sighting) {
            self.redelivered += 1;
        } else {
            sightings.push(sighting);
        }
    }

    fn verdict(&self, publishers: &HashMap<u64, Publisher>) -> Verdict {
        let mut verdict = Verdict {
            redelivered: self.redelivered,
            reordered: self.reordered,
            leaked: self.leaked,
            invented: self.invented,
            corrupt: self.corrupt,
            ..Verdict::default()
        };
        for (number, publisher) in publishers.iter().filter(|(_, publisher)| publisher.tenant == self.tenant)
        {
            let nothing = Seen::default();
            let seen = self.publishers.get(number).unwrap_or(&nothing);
            verdict.sent += publisher.messages.iter().filter(|sent| sent.connection > 0).count() as u64;
            verdict.acked += publisher.acked();
            verdict.seen += seen.sightings.len() as u64;
            let acked = (0u64..).zip(&publisher.messages).filter(|(_, sent)| sent.acked);
            verdict.lost += acked.filter(|(at, _)| !seen.sightings.contains_key(at)).count() as u64;
            seen.judge(&mut verdict);
        }
        verdict
    }
}

impl Seen {
    /// Faults that only the stored positions show.
    fn judge(&self, verdict: &mut Verdict) {
        for sightings in self.sightings.values() {
            let connections = distinct(sightings.iter().map(|sighting| sighting.connection));
            verdict.resent_duplicates += connections - 1;
            verdict.duplicated += sightings.len() as u64 - connections;
        }
        let stored = self.stored();
        let (mut highest, mut newest) = (None, 0);
        let home = stored.first().map(|(position, ..)| position.partition);
        for (position, sequence, connection, first) in stored {
            let late = first && highest.is_some_and(|highest| sequence < highest);
            if late || Some(position.partition) != home {
                verdict.misplaced += 1;
            }
            verdict.stale += u64::from(connection < newest);
            highest = highest.max(Some(sequence));
            newest = newest.max(connection);
        }
    }

    /// In the order of the log: position, sequence, connection, and whether it is the first of its sequence.
    fn stored(&self) -> Vec<(Position, u64, u32, bool)> {
        let mut stored = Vec::new();
        for (sequence, sightings) in &self.sightings {
            let first = sightings.iter().filter_map(|sighting| sighting.position).min();
            let placed =
                sightings.iter().filter_map(|sighting| Some((sighting.position?, sighting.connection)));
            stored
                .extend(placed.map(|(position, connection)| {
                    (position, *sequence, connection, Some(position) == first)
                }));
        }
        stored.sort_unstable();
        stored
    }
}

fn distinct(numbers: impl Iterator<Item = u32>) -> u64 {
    let mut numbers: Vec<u32> = numbers.collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.len() as u64
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
