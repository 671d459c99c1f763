//! What operators see of this shard's connections: one that is asked for, and how each of them ended, which the home of its
//! partition remembers. An operator's order to close one comes here as well.

use penstock_common::{epoch::Epoch, name::TenantName};
use penstock_mqtt::session::CloseReason;
use penstock_proto::link::{self, control_up};

use crate::{connection::table::ConnectionKey, link::table::LinkKey, shard::Shard};

/// Bytes of filters in an answer.
const FILTER_BYTES: usize = 16 << 10;
/// Ends that wait for their lane to be open; the oldest are forgotten.
const ENDED: usize = 256;

impl Shard {
    /// Says what a connection is like, and closes it when that is wanted.
    pub(crate) fn inspect(&mut self, link: LinkKey, asked: &link::Inspect) {
        let tenant = TenantName::new(&asked.tenant).ok();
        let epoch = Epoch(asked.epoch);
        let key = tenant.and_then(|tenant| self.connections.owned(&tenant, &asked.client, epoch));
        let answer = key.and_then(|key| self.seen(key)).unwrap_or_default();
        if let Some(key) = key.filter(|_| asked.close) {
            tracing::info!(client = self.name_of(key), "an operator closes a connection");
            self.close(key, CloseReason::Administrative);
        }
        if let Some(link) = self.links.get(link) {
            link.control(control_up::Kind::Inspected(link::Inspected { id: asked.id, ..answer }));
        }
    }

    fn seen(&self, key: ConnectionKey) -> Option<link::Inspected> {
        let connection = self.connections.get(key).filter(|connection| connection.admitted)?;
        let identity = connection.identity.as_deref()?;
        let session = &connection.session;
        let (mut filters, mut bytes, mut subscriptions) = (Vec::new(), 0, 0);
        for (filter, qos) in session.subscriptions() {
            (subscriptions, bytes) = (subscriptions + 1, bytes + filter.len());
            if bytes <= FILTER_BYTES {
                filters.push(link::SessionFilter { filter: filter.clone(), qos: qos.number().into() });
            }
        }
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Some(link::Inspected {
            id: 0,
            found: true,
            connected_at_ms: identity.since,
            address: connection.transport.client_address().map(|it| it.to_string()).unwrap_or_default(),
            transport: connection.transport.kind().label().to_owned(),
            user: String::from_utf8_lossy(&identity.user).into_owned(),
            clean: identity.clean,
            keep_alive: session.keep_alive(),
            subscriptions,
            filters,
            in_flight: count(session.inflight()),
            queued: count(session.queued()),
            outbound_bytes: session.outbound_bytes() as u64,
            unsettled: count(session.unsettled()),
        })
    }

    /// A connection that had its CONNACK has ended: its home will be told.
    pub(crate) fn note_end(&mut self, key: ConnectionKey, reason: CloseReason) {
        let Some(connection) = self.connections.get(key).filter(|connection| connection.admitted) else {
            return;
        };
        let Some(identity) = connection.identity.as_deref() else { return };
        let ended = link::Ended {
            client: identity.client.clone(),
            epoch: identity.attached.0,
            reason: reason.label().to_owned(),
            connected_at_ms: identity.since,
            ended_at_ms: self.wall,
            address: connection.transport.client_address().map(|it| it.to_string()).unwrap_or_default(),
        };
        let index = identity.lane;
        if let Some(lane) = self.lanes.get_mut(index) {
            if lane.ended.len() >= ENDED {
                lane.ended.pop_front();
            }
            lane.ended.push_back(ended);
            self.lanes.mark(index);
            self.want_end();
        }
    }
}
