//! Leases: granting, renewing, revoking. Renewals go over clients of their own, so that a burst of claims doesn't delay
//! them. What hangs on a lease, and what to do when one is lost, is its user's business. A lease counts as lost only when
//! etcd says so: silence proves nothing.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt as _;
use tokio::time::timeout;

use super::connection::{CALL_DEADLINE, CallError, Connection};

/// Renewals in flight at a time.
const RENEWALS: usize = 32;

/// Every lease of this process.
pub(super) struct Leases {
    connection: Arc<Connection>,
    ttl: Duration,
    granted: Mutex<HashSet<i64>>,
}

impl Leases {
    /// `connection` is for these leases alone. `ttl` in whole seconds.
    pub fn new(connection: Arc<Connection>, ttl: Duration) -> Self {
        Self { connection, ttl, granted: Mutex::default() }
    }

    /// Time between renewals: several fail before a lease is lost.
    pub fn interval(&self) -> Duration {
        self.ttl / 4
    }

    /// Grants one.
    pub async fn grant(&self) -> Result<i64, CallError> {
        let seconds = i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX);
        let grant =
            |client: etcd_client::Client| async move { client.lease_client().grant(seconds, None).await };
        let lease = self.connection.call(grant).await?.value.id();
        self.granted().insert(lease);
        Ok(lease)
    }

    /// Renews one, once. `LeaseGone` when it is lost.
    pub async fn renew(&self, lease: i64) -> Result<(), CallError> {
        let renew = |client: etcd_client::Client| async move {
            // Sends one renewal and waits for its answer; the stream isn't kept, so no member is held on to.
            client.lease_client().keep_alive(lease).await.map(drop)
        };
        let outcome = self.connection.call(renew).await.map(drop);
        if outcome == Err(CallError::LeaseGone) {
            self.forget(lease);
        }
        outcome
    }

    /// Renews many; those that are lost.
    pub async fn renew_all(&self, leases: Vec<i64>) -> HashSet<i64> {
        let renewals = leases.into_iter().map(|lease| async move { (lease, self.renew(lease).await) });
        let mut outcomes = futures::stream::iter(renewals).buffer_unordered(RENEWALS);
        let mut lost = HashSet::new();
        while let Some((lease, outcome)) = outcomes.next().await {
            match outcome {
                Ok(()) => {}
                Err(CallError::LeaseGone) => {
                    lost.insert(lease);
                }
                Err(error) => tracing::debug!(lease, %error, "lease not renewed"),
            }
        }
        lost
    }

    /// Lets one expire.
    pub fn forget(&self, lease: i64) {
        self.granted().remove(&lease);
    }

    /// Revokes all, as far as the call deadline allows; the rest expire.
    pub async fn revoke_all(&self) {
        let leases: Vec<i64> = self.granted().drain().collect();
        let revocations = leases.into_iter().map(|lease| {
            let revoke =
                move |client: etcd_client::Client| async move { client.lease_client().revoke(lease).await };
            async move { self.connection.call(revoke).await.map(drop) }
        });
        let all = futures::stream::iter(revocations).buffer_unordered(RENEWALS).collect::<Vec<_>>();
        if timeout(CALL_DEADLINE, all).await.is_err() {
            tracing::warn!("etcd did not confirm that this process left; its leases expire by themselves");
        }
    }

    fn granted(&self) -> std::sync::MutexGuard<'_, HashSet<i64>> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
