//! Clients as operators see them: who is connected at the homes of this router, what one connection is like (its shard is
//! asked), how the last ones ended; and the order to close one.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use penstock_common::{
    epoch::Epoch,
    name::{PartitionKey, TenantName, partition_of},
    store::StoreError,
};
use penstock_proto::{
    admin::{ClientConnection, ClientFilter, ClientStatus, ClientSummary},
    link::{Ended, Inspect, Inspected, SessionFilter, control_down},
};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    home::{Home, lock},
    homes::Homes,
    link::Link,
    owners::Ownership,
};

/// How long a shard may take to answer.
const ANSWER: Duration = Duration::from_secs(3);
/// Questions to one shard that wait for their answer.
const QUESTIONS: usize = 1_024;

/// Which clients of a tenant are asked for: the first `limit` after one, in the order of their identifiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Not this one and none before it; empty: from the beginning.
    pub after: Bytes,
    /// Identifiers begin with this.
    pub prefix: Bytes,
    /// How many.
    pub limit: usize,
}

impl Page {
    /// Whether a client may be on it.
    pub fn holds(&self, client: &[u8]) -> bool {
        client > &self.after[..] && client.starts_with(&self.prefix)
    }

    /// The first of these, in order.
    pub fn first<T>(&self, mut found: Vec<T>, client: impl Fn(&T) -> &[u8]) -> Vec<T> {
        if found.len() > self.limit {
            found.select_nth_unstable_by(self.limit, |a, b| client(a).cmp(client(b)));
            found.truncate(self.limit);
        }
        found.sort_unstable_by(|a, b| client(a).cmp(client(b)));
        found
    }
}

impl Link {
    /// Asks the shard about a connection; the receiver gets an error when the link closes. None: it can't be asked.
    fn inspect(&self, mut ask: Inspect) -> Option<oneshot::Receiver<Inspected>> {
        let (sender, receiver) = oneshot::channel();
        let mut questions = lock(&self.inspections);
        questions.retain(|_, asked| !asked.is_closed());
        if self.closed.is_cancelled() || questions.len() >= QUESTIONS {
            return None;
        }
        ask.id = self.next_id();
        questions.insert(ask.id, sender);
        drop(questions);
        self.tell(control_down::Kind::Inspect(ask));
        Some(receiver)
    }

    /// The shard has answered.
    pub(crate) fn inspected(&self, answer: Inspected) {
        if let Some(asked) = lock(&self.inspections).remove(&answer.id) {
            // Whoever asked may have given up.
            let _ = asked.send(answer);
        }
    }
}

impl Home {
    /// Connections of this partition have ended.
    pub(crate) fn ended(&self, link: &Link, ended: Vec<Ended>) {
        if !ended.is_empty() {
            let defined = |key: &PartitionKey| self.homes.tenant(&key.tenant).is_some();
            self.homes.history.note(&self.key, (&link.node_id, link.shard.shard), ended, defined);
        }
    }
}

impl Homes {
    /// Clients that are connected, of the partitions whose home this router is.
    pub fn connected(&self, tenant: &TenantName, page: &Page) -> Vec<ClientSummary> {
        let mut found: Vec<(Bytes, Ownership<Arc<Link>>)> = Vec::new();
        for home in self.all(Some(tenant)) {
            found.extend(home.owners_on(page));
        }
        let summary = |(client, owner): (Bytes, Ownership<Arc<Link>>)| ClientSummary {
            client: String::from_utf8_lossy(&client).into_owned(),
            connected: true,
            persistent: self.kept.has(tenant, &client),
            gateway: owner.link.shard.gateway,
            gateway_node: owner.link.node_id.clone(),
            shard: owner.link.shard.shard,
            epoch: owner.epoch.0,
        };
        page.first(found, |(client, _)| &client[..]).into_iter().map(summary).collect()
    }

    /// Clients of the tenant that have a session, on any router.
    pub async fn with_session(
        &self,
        tenant: &TenantName,
        page: &Page,
    ) -> Result<Vec<ClientSummary>, StoreError> {
        self.kept.follow(&*self.store, tenant).await?;
        let summary = |client: Bytes| ClientSummary {
            client: String::from_utf8_lossy(&client).into_owned(),
            persistent: true,
            ..ClientSummary::default()
        };
        Ok(self.kept.clients(tenant, page).into_iter().map(summary).collect())
    }

    /// What this router knows of a client: its connection, if this is the home, and how earlier ones ended. With `close`
    /// the connection is closed.
    pub async fn client(&self, tenant: &TenantName, client: &Bytes, close: bool) -> ClientStatus {
        let name = String::from_utf8_lossy(client).into_owned();
        let Some(defined) = self.tenant(tenant) else {
            return ClientStatus { client: name, ..ClientStatus::default() };
        };
        let partition = partition_of(client, defined.tenant.partitions);
        let key = PartitionKey { tenant: tenant.clone(), partition };
        let connection = match self.get(&key) {
            Some(_) => self.connection(&key, client, close).await,
            None => None,
        };
        let ends = self.history.of(&key, client, defined.tenant.created_at);
        ClientStatus { client: name, connection, ends, ..ClientStatus::default() }
    }

    async fn connection(&self, key: &PartitionKey, client: &Bytes, close: bool) -> Option<ClientConnection> {
        let Ownership { epoch, link } = self.owner(key, client).await.ok()?;
        let connection = ClientConnection {
            gateway: link.shard.gateway,
            gateway_node: link.node_id.clone(),
            shard: link.shard.shard,
            epoch: epoch.0,
            ..ClientConnection::default()
        };
        match ask(&link, key, client, epoch, close).await {
            Some(answer) if answer.found => Some(described(connection, answer)),
            // It has ended meanwhile, or is not admitted yet.
            Some(_) => None,
            None => Some(connection),
        }
    }
}

async fn ask(
    link: &Link,
    key: &PartitionKey,
    client: &Bytes,
    epoch: Epoch,
    close: bool,
) -> Option<Inspected> {
    let tenant = key.tenant.to_string();
    let ask = Inspect { id: 0, tenant, client: client.clone(), epoch: epoch.0, close };
    timeout(ANSWER, link.inspect(ask)?).await.ok()?.ok()
}

fn described(known: ClientConnection, answer: Inspected) -> ClientConnection {
    ClientConnection {
        answered: true,
        connected_at_ms: answer.connected_at_ms,
        address: answer.address,
        transport: answer.transport,
        user: answer.user,
        clean: answer.clean,
        keep_alive: answer.keep_alive,
        subscriptions: answer.subscriptions,
        filters: answer.filters.into_iter().map(filter).collect(),
        in_flight: answer.in_flight,
        queued: answer.queued,
        outbound_bytes: answer.outbound_bytes,
        unsettled: answer.unsettled,
        ..known
    }
}

fn filter(it: SessionFilter) -> ClientFilter {
    ClientFilter { filter: String::from_utf8_lossy(&it.filter).into_owned(), qos: it.qos }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_the_first_clients_after_one_in_order() {
        let page = Page { after: "b".into(), prefix: Bytes::new(), limit: 2 };
        let clients: Vec<&str> = ["e", "a", "d", "b", "c"].into_iter().collect();
        let found = clients.into_iter().filter(|client| page.holds(client.as_bytes())).collect();
        assert_eq!(page.first(found, |client: &&str| client.as_bytes()), ["c", "d"]);
        let named = Page { after: "x/1".into(), prefix: "x/".into(), limit: 2 };
        assert!(named.holds(b"x/2") && !named.holds(b"x/1") && !named.holds(b"y"));
    }
}
