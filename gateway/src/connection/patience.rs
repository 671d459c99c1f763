//! How long the gateway waits for a client that does not go on: with a packet that has begun, with reading what it is sent,
//! with its CONNECT when others need the room. Nothing here runs against a client that waits for us.
//!
//! What is half done is bounded for the whole shard, and whoever is slowest makes room: so that a thousand clients that send
//! half of something cost the next one nothing.

use penstock_mqtt::session::{CloseReason, Millis};

use crate::{connection::table::ConnectionKey, shard::Shard};

/// Connections without a CONNECT that are looked at to find one that may go.
const LOOKS: usize = 16;
/// One of them is not slow before this part of its time is over.
const GRACE: Millis = 10;

impl Shard {
    /// Notes what of a packet is there, at the end of a turn.
    pub(super) fn note_half(&mut self, key: ConnectionKey) {
        let until = self.now + self.shared.config.timeouts.packet_ms;
        let Some(connection) = self.connections.get_mut(key) else { return };
        let held = connection.rest.capacity() + connection.transport.kept_bytes();
        // Before CONNECT there is another deadline. What has to wait for us is not half of anything.
        let (waited_for, paced) = (connection.session.wants_read(), connection.session.is_paced());
        let bytes = if waited_for || paced { held } else { 0 };
        let begun = waited_for && bytes > 0 && !connection.opening;
        connection.half_until = if begun { connection.half_until.min(until) } else { Millis::MAX };
        let before = std::mem::replace(&mut connection.half_bytes, bytes);
        self.count_half(before, bytes);
        if self.half_bytes > self.shared.config.limits.half_bytes {
            self.shed_halves();
        }
    }

    /// A connection's half packet has become another one of so many bytes.
    pub(super) fn count_half(&mut self, before: usize, now: usize) {
        self.half_bytes = (self.half_bytes + now).saturating_sub(before);
        let change = i64::try_from(now).unwrap_or(0) - i64::try_from(before).unwrap_or(0);
        self.shared.metrics.half_bytes.inc_by(change);
    }

    /// Closes connections whose packets take longest until a quarter of the limit is free: looking at all of them costs the
    /// less, the more it frees.
    fn shed_halves(&mut self) {
        let enough = self.shared.config.limits.half_bytes / 4 * 3;
        let connect_ms = self.shared.config.timeouts.connect_ms;
        let packet_ms = self.shared.config.timeouts.packet_ms;
        let mut halves: Vec<(Millis, ConnectionKey)> = Vec::new();
        for key in self.connections.keys() {
            let Some(connection) = self.connections.get(key).filter(|it| it.half_bytes > 0) else { continue };
            // Who floods is the first to go.
            let began = if connection.session.is_paced() {
                0
            } else if connection.opening {
                connection.session.deadline().map_or(self.now, |until| until.saturating_sub(connect_ms))
            } else {
                connection.half_until.saturating_sub(packet_ms)
            };
            halves.push((began, key));
        }
        halves.sort_unstable();
        for (_, key) in halves {
            if self.half_bytes <= enough {
                break;
            }
            self.close(key, CloseReason::Crowded);
        }
    }

    /// Makes room for a connection that was just accepted, if one that has not sent its CONNECT is slow. One that has sent
    /// something that is still unread is not slow: we are.
    pub(super) fn make_way(&mut self) -> bool {
        let grace = self.shared.config.timeouts.connect_ms / GRACE;
        let slow = |key: &ConnectionKey| {
            let connection = self.connections.get(*key).filter(|connection| connection.opening);
            connection.is_some_and(|connection| {
                let left = connection.session.deadline().map_or(0, |until| until.saturating_sub(self.now));
                left + grace <= self.shared.config.timeouts.connect_ms && !connection.transport.has_unread()
            })
        };
        let Some(place) = self.unopened.iter().take(LOOKS).position(slow) else { return false };
        let Some(key) = self.unopened.remove(place) else { return false };
        self.close(key, CloseReason::Crowded);
        true
    }

    /// Remembers connections in the order in which they were accepted, as long as their CONNECT has not come.
    pub(super) fn remember_unopened(&mut self, key: ConnectionKey) {
        let connections = &self.connections;
        let is_open = |key: &ConnectionKey| connections.get(*key).is_none_or(|it| !it.opening);
        while self.unopened.front().is_some_and(is_open) {
            self.unopened.pop_front();
        }
        // Behind one that takes its time there may be many that did not.
        if self.unopened.len() > 2 * self.openings + 1_024 {
            self.unopened.retain(|key| !is_open(key));
        }
        self.unopened.push_back(key);
    }

    /// The socket takes no more: the client's time to read runs, unless it runs already.
    pub(super) fn note_unread(&mut self, key: ConnectionKey) {
        let until = self.now + self.shared.config.timeouts.unread_ms;
        if let Some(connection) = self.connections.get_mut(key) {
            let until = connection.unread_until.min(until);
            connection.unread_until = if connection.blocked { until } else { Millis::MAX };
        }
    }

    /// Ends a connection whose client does not go on.
    pub(super) fn tick_patience(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.half_until <= self.now {
            self.close(key, CloseReason::PacketTimeout);
        } else if connection.unread_until <= self.now {
            self.close(key, CloseReason::Unread);
        }
    }

    /// Whether SUBSCRIBE has to wait until routers have taken more of what they are told; remembers it until it has not.
    pub(super) fn holds_subscribes(&mut self, key: ConnectionKey) -> bool {
        if !self.links.is_backed_up() {
            return false;
        }
        if let Some(connection) = self.connections.get_mut(key)
            && !std::mem::replace(&mut connection.held_subscribes, true)
        {
            self.held_subscribes.push(key);
        }
        true
    }

    /// Lets SUBSCRIBE go on when there is room.
    pub(crate) fn tick_subscribes(&mut self) {
        if self.held_subscribes.is_empty() || self.links.is_backed_up() {
            return;
        }
        for key in std::mem::take(&mut self.held_subscribes) {
            if let Some(connection) = self.connections.get_mut(key) {
                connection.held_subscribes = false;
                connection.session.hold_subscribes(false);
                connection.wake();
            }
        }
    }
}
