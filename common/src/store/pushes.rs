//! Pushes that wait for a client: in its mailbox, beside the mail of its session if it has one, and outliving that session.
//! And the keys by which a push that is sent again is recognised.
//!
//! Invariants of every backend:
//! * Only the home of the client's partition writes: under its term.
//! * A push is in the mailbox until it is acknowledged, or its time is over and it was not handed out. A session that is
//!   wiped leaves it there; a session that is made finds it there.
//! * Numbers are those of mail, so that all that waits for a client has one order.
//! * A key names one push for at least [`KEYS_KEPT_MS`].

use async_trait::async_trait;
use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::{MailLimits, SessionError, SteppedMail, StoreError};
use crate::{clock::UnixMillis, name::PartitionKey, position::Term};

/// How long a key is remembered, at least; up to twice as long.
pub const KEYS_KEPT_MS: u64 = 600_000;
/// Keys of a partition that are remembered in [`KEYS_KEPT_MS`].
pub const KEYS_MOST: usize = 65_536;
/// What may be handed out of a mailbox after the time of its last push; then it may be gone.
#[cfg(any(feature = "embedded", feature = "redis"))]
pub(crate) const GRACE_MS: u64 = 60_000;

/// Names a push of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PushKey {
    /// Chosen by who pushes; unique for the client.
    pub key: String,
    /// Of what is pushed: another one under the same key is refused.
    pub fingerprint: u64,
}

impl PushKey {
    /// A key, and all that is pushed under it.
    pub fn new(key: String, what: &[&[u8]]) -> Self {
        let mut hash = Xxh3::new();
        for part in what {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self { key, fingerprint: hash.digest() }
    }
}

/// A push that shall wait.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewPush {
    /// An encoded `Record`.
    pub record: Bytes,
    /// How long, milliseconds.
    pub ttl_ms: u64,
    /// Its name.
    pub key: Option<PushKey>,
    /// Bounds of the mailbox: at them the push is refused.
    pub limits: MailLimits,
}

/// Why nothing was stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PushRefused {
    /// Too many messages or bytes wait for the client.
    MailboxFull,
    /// The key names another push.
    KeyUsed,
    /// Too many keys are remembered.
    TooManyKeys,
}

/// What became of a push that shall wait.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Queued {
    /// It waits.
    Stored {
        /// Among the mail of the client.
        number: u64,
        /// When its time is over.
        expires_at: UnixMillis,
    },
    /// Its key is known: what was remembered of it. For a stored one that is `queued <number> <expires at>`.
    Repeated(String),
    /// Nothing was stored.
    Refused(PushRefused),
}

/// Whether a push with a key may begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Begun {
    /// The key is remembered from now on, with an empty outcome.
    New,
    /// It was begun before: what was remembered of it, empty while nothing was.
    Repeated(String),
    /// It may not.
    Refused(PushRefused),
}

/// One exchange of the owner of a client without a session with its pushes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PushStep {
    /// Numbers that the client has acknowledged.
    pub acknowledged: Vec<u64>,
    /// Only what is above this number is handed out.
    pub received: u64,
    /// Messages to hand out.
    pub most: u32,
    /// Bytes of records to hand out; at least one message, if there is one.
    pub max_bytes: u64,
}

/// Pushes that wait, and keys of pushes. Clients are client identifiers.
#[async_trait]
pub trait PushStore: Send + Sync + 'static {
    /// Puts a push into the client's mailbox.
    async fn queue_push(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        push: &NewPush,
    ) -> Result<Queued, SessionError>;

    /// Whether a message is in the client's mailbox.
    async fn waits(&self, partition: &PartitionKey, client: &[u8], number: u64) -> Result<bool, StoreError>;

    /// Removes what is acknowledged and hands out what is next, with packet identifier 0. `Gone`: the client has a session,
    /// whose steps hand its pushes out.
    async fn step_pushes(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        step: &PushStep,
    ) -> Result<SteppedMail, SessionError>;

    /// Clients for which pushes may wait, and when the time of the last one is over.
    async fn waiting_clients(&self, partition: &PartitionKey)
    -> Result<Vec<(Bytes, UnixMillis)>, StoreError>;

    /// Removes pushes of clients for which nothing waits any more, some of them if they are many. Returns how many pushes
    /// were removed, and these clients.
    async fn expire_pushes(
        &self,
        partition: &PartitionKey,
        term: Term,
    ) -> Result<(u64, Vec<Bytes>), SessionError>;

    /// Remembers the key of a push that does not wait.
    async fn begin_push(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        key: &PushKey,
    ) -> Result<Begun, SessionError>;

    /// Remembers what became of it; None: nothing did, the key is free again.
    async fn end_push(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        key: &PushKey,
        outcome: Option<&str>,
    ) -> Result<(), SessionError>;
}
