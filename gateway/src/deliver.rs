//! The way out, from a link to sessions: the records of a Deliver go to every connection of the tenant with a matching
//! filter, once, at the lower of the published and the highest granted QoS.

use std::collections::HashMap;

use penstock_common::{
    name::{PartitionKey, TenantName},
    position::EntryId,
    registry::Isolation,
};
use penstock_mqtt::{
    packet::QoS,
    session::{CloseReason, Delivered, Delivery},
    topic,
    trie::Trie,
};
use penstock_proto::{
    link::{self, data_up},
    record::{Record, RecordBatch},
};
use prost::Message;

use crate::{
    connection::table::{Connection, ConnectionKey},
    link::table::LinkKey,
    shard::Shard,
};

/// What a shard fans out for one tenant. Exists while the tenant has subscriptions here.
#[derive(Default)]
pub(crate) struct Fanout {
    pub(crate) trie: Trie<ConnectionKey, QoS>,
    /// Last entry taken, by partition: what a new home repeats is not delivered again.
    taken: HashMap<u32, EntryId>,
}

impl Fanout {
    /// Connections with a matching filter, each once, with its highest granted QoS.
    pub(crate) fn receivers(&self, topic: &[u8]) -> Vec<(ConnectionKey, QoS)> {
        let mut found = Vec::new();
        self.trie.matches(topic, |key, qos| found.push((key, qos)));
        // The highest QoS of a key comes first and is the one that stays.
        found.sort_unstable_by(|a, b| (a.0, b.1).cmp(&(b.0, a.1)));
        found.dedup_by_key(|(key, _)| *key);
        found
    }

    /// Whether an entry is new; remembers it.
    fn take(&mut self, partition: u32, id: EntryId, repeat: bool) -> bool {
        let last = self.taken.entry(partition).or_default();
        let new = !repeat || id > *last;
        *last = id.max(*last);
        new
    }
}

impl Shard {
    /// Gives the records of an entry to the sessions, then says so.
    pub(crate) fn deliver(&mut self, link: LinkKey, deliver: &link::Deliver) {
        self.fan_out(deliver);
        if let Some(link) = self.links.get(link) {
            link.data(data_up::Kind::Taken(link::Taken { delivery: deliver.delivery }));
        }
    }

    fn fan_out(&mut self, deliver: &link::Deliver) {
        let Ok(tenant) = TenantName::new(&deliver.tenant) else { return };
        // A second lock: the home of an isolated tenant fans nothing out.
        let isolated = self.definitions.tenants.get(&tenant).map(|it| it.tenant.isolation);
        if isolated == Some(Isolation::Device) {
            return;
        }
        let Some(fanout) = self.fanout.get_mut(&tenant) else { return };
        let id = EntryId::new(deliver.term, deliver.sequence);
        if !fanout.take(deliver.partition, id, deliver.repeat) {
            return;
        }
        let batch = match RecordBatch::decode(deliver.records.clone()) {
            Ok(batch) => batch,
            Err(error) => {
                let partition = PartitionKey { tenant, partition: deliver.partition };
                tracing::warn!(%partition, %id, %error, "an entry can't be read");
                return;
            }
        };
        for record in &batch.records {
            self.deliver_record(&tenant, record);
        }
    }

    fn deliver_record(&mut self, tenant: &TenantName, record: &Record) {
        let Some(fanout) = self.fanout.get(tenant) else { return };
        let published = QoS::capped(record.qos);
        for (key, granted) in fanout.receivers(&record.topic) {
            let qos = published.min(granted);
            let kept = self.connections.get(key).is_some_and(Connection::is_persistent);
            // What outlives the connection comes out of the mailbox.
            if !kept || qos == QoS::AtMostOnce {
                self.deliver_one(key, &record.topic, &record.payload, qos, 0);
            }
        }
    }

    /// Gives one message to one session.
    pub(crate) fn deliver_one(
        &mut self,
        key: ConnectionKey,
        topic: &[u8],
        payload: &[u8],
        qos: QoS,
        token: u64,
    ) -> Delivered {
        let Some(connection) = self.connections.get_mut(key) else { return Delivered::NotOpen };
        let delivered = connection.session.deliver(&Delivery { topic, payload, qos, token });
        self.shared.metrics.deliveries.count(delivered);
        self.shared.metrics.deliveries.displaced(connection.session.take_displaced());
        self.touch(key);
        delivered
    }

    /// The router could not keep deliveries for this link: whoever may have missed one of QoS 1 starts anew. Without a
    /// topic nobody knows what was missed: every session of the tenant with a subscription of QoS 1 may have.
    pub(crate) fn overrun(&mut self, overrun: &link::Overrun) {
        let Ok(tenant) = TenantName::new(&overrun.tenant) else { return };
        let Some(fanout) = self.fanout.get(&tenant) else { return };
        let any = overrun.topic.is_empty();
        let candidates: Vec<ConnectionKey> = if any {
            self.connections.of_tenant(&tenant).collect()
        } else {
            fanout.receivers(&overrun.topic).into_iter().map(|(key, _)| key).collect()
        };
        let matching = |key: ConnectionKey| {
            self.connections.get(key).filter(|it| !it.is_persistent()).is_some_and(|connection| {
                let mut filters = connection.session.subscriptions();
                filters.any(|(filter, qos)| {
                    qos == QoS::AtLeastOnce && (any || topic::matches(filter, &overrun.topic))
                })
            })
        };
        let missed: Vec<_> = candidates.into_iter().filter(|key| matching(*key)).collect();
        for key in missed {
            tracing::warn!(client = self.name_of(key), "closing a session that missed a delivery");
            self.close(key, CloseReason::Overrun);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_filters_give_one_delivery_at_the_highest_qos() {
        let mut fanout = Fanout::default();
        let key = |slot| ConnectionKey { slot, life: 1 };
        fanout.trie.insert(b"a/#", key(1), QoS::AtMostOnce);
        fanout.trie.insert(b"a/+", key(1), QoS::AtLeastOnce);
        fanout.trie.insert(b"a/b", key(2), QoS::AtMostOnce);
        assert_eq!(fanout.receivers(b"a/b"), [(key(1), QoS::AtLeastOnce), (key(2), QoS::AtMostOnce)]);
    }

    #[test]
    fn what_a_new_home_repeats_is_taken_once() {
        let mut fanout = Fanout::default();
        assert!(fanout.take(0, EntryId::new(5, 1), false));
        assert!(!fanout.take(0, EntryId::new(5, 1), true));
        assert!(fanout.take(0, EntryId::new(5, 2), true));
        assert!(fanout.take(1, EntryId::new(5, 1), true), "another partition");
        assert!(fanout.take(0, EntryId::new(6, 1), false));
        assert!(!fanout.take(0, EntryId::new(5, 9), true));
    }
}
