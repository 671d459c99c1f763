//! A push at the door: checked, then given to the router that is the home of the client's partition, here or one hop away.
//! Finding the client's link from there is [`crate::route`]'s job.

use std::{sync::Arc, time::Duration};

use penstock_common::{
    name::{CLIENT_MAX, PartitionKey, TenantName, partition_of},
    registry::TenantDefinition,
    rendezvous,
};
use penstock_mqtt::topic::{TOPIC_MAX, validate_name};
use penstock_proto::messaging::{PushReceipt, PushRequest, ReceiptStatus};

use tokio::time::Instant;

use crate::{groups::home::Homes, intake::Handed, peers::Peers};

/// How long a push waits for the device's PUBACK unless it says so, and at most.
const WAIT: Duration = Duration::from_secs(10);
const WAIT_MOST: Duration = Duration::from_secs(300);
/// Fixed header, topic length and packet identifier of a PUBLISH, at most.
const HEADERS: usize = 9;
/// Longest idempotency key, bytes.
const KEY_MAX: usize = 128;
/// Why a push was not done by the router that it came to: nothing has happened.
pub const MOVING: &str = "the client's partition is moving: try again";
/// How long a push waits for a partition that moves.
const MOVING_WITHIN: Duration = Duration::from_secs(10);
const MOVING_STEP: Duration = Duration::from_millis(100);

/// A receipt that says why nothing was pushed.
pub fn refused(id: u64, reason: &str) -> PushReceipt {
    PushReceipt { id, status: ReceiptStatus::Refused.into(), clients: 0, reason: reason.to_owned() }
}

/// A receipt for a push whose home went while it was under way.
pub fn in_doubt(id: u64) -> PushReceipt {
    let reason = "the client's router went: the push may have been done";
    PushReceipt { id, status: ReceiptStatus::Expired.into(), clients: 0, reason: reason.to_owned() }
}

/// How long the caller waits for a receipt.
pub fn wait_of(push: &PushRequest) -> Duration {
    if push.wait_ms == 0 { WAIT } else { Duration::from_millis(u64::from(push.wait_ms)).min(WAIT_MOST) }
}

/// Whether a push can be delivered at all.
pub fn check(push: &PushRequest, tenant: &TenantDefinition) -> Result<(), String> {
    validate_name(push.topic.as_bytes(), TOPIC_MAX).map_err(|error| format!("topic: {error}"))?;
    if push.topic.starts_with('$') {
        return Err("topic: names that begin with $ are the server's".to_owned());
    }
    if push.client.len() > CLIENT_MAX {
        return Err(format!("client: longer than {CLIENT_MAX} bytes"));
    }
    if push.qos > 1 {
        return Err("qos: 0 or 1".to_owned());
    }
    if push.wait && push.qos == 0 {
        return Err("wait: needs qos 1, a device does not confirm qos 0".to_owned());
    }
    check_stored(push, tenant)?;
    let size = push.payload.len() + push.topic.len() + HEADERS;
    let most = tenant.tenant.limits.packet_bytes as usize;
    if size > most {
        return Err(format!("payload: the packet has {size} bytes, the tenant's limit is {most}"));
    }
    Ok(())
}

fn check_stored(push: &PushRequest, tenant: &TenantDefinition) -> Result<(), String> {
    if push.ttl_ms > 0 {
        let most = u64::from(tenant.tenant.limits.mailbox_seconds);
        if push.client.is_empty() || push.qos == 0 {
            return Err("ttl: needs a client and qos 1".to_owned());
        }
        if push.ttl_ms > most.saturating_mul(1_000) {
            return Err(format!("ttl: at most {most} s, the age of the tenant's mailboxes"));
        }
    }
    let key = &push.idempotency_key;
    if key.len() > KEY_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("idempotency_key: at most {KEY_MAX} printable characters of ASCII, no blanks"));
    }
    if !key.is_empty() && push.client.is_empty() {
        return Err("idempotency_key: needs a client".to_owned());
    }
    Ok(())
}

/// Gives a push to the home of its client, and brings the receipt back.
pub async fn route(
    homes: &Arc<dyn Homes>,
    peers: &Peers,
    tenant: &TenantDefinition,
    push: PushRequest,
) -> PushReceipt {
    route_in_order(homes, peers, tenant, push, &Handed::default()).await
}

/// The same for one of a stream of pushes: says when it has its place.
pub async fn route_in_order(
    homes: &Arc<dyn Homes>,
    peers: &Peers,
    tenant: &TenantDefinition,
    push: PushRequest,
    handed: &Handed,
) -> PushReceipt {
    if let Err(reason) = check(&push, tenant) {
        return refused(push.id, &reason);
    }
    if push.client.is_empty() {
        return homes.push(&tenant.name, push, handed).await;
    }
    let deadline = Instant::now() + MOVING_WITHIN;
    let doubt = in_doubt(push.id);
    loop {
        let receipt = to_home(homes, peers, tenant, push.clone(), handed).await;
        // With a key it is done once, however often it is tried.
        let again = receipt.reason == MOVING || (receipt == doubt && !push.idempotency_key.is_empty());
        if !again || Instant::now() >= deadline {
            return receipt;
        }
        tokio::time::sleep(MOVING_STEP).await;
    }
}

/// Whether something of the push is stored: only the home that holds the term may do that.
pub fn is_stored(push: &PushRequest) -> bool {
    push.ttl_ms > 0 || !push.idempotency_key.is_empty()
}

async fn to_home(
    homes: &Arc<dyn Homes>,
    peers: &Peers,
    tenant: &TenantDefinition,
    push: PushRequest,
    handed: &Handed,
) -> PushReceipt {
    let name: &TenantName = &tenant.name;
    let partition = partition_of(push.client.as_bytes(), tenant.tenant.partitions);
    let key = PartitionKey { tenant: name.clone(), partition };
    let members = homes.members();
    let home = rendezvous::home(&key, members.routers.keys().copied());
    let elsewhere = home.filter(|home| *home != homes.incarnation()).filter(|_| homes.get(&key).is_none());
    match elsewhere.and_then(|home| members.routers.get(&home)) {
        Some(member) => peers.push(member, name.as_str(), push, handed).await,
        None => homes.push(name, push, handed).await,
    }
}
