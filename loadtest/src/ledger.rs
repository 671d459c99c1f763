//! The oracle: publishers enter what they send and what is acknowledged, readers enter what they see, and the verdict is
//! a comparison. It knows nothing of how messages travel; time and order come only from the calls.
//!
//! Invariant: what a reader is judged by are the publishers of its own tenant; everything else that it sees is a fault.
//! A reader must be there before the publishers begin. Each publisher has a lock of its own, so that neither publishers nor
//! readers wait for each other; a whole turn of messages is entered under it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use penstock_client::Position;

use crate::{
    account::Account,
    stamp::{Stamp, StampRef},
    verdict::Verdict,
};

/// One reader of a ledger: a group, or a subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderId(usize);

/// What a reader knows of the message that it was handed, beside the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sighting {
    /// Nothing: a repeat may be a redelivery.
    Untold,
    /// It was delivered over MQTT with this DUP flag: a repeat without it is a second message.
    Delivered {
        /// As in the PUBLISH.
        dup: bool,
    },
    /// Where it is stored: a repeat at another position is a second message.
    Stored(Position),
}

/// Shared by publishers and readers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    accounts: RwLock<Accounts>,
    readers: RwLock<Vec<Reader>>,
}

type Accounts = HashMap<u64, Arc<Mutex<Account>>>;

#[derive(Debug, Default)]
struct Reader {
    tenant: String,
    leaked: AtomicU64,
    misrouted: AtomicU64,
    invented: AtomicU64,
    corrupt: AtomicU64,
}

/// A publisher's own part of the ledger. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Entries {
    account: Arc<Mutex<Account>>,
}

impl Entries {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader entering what it sees. Not to be held over an await.
pub(crate) struct Seeing<'a> {
    accounts: RwLockReadGuard<'a, Accounts>,
    readers: RwLockReadGuard<'a, Vec<Reader>>,
    reader: usize,
}

impl Seeing<'_> {
    /// Enters a payload. Gives when it was sent (µs since 1970), unless it is corrupt. With a recipient, it must be a message
    /// of that number.
    pub(crate) fn see(&self, payload: &[u8], recipient: Option<u64>, sighting: Sighting) -> Option<u64> {
        let reader = self.readers.get(self.reader)?;
        let add = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let Ok(stamp) = StampRef::decode(payload) else {
            add(&reader.corrupt);
            return None;
        };
        if stamp.tenant != reader.tenant {
            add(&reader.leaked);
        } else if recipient.is_some_and(|recipient| recipient != stamp.publisher) {
            add(&reader.misrouted);
        } else {
            let account = self.accounts.get(&stamp.publisher);
            let mut account = account.map(|account| account.lock().unwrap_or_else(PoisonError::into_inner));
            if !account.as_mut().is_some_and(|account| account.seen(self.reader, &stamp, sighting)) {
                add(&reader.invented);
            }
        }
        Some(stamp.sent_at)
    }
}

impl Ledger {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn accounts(&self) -> RwLockReadGuard<'_, Accounts> {
        self.inner.accounts.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader of a tenant's messages.
    pub fn reader(&self, tenant: &str) -> ReaderId {
        let mut readers = self.inner.readers.write().unwrap_or_else(PoisonError::into_inner);
        readers.push(Reader { tenant: tenant.to_owned(), ..Reader::default() });
        ReaderId(readers.len() - 1)
    }

    /// The account of a publisher, opened when it isn't there.
    pub fn publisher(&self, number: u64, tenant: &str) -> Entries {
        let mut accounts = self.inner.accounts.write().unwrap_or_else(PoisonError::into_inner);
        let account = accounts.entry(number).or_insert_with(|| Arc::new(Mutex::new(Account::new(tenant))));
        Entries { account: Arc::clone(account) }
    }

    /// A message is being sent, or sent again on a later connection.
    pub fn sent(&self, stamp: &Stamp) {
        self.publisher(stamp.publisher, &stamp.tenant).lock().sent(stamp.sequence, stamp.connection);
    }

    /// A message was acknowledged to its publisher.
    pub fn acked(&self, publisher: u64, sequence: u64) {
        let account = self.accounts().get(&publisher).cloned();
        if let Some(account) = account {
            account.lock().unwrap_or_else(PoisonError::into_inner).acked(sequence);
        }
    }

    /// A reader enters what it is handed.
    pub(crate) fn seeing(&self, reader: ReaderId) -> Seeing<'_> {
        let readers = self.inner.readers.read().unwrap_or_else(PoisonError::into_inner);
        Seeing { accounts: self.accounts(), readers, reader: reader.0 }
    }

    /// A reader was handed a message. Position: None where it is not told, as a subscriber.
    pub fn seen(&self, reader: ReaderId, payload: &[u8], position: Option<Position>) {
        let sighting = position.map_or(Sighting::Untold, Sighting::Stored);
        self.seeing(reader).see(payload, None, sighting);
    }

    /// A subscriber was handed a message, with this DUP flag: a repeat without it is a second message. With a recipient, it
    /// must be a message of that number.
    pub fn delivered(&self, reader: ReaderId, payload: &[u8], recipient: Option<u64>, dup: bool) {
        self.seeing(reader).see(payload, recipient, Sighting::Delivered { dup });
    }

    fn of_tenant<T>(&self, tenant: &str, mut act: impl FnMut(&Account) -> T) -> Vec<T> {
        let accounts: Vec<_> = self.accounts().values().cloned().collect();
        let locked = accounts.iter().map(|account| account.lock().unwrap_or_else(PoisonError::into_inner));
        locked.filter(|account| account.tenant == tenant).map(|account| act(&account)).collect()
    }

    /// The tenant that a reader belongs to.
    pub(crate) fn tenant(&self, reader: ReaderId) -> Option<String> {
        let readers = self.inner.readers.read().unwrap_or_else(PoisonError::into_inner);
        readers.get(reader.0).map(|reader| reader.tenant.clone())
    }

    /// Whether the reader has seen everything that was acknowledged so far.
    pub fn complete(&self, reader: ReaderId) -> bool {
        self.tenant(reader).is_some_and(|tenant| self.owed(&tenant, reader) == 0)
    }

    fn owed(&self, tenant: &str, reader: ReaderId) -> u64 {
        self.of_tenant(tenant, |account| account.owed(reader.0)).iter().sum()
    }

    /// Messages acknowledged so far, over all publishers of a tenant.
    pub fn acked_count(&self, tenant: &str) -> u64 {
        self.of_tenant(tenant, Account::acked_count).iter().sum()
    }

    /// The comparison.
    pub fn verdict(&self, reader: ReaderId) -> Verdict {
        let mut verdict = Verdict::default();
        let Some(tenant) = self.tenant(reader) else { return verdict };
        self.of_tenant(&tenant, |account| account.judge(reader.0, &mut verdict));
        let readers = self.inner.readers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = readers.get(reader.0) {
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            verdict.leaked = count(&reader.leaked);
            verdict.misrouted = count(&reader.misrouted);
            verdict.invented = count(&reader.invented);
            verdict.corrupt = count(&reader.corrupt);
        }
        verdict
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
