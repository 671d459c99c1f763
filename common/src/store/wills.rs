//! Wills in the store: kept in the slot of their client's partition, beside its log, so that appending one to the log and
//! removing it is one step.
//!
//! Invariants of every backend:
//! * All changes of a call are made, in order, or none: under the term, as appends are.
//! * A will that fires is removed in the same step, so each fires at most once; what is not of the epoch that is named
//!   stays untouched.
//! * A call whose answer was lost may be repeated under the next term: so none may fire a will that it keeps itself.

use async_trait::async_trait;
use bytes::Bytes;

use super::{AppendError, StoreError, Totals};
use crate::{
    clock::UnixMillis,
    epoch::Epoch,
    name::PartitionKey,
    position::{EntryId, Term},
};

/// One change of the wills of a partition. A client has one will at most.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WillChange {
    /// Keeps a will, in the place of any other of the client.
    Keep {
        /// Whose.
        client: Bytes,
        /// Names the connection.
        epoch: Epoch,
        /// Incarnation of the gateway that has the connection.
        gateway: u64,
        /// What is appended when it fires: an encoded `Record`.
        record: Bytes,
    },
    /// Appends the client's will to the log and removes it, if it is of this epoch.
    Fire {
        /// Whose.
        client: Bytes,
        /// Names the connection.
        epoch: Epoch,
    },
    /// Removes the client's will, if it is of this epoch.
    Drop {
        /// Whose.
        client: Bytes,
        /// Names the connection.
        epoch: Epoch,
    },
}

/// Changes that are made together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WillChanges {
    /// In order. What fires becomes one entry: the caller bounds its size.
    pub changes: Vec<WillChange>,
    /// Totals at the last stored entry.
    pub before: Totals,
    /// Of the entry, milliseconds since 1970.
    pub received_at: UnixMillis,
    /// Added behind each record that fires; the later one of two values of a protobuf field counts.
    pub suffix: Bytes,
}

/// What became of changes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ChangedWills {
    /// For each change, whether it appended a will.
    pub fired: Vec<bool>,
    /// The entry, if any fired, and totals with it.
    pub entry: Option<(EntryId, Totals)>,
}

/// A will that is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldWill {
    /// Whose.
    pub client: Bytes,
    /// Names the connection.
    pub epoch: Epoch,
    /// Incarnation of the gateway that has, or had, the connection.
    pub gateway: u64,
    /// Bytes of its record.
    pub bytes: usize,
}

/// Wills by partition and client identifier.
#[async_trait]
pub trait WillStore: Send + Sync + 'static {
    /// Changes wills under a term.
    async fn change_wills(
        &self,
        partition: &PartitionKey,
        term: Term,
        changes: &WillChanges,
    ) -> Result<ChangedWills, AppendError>;

    /// All wills of the partition, in no order.
    async fn wills(&self, partition: &PartitionKey) -> Result<Vec<HeldWill>, StoreError>;

    /// Whether the partition has any.
    async fn any_wills(&self, partition: &PartitionKey) -> Result<bool, StoreError>;
}
