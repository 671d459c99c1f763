//! Groups at the door: made, shown, deleted. A group exists from the reply to its creation: definition (creating), cursors
//! on all partitions, definition (active), reply. A creation that died in between is finished by an identical one.

use std::{sync::Arc, time::Duration};

use futures::future::{join_all, try_join_all};
use penstock_common::{
    name::{PartitionKey, TenantName},
    registry::{
        BacklogPolicy, Group, GroupChange, GroupMode, GroupOptions, GroupStart, RegistryError,
        TenantDefinition,
    },
};
use penstock_mqtt::topic::{TOPIC_MAX, validate_filter};
use penstock_proto::{
    messaging::{self, GroupStatus, PartitionStatus, SetGroupRequest, Start, start},
    peer::PartitionGroup,
};
use tokio::time::timeout;
use tonic::{Request, Status};

use super::{Inside, status};
use crate::groups::lag;

/// Longest name of a group, bytes.
pub const NAME_MAX: usize = 128;
/// Most filters of a group.
pub const FILTERS_MAX: usize = 64;
/// Most groups of a tenant.
pub const GROUPS_MAX: usize = 1_000;
/// Shortest ack timeout, milliseconds.
pub const ACK_TIMEOUT_LEAST: u32 = 100;
/// The registry's answer shows in this router's snapshot within this.
const SHOWN: Duration = Duration::from_secs(5);
/// A group that another router has just made shows here within this.
const MADE_ELSEWHERE: Duration = Duration::from_millis(500);
/// Another router answers for its partition within this, else the store does.
const ANSWER: Duration = Duration::from_secs(2);

/// Makes a group, or finds the same one.
pub async fn create(
    inside: &Inside,
    tenant: &TenantName,
    wanted: messaging::Group,
) -> Result<messaging::Group, Status> {
    let wanted = checked(wanted, inside.seams.now_ms())?;
    let definition = inside.tenant(tenant)?;
    if definition.groups.len() >= GROUPS_MAX && !definition.groups.contains_key(&wanted.name) {
        return Err(Status::resource_exhausted(format!(
            "a tenant has at most {GROUPS_MAX} groups: delete some"
        )));
    }
    let group = match inside.registry.create_group(tenant, &wanted).await {
        Ok(()) => Arc::new(wanted),
        Err(RegistryError::Exists(_)) => {
            let present = await_group(inside, tenant, &wanted.name, |_| true).await?;
            if !same(&present, &wanted) {
                return Err(Status::already_exists(
                    "the group is there with another filter, start or mode: choose another name, or delete it first",
                ));
            }
            present
        }
        Err(error) => return Err(status::of_registry(&error)),
    };
    if group.active {
        return Ok(to_proto(&group));
    }
    let at = super::orders::cursor_start(group.start);
    let keys: Vec<_> = partitions(&definition).collect();
    let cursors = keys.iter().map(|key| inside.store.create_cursor(key, &group.name, at));
    try_join_all(cursors).await.map_err(|error| status::of_store(&error))?;
    match inside.registry.activate_group(tenant, &group.name).await {
        Ok(()) => {}
        Err(error) => return Err(status::of_registry(&error)),
    }
    await_group(inside, tenant, &group.name, |group| group.active).await.map(|group| to_proto(&group))
}

/// Changes options of a group; its homes go by them as soon as they learn of it.
pub async fn set(
    inside: &Inside,
    tenant: &TenantName,
    wanted: SetGroupRequest,
) -> Result<messaging::Group, Status> {
    let definition = inside.tenant(tenant)?;
    definition.groups.get(&wanted.name).filter(|group| group.active).ok_or_else(status::no_group)?;
    let change = GroupChange {
        mode: None,
        unordered: wanted.unordered,
        ack_timeout_ms: wanted.ack_timeout_ms.map(ack_timeout).transpose()?,
        max_deliveries: wanted.max_deliveries,
        backlog: wanted.backlog.map(policy).transpose()?,
    };
    let set = inside.registry.set_group(tenant, &wanted.name, change).await;
    set.map(|group| to_proto(&group)).map_err(|error| status::of_registry(&error))
}

/// Deletes a group: the definition first, so that nobody makes its cursors again.
pub async fn delete(inside: &Inside, tenant: &TenantName, name: &str) -> Result<(), Status> {
    let definition = inside.tenant(tenant)?;
    let deleted = inside.registry.delete_group(tenant, name).await;
    if let Err(error @ (RegistryError::Unavailable(_) | RegistryError::Corrupt(_))) = &deleted {
        return Err(status::of_registry(error));
    }
    // Also when it was missing: an earlier deletion may have died here.
    let keys: Vec<_> = partitions(&definition).collect();
    let cursors = keys.iter().map(|key| inside.store.delete_cursor(key, name));
    try_join_all(cursors).await.map_err(|error| status::of_store(&error))?;
    deleted.map_err(|_| status::no_group())
}

/// How far a group is, on every partition.
pub async fn show(inside: &Inside, tenant: &TenantName, name: &str) -> Result<GroupStatus, Status> {
    let definition = inside.tenant(tenant)?;
    let group = definition.groups.get(name).filter(|group| group.active).ok_or_else(status::no_group)?;
    let keys: Vec<_> = partitions(&definition).collect();
    let partitions = join_all(keys.iter().map(|key| standing(inside, key, name))).await;
    let partitions = partitions.into_iter().collect::<Result<_, _>>()?;
    Ok(GroupStatus { group: Some(to_proto(group)), partitions })
}

/// Waits for a group that another router may have made just now.
pub async fn await_active(inside: &Inside, tenant: &TenantName, name: &str) -> Result<Arc<Group>, Status> {
    let active =
        |definition: &TenantDefinition| definition.groups.get(name).filter(|group| group.active).cloned();
    if let Some(group) = active(&*inside.tenant(tenant)?) {
        return Ok(group);
    }
    let found = timeout(MADE_ELSEWHERE, await_group(inside, tenant, name, |group| group.active)).await;
    found.unwrap_or_else(|_| Err(status::no_group()))
}

/// A start as the contract says it.
pub fn start_to_proto(start: GroupStart) -> Start {
    let at = match start {
        GroupStart::Latest => start::At::Latest(true),
        GroupStart::Earliest => start::At::Earliest(true),
        GroupStart::Time(time) => start::At::TimeMs(time),
    };
    Start { at: Some(at) }
}

/// A start of the contract.
pub fn start_of(at: Option<start::At>) -> GroupStart {
    match at {
        None | Some(start::At::Latest(_)) => GroupStart::Latest,
        Some(start::At::Earliest(_)) => GroupStart::Earliest,
        Some(start::At::TimeMs(time)) => GroupStart::Time(time),
    }
}

/// A group as the contract says it.
pub fn to_proto(group: &Group) -> messaging::Group {
    messaging::Group {
        name: group.name.clone(),
        filters: group.filters.clone(),
        start: Some(start_to_proto(group.start)),
        created_at_ms: group.created_at,
        mode: match group.options.mode {
            GroupMode::Shared => messaging::GroupMode::Shared,
            GroupMode::Exclusive => messaging::GroupMode::Exclusive,
            GroupMode::Failover => messaging::GroupMode::Failover,
        }
        .into(),
        unordered: group.options.unordered,
        ack_timeout_ms: group.options.ack_timeout_ms,
        max_deliveries: group.options.max_deliveries,
        backlog: match group.options.backlog {
            BacklogPolicy::Block => messaging::BacklogPolicy::Block,
            BacklogPolicy::DropOldest => messaging::BacklogPolicy::DropOldest,
            BacklogPolicy::Detach => messaging::BacklogPolicy::Detach,
        }
        .into(),
    }
}

/// All partitions of a tenant.
pub(super) fn partitions(tenant: &TenantDefinition) -> impl Iterator<Item = PartitionKey> + use<> {
    let name = tenant.name.clone();
    (0..tenant.tenant.partitions).map(move |partition| PartitionKey { tenant: name.clone(), partition })
}

/// 0 means the default.
fn ack_timeout(asked: u32) -> Result<u32, Status> {
    match asked {
        0 => Ok(GroupOptions::default().ack_timeout_ms),
        ACK_TIMEOUT_LEAST.. => Ok(asked),
        _ => Err(Status::invalid_argument(format!("ack_timeout_ms: at least {ACK_TIMEOUT_LEAST}"))),
    }
}

fn options(wanted: &messaging::Group) -> Result<GroupOptions, Status> {
    let mode = match messaging::GroupMode::try_from(wanted.mode) {
        Ok(messaging::GroupMode::Shared) => GroupMode::Shared,
        Ok(messaging::GroupMode::Exclusive) => GroupMode::Exclusive,
        Ok(messaging::GroupMode::Failover) => GroupMode::Failover,
        Err(_) => return Err(Status::invalid_argument("mode: not one that this version knows")),
    };
    let ack_timeout_ms = ack_timeout(wanted.ack_timeout_ms)?;
    let (max_deliveries, backlog) = (wanted.max_deliveries, policy(wanted.backlog)?);
    Ok(GroupOptions { mode, unordered: wanted.unordered, ack_timeout_ms, max_deliveries, backlog })
}

fn policy(asked: i32) -> Result<BacklogPolicy, Status> {
    match messaging::BacklogPolicy::try_from(asked) {
        Ok(messaging::BacklogPolicy::Block) => Ok(BacklogPolicy::Block),
        Ok(messaging::BacklogPolicy::DropOldest) => Ok(BacklogPolicy::DropOldest),
        Ok(messaging::BacklogPolicy::Detach) => Ok(BacklogPolicy::Detach),
        Err(_) => Err(Status::invalid_argument("backlog: not one that this version knows")),
    }
}

fn checked(wanted: messaging::Group, now: u64) -> Result<Group, Status> {
    let options = options(&wanted)?;
    let name = wanted.name;
    if !(1..=NAME_MAX).contains(&name.len()) || name.chars().any(char::is_control) {
        return Err(Status::invalid_argument(format!("name: 1 to {NAME_MAX} bytes of printable characters")));
    }
    let mut filters = wanted.filters;
    filters.sort_unstable();
    filters.dedup();
    if filters.len() > FILTERS_MAX {
        return Err(Status::invalid_argument(format!("filters: at most {FILTERS_MAX}")));
    }
    for filter in &filters {
        validate_filter(filter.as_bytes(), TOPIC_MAX)
            .map_err(|error| Status::invalid_argument(format!("filters: {filter:?}: {error}")))?;
    }
    let start = start_of(wanted.start.and_then(|start| start.at));
    Ok(Group { name, filters, start, options, active: false, created_at: now })
}

fn same(present: &Group, wanted: &Group) -> bool {
    let mut filters = present.filters.clone();
    filters.sort_unstable();
    filters == wanted.filters && present.start == wanted.start && present.options.mode == wanted.options.mode
}

/// The group as this router's snapshot shows it, as soon as it is so.
async fn await_group(
    inside: &Inside,
    tenant: &TenantName,
    name: &str,
    so: impl Fn(&Group) -> bool,
) -> Result<Arc<Group>, Status> {
    let mut definitions = inside.registry.definitions();
    let find = async {
        loop {
            let found = {
                let snapshot = definitions.borrow_and_update();
                let tenant = snapshot.tenants.get(tenant);
                tenant.and_then(|tenant| tenant.groups.get(name)).filter(|group| so(group)).cloned()
            };
            match found {
                Some(group) => return Ok(group),
                None if definitions.changed().await.is_err() => return Err(status::no_group()),
                None => {}
            }
        }
    };
    let late = || Status::unavailable("the registry has not told this router of the group yet: try again");
    timeout(SHOWN, find).await.unwrap_or_else(|_| Err(late()))
}

async fn standing(inside: &Inside, key: &PartitionKey, name: &str) -> Result<PartitionStatus, Status> {
    let now = inside.seams.now_ms();
    if let Some(home) = inside.homes.get(key) {
        let status = lag::at_home(&inside.serving, &home, name, now).await;
        return status.map_err(|error| status::of_store(&error));
    }
    if let Some(status) = at_holder(inside, key, name).await {
        return Ok(status);
    }
    let status = lag::in_store(&*inside.store, key, name, now).await;
    status.map_err(|error| status::of_store(&error))
}

async fn at_holder(inside: &Inside, key: &PartitionKey, name: &str) -> Option<PartitionStatus> {
    let (_, holder) = inside.store.holder(key).await.ok()??;
    let members = inside.homes.members();
    let member = members.routers.get(&holder).filter(|_| holder != inside.homes.incarnation())?;
    let mut client = inside.peers.client(member).ok()?;
    let asked =
        PartitionGroup { tenant: key.tenant.to_string(), partition: key.partition, group: name.to_owned() };
    let answer = timeout(ANSWER, client.group_status(Request::new(asked))).await;
    Some(answer.ok()?.ok()?.into_inner())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_filters_and_starts_are_checked() {
        let group = |name: &str, filters: &[&str]| messaging::Group {
            name: name.to_owned(),
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            ..Default::default()
        };
        for (name, filters) in
            [("", &[][..]), ("a\n", &[]), (&"x".repeat(129), &[]), ("a", &["a/#/b"]), ("a", &[""])]
        {
            let refused = checked(group(name, filters), 1).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{name:?} {filters:?}");
        }
        let one = checked(group("größe 1", &["b", "a/#", "b"]), 1).unwrap();
        assert_eq!(one.filters, ["a/#", "b"]);
        assert!(same(&one, &checked(group("größe 1", &["a/#", "b"]), 2).unwrap()));
        assert!(!same(&one, &checked(group("größe 1", &["a/#"]), 2).unwrap()));
    }
}
