//! Orders to groups at the door: seeking and re-driving, given to the home of each partition, here or one hop away; and the
//! dead letters, read from the store.

use std::time::Duration;

use futures::future::{join_all, try_join_all};
use penstock_common::{
    name::{PartitionKey, TenantName},
    registry::{GroupStart, Member},
    rendezvous,
    store::{CursorStart, KeptLetter, mail_time},
};
use penstock_proto::{
    messaging::{DeadLetter, ListDeadRequest, ListDeadResponse, RedriveRequest, SeekGroupRequest},
    peer::{GroupOrder, PartitionGroup, Redrive, group_order},
};
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use super::{
    Inside,
    groups::{self, start_of, start_to_proto},
    status,
};
use crate::{
    groups::orders::{self, Order},
    pace::Backoff,
};

/// A partition's home follows an order, or a later one is found, within this.
const ORDER_LIMIT: Duration = Duration::from_secs(10);
/// Dead letters of one answer: unless the caller says so, and at most.
const LETTERS: u32 = 100;
const LETTERS_MOST: u32 = 1_000;
const LETTER_BYTES: usize = 4 << 20;
/// Dead letters that one call names.
const NAMES_MOST: usize = 10_000;

/// Sets a group elsewhere, on all partitions.
pub async fn seek(inside: &Inside, tenant: &TenantName, asked: SeekGroupRequest) -> Result<(), Status> {
    groups::await_active(inside, tenant, &asked.name).await?;
    let at = asked.to.and_then(|start| start.at);
    let to = cursor_start(start_of(Some(at.ok_or_else(|| Status::invalid_argument("to: missing"))?)));
    let keys: Vec<PartitionKey> = groups::partitions(&*inside.tenant(tenant)?).collect();
    let sought = join_all(keys.iter().map(|key| order(inside, key, &asked.name, Order::Seek(to)))).await;
    let reached = sought.iter().filter(|sought| sought.is_ok()).count();
    match sought.into_iter().find_map(Result::err) {
        None => Ok(()),
        Some(failed) if failed.code() == Code::NotFound => Err(failed),
        Some(failed) => Err(Status::unavailable(format!(
            "{reached} of {} partitions are there, the others not: repeat it ({})",
            keys.len(),
            failed.message()
        ))),
    }
}

/// Hands dead letters out again. Returns how many.
pub async fn redrive(inside: &Inside, tenant: &TenantName, asked: RedriveRequest) -> Result<u64, Status> {
    groups::await_active(inside, tenant, &asked.group).await?;
    if asked.letters.len() > NAMES_MOST {
        return Err(Status::invalid_argument(format!("letters: at most {NAMES_MOST}, or none for all")));
    }
    let orders = groups::partitions(&*inside.tenant(tenant)?).filter_map(|key| {
        let own = asked.letters.iter().filter(|name| name.partition == key.partition);
        let numbers: Vec<u64> = own.map(|name| name.number).collect();
        (asked.letters.is_empty() || !numbers.is_empty()).then_some((key, numbers))
    });
    let group = asked.group.as_str();
    let redriven = orders
        .map(|(key, numbers)| async move { order(inside, &key, group, Order::Redrive(numbers)).await })
        .collect::<Vec<_>>();
    Ok(try_join_all(redriven).await?.into_iter().sum())
}

/// Dead letters of one partition.
pub async fn list_dead(
    inside: &Inside,
    tenant: &TenantName,
    asked: ListDeadRequest,
) -> Result<ListDeadResponse, Status> {
    groups::await_active(inside, tenant, &asked.group).await?;
    let partitions = inside.tenant(tenant)?.tenant.partitions;
    if asked.partition >= partitions {
        return Err(Status::invalid_argument("partition: the tenant has no such partition"));
    }
    let key = PartitionKey { tenant: tenant.clone(), partition: asked.partition };
    let max = if asked.max == 0 { LETTERS } else { asked.max.min(LETTERS_MOST) };
    let read = inside.store.dead_letters(&key, &asked.group, asked.after, max as usize).await;
    let (mut letters, mut bytes) = (Vec::new(), 0);
    for kept in read.map_err(|error| status::of_store(&error))?.letters {
        bytes += kept.letter.record.len();
        if bytes > LETTER_BYTES && !letters.is_empty() {
            break;
        }
        letters.push(to_proto(asked.partition, kept));
    }
    Ok(ListDeadResponse { letters, partitions })
}

fn to_proto(partition: u32, kept: KeptLetter) -> DeadLetter {
    DeadLetter {
        partition,
        number: kept.number,
        term: kept.letter.entry.term.0,
        sequence: kept.letter.entry.sequence,
        index: kept.letter.index,
        deliveries: kept.letter.deliveries,
        dead_at_ms: mail_time(kept.number),
        record: kept.letter.record,
    }
}

/// As the store says it.
pub(super) fn cursor_start(start: GroupStart) -> CursorStart {
    match start {
        GroupStart::Latest => CursorStart::Latest,
        GroupStart::Earliest => CursorStart::Earliest,
        GroupStart::Time(time) => CursorStart::Time(time),
    }
}

fn group_start(start: CursorStart) -> GroupStart {
    match start {
        CursorStart::Latest => GroupStart::Latest,
        CursorStart::Earliest => GroupStart::Earliest,
        CursorStart::Time(time) => GroupStart::Time(time),
    }
}

/// An order as a peer reads it.
pub fn order_of(what: Option<group_order::What>) -> Result<Order, Status> {
    match what {
        Some(group_order::What::Seek(start)) => Ok(Order::Seek(cursor_start(start_of(start.at)))),
        Some(group_order::What::Redrive(redrive)) => Ok(Order::Redrive(redrive.numbers)),
        None => Err(Status::invalid_argument("this router does not know the order")),
    }
}

/// Has the partition's home follow an order; looks for the home again while it moves.
async fn order(inside: &Inside, key: &PartitionKey, group: &str, order: Order) -> Result<u64, Status> {
    let give_up = Instant::now() + ORDER_LIMIT;
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    loop {
        let left = give_up.saturating_duration_since(Instant::now());
        let late = || Err(Status::unavailable("the partition's home does not answer"));
        let followed = timeout(left, at_home(inside, key, group, &order)).await.unwrap_or_else(|_| late());
        match followed {
            Err(failed) if failed.code() == Code::NotFound || Instant::now() >= give_up => {
                return Err(failed);
            }
            Err(_) => tokio::time::sleep(backoff.step(&inside.seams)).await,
            Ok(redriven) => return Ok(redriven),
        }
    }
}

/// At the router that rendezvous names, or at the holder that this one names.
async fn at_home(inside: &Inside, key: &PartitionKey, group: &str, order: &Order) -> Result<u64, Status> {
    let (members, own) = (inside.homes.members(), inside.homes.incarnation());
    if inside.homes.get(key).is_some() {
        return here(inside, key, group, order, false).await;
    }
    let named = rendezvous::home(key, members.routers.keys().copied()).unwrap_or(own);
    let at = async |router: u64, take| match members.routers.get(&router).filter(|_| router != own) {
        Some(member) => at_peer(inside, member, key, group, order, take).await,
        None => here(inside, key, group, order, take).await,
    };
    let refused = match at(named, false).await {
        Err(refused) => refused,
        followed => return followed,
    };
    let Some(holder) = status::holder_in(&refused) else { return Err(refused) };
    let holder = holder.filter(|holder| *holder == own || members.routers.contains_key(holder));
    at(holder.unwrap_or(named), true).await
}

async fn here(
    inside: &Inside,
    key: &PartitionKey,
    group: &str,
    order: &Order,
    take: bool,
) -> Result<u64, Status> {
    let home = crate::peer::present_home(inside, key, take).await?;
    let followed = orders::follow(&inside.serving, &home, group, order.clone()).await;
    followed.map_err(|error| status::of_join(&error))
}

async fn at_peer(
    inside: &Inside,
    member: &Member,
    key: &PartitionKey,
    group: &str,
    order: &Order,
    take: bool,
) -> Result<u64, Status> {
    let mut client = inside.peers.client(member).map_err(|error| Status::unavailable(error.to_string()))?;
    let what = match order {
        Order::Seek(to) => group_order::What::Seek(start_to_proto(group_start(*to))),
        Order::Redrive(numbers) => group_order::What::Redrive(Redrive { numbers: numbers.clone() }),
    };
    let (tenant, group) = (key.tenant.to_string(), group.to_owned());
    let group = Some(PartitionGroup { tenant, partition: key.partition, group });
    Ok(client.order_group(GroupOrder { group, take, what: Some(what) }).await?.into_inner().redriven)
}
