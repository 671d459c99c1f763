//! The groups behind (subscriber, topic): made before the first consumer is answered, deleted when the subscriber says so,
//! or, of tokens with `nonPersistent`, with their last consumer.
//!
//! A token alone makes no group: producers have tokens too, and a group that nobody reads would fill the backlog.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use penstock_common::{
    name::{PartitionKey, TenantName},
    registry::{Group, GroupChange, GroupMode},
    rendezvous,
};
use penstock_proto::messaging;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use super::{
    refusal::Refusal,
    token::{self, Grant},
};
use crate::door::{Inside, groups, status};

/// Between two looks at groups that should go with their last consumer. One without consumers at two of them goes.
const SWEEP: Duration = Duration::from_secs(30);
/// For the homes to notice that a consumer has left.
const LEFT_STEP: Duration = Duration::from_millis(100);
const LEFT_STEPS: usize = 20;

/// The group of a token; makes it if it is not there. Waits until then for consumers of the other kind to leave.
pub async fn ensure(
    inside: &Inside,
    grant: &Grant,
    ack_timeout_ms: u32,
    until: Instant,
) -> Result<Arc<Group>, Refusal> {
    let name = grant.group();
    let (wire, mode) = match grant.claims.shared {
        true => (messaging::GroupMode::Shared, GroupMode::Shared),
        false => (messaging::GroupMode::Exclusive, GroupMode::Exclusive),
    };
    // What a volatile consumer misses is missed: it never holds up the devices.
    let backlog = match grant.claims.volatile {
        true => messaging::BacklogPolicy::DropOldest,
        false => messaging::BacklogPolicy::Block,
    };
    let wanted = messaging::Group {
        name: name.clone(),
        filters: vec![grant.topic.clone()],
        mode: wire.into(),
        ack_timeout_ms,
        backlog: backlog.into(),
        ..messaging::Group::default()
    };
    match groups::create(inside, &grant.tenant, wanted).await {
        Ok(_) => {}
        Err(status) if status.code() == Code::AlreadyExists => {
            switch(inside, grant, &name, (mode, until)).await?
        }
        // Consumers of a group that is there come back also while the registry is away.
        Err(status) if status.code() == Code::Unavailable => {
            let present = inside.tenant(&grant.tenant)?.groups.get(&name).cloned();
            let fits = |group: &Arc<Group>| {
                group.active && group.options.mode == mode && group.filters == [grant.topic.as_str()]
            };
            return present.filter(fits).ok_or_else(|| status.into());
        }
        Err(status) => return Err(status.into()),
    }
    groups::await_active(inside, &grant.tenant, &name).await.map_err(Refusal::from)
}

/// Tokens with and without `shared` have one group: while nobody consumes it, it goes over from the one to the other.
async fn switch(
    inside: &Inside,
    grant: &Grant,
    name: &str,
    (mode, until): (GroupMode, Instant),
) -> Result<(), Refusal> {
    let group = groups::await_active(inside, &grant.tenant, name).await?;
    if group.filters != [grant.topic.as_str()] || group.options.mode == GroupMode::Failover {
        return Err(Refusal::occupied("a group of this name, made otherwise, is in the way: delete it"));
    }
    while consumers(inside, &grant.tenant, name).await? > 0 {
        if Instant::now() >= until {
            return Err(Refusal::occupied(
                "the subscription has a consumer whose token says otherwise of shared",
            ));
        }
        sleep(LEFT_STEP).await;
    }
    let change = GroupChange { mode: Some(mode), ..GroupChange::default() };
    let set = inside.registry.set_group(&grant.tenant, name, change).await;
    set.map(drop).map_err(|error| Refusal::from(status::of_registry(&error)))
}

/// Deletes the group of a token. One that is not there is gone already.
pub async fn delete(inside: &Inside, grant: &Grant) -> Result<(), Status> {
    match groups::delete(inside, &grant.tenant, &grant.group()).await {
        Err(status) if status.code() != Code::NotFound => Err(status),
        _ => Ok(()),
    }
}

/// A consumer of a volatile group has left: was it the last one?
pub async fn left(inside: &Inside, grant: &Grant) {
    let name = grant.group();
    for _ in 0..LEFT_STEPS {
        match consumers(inside, &grant.tenant, &name).await {
            Ok(0) => return forget(inside, &grant.tenant, &name).await,
            Ok(_) => sleep(LEFT_STEP).await,
            Err(status) => {
                debug!(tenant = %grant.tenant, group = name, %status, "a volatile group is left to the sweep");
                return;
            }
        }
    }
}

async fn consumers(inside: &Inside, tenant: &TenantName, name: &str) -> Result<u64, Status> {
    let shown = groups::show(inside, tenant, name).await?;
    Ok(shown.partitions.iter().map(|partition| u64::from(partition.consumers)).sum())
}

async fn forget(inside: &Inside, tenant: &TenantName, name: &str) {
    match groups::delete(inside, tenant, name).await {
        Ok(()) => info!(%tenant, group = name, "a volatile group has gone with its last consumer"),
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => warn!(%tenant, group = name, %status, "a volatile group can't be deleted for now"),
    }
}

/// Deletes volatile groups whose last consumer left with its router. Each tenant is the business of one router.
pub async fn sweep(inside: Inside) {
    let mut ticks = interval_at(Instant::now() + SWEEP, SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut suspects = BTreeSet::new();
    loop {
        ticks.tick().await;
        suspects = look(&inside, &suspects).await;
    }
}

/// (tenant, group, when it was made).
type Suspect = (TenantName, String, u64);

async fn look(inside: &Inside, before: &BTreeSet<Suspect>) -> BTreeSet<Suspect> {
    let definitions = Arc::clone(&inside.registry.definitions().borrow());
    let members = inside.homes.members();
    let mut found = BTreeSet::new();
    for definition in definitions.tenants.values() {
        let key = PartitionKey { tenant: definition.name.clone(), partition: 0 };
        if rendezvous::home(&key, members.routers.keys().copied()) != Some(inside.homes.incarnation()) {
            continue;
        }
        let volatile =
            definition.groups.values().filter(|group| group.active && token::is_volatile(&group.name));
        for group in volatile {
            if !matches!(consumers(inside, &definition.name, &group.name).await, Ok(0)) {
                continue;
            }
            let suspect = (definition.name.clone(), group.name.clone(), group.created_at);
            if before.contains(&suspect) {
                forget(inside, &definition.name, &group.name).await;
            } else {
                found.insert(suspect);
            }
        }
    }
    found
}
