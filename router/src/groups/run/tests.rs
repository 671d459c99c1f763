//! The task of one group over a home whose first read is held up. The clock is paused: time passes only when nothing else
//! can happen.
#![allow(clippy::unwrap_used)]

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use penstock_common::{
    clock::Seams,
    name::{PartitionKey, TenantName},
    position::{EntryId, Term},
    registry::{Definitions, GroupOptions, GroupStart, Limits, Tenant, TenantDefinition},
    store::{CursorChange, CursorStart, Cursors, Durability, Entry, Totals, embedded::EmbeddedStore},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{groups::served::Joining, holdings::Holdings};

/// A log whose first read has begun, and goes on when it is told to.
struct Slow {
    key: PartitionKey,
    log: Mutex<Vec<Arc<StoredEntry>>>,
    last: watch::Sender<EntryId>,
    held_up: AtomicBool,
    began: Notify,
    go_on: Notify,
    lost: CancellationToken,
}

#[async_trait]
impl PartitionHome for Slow {
    fn key(&self) -> &PartitionKey {
        &self.key
    }
    fn term(&self) -> Term {
        Term(1)
    }
    fn last(&self) -> watch::Receiver<EntryId> {
        self.last.subscribe()
    }
    fn totals(&self) -> Totals {
        Totals::default()
    }
    async fn read(&self, after: EntryId, _: usize, _: usize) -> Result<Vec<Arc<StoredEntry>>, StoreError> {
        let found = self.log.lock().unwrap().iter().filter(|entry| entry.id > after).cloned().collect();
        if !self.held_up.swap(true, Ordering::AcqRel) {
            self.began.notify_one();
            self.go_on.notified().await;
        }
        Ok(found)
    }
    async fn commit(&self, _: Vec<CursorChange>) -> Result<(), CommitError> {
        Ok(())
    }
    async fn cursors(&self) -> Result<Cursors, StoreError> {
        Ok(Cursors { groups: [("g".to_owned(), GroupCursor::default())].into(), ..Cursors::default() })
    }
    async fn seek(&self, _: &str, _: CursorStart) -> Result<(), CommitError> {
        Ok(())
    }
    async fn append_for(&self, _: u64, _: bytes::Bytes, _: u32) -> Result<(), StoreError> {
        Ok(())
    }
    fn lost(&self) -> &CancellationToken {
        &self.lost
    }
}

fn definitions(tenant: &TenantName) -> Definitions {
    let (name, start) = ("g".to_owned(), GroupStart::Earliest);
    let options = GroupOptions::default();
    let group = Group { name: name.clone(), filters: vec![], start, options, active: true, created_at: 1 };
    let settings = Tenant {
        partitions: 1,
        limits: Limits::default(),
        isolation: Default::default(),
        users_version: 0,
        created_at: 1,
    };
    let groups = [(name, Arc::new(group))].into();
    let tenant = TenantDefinition { name: tenant.clone(), tenant: settings, groups };
    Definitions { tenants: [(tenant.name.clone(), Arc::new(tenant))].into() }
}

#[tokio::test(start_paused = true)]
async fn what_is_appended_while_a_read_is_under_way_is_read_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let tenant = TenantName::new("demo").unwrap();
    let (_defined, defined) = watch::channel(Arc::new(definitions(&tenant)));
    let store = EmbeddedStore::open(dir.path(), Durability::Memory).unwrap();
    let serving = Serving::new(store, defined, Seams::real(), Arc::new(Holdings::default()));
    let slow = Arc::new(Slow {
        key: PartitionKey { tenant, partition: 0 },
        log: Mutex::default(),
        last: watch::Sender::default(),
        held_up: AtomicBool::default(),
        began: Notify::new(),
        go_on: Notify::new(),
        lost: CancellationToken::new(),
    });
    let home: Arc<dyn PartitionHome> = slow.clone();
    let joining = Joining { consumer: 1, credit: 10, ack_timeout_ms: 60_000 };
    let mut served = serving.join(&home, "g", joining).await.unwrap();
    slow.began.notified().await;
    let entry = Entry {
        records: bytes::Bytes::from_static(&[0x0a, 0]),
        segments: vec![],
        count: 1,
        first_received_at: 1,
        totals: Totals { records: 1, bytes: 2 },
    };
    let id = EntryId::new(1, 1);
    slow.log.lock().unwrap().push(Arc::new(StoredEntry { id, entry }));
    slow.last.send_replace(id);
    // Passes once the task has seen the append.
    tokio::time::sleep(POLL_EVERY / 10).await;
    let since = Instant::now();
    slow.go_on.notify_one();
    assert_eq!(served.next().await.unwrap().sequence, 1);
    assert!(since.elapsed() < POLL_EVERY / 2, "only the poll found it");
}
