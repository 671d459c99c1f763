//! Follows key ranges: lists them, then watches from the listed revision on, for ever. What the keys mean is the
//! [`View`]'s business. While etcd is away the view stays as it is; after a lost watch, or one whose start was compacted,
//! everything is listed anew.

use std::{sync::Arc, time::Duration};

use etcd_client::{
    Error, EventType, GetOptions, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchResponse, WatchStream,
};
use tokio::time::{sleep, timeout};

use super::connection::{CALL_DEADLINE, CallError, Connection, kv_client, watch_client};

/// A watch silent this long is asked for its progress; silent as long again, it is dead.
const SILENCE: Duration = Duration::from_secs(2);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What is made of the followed keys.
pub(super) trait View: Send + 'static {
    /// Forget everything: a listing follows.
    fn clear(&mut self);
    /// A key has this value, or none any more.
    fn change(&mut self, key: &str, value: Option<&[u8]>);
    /// All changes up to this revision were told: show them.
    fn publish(&mut self, revision: i64);
}

/// Never returns. `prefixes` are watched over one stream.
pub(super) async fn follow(connection: Arc<Connection>, prefixes: Vec<String>, mut view: impl View) {
    let mut pause = PAUSE_MIN;
    loop {
        match list(&connection, &prefixes, &mut view).await {
            Ok(revision) => {
                pause = PAUSE_MIN;
                let end = watch(&connection, &prefixes, revision, &mut view).await;
                tracing::debug!(reason = %end, ?prefixes, "watch ended; listing anew");
            }
            Err(error) => tracing::debug!(%error, ?prefixes, "etcd can't be listed"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// All ranges as of one revision.
async fn list(connection: &Connection, prefixes: &[String], view: &mut impl View) -> Result<i64, CallError> {
    let gets = || -> Vec<TxnOp> {
        let get = |prefix: &String| TxnOp::get(prefix.as_str(), Some(GetOptions::new().with_prefix()));
        prefixes.iter().map(get).collect()
    };
    let read = |client| async move { kv_client(&client).txn(Txn::new().and_then(gets())).await };
    let response = connection.call(read).await?.value;
    let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
    view.clear();
    for range in response.op_responses() {
        let TxnOpResponse::Get(range) = range else { continue };
        for kv in range.kvs() {
            if let Ok(key) = kv.key_str() {
                view.change(key, Some(kv.value()));
            }
        }
    }
    view.publish(revision);
    Ok(revision)
}

/// Until the watch ends, for the reason that is returned.
async fn watch(
    connection: &Connection,
    prefixes: &[String],
    mut revision: i64,
    view: &mut impl View,
) -> String {
    let Some(lent) = connection.lend() else { return "no endpoint".to_owned() };
    let opened = timeout(CALL_DEADLINE, open(&lent.client, prefixes, revision + 1)).await;
    let (reason, silent) = match opened {
        Ok(Ok(mut stream)) => loop {
            match next(&mut stream).await {
                Ok(Some(response)) => {
                    if let Err(reason) = take(&response, &mut revision, view) {
                        return reason;
                    }
                }
                Ok(None) => break ("silent".to_owned(), true),
                Err(error) => break (error.to_string(), false),
            }
        },
        Ok(Err(error)) => (error.to_string(), false),
        Err(_) => ("not opened in time".to_owned(), true),
    };
    connection.complain(&lent, silent).await;
    reason
}

async fn open(client: &etcd_client::Client, prefixes: &[String], from: i64) -> Result<WatchStream, Error> {
    let options = || {
        let options = WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify();
        Some(options.with_fragment())
    };
    let mut rest = prefixes.iter();
    let Some(first) = rest.next() else { return Err(Error::InvalidArgs("nothing to watch".to_owned())) };
    let mut stream = watch_client(client).watch(first.as_str(), options()).await?;
    for prefix in rest {
        stream.watch(prefix.as_str(), options()).await?;
    }
    Ok(stream)
}

/// The next message; None when the stream is dead though not closed.
async fn next(stream: &mut WatchStream) -> Result<Option<WatchResponse>, Error> {
    for _ in 0..2 {
        match timeout(SILENCE, stream.message()).await {
            Ok(Ok(Some(response))) => return Ok(Some(response)),
            Ok(Ok(None)) => return Err(Error::WatchError("closed".to_owned())),
            Ok(Err(error)) => return Err(error),
            Err(_) => timeout(SILENCE, stream.request_progress())
                .await
                .unwrap_or_else(|_| Err(Error::WatchError("stuck".to_owned())))?,
        }
    }
    Ok(None)
}

fn take(response: &WatchResponse, revision: &mut i64, view: &mut impl View) -> Result<(), String> {
    if response.canceled() {
        return Err(format!(
            "canceled: {} (compacted {})",
            response.cancel_reason(),
            response.compact_revision()
        ));
    }
    for event in response.events() {
        let Some(kv) = event.kv() else { continue };
        let Ok(key) = kv.key_str() else { continue };
        let value = (event.event_type() == EventType::Put).then(|| kv.value());
        view.change(key, value);
        *revision = (*revision).max(kv.mod_revision());
    }
    if !response.events().is_empty() {
        view.publish(*revision);
    }
    Ok(())
}
