//! SUBSCRIBE and UNSUBSCRIBE of sessions: the trie that fans deliveries out to this shard's connections, and the use
//! counts behind [`crate::interest`]. The session keeps its own list; here is only what others need.

use bytes::Bytes;
use penstock_mqtt::packet::{QoS, SUBACK_FAILURE, SubscribeFilter};

use crate::{connection::table::ConnectionKey, shard::Shard};

impl Shard {
    /// Makes filters work, then (when the routers know them) answers.
    pub(crate) fn subscribe(&mut self, key: ConnectionKey, packet_id: u16, filters: &[SubscribeFilter]) {
        let Some(identity) = self.connections.identity(key) else { return };
        let tenant = identity.tenant.clone();
        let fanout = self.fanout.entry(tenant.clone()).or_default();
        let (mut codes, mut new, mut known) = (Vec::with_capacity(filters.len()), Vec::new(), Vec::new());
        for filter in filters {
            if filter.refused.is_some() {
                codes.push(SUBACK_FAILURE);
                self.shared.metrics.subscriptions_refused.inc();
                continue;
            }
            codes.push(filter.qos.number());
            match fanout.trie.insert(&filter.filter, key, filter.qos) {
                None => new.push(filter.filter.clone()),
                // Subscribed before: replaced, and counted already.
                Some(_) => known.push(filter.filter.clone()),
            }
        }
        self.want_filters(key, &tenant, &new, &known, Some(packet_id), codes);
    }

    /// Makes the filters of a session that was resumed work.
    pub(crate) fn resume_filters(&mut self, key: ConnectionKey, filters: &[(Bytes, QoS)]) {
        let Some(identity) = self.connections.identity(key) else { return };
        let tenant = identity.tenant.clone();
        if filters.is_empty() {
            return;
        }
        let fanout = self.fanout.entry(tenant.clone()).or_default();
        for (filter, qos) in filters {
            fanout.trie.insert(filter, key, *qos);
        }
        let new: Vec<Bytes> = filters.iter().map(|(filter, _)| filter.clone()).collect();
        self.want_filters(key, &tenant, &new, &[], None, Vec::new());
    }

    /// Undoes filters and answers.
    pub(crate) fn unsubscribe(&mut self, key: ConnectionKey, packet_id: u16, filters: &[Bytes]) {
        self.remove_filters(key, filters);
        if let Some(connection) = self.connections.get_mut(key) {
            connection.session.unsubscribed(packet_id);
        }
        self.touch(key);
    }

    /// Undoes every subscription of a connection that ends.
    pub(crate) fn unsubscribe_all(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        let filters: Vec<Bytes> =
            connection.session.subscriptions().map(|(filter, _)| filter.clone()).collect();
        self.remove_filters(key, &filters);
        self.forget_subscribes(key);
    }

    fn remove_filters(&mut self, key: ConnectionKey, filters: &[Bytes]) {
        let Some(identity) = self.connections.identity(key) else { return };
        let tenant = identity.tenant.clone();
        let Some(fanout) = self.fanout.get_mut(&tenant) else { return };
        let was = |filter: &&Bytes| fanout.trie.remove(filter, key).is_some();
        let removed: Vec<Bytes> = filters.iter().filter(was).cloned().collect();
        if fanout.trie.is_empty() {
            self.fanout.remove(&tenant);
        }
        self.drop_filters(&tenant, &removed);
    }
}
