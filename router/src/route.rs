//! Pushes: from a door to the sessions. A push is not in the log; its receipt is the only witness.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use hashbrown::HashSet;
use penstock_common::{
    name::{PartitionKey, TenantName, partition_of},
    rendezvous,
};
use penstock_proto::{
    link::{Push, PushResult, PushStatus},
    messaging::{PushReceipt, PushRequest, ReceiptStatus},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    homes::Homes,
    intake::Handed,
    link::Link,
    owners::Ownership,
    presence,
    push::{MOVING, is_stored},
};

/// Status, clients reached, reason.
pub(crate) type Outcome = (ReceiptStatus, u32, String);

/// How long a shard may take to say that it has handed a push to its session.
const ROUTED_WITHIN: Duration = Duration::from_secs(5);
/// Longest and usual wait for a PUBACK.
const WAIT_MOST: Duration = Duration::from_secs(300);
const WAIT_USUAL: Duration = Duration::from_secs(10);
/// How long a client that no link owns is waited for while not every shard has told its owners.
const ABSENT_WITHIN: Duration = Duration::from_secs(1);
const ABSENT_STEP: Duration = Duration::from_millis(20);

/// Why a push to a client was not done: it may be connected to a gateway that is not heard of.
const UNTOLD: &str = "not every gateway has said who is connected to it: try again";

/// A client that no link owns.
pub(crate) enum Absent {
    /// This router is not the home of its partition.
    Elsewhere,
    /// Every shard has told its owners.
    Certainly,
    /// Some have not.
    Perhaps,
}

impl Homes {
    /// Pushes to a client whose home is here, or to every session with a matching subscription.
    /// Says when the push has its place.
    pub async fn push(
        self: &Arc<Self>,
        tenant: &TenantName,
        request: PushRequest,
        handed: &Handed,
    ) -> PushReceipt {
        let wait = match (request.wait && request.qos > 0, request.wait_ms) {
            (false, _) => Duration::ZERO,
            (true, 0) => WAIT_USUAL,
            (true, millis) => Duration::from_millis(u64::from(millis)).min(WAIT_MOST),
        };
        let id = request.id;
        let (status, clients, reason) = if request.client.is_empty() {
            self.push_to_all(tenant, request, handed).await
        } else if is_stored(&request) {
            self.push_stored(tenant, request, wait, handed).await
        } else {
            self.push_to_client(tenant, request, wait, handed).await
        };
        PushReceipt { id, status: status.into(), clients, reason }
    }

    pub(crate) async fn push_to_client(
        &self,
        tenant: &TenantName,
        request: PushRequest,
        wait: Duration,
        handed: &Handed,
    ) -> Outcome {
        let Some(defined) = self.tenant(tenant) else {
            return refused("the tenant does not exist");
        };
        let partition = partition_of(request.client.as_bytes(), defined.tenant.partitions);
        let key = PartitionKey { tenant: tenant.clone(), partition };
        let owner = match self.owner(&key, request.client.as_bytes()).await {
            Ok(owner) => owner,
            Err(Absent::Elsewhere) => return refused(MOVING),
            Err(Absent::Certainly) => return (ReceiptStatus::NotConnected, 0, String::new()),
            Err(Absent::Perhaps) => return refused(UNTOLD),
        };
        let client = bytes::Bytes::from(request.client.into_bytes());
        let push = Push {
            id: 0,
            tenant: tenant.to_string(),
            client,
            epoch: owner.epoch.0,
            topic: request.topic.into_bytes().into(),
            payload: request.payload,
            qos: request.qos,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        };
        let deadline = Instant::now() + ROUTED_WITHIN.max(wait);
        let Ok(sent) = owner.link.push(push) else {
            return refused("the gateway has too many pushes under way, or is gone: try again");
        };
        handed.over();
        match timeout_at(deadline, sent).await.ok().and_then(Result::ok) {
            Some(result) => receipt(result),
            None if wait.is_zero() => (ReceiptStatus::NotConnected, 0, String::new()),
            None => (ReceiptStatus::Expired, 0, "no PUBACK was seen in time".to_owned()),
        }
    }

    /// Whether another router is the home by the members that this one knows.
    pub(crate) fn is_named_elsewhere(&self, key: &PartitionKey) -> bool {
        let named = rendezvous::home(key, self.presence.members().routers.keys().copied());
        named.is_some_and(|named| named != self.incarnation)
    }

    /// The owner, waiting a little while some shard may not have told it.
    pub(crate) async fn owner(
        &self,
        key: &PartitionKey,
        client: &[u8],
    ) -> Result<Ownership<Arc<Link>>, Absent> {
        let deadline = Instant::now() + ABSENT_WITHIN;
        loop {
            let home = self.get(key);
            if let Some(owner) = home.as_ref().and_then(|home| home.owner(client)) {
                return Ok(owner);
            }
            // Shards that have moved on, or are about to come, say nothing of it here: a home that is to be another router's
            // never knows that a client is absent.
            let elsewhere = self.is_named_elsewhere(key);
            if elsewhere && home.is_none() {
                return Err(Absent::Elsewhere);
            }
            if !elsewhere && self.absence_is_certain() {
                return Err(Absent::Certainly);
            }
            if Instant::now() >= deadline {
                return Err(Absent::Perhaps);
            }
            tokio::time::sleep(ABSENT_STEP).await;
        }
    }

    /// Every shard that is alive has told this router all its owners, for the routers that there are now.
    fn absence_is_certain(&self) -> bool {
        let view = presence::view(self);
        self.presence.shards().iter().all(|shard| {
            let synced = |link: Arc<Link>| {
                link.synced.load(std::sync::atomic::Ordering::Acquire) == view && !link.opens_lanes()
            };
            self.links.shard(shard).is_some_and(synced)
        })
    }

    async fn push_to_all(&self, tenant: &TenantName, request: PushRequest, handed: &Handed) -> Outcome {
        let mut links = HashSet::new();
        self.interest.matches(tenant, &[request.topic.as_bytes()], |_, link| {
            links.insert(link);
        });
        let deadline = Instant::now() + ROUTED_WITHIN;
        let topic = bytes::Bytes::from(request.topic.into_bytes());
        let mut results: FuturesUnordered<_> = links
            .into_iter()
            .filter_map(|number| self.links.number(number))
            .map(|link| {
                let push = Push {
                    id: 0,
                    tenant: tenant.to_string(),
                    client: bytes::Bytes::new(),
                    epoch: 0,
                    topic: topic.clone(),
                    payload: request.payload.clone(),
                    qos: request.qos,
                    wait_ms: 0,
                };
                let sent = link.push(push);
                async move { timeout_at(deadline, sent.ok()?).await.ok()?.ok() }
            })
            .collect();
        handed.over();
        let (mut clients, mut silent) = (0, 0);
        while let Some(result) = results.next().await {
            match result {
                Some(result) => clients += result.count,
                None => silent += 1,
            }
        }
        match (clients, silent) {
            (0, 0) => (ReceiptStatus::NotSubscribed, 0, String::new()),
            (clients, 0) => (ReceiptStatus::Routed, clients, String::new()),
            (clients, silent) => (ReceiptStatus::Routed, clients, format!("{silent} shards did not answer")),
        }
    }
}

pub(crate) fn refused(reason: &str) -> Outcome {
    (ReceiptStatus::Refused, 0, reason.to_owned())
}

fn receipt(result: PushResult) -> Outcome {
    let status = match result.status() {
        PushStatus::Routed => ReceiptStatus::Routed,
        PushStatus::Delivered => ReceiptStatus::Delivered,
        PushStatus::NotConnected => ReceiptStatus::NotConnected,
        PushStatus::NotSubscribed => ReceiptStatus::NotSubscribed,
        PushStatus::Expired => ReceiptStatus::Expired,
        PushStatus::Refused | PushStatus::Unspecified => ReceiptStatus::Refused,
    };
    let reached = matches!(status, ReceiptStatus::Routed | ReceiptStatus::Delivered);
    (status, u32::from(reached), result.reason)
}
