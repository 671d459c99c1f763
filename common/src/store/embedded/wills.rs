//! Wills, as the committer keeps them: who has one is in memory, the records are read from disk when they fire.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use hashbrown::HashMap;

use super::{
    EmbeddedStore,
    disk::{Disk, corrupt, encode_entry, failed},
    keys,
    machine::Machine,
};
use crate::{
    epoch::Epoch,
    name::{PartitionKey, TenantName},
    position::Term,
    store::{
        AppendError, ChangedWills, Entry, HeldWill, StoreError, Totals, WillChange, WillChanges, WillStore,
        encoding::{self, Reader},
    },
};

/// Epoch and gateway before the record.
const HEAD_BYTES: usize = 16;

struct Held {
    epoch: Epoch,
    gateway: u64,
    bytes: usize,
    /// Write of the committer in which it was kept.
    kept_in: u64,
}

/// All wills of the store.
#[derive(Default)]
pub(super) struct Wills(HashMap<PartitionKey, BTreeMap<Bytes, Held>>);

impl Wills {
    /// Reads what is stored.
    pub(super) fn load(disk: &Disk) -> Result<Self, StoreError> {
        let mut wills = Self::default();
        for item in disk.wills.iter() {
            let (key, value) = item.into_inner().map_err(failed)?;
            let (partition, client) =
                keys::client_of_session(&key).ok_or_else(|| corrupt("a key of a will"))?;
            let (epoch, gateway, record) = decode(&value).ok_or_else(|| corrupt("a will"))?;
            let held = Held { epoch, gateway, bytes: record.len(), kept_in: 0 };
            wills.0.entry(partition).or_default().insert(client, held);
        }
        Ok(wills)
    }

    /// A tenant is gone.
    pub(super) fn forget(&mut self, tenant: &TenantName) {
        self.0.retain(|key, _| key.tenant != *tenant);
    }
}

fn decode(value: &[u8]) -> Option<(Epoch, u64, &[u8])> {
    let mut reader = Reader(value);
    Some((Epoch(reader.u64()?), reader.u64()?, reader.0))
}

impl Machine {
    pub(super) fn change_wills(
        &mut self,
        key: &PartitionKey,
        term: Term,
        changes: &WillChanges,
    ) -> Result<ChangedWills, AppendError> {
        self.held(key, term).ok_or(AppendError::Fenced)?;
        // Before anything is removed: what fires leaves the slot and enters the log in one batch.
        if self.fires_unwritten(key, changes) {
            self.settle().map_err(doubt)?;
        }
        let (mut records, mut count, mut changed) = (Vec::new(), 0u32, ChangedWills::default());
        for change in &changes.changes {
            let fires = match change {
                WillChange::Keep { client, epoch, gateway, record } => {
                    self.keep_will(key, client, (*epoch, *gateway), record);
                    None
                }
                WillChange::Fire { client, epoch } => {
                    self.remove_will(key, client, *epoch, true).map_err(doubt)?
                }
                WillChange::Drop { client, epoch } => {
                    self.remove_will(key, client, *epoch, false).map_err(doubt)?
                }
            };
            changed.fired.push(fires.is_some());
            if let Some(record) = fires {
                encoding::put_frame(&mut records, &[&record, &changes.suffix]);
                count += 1;
            }
        }
        if count > 0 {
            let totals = Totals {
                records: changes.before.records + u64::from(count),
                bytes: changes.before.bytes + records.len() as u64,
            };
            let (records, first_received_at) = (Bytes::from(records), changes.received_at);
            let entry = Entry { records, segments: Vec::new(), count, first_received_at, totals };
            changed.entry = Some((self.append(key, term, totals, encode_entry(&entry))?, totals));
        }
        Ok(changed)
    }

    /// Whether any that fires is not on disk yet.
    fn fires_unwritten(&self, key: &PartitionKey, changes: &WillChanges) -> bool {
        let Some(all) = self.wills.0.get(key) else { return false };
        let unwritten = |client| all.get(client).is_some_and(|held: &Held| held.kept_in == self.writes);
        changes
            .changes
            .iter()
            .any(|change| matches!(change, WillChange::Fire { client, .. } if unwritten(client)))
    }

    fn keep_will(
        &mut self,
        key: &PartitionKey,
        client: &Bytes,
        (epoch, gateway): (Epoch, u64),
        record: &[u8],
    ) {
        let mut value = Vec::with_capacity(HEAD_BYTES + record.len());
        value.extend_from_slice(&epoch.0.to_le_bytes());
        value.extend_from_slice(&gateway.to_le_bytes());
        value.extend_from_slice(record);
        self.batch_bytes += value.len();
        self.batch.insert(&self.disk.wills, keys::session(key, client), value);
        let held = Held { epoch, gateway, bytes: record.len(), kept_in: self.writes };
        self.wills.0.entry(key.clone()).or_default().insert(client.clone(), held);
    }

    /// Removes a will of this epoch; returns its record if that is `wanted`.
    fn remove_will(
        &mut self,
        key: &PartitionKey,
        client: &Bytes,
        epoch: Epoch,
        wanted: bool,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let of_partition = self.wills.0.get_mut(key);
        let held = of_partition.and_then(|all| all.get(client)).filter(|held| held.epoch == epoch);
        if held.is_none() {
            return Ok(None);
        }
        let disk_key = keys::session(key, client);
        let mut record = None;
        if wanted {
            let value = self.disk.wills.get(&disk_key).map_err(failed)?.ok_or_else(|| corrupt("a will"))?;
            record = Some(decode(&value).ok_or_else(|| corrupt("a will"))?.2.to_vec());
        }
        self.batch.remove(&self.disk.wills, disk_key);
        if let Some(all) = self.wills.0.get_mut(key) {
            all.remove(client);
            if all.is_empty() {
                self.wills.0.remove(key);
            }
        }
        Ok(record)
    }

    pub(super) fn wills(&self, key: &PartitionKey) -> Vec<HeldWill> {
        let held = |(client, held): (&Bytes, &Held)| HeldWill {
            client: client.clone(),
            epoch: held.epoch,
            gateway: held.gateway,
            bytes: held.bytes,
        };
        self.wills.0.get(key).into_iter().flatten().map(held).collect()
    }
}

#[async_trait]
impl WillStore for EmbeddedStore {
    async fn change_wills(
        &self,
        partition: &PartitionKey,
        term: Term,
        changes: &WillChanges,
    ) -> Result<ChangedWills, AppendError> {
        let (key, changes) = (partition.clone(), changes.clone());
        let bytes = |change: &WillChange| match change {
            WillChange::Keep { record, .. } => record.len(),
            WillChange::Fire { .. } | WillChange::Drop { .. } => 0,
        };
        let bytes = changes.changes.iter().map(bytes).sum();
        self.submit(bytes, move |machine| machine.change_wills(&key, term, &changes)).await?
    }

    async fn wills(&self, partition: &PartitionKey) -> Result<Vec<HeldWill>, StoreError> {
        let key = partition.clone();
        Ok(self.submit(0, move |machine| machine.wills(&key)).await?)
    }

    async fn any_wills(&self, partition: &PartitionKey) -> Result<bool, StoreError> {
        Ok(!self.wills(partition).await?.is_empty())
    }
}

fn doubt(error: StoreError) -> AppendError {
    AppendError::Lost(error.to_string())
}
