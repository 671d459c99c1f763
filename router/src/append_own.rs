//! Entries that the home itself puts into the log, for one group alone: dead letters that are handed out again. They are
//! appended between the lane's entries, one at a time, under the same term and with the same running totals.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use penstock_common::store::{AppendError, Entry, Segment, StoreError, StoredEntry, Totals};
use tokio::sync::oneshot;

use crate::home::{Home, lock};

/// Entries that wait; more are refused.
const WAITING: usize = 16;

/// One of them.
pub(crate) struct OwnEntry {
    group: u64,
    records: Bytes,
    count: u32,
    done: oneshot::Sender<Result<(), StoreError>>,
}

impl Home {
    /// Appends a `RecordBatch` that only the group of this number gets. An error means that it may be there all the same.
    pub async fn append_for(&self, group: u64, records: Bytes, count: u32) -> Result<(), StoreError> {
        let (done, stored) = oneshot::channel();
        {
            let mut inner = lock(&self.inner);
            if self.lost().is_cancelled() || inner.own.len() >= WAITING {
                return Err(StoreError::Unavailable("the partition's home is lost or busy".to_owned()));
            }
            inner.own.push_back(OwnEntry { group, records, count, done });
        }
        self.wake.notify_one();
        let lost = || StoreError::Unavailable("the partition's home was lost".to_owned());
        stored.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Appends what waits. False: nothing does.
    pub(crate) async fn fly_own(&self) -> bool {
        let Some(own) = lock(&self.inner).own.pop_front() else { return false };
        let before = lock(&self.inner).lane.totals;
        let (records, bytes) = (u64::from(own.count), own.records.len() as u64);
        let entry = Entry {
            records: own.records,
            segments: vec![Segment::only_for(own.group, own.count)],
            count: own.count,
            first_received_at: self.homes.seams.now_ms(),
            totals: Totals { records: before.records + records, bytes: before.bytes + bytes },
        };
        let stored = match self.homes.store.append(&self.key, self.term(), &entry).await {
            Ok(id) => {
                let mut inner = lock(&self.inner);
                inner.lane.totals = entry.totals;
                inner.appended_since_trim += 1;
                drop(inner);
                if self.is_read() || self.fan_active.load(Ordering::Acquire) {
                    lock(&self.tail).push(Arc::new(StoredEntry { id, entry }));
                } else {
                    lock(&self.tail).reset(id);
                }
                self.is_last(id);
                Ok(())
            }
            Err(AppendError::Refused(reason)) => Err(StoreError::Refused(reason)),
            Err(AppendError::Fenced) => {
                self.lose("another router has taken the partition");
                Err(StoreError::Unavailable("another router has taken the partition".to_owned()))
            }
            Err(error @ (AppendError::Retake | AppendError::Lost(_))) => {
                self.take_again().await;
                Err(StoreError::Unavailable(error.to_string()))
            }
        };
        // Who asked may have gone.
        let _ = own.done.send(stored);
        true
    }
}
