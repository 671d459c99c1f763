//! What groups and doors ask of homes: one partition's home on this router, and the table of them. Traits, so that groups
//! and doors are tested without links and lanes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use penstock_common::{
    name::{PartitionKey, TenantName},
    position::{EntryId, Term},
    registry::Members,
    store::{CommitError, CursorChange, CursorStart, Cursors, StoreError, StoredEntry, Totals},
};
use penstock_proto::{
    admin::{ClientStatus, ClientSummary, LinkStatus},
    messaging::{PushReceipt, PushRequest},
    peer::HeldHere,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{clients::Page, intake::Handed};

/// The home of one partition, on this router. It survives a reconnect to the store by the same router: the term rises, the
/// state stays.
#[async_trait]
pub trait PartitionHome: Send + Sync + 'static {
    /// Which partition.
    fn key(&self) -> &PartitionKey;

    /// The present term.
    fn term(&self) -> Term;

    /// Id of the last stored entry; changes with every append.
    fn last(&self) -> watch::Receiver<EntryId>;

    /// Totals at the last stored entry.
    fn totals(&self) -> Totals;

    /// Entries above `after`, oldest first, from memory or the store: at most `max_entries`, and no more once `max_bytes`
    /// of records are read (at least one if there is one).
    async fn read(
        &self,
        after: EntryId,
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Vec<Arc<StoredEntry>>, StoreError>;

    /// Moves cursors under the present term. `Fenced` with [`Self::lost`] not cancelled: try again, the term has risen.
    async fn commit(&self, changes: Vec<CursorChange>) -> Result<(), CommitError>;

    /// All cursors of the partition.
    async fn cursors(&self) -> Result<Cursors, StoreError>;

    /// Sets a group's cursor anew under the present term.
    async fn seek(&self, group: &str, to: CursorStart) -> Result<(), CommitError>;

    /// Appends a `RecordBatch` that only the group of this number gets. An error means that it may be there all the same.
    async fn append_for(&self, group: u64, records: Bytes, count: u32) -> Result<(), StoreError>;

    /// Cancelled when this router is no longer the home.
    fn lost(&self) -> &CancellationToken;
}

/// Who has records in hand that an earlier home of a partition handed out.
#[async_trait]
pub trait Holders: Send + Sync + 'static {
    /// What consumers of the group hold of the partition, at whichever router they are. From then on they take nothing more
    /// from homes with a term below this one.
    async fn holdings(&self, key: &PartitionKey, group: &str, term: Term) -> HeldHere;
}

/// The homes of this router, and who else is there.
#[async_trait]
pub trait Homes: Send + Sync + 'static {
    /// The home of a partition, if it is here.
    fn get(&self, key: &PartitionKey) -> Option<Arc<dyn PartitionHome>>;

    /// Becomes the home: takes the term unless it is held here.
    async fn open(&self, key: &PartitionKey) -> Result<Arc<dyn PartitionHome>, StoreError>;

    /// Routes a push: for a client whose home is here, or (with an empty client) to all subscribers of the tenant. Says when
    /// it has its place.
    async fn push(&self, tenant: &TenantName, request: PushRequest, handed: &Handed) -> PushReceipt;

    /// Another router has taken the partition under this term: the home here, if its term is lower, is lost.
    fn taken(&self, key: &PartitionKey, term: Term);

    /// Members that are alive by two witnesses.
    fn members(&self) -> Arc<Members>;

    /// Members that the registry names now.
    fn registered(&self) -> Arc<Members>;

    /// This life of this router.
    fn incarnation(&self) -> u64;

    /// Follows the filters of the tenant's sessions to the last change, and makes the fan-out go by them.
    async fn follow_filters(&self, tenant: &TenantName) -> Result<(), StoreError>;

    /// Clients that are connected, of the tenant's partitions whose home this router is.
    fn connected(&self, tenant: &TenantName, page: &Page) -> Vec<ClientSummary>;

    /// Clients of the tenant that have a session, wherever.
    async fn with_session(&self, tenant: &TenantName, page: &Page) -> Result<Vec<ClientSummary>, StoreError>;

    /// What this router knows of a client; with `close`, its connection is closed if this is its home.
    async fn client(&self, tenant: &TenantName, client: &Bytes, close: bool) -> ClientStatus;

    /// Links of this router.
    fn links(&self) -> Vec<LinkStatus>;
}
