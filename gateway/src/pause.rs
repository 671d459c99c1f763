//! A shard that was paused past its lease (a stopped process, a frozen machine) holds nothing but stale state: its clients
//! may live elsewhere, its records may be out of order. It drops what it read and what is unsettled, closes every
//! connection (their wills fire at the homes, unless newer connections have ended them), drops its links, numbers its
//! records anew, and goes on.

use penstock_mqtt::session::{CloseReason, Event};

use crate::shard::Shard;

impl Shard {
    /// Forgets everything that came before the pause.
    pub(crate) fn drop_stale(&mut self) {
        let connections = self.connections.keys();
        tracing::warn!(shard = self.number, connections = connections.len(), "was paused: starting anew");
        self.shared.metrics.pauses.inc();
        // First the links: nothing stale may be told while connections close.
        for key in self.links.keys() {
            self.link_down(key);
        }
        for key in connections {
            self.close_stale(key);
        }
        let dropped = self.lanes.reset();
        self.shared.metrics.dropped_paused.inc_by(dropped as u64);
        self.producer = self.shared.seams.number();
        self.want_end();
    }

    fn close_stale(&mut self, key: crate::connection::table::ConnectionKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        // What it wanted before the pause is void; the session's end is the only event that counts.
        while connection.session.poll_event().is_some() {}
        connection.session.close(CloseReason::Paused);
        let closed = std::iter::from_fn(|| connection.session.poll_event())
            .find_map(|event| if let Event::Closed(reason) = event { Some(reason) } else { None });
        self.closed(key, closed.unwrap_or(CloseReason::Paused));
    }
}
