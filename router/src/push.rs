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

use crate::{groups::home::Homes, peers::Peers};

/// How long a push waits for the device's PUBACK unless it says so, and at most.
const WAIT: Duration = Duration::from_secs(10);
const WAIT_MOST: Duration = Duration::from_secs(300);
/// Fixed header, topic length and packet identifier of a PUBLISH, at most.
const HEADERS: usize = 9;

/// A receipt that says why nothing was pushed.
pub fn refused(id: u64, reason: &str) -> PushReceipt {
    PushReceipt { id, status: ReceiptStatus::Refused.into(), clients: 0, reason: reason.to_owned() }
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
    let size = push.payload.len() + push.topic.len() + HEADERS;
    let most = tenant.tenant.limits.packet_bytes as usize;
    if size > most {
        return Err(format!("payload: the packet has {size} bytes, the tenant's limit is {most}"));
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
    if let Err(reason) = check(&push, tenant) {
        return refused(push.id, &reason);
    }
    let name: &TenantName = &tenant.name;
    if push.client.is_empty() {
        return homes.push(name, push).await;
    }
    let partition = partition_of(push.client.as_bytes(), tenant.tenant.partitions);
    let key = PartitionKey { tenant: name.clone(), partition };
    let members = homes.members();
    let home = rendezvous::home(&key, members.routers.keys().copied());
    let elsewhere = home.filter(|home| *home != homes.incarnation()).filter(|_| homes.get(&key).is_none());
    match elsewhere.and_then(|home| members.routers.get(&home)) {
        Some(member) => peers.push(member, name.as_str(), push).await,
        None => homes.push(name, push).await,
    }
}
