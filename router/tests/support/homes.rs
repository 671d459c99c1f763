//! Homes that only append: what doors and groups stand on in their tests, without links and lanes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use penstock_common::{
    name::{PartitionKey, TenantName},
    position::{EntryId, Term},
    registry::Members,
    store::{
        CommitError, CursorChange, CursorStart, Cursors, Entry, Segment, Store, StoreError, StoredEntry,
        Totals,
    },
};
use penstock_proto::{
    admin::{ClientStatus, ClientSummary},
    messaging::{PushReceipt, PushRequest, ReceiptStatus},
    record::{Record, RecordBatch},
};
use penstock_router::{
    clients::Page,
    groups::home::{Homes, PartitionHome},
    intake::Handed,
};
use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub struct TestHome {
    pub key: PartitionKey,
    pub term: Term,
    pub store: Arc<dyn Store>,
    pub last: watch::Sender<EntryId>,
    pub totals: Mutex<Totals>,
    pub lost: CancellationToken,
    /// Somebody has read through the home.
    pub read: AtomicBool,
}

impl TestHome {
    pub async fn append(&self, records: Vec<Record>) -> EntryId {
        let count = u32::try_from(records.len()).unwrap();
        self.append_entry(RecordBatch { records }.encode_to_vec().into(), vec![], count).await
    }

    async fn append_entry(&self, bytes: Bytes, segments: Vec<Segment>, count: u32) -> EntryId {
        let mut totals = *self.totals.lock().unwrap();
        totals.records += u64::from(count);
        totals.bytes += bytes.len() as u64;
        let entry = Entry { records: bytes, segments, count, first_received_at: 1, totals };
        let id = self.store.append(&self.key, self.term, &entry).await.unwrap();
        *self.totals.lock().unwrap() = totals;
        self.last.send_replace(id);
        id
    }
}

#[async_trait]
impl PartitionHome for TestHome {
    fn key(&self) -> &PartitionKey {
        &self.key
    }
    fn term(&self) -> Term {
        self.term
    }
    fn last(&self) -> watch::Receiver<EntryId> {
        self.last.subscribe()
    }
    fn totals(&self) -> Totals {
        *self.totals.lock().unwrap()
    }
    async fn read(
        &self,
        after: EntryId,
        entries: usize,
        bytes: usize,
    ) -> Result<Vec<Arc<StoredEntry>>, StoreError> {
        self.read.store(true, Ordering::Relaxed);
        let read = self.store.read(&self.key, after, entries, bytes).await?;
        Ok(read.into_iter().map(Arc::new).collect())
    }
    async fn commit(&self, changes: Vec<CursorChange>) -> Result<(), CommitError> {
        let committed = self.store.commit(&self.key, self.term, &changes).await;
        if matches!(committed, Err(CommitError::Fenced)) {
            self.lost.cancel();
        }
        committed
    }
    async fn cursors(&self) -> Result<Cursors, StoreError> {
        self.store.cursors(&self.key).await
    }
    async fn seek(&self, group: &str, to: CursorStart) -> Result<(), CommitError> {
        self.store.seek(&self.key, self.term, group, to).await
    }
    async fn append_for(&self, group: u64, records: Bytes, count: u32) -> Result<(), StoreError> {
        self.append_entry(records, vec![Segment::only_for(group, count)], count).await;
        Ok(())
    }
    fn lost(&self) -> &CancellationToken {
        &self.lost
    }
}

pub struct TestHomes {
    pub incarnation: u64,
    pub store: Arc<dyn Store>,
    pub members: Arc<Mutex<Arc<Members>>>,
    pub table: tokio::sync::Mutex<()>,
    pub homes: Mutex<BTreeMap<PartitionKey, Arc<TestHome>>>,
    pub pushed: Mutex<Vec<PushRequest>>,
}

impl TestHomes {
    pub fn here(&self, key: &PartitionKey) -> Option<Arc<TestHome>> {
        let home = self.homes.lock().unwrap().get(key).cloned()?;
        (!home.lost.is_cancelled()).then_some(home)
    }

    pub async fn take(&self, key: &PartitionKey) -> Result<Arc<TestHome>, StoreError> {
        let _one = self.table.lock().await;
        if let Some(home) = self.here(key) {
            return Ok(home);
        }
        let took = self.store.take(key, self.incarnation).await?;
        let home = Arc::new(TestHome {
            key: key.clone(),
            term: took.term,
            store: Arc::clone(&self.store),
            last: watch::Sender::new(took.last),
            totals: Mutex::new(took.totals),
            lost: CancellationToken::new(),
            read: AtomicBool::default(),
        });
        self.homes.lock().unwrap().insert(key.clone(), Arc::clone(&home));
        Ok(home)
    }
}

#[async_trait]
impl Homes for TestHomes {
    fn get(&self, key: &PartitionKey) -> Option<Arc<dyn PartitionHome>> {
        self.here(key).map(|home| home as Arc<dyn PartitionHome>)
    }
    async fn open(&self, key: &PartitionKey) -> Result<Arc<dyn PartitionHome>, StoreError> {
        self.take(key).await.map(|home| home as Arc<dyn PartitionHome>)
    }
    async fn push(&self, _: &TenantName, request: PushRequest, _: &Handed) -> PushReceipt {
        let receipt =
            PushReceipt { id: request.id, status: ReceiptStatus::Routed.into(), ..PushReceipt::default() };
        self.pushed.lock().unwrap().push(request);
        receipt
    }
    fn taken(&self, key: &PartitionKey, term: Term) {
        if let Some(home) = self.here(key).filter(|home| home.term < term) {
            home.lost.cancel();
        }
    }
    fn members(&self) -> Arc<Members> {
        self.members.lock().unwrap().clone()
    }
    fn registered(&self) -> Arc<Members> {
        self.members()
    }
    fn incarnation(&self) -> u64 {
        self.incarnation
    }
    async fn follow_filters(&self, _: &TenantName) -> Result<(), StoreError> {
        Ok(())
    }
    fn connected(&self, _: &TenantName, _: &Page) -> Vec<ClientSummary> {
        vec![]
    }
    async fn with_session(&self, _: &TenantName, _: &Page) -> Result<Vec<ClientSummary>, StoreError> {
        Ok(vec![])
    }
    async fn client(&self, _: &TenantName, client: &Bytes, _: bool) -> ClientStatus {
        ClientStatus { client: String::from_utf8_lossy(client).into_owned(), ..ClientStatus::default() }
    }
    fn links(&self) -> Vec<penstock_proto::admin::LinkStatus> {
        vec![]
    }
}
