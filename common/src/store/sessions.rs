//! Persistent sessions in the store: who has one, its filters, and the mail that waits for it.
//!
//! Invariants of every backend:
//! * Only the home of the client's partition opens, wipes, steps and filters a session: under its term, and (but for open
//!   and wipe) for the connection that opened it last.
//! * Mail is appended by the homes of other partitions, without a term: each entry of each partition at most once, in the
//!   order of its log, and only to the incarnation that it is meant for.
//! * A number of mail is never given twice to a client; numbers hold the time ([`mail_time`]).
//! * What was handed out keeps its packet identifier until it is acknowledged.

use async_trait::async_trait;
use bytes::Bytes;

use super::{CommitError, StoreError};
use crate::{
    clock::UnixMillis,
    epoch::Epoch,
    name::{PartitionKey, TenantName},
    position::{EntryId, Term},
};

/// How long a wiped session leaves behind which entries it had: what a new home may repeat is not older.
pub const SOURCES_KEPT_MS: u64 = 3_600_000;
/// Numbers of mail in one millisecond.
pub(crate) const PER_MILLI: u64 = 1_024;
/// Changes of filters that are kept for routers that follow them.
#[cfg(any(feature = "embedded", feature = "redis"))]
pub(crate) const CHANGES_KEPT: usize = 4_096;

/// When mail with this number was appended, milliseconds since 1970, by the store's clock.
pub fn mail_time(number: u64) -> UnixMillis {
    number / PER_MILLI
}

/// A filter of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionFilter {
    /// Valid MQTT filter.
    pub filter: Bytes,
    /// Granted QoS, 0 or 1.
    pub qos: u8,
}

/// The filters of a session as of a version.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SessionFilters {
    /// Epoch of the connection that created the session, as a number.
    pub incarnation: u64,
    /// Grows with each change, also from one incarnation to the next while the store remembers the client.
    pub version: u64,
    /// All of them.
    pub filters: Vec<SessionFilter>,
}

/// Answer to `open_session`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenedSession {
    /// An earlier connection made it; otherwise it was created now, or by an earlier question of this same epoch.
    pub present: bool,
    /// Its filters.
    pub filters: SessionFilters,
    /// Numbers and packet identifiers of mail that was handed out and not acknowledged, in order.
    pub unacknowledged: Vec<(u64, u16)>,
}

/// What there is of a session, for operators.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SessionState {
    /// Its filters.
    pub filters: SessionFilters,
    /// Messages of the mailbox, those in flight included.
    pub mail: u64,
    /// Bytes of their records.
    pub mail_bytes: u64,
    /// Messages that were handed out and not acknowledged.
    pub in_flight: u32,
    /// When the oldest message was appended; None: the mailbox is empty.
    pub oldest: Option<UnixMillis>,
    /// Life of the session unless it is renewed, milliseconds.
    pub expires_in_ms: u64,
}

/// Bounds of a mailbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MailLimits {
    /// Messages, those in flight included.
    pub messages: u32,
    /// Bytes of their records.
    pub bytes: u64,
}

/// Mail of one entry for one client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewMail {
    /// The entry that it is from.
    pub entry: EntryId,
    /// An encoded `Record`.
    pub record: Bytes,
}

/// What became of mail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Appended {
    /// It is in the mailbox, but for what was there before.
    Kept {
        /// Messages appended now.
        appended: u32,
        /// Messages that did not fit.
        dropped: u32,
    },
    /// There is no session of this incarnation.
    Gone,
}

/// One exchange of the owner of a session with its mailbox.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MailStep {
    /// Numbers that the client has acknowledged.
    pub acknowledged: Vec<u64>,
    /// Highest number that this connection was given; 0: none.
    pub received: u64,
    /// Packet identifiers that may be used, one for a new message each.
    pub ids: Vec<u16>,
    /// Bytes of records to hand out; at least one message, if there is one.
    pub max_bytes: u64,
    /// Mail that is older and was not handed out is dropped, milliseconds.
    pub age_ms: u64,
    /// Life of the session from now on, milliseconds.
    pub expiry_ms: u64,
}

/// A message that is handed out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mail {
    /// Ascending.
    pub number: u64,
    /// Its packet identifier until it is acknowledged.
    pub packet_id: u16,
    /// It was handed out before.
    pub again: bool,
    /// An encoded `Record`.
    pub record: Bytes,
}

/// Answer to `step_mail`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SteppedMail {
    /// In order: what was handed out before first.
    pub mail: Vec<Mail>,
    /// There is more than was handed out.
    pub more: bool,
    /// Messages that were too old.
    pub expired: u32,
}

/// A write to a session that was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SessionError {
    /// A higher term was taken.
    #[error("another router has taken the partition")]
    Fenced,
    /// There is no session, or another connection has opened it since.
    #[error("the session is another connection's, or gone")]
    Gone,
    /// Try again: every call can be repeated.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<CommitError> for SessionError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Fenced => Self::Fenced,
            CommitError::Store(error) => Self::Store(error),
        }
    }
}

/// Filters of all sessions of a tenant, as of a change.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FilterTable {
    /// Number of the last change that is in it, 0 for none.
    pub up_to: u64,
    /// By client.
    pub sessions: Vec<(Bytes, SessionFilters)>,
}

/// Changes after a known one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FilterChanges {
    /// All of them, oldest first; None: the client has no session any more.
    Known {
        /// Number of the last one.
        up_to: u64,
        /// Client, and its filters.
        changes: Vec<(Bytes, Option<SessionFilters>)>,
    },
    /// Some are not kept any more: load the table.
    Forgotten,
}

/// Sessions, mailboxes, and the table of filters. Clients are client identifiers.
#[async_trait]
pub trait SessionStore: Send + Sync + 'static {
    /// Opens the client's session for the connection with this epoch, or creates one whose incarnation is that epoch. From
    /// now on, other connections' steps are refused.
    async fn open_session(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        epoch: Epoch,
        expiry_ms: u64,
    ) -> Result<OpenedSession, SessionError>;

    /// Ends a session with its mailbox; returns its incarnation, None when there was none.
    async fn wipe_session(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
    ) -> Result<Option<u64>, SessionError>;

    /// Replaces the filters of a session; returns them with their incarnation and version.
    async fn set_filters(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        epoch: Epoch,
        filters: &[SessionFilter],
    ) -> Result<SessionFilters, SessionError>;

    /// Appends mail, in order, from entries of the partition `source` of the same tenant. Entries that were looked at
    /// before are left out: all mail of an entry for a client is given at once.
    async fn append_mail(
        &self,
        partition: &PartitionKey,
        client: &[u8],
        incarnation: u64,
        source: u32,
        mail: &[NewMail],
        limits: MailLimits,
    ) -> Result<Appended, StoreError>;

    /// Removes what is acknowledged and hands out what is next.
    async fn step_mail(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        epoch: Epoch,
        step: &MailStep,
    ) -> Result<SteppedMail, SessionError>;

    /// What there is of a client's session; None: it has none. No promise beyond the moment.
    async fn session_state(
        &self,
        partition: &PartitionKey,
        client: &[u8],
    ) -> Result<Option<SessionState>, StoreError>;

    /// Puts a session's filters into the tenant's table, unless a later version is there. Returns the number of the
    /// table's last change.
    async fn publish_filters(
        &self,
        tenant: &TenantName,
        client: &[u8],
        filters: &SessionFilters,
    ) -> Result<u64, StoreError>;

    /// Removes an incarnation from the table. Returns the number of the table's last change.
    async fn withdraw_filters(
        &self,
        tenant: &TenantName,
        client: &[u8],
        incarnation: u64,
    ) -> Result<u64, StoreError>;

    /// The whole table.
    async fn filter_table(&self, tenant: &TenantName) -> Result<FilterTable, StoreError>;

    /// What has changed in the table.
    async fn filter_changes(&self, tenant: &TenantName, after: u64) -> Result<FilterChanges, StoreError>;
}
