//! Clients for operators, over the whole cluster: the home of a client knows its owner, every router may remember how its
//! connections ended, and the store has its session. All routers are asked, so that a partition that moves hides nobody.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::join_all;
use penstock_common::{
    name::{CLIENT_MAX, PartitionKey, TenantName, partition_of},
    registry::Member,
    store::SessionState,
};
use penstock_proto::{
    admin::{
        ClientFilter, ClientSession, ClientStatus, ClientSummary, ListClientsRequest, ListClientsResponse,
    },
    peer::AskClient,
};
use tonic::Status;

use super::{Inside, status};
use crate::{clients::Page, history::ENDS_SHOWN};

/// Clients on a page: unless it is said, and at most.
const PAGE: usize = 1_000;
pub(crate) const PAGE_MOST: usize = 4_000;
/// Bytes of filters of a session that are shown.
const FILTER_BYTES: usize = 16 << 10;

fn others(inside: &Inside) -> Vec<Member> {
    let (members, own) = (inside.homes.members(), inside.homes.incarnation());
    members.routers.values().filter(|member| member.incarnation != own).cloned().collect()
}

/// One page of a tenant's clients.
pub async fn list(
    inside: &Inside,
    tenant: &TenantName,
    asked: ListClientsRequest,
) -> Result<ListClientsResponse, Status> {
    inside.tenant(tenant)?;
    let limit = match asked.limit as usize {
        0 => PAGE,
        limit => limit.min(PAGE_MOST),
    };
    // One more than is shown tells whether there are more.
    let page = Page { after: asked.after.into(), prefix: asked.prefix.into(), limit: limit + 1 };
    let mut found: BTreeMap<String, ClientSummary> = BTreeMap::new();
    let sessions =
        inside.homes.with_session(tenant, &page).await.map_err(|error| status::of_store(&error))?;
    let others = others(inside);
    let answers = join_all(others.iter().map(|member| inside.peers.connected(member, tenant, &page))).await;
    let mut silent_routers = Vec::new();
    let mut connected = inside.homes.connected(tenant, &page);
    for (member, answer) in others.iter().zip(answers) {
        match answer {
            Some(clients) => connected.extend(clients),
            None => silent_routers.push(member.node_id.clone()),
        }
    }
    found.extend(sessions.into_iter().map(|client| (client.client.clone(), client)));
    for client in connected {
        let known = found.entry(client.client.clone()).or_default();
        // A partition that moves has two homes for a moment: the later ownership counts.
        if !known.connected || known.epoch < client.epoch {
            *known = ClientSummary { persistent: known.persistent || client.persistent, ..client };
        }
    }
    let more = found.len() > limit;
    Ok(ListClientsResponse { clients: found.into_values().take(limit).collect(), more, silent_routers })
}

/// One client. With `close`, its connection is closed: NOT_FOUND when there is none.
pub async fn show(
    inside: &Inside,
    tenant: &TenantName,
    client: &str,
    close: bool,
) -> Result<ClientStatus, Status> {
    let defined = inside.tenant(tenant)?;
    if client.is_empty() || client.len() > CLIENT_MAX {
        return Err(Status::invalid_argument(format!("client: 1 to {CLIENT_MAX} bytes")));
    }
    let id = Bytes::copy_from_slice(client.as_bytes());
    let partition = partition_of(&id, defined.tenant.partitions);
    let key = PartitionKey { tenant: tenant.clone(), partition };
    let session = inside.store.session_state(&key, &id).await.map_err(|error| status::of_store(&error))?;
    let ask = || AskClient { tenant: tenant.to_string(), client: id.clone(), close };
    let others = others(inside);
    let (mut own, answers) = tokio::join!(
        inside.homes.client(tenant, &id, close),
        join_all(others.iter().map(|member| inside.peers.status(member, ask())))
    );
    for (member, answer) in others.iter().zip(answers) {
        match answer {
            Some(answer) => add(&mut own, answer),
            None => own.silent_routers.push(member.node_id.clone()),
        }
    }
    own.ends.sort_unstable_by_key(|end| std::cmp::Reverse(end.ended_at_ms));
    own.ends.truncate(ENDS_SHOWN);
    own.session = session.map(to_proto);
    if close { closed(own) } else { Ok(own) }
}

fn closed(status: ClientStatus) -> Result<ClientStatus, Status> {
    match &status.connection {
        Some(connection) if connection.answered => Ok(status),
        Some(connection) => Err(Status::unavailable(format!(
            "gateway {} does not answer: try again, the connection may be closed already",
            connection.gateway_node
        ))),
        None if status.silent_routers.is_empty() => Err(Status::not_found("the client is not connected")),
        None => Err(Status::unavailable(format!(
            "the client is not found, and these routers do not answer: {}; try again",
            status.silent_routers.join(", ")
        ))),
    }
}

fn add(own: &mut ClientStatus, other: ClientStatus) {
    let rank = |status: &ClientStatus| status.connection.as_ref().map(|it| (it.answered, it.epoch));
    if rank(own) < rank(&other) {
        own.connection = other.connection;
    }
    own.ends.extend(other.ends);
}

fn to_proto(state: SessionState) -> ClientSession {
    let subscriptions = u32::try_from(state.filters.filters.len()).unwrap_or(u32::MAX);
    let (mut filters, mut bytes) = (Vec::new(), 0);
    for it in state.filters.filters {
        bytes += it.filter.len();
        if bytes <= FILTER_BYTES {
            let filter = String::from_utf8_lossy(&it.filter).into_owned();
            filters.push(ClientFilter { filter, qos: it.qos.into() });
        }
    }
    ClientSession {
        incarnation: state.filters.incarnation,
        subscriptions,
        filters,
        mail: state.mail,
        mail_bytes: state.mail_bytes,
        in_flight: state.in_flight,
        oldest_at_ms: state.oldest.unwrap_or(0),
        expires_in_ms: state.expires_in_ms,
    }
}
