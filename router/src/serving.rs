//! What groups and doors see of this router's homes: the traits of [`crate::groups::home`], kept by [`crate::home::Home`]
//! and [`crate::homes::Homes`].

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
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clients::Page,
    groups::home::{Homes, PartitionHome},
    home::Home,
    homes,
    intake::Handed,
};

#[async_trait]
impl PartitionHome for Home {
    fn key(&self) -> &PartitionKey {
        &self.key
    }

    fn term(&self) -> Term {
        Home::term(self)
    }

    fn last(&self) -> watch::Receiver<EntryId> {
        Home::last(self)
    }

    fn totals(&self) -> Totals {
        Home::totals(self)
    }

    async fn read(
        &self,
        after: EntryId,
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Vec<Arc<StoredEntry>>, StoreError> {
        Home::read(self, after, max_entries, max_bytes).await
    }

    async fn commit(&self, changes: Vec<CursorChange>) -> Result<(), CommitError> {
        Home::commit(self, changes).await
    }

    async fn cursors(&self) -> Result<Cursors, StoreError> {
        self.homes.store.cursors(&self.key).await
    }

    async fn seek(&self, group: &str, to: CursorStart) -> Result<(), CommitError> {
        Home::seek(self, group, to).await
    }

    async fn append_for(&self, group: u64, records: Bytes, count: u32) -> Result<(), StoreError> {
        Home::append_for(self, group, records, count).await
    }

    fn lost(&self) -> &CancellationToken {
        Home::lost(self)
    }
}

/// The homes of this router, shared.
pub struct HomesHere(pub Arc<homes::Homes>);

#[async_trait]
impl Homes for HomesHere {
    fn get(&self, key: &PartitionKey) -> Option<Arc<dyn PartitionHome>> {
        self.0.get(key).map(|home| home as Arc<dyn PartitionHome>)
    }

    async fn open(&self, key: &PartitionKey) -> Result<Arc<dyn PartitionHome>, StoreError> {
        self.0.open(key).await.map(|home| home as Arc<dyn PartitionHome>)
    }

    async fn push(&self, tenant: &TenantName, request: PushRequest, handed: &Handed) -> PushReceipt {
        self.0.push(tenant, request, handed).await
    }

    fn taken(&self, key: &PartitionKey, term: Term) {
        if let Some(home) = self.0.get(key).filter(|home| home.term() < term) {
            home.lose("another router has taken the partition");
        }
    }

    fn members(&self) -> Arc<Members> {
        self.0.presence.members()
    }

    fn registered(&self) -> Arc<Members> {
        self.0.presence.registered()
    }

    fn incarnation(&self) -> u64 {
        self.0.incarnation
    }

    async fn follow_filters(&self, tenant: &TenantName) -> Result<(), StoreError> {
        self.0.follow_filters(tenant).await
    }

    fn connected(&self, tenant: &TenantName, page: &Page) -> Vec<ClientSummary> {
        self.0.connected(tenant, page)
    }

    async fn with_session(&self, tenant: &TenantName, page: &Page) -> Result<Vec<ClientSummary>, StoreError> {
        self.0.with_session(tenant, page).await
    }

    async fn client(&self, tenant: &TenantName, client: &Bytes, close: bool) -> ClientStatus {
        self.0.client(tenant, client, close).await
    }

    fn links(&self) -> Vec<LinkStatus> {
        let status = |link: Arc<crate::link::Link>| LinkStatus {
            gateway: link.shard.gateway,
            shard: link.shard.shard,
            silent_ms: u64::try_from(link.silent().as_millis()).unwrap_or(u64::MAX),
        };
        self.0.links.all().into_iter().map(status).collect()
    }
}
