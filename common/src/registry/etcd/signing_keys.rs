//! The keys that sign tokens, in one key of etcd: followed from the first question on (gateways never ask), replaced only
//! when nobody else came between.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp, TxnOpResponse};
use tokio::sync::watch;

use super::{
    connection::{Connection, kv_client},
    follow::View,
    unavailable,
};
use crate::registry::{RegistryError, SigningKeys};

/// What is followed.
pub(super) type Shown = watch::Sender<Option<Arc<SigningKeys>>>;

/// Kept from the watch.
pub(super) struct SigningKeysView {
    key: String,
    shown: Shown,
    current: SigningKeys,
}

impl SigningKeysView {
    pub fn new(key: String, shown: Shown) -> Self {
        Self { key, shown, current: SigningKeys::default() }
    }
}

impl View for SigningKeysView {
    fn clear(&mut self) {
        self.current = SigningKeys::default();
    }

    fn change(&mut self, key: &str, value: Option<&[u8]>) {
        if key != self.key {
            return;
        }
        match value.map(serde_json::from_slice) {
            None => self.current = SigningKeys::default(),
            Some(Ok(keys)) => self.current = keys,
            // The error would quote what is there: only its place is told.
            Some(Err(error)) => tracing::error!(
                line = error.line(),
                column = error.column(),
                "etcd holds unreadable signing keys: tokens of the door can't be checked"
            ),
        }
    }

    fn publish(&mut self, _: i64) {
        self.shown.send_if_modified(|shown| {
            let changed = shown.as_deref() != Some(&self.current);
            if changed {
                *shown = Some(Arc::new(self.current.clone()));
            }
            changed
        });
    }
}

/// Replaces `seen` with `next`, atomically.
pub(super) async fn replace(
    connection: &Connection,
    key: &str,
    seen: &SigningKeys,
    next: &SigningKeys,
) -> Result<(), RegistryError> {
    let (seen, next) = (if seen.keys.is_empty() { None } else { Some(encode(seen)?) }, encode(next)?);
    let call = |client| {
        let unchanged = match &seen {
            None => Compare::create_revision(key, CompareOp::Equal, 0),
            Some(seen) => Compare::value(key, CompareOp::Equal, seen.clone()),
        };
        let txn = Txn::new()
            .when([unchanged])
            .and_then([TxnOp::put(key, next.clone(), None)])
            .or_else([TxnOp::get(key, None::<GetOptions>)]);
        async move { kv_client(&client).txn(txn).await }
    };
    let answer = connection.call(call).await.map_err(|error| unavailable(&error))?;
    let ours = || match answer.value.op_responses().first() {
        Some(TxnOpResponse::Get(get)) => get.kvs().first().is_some_and(|kv| kv.value() == next),
        _ => false,
    };
    // After a doubtful attempt what is there may be our own doing.
    if answer.value.succeeded() || (answer.doubted && ours()) {
        return Ok(());
    }
    Err(RegistryError::Exists("another list of signing keys".to_owned()))
}

fn encode(keys: &SigningKeys) -> Result<Vec<u8>, RegistryError> {
    serde_json::to_vec(keys).map_err(|error| RegistryError::Corrupt(error.to_string()))
}
