//! The store: what a router persists. The verbs are the design's, not Redis commands, so that the embedded log and Redis
//! stand behind one trait and one test suite (`tests/store_suite.rs`).
//!
//! Invariants of every backend:
//! * After `take(p)` returned term t, no write of p under a lower term takes effect, however late it arrives.
//! * `append` answered with an id means stored at the configured durability. `AppendError::Lost` means unknown: whoever
//!   holds the term must take a new one and read back before it appends again.
//! * Ids grow strictly; within a term sequences are dense and begin at 1.

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    clock::UnixMillis,
    name::{PartitionKey, TenantName},
    position::{EntryId, Term},
};

mod durability;
#[cfg(feature = "embedded")]
pub mod embedded;
#[cfg(any(feature = "embedded", feature = "redis"))]
mod encoding;
mod groups;
mod pushes;
#[cfg(feature = "redis")]
pub mod redis;
mod sessions;
mod wills;

pub use durability::{BadDurability, Durability};
pub use groups::{
    Counts, CursorChange, CursorStart, Cursors, DEAD_BYTES, DEAD_LETTERS, DeadLetter, DeadLetters,
    GroupCursor, Keep, KeptLetter, OpenEntry, Trimmed,
};
pub use pushes::{
    Begun, KEYS_KEPT_MS, KEYS_MOST, NewPush, PushKey, PushRefused, PushStep, PushStore, Queued,
};
pub use sessions::{
    Appended, FilterChanges, FilterTable, Mail, MailLimits, MailStep, NewMail, OpenedSession,
    SOURCES_KEPT_MS, SessionError, SessionFilter, SessionFilters, SessionState, SessionStore, SteppedMail,
    mail_time,
};
pub use wills::{ChangedWills, HeldWill, WillChange, WillChanges, WillStore};

/// Numbers first .. first + count - 1 that a producer gave to records of one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Incarnation of the shard that numbered them.
    pub producer: u64,
    /// First number.
    pub first: u64,
    /// How many, 1 and more.
    pub count: u32,
}

/// Running totals of a partition: lag and backlog are differences of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Records stored up to and including an entry.
    pub records: u64,
    /// Bytes of records stored up to and including an entry.
    pub bytes: u64,
}

/// Records stored together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// A `RecordBatch`, undecoded.
    pub records: Bytes,
    /// Who numbered them, in the order of the records.
    pub segments: Vec<Segment>,
    /// Records in it.
    pub count: u32,
    /// `received_at` of the first record, milliseconds since 1970.
    pub first_received_at: UnixMillis,
    /// Totals with this entry.
    pub totals: Totals,
}

/// An entry with its place in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredEntry {
    /// Where.
    pub id: EntryId,
    /// What.
    pub entry: Entry,
}

/// Answer to `take`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Took {
    /// The new term.
    pub term: Term,
    /// Router incarnation that held the partition before, if any.
    pub previous_holder: Option<u64>,
    /// Last entry that is stored, ZERO when none ever was. Survives trimming.
    pub last: EntryId,
    /// Totals at `last`.
    pub totals: Totals,
    /// Totals before the first retained entry: `totals - trimmed` is what the log holds.
    pub trimmed: Totals,
}

/// The end of a log, newest entry first, for telling what producers last stored.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReadBack {
    /// Ids with their segments, newest first.
    pub entries: Vec<(EntryId, Vec<Segment>)>,
    /// The whole retained log was read: what is not in it was not stored, or is long settled.
    pub complete: bool,
}

/// What a user may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// MQTT.
    Device,
    /// The doors of its tenant.
    Service,
    /// Users of its tenant as well.
    TenantAdmin,
    /// Everything; only in tenant `system`.
    Admin,
}

/// A user as stored. The verifier never leaves the routers.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    /// Name within the tenant.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// PHC string.
    pub verifier: String,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "User({}, {:?})", self.name, self.role)
    }
}

/// The store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No answer, or a connection that broke: nothing is known, try again.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// It answered with something that should not be there.
    #[error("the store holds something unreadable: {0}")]
    Corrupt(String),
    /// It is full or refuses writes; nothing was written.
    #[error("the store refuses: {0}")]
    Refused(String),
}

/// An append that was not confirmed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// A higher term was taken: nothing was written, and this holder never writes again.
    #[error("another router has taken the partition")]
    Fenced,
    /// Whether it was written is unknown.
    #[error("the store's answer was lost: {0}")]
    Lost(String),
    /// Not written: the store is out of memory, read-only or away for now.
    #[error("the store refuses: {0}")]
    Refused(String),
    /// Not written: the term was taken on a connection that is gone, or at a server that has the partition no more, and
    /// entries that were confirmed there may be missing now. Whoever holds it must take a new one and read back.
    #[error("the connection under which the term was taken is gone")]
    Retake,
}

/// A write under a term that was not confirmed. Every such write can be repeated.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// A higher term was taken.
    #[error("another router has taken the partition")]
    Fenced,
    /// Try again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Durable partitions, sessions, wills and users.
#[async_trait]
pub trait Store: SessionStore + PushStore + WillStore {
    /// Makes `holder` (a router's incarnation, not 0) the only writer of the partition.
    async fn take(&self, partition: &PartitionKey, holder: u64) -> Result<Took, StoreError>;

    /// Who holds the term, and which: no promise beyond the moment.
    async fn holder(&self, partition: &PartitionKey) -> Result<Option<(Term, u64)>, StoreError>;

    /// Appends under a term.
    async fn append(
        &self,
        partition: &PartitionKey,
        term: Term,
        entry: &Entry,
    ) -> Result<EntryId, AppendError>;

    /// Entries above `after`, oldest first: at most `max_entries`, and no more once `max_bytes` of records are read (at
    /// least one entry if there is one).
    async fn read(
        &self,
        partition: &PartitionKey,
        after: EntryId,
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Vec<StoredEntry>, StoreError>;

    /// The end of the log, up to about `max_bytes` of records.
    async fn read_back(&self, partition: &PartitionKey, max_bytes: usize) -> Result<ReadBack, StoreError>;

    /// All cursors of the partition.
    async fn cursors(&self, partition: &PartitionKey) -> Result<Cursors, StoreError>;

    /// Creates a group's cursor unless it is there. Needs no term.
    async fn create_cursor(
        &self,
        partition: &PartitionKey,
        group: &str,
        start: CursorStart,
    ) -> Result<(), StoreError>;

    /// Deletes a group's cursor. Needs no term.
    async fn delete_cursor(&self, partition: &PartitionKey, group: &str) -> Result<(), StoreError>;

    /// Moves cursors under a term, all or none.
    async fn commit(
        &self,
        partition: &PartitionKey,
        term: Term,
        changes: &[CursorChange],
    ) -> Result<(), CommitError>;

    /// Sets a group's cursor anew under a term, and its counts with it; ignored when the group was deleted.
    async fn seek(
        &self,
        partition: &PartitionKey,
        term: Term,
        group: &str,
        to: CursorStart,
    ) -> Result<(), CommitError>;

    /// Dead letters of a group above a number, oldest first, at most `max`.
    async fn dead_letters(
        &self,
        partition: &PartitionKey,
        group: &str,
        after: u64,
        max: usize,
    ) -> Result<DeadLetters, StoreError>;

    /// Removes dead letters; those that are not there are ignored.
    async fn delete_dead(
        &self,
        partition: &PartitionKey,
        group: &str,
        numbers: &[u64],
    ) -> Result<(), StoreError>;

    /// Removes entries that every group and the fan-out are done with, or that are too old or too many, atomically with
    /// reading their cursors. A log without groups keeps what `keep` allows.
    async fn trim(&self, partition: &PartitionKey, term: Term, keep: &Keep) -> Result<Trimmed, CommitError>;

    /// Stores a user. With `create`, only if there is none of that name; false: there is one.
    async fn put_user(&self, tenant: &TenantName, user: &User, create: bool) -> Result<bool, StoreError>;

    /// A user by name.
    async fn user(&self, tenant: &TenantName, name: &str) -> Result<Option<User>, StoreError>;

    /// All users of a tenant, by name.
    async fn users(&self, tenant: &TenantName) -> Result<Vec<User>, StoreError>;

    /// Removes a user; false: there was none.
    async fn delete_user(&self, tenant: &TenantName, name: &str) -> Result<bool, StoreError>;

    /// Removes everything of a tenant: logs, cursors, sessions, wills, users.
    async fn delete_tenant(&self, tenant: &TenantName, partitions: u32) -> Result<(), StoreError>;

    /// Whether the store answers and may be written now.
    fn healthy(&self) -> watch::Receiver<bool>;

    /// One word and the durability class, for logs and `penstockctl cluster`.
    fn describe(&self) -> String;
}
