//! Pushes from microservices to devices: to one client under the ownership that the router knows, or to every session with
//! a matching subscription. The answer says what became of it; with a wait, only when the device has acknowledged.

use std::collections::HashMap;

use penstock_common::{epoch::Epoch, name::TenantName};
use penstock_mqtt::{
    packet::QoS,
    session::{Delivered, Delivery, Millis},
    topic,
};
use penstock_proto::link::{self, PushStatus, data_up};

use crate::{connection::table::ConnectionKey, link::table::LinkKey, shard::Shard};

/// Pushes of a shard that may wait for a PUBACK at a time; beyond, refused.
const WAITING: usize = 65_536;
/// Why a push is refused.
const SLOW: &str = "the client reads too slowly";

struct Waiting {
    link: LinkKey,
    id: u64,
    connection: ConnectionKey,
    until: Millis,
}

/// Pushes that wait for a PUBACK.
#[derive(Default)]
pub(crate) struct Pushes {
    tokens: u64,
    waiting: HashMap<u64, Waiting>,
}

impl Shard {
    /// A push from a router.
    pub(crate) fn push(&mut self, link: LinkKey, push: &link::Push) {
        let Ok(tenant) = TenantName::new(&push.tenant) else {
            return self.push_result(link, push.id, PushStatus::NotConnected, 0, "");
        };
        if push.client.is_empty() {
            self.push_all(link, &tenant, push);
        } else {
            self.push_one(link, &tenant, push);
        }
    }

    fn push_all(&mut self, link: LinkKey, tenant: &TenantName, push: &link::Push) {
        let receivers = self.fanout.get(tenant).map(|it| it.receivers(&push.topic)).unwrap_or_default();
        let mut count = 0;
        for (key, granted) in receivers {
            let qos = QoS::capped(push.qos).min(granted);
            if self.has_no_room_for(key, push, qos) {
                continue;
            }
            let delivered = self.deliver_one(key, &push.topic, &push.payload, qos, 0);
            count += u32::from(matches!(delivered, Delivered::Sent | Delivered::Queued));
        }
        self.push_result(link, push.id, PushStatus::Routed, count, "");
    }

    fn push_one(&mut self, link: LinkKey, tenant: &TenantName, push: &link::Push) {
        let Some(key) = self.connections.owned(tenant, &push.client, Epoch(push.epoch)) else {
            self.shared.metrics.stale_epochs.inc();
            return self.push_result(link, push.id, PushStatus::NotConnected, 0, "");
        };
        let connection = self.connections.get(key).filter(|connection| connection.admitted);
        let Some(connection) = connection else {
            return self.push_result(link, push.id, PushStatus::NotConnected, 0, "");
        };
        let matching =
            connection.session.subscriptions().filter(|(filter, _)| topic::matches(filter, &push.topic));
        let Some(granted) = matching.map(|(_, qos)| qos).max() else {
            return self.push_result(link, push.id, PushStatus::NotSubscribed, 0, "");
        };
        let qos = QoS::capped(push.qos).min(granted);
        if self.has_no_room_for(key, push, qos) {
            return self.push_result(link, push.id, PushStatus::Refused, 0, SLOW);
        }
        let token = if qos == QoS::AtLeastOnce && push.wait_ms > 0 {
            self.wait_push(link, push, key)
        } else {
            Some(0)
        };
        let Some(token) = token else {
            let reason = "too many pushes wait for an acknowledgement";
            return self.push_result(link, push.id, PushStatus::Refused, 0, reason);
        };
        let delivered = self.deliver_one(key, &push.topic, &push.payload, qos, token);
        let (status, reason) = match delivered {
            Delivered::Sent | Delivered::Queued if token != 0 => return,
            Delivered::Sent | Delivered::Queued => (PushStatus::Routed, ""),
            Delivered::NotOpen => (PushStatus::NotConnected, ""),
            Delivered::DroppedQos0 | Delivered::Overrun => (PushStatus::Refused, SLOW),
            Delivered::TooLarge => (PushStatus::Refused, "too large for MQTT"),
        };
        self.pushes.waiting.remove(&token);
        self.push_result(link, push.id, status, u32::from(status == PushStatus::Routed), reason);
    }

    /// A push says what became of it, so that one of QoS 1 that does not fit is no reason to close a session. Pushes to a
    /// topic close clean ones all the same: their receipt is a count.
    fn has_no_room_for(&self, key: ConnectionKey, push: &link::Push, qos: QoS) -> bool {
        let Some(connection) = self.connections.get(key) else { return false };
        let delivery = Delivery { topic: &push.topic, payload: &push.payload, qos, token: 0 };
        let told = !push.client.is_empty() || connection.kept.is_some();
        let full = told && qos == QoS::AtLeastOnce && !connection.session.has_room(&delivery);
        if full {
            self.shared.metrics.deliveries.refuse();
        }
        full
    }

    fn wait_push(&mut self, link: LinkKey, push: &link::Push, connection: ConnectionKey) -> Option<u64> {
        if self.pushes.waiting.len() >= WAITING {
            return None;
        }
        self.pushes.tokens += 1;
        let until = self.now.saturating_add(push.wait_ms);
        let waiting = Waiting { link, id: push.id, connection, until };
        self.pushes.waiting.insert(self.pushes.tokens, waiting);
        Some(self.pushes.tokens)
    }

    /// The device has acknowledged.
    pub(crate) fn acknowledge(&mut self, token: u64) {
        if let Some(waiting) = self.pushes.waiting.remove(&token) {
            self.push_result(waiting.link, waiting.id, PushStatus::Delivered, 1, "");
        }
    }

    /// The connection ends: nobody will acknowledge.
    pub(crate) fn pushes_lost(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        let tokens: Vec<u64> = connection.session.unacknowledged().collect();
        for token in tokens {
            if let Some(waiting) = self.pushes.waiting.remove(&token) {
                self.push_result(waiting.link, waiting.id, PushStatus::NotConnected, 0, "");
            }
        }
    }

    /// Ends waits that make no sense any more.
    pub(crate) fn tick_pushes(&mut self) {
        let (now, connections) = (self.now, &self.connections);
        let over = |it: &Waiting| it.until <= now || connections.get(it.connection).is_none();
        let ended: Vec<u64> =
            self.pushes.waiting.iter().filter(|(_, it)| over(it)).map(|(token, _)| *token).collect();
        for token in ended {
            if let Some(waiting) = self.pushes.waiting.remove(&token) {
                self.push_result(waiting.link, waiting.id, PushStatus::Expired, 0, "");
            }
        }
    }

    fn push_result(&self, link: LinkKey, id: u64, status: PushStatus, count: u32, reason: &str) {
        if let Some(link) = self.links.get(link) {
            link.data(data_up::Kind::PushResult(link::PushResult {
                id,
                status: status.into(),
                count,
                reason: reason.to_owned(),
            }));
        }
    }
}
