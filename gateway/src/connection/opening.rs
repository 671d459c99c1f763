//! A connection before MQTT: taken if there is room, led through what its listener wraps around MQTT, and counted until
//! its CONNECT is here. All of it has one deadline, the session's for a CONNECT.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use bytes::BytesMut;
use penstock_mqtt::session::{CloseReason, Session};
use tokio::net::TcpStream;

use crate::{
    config::transports::TransportKind,
    connection::table::{Connection, ConnectionKey},
    shard::Shard,
    transport::{Fault, Transport, Wrapping},
};

impl Shard {
    /// Takes a connection that was accepted; None: there is no room for it.
    pub(crate) fn accept(
        &mut self,
        kind: TransportKind,
        stream: Rc<TcpStream>,
        peer: SocketAddr,
    ) -> Option<ConnectionKey> {
        let fits = self.openings < self.shared.config.limits.handshakes || self.make_way();
        let made = if fits { self.wrap(kind, stream, peer) } else { Err(Fault::TooMany) };
        let transport = match made {
            Ok(transport) => transport,
            Err(fault) => {
                self.tell_fault(kind, Some(peer), &fault);
                let many = fault == Fault::TooMany;
                let reason = if many { CloseReason::Crowded } else { CloseReason::TransportFailed };
                self.shared.metrics.close(reason);
                return None;
            }
        };
        self.openings += 1;
        self.shared.metrics.opening.inc();
        let limits = Arc::clone(&self.shared.session_limits);
        let session = Session::new(limits, Arc::clone(&self.shared.reserved), self.now);
        let key = self.connections.insert(Connection::new(transport, session));
        self.remember_unopened(key);
        self.schedule(key);
        Some(key)
    }

    fn wrap(&self, kind: TransportKind, stream: Rc<TcpStream>, peer: SocketAddr) -> Result<Transport, Fault> {
        let shared = &self.shared;
        let wrapping = Wrapping {
            proxied: shared.config.transports.expects_proxy(kind, peer.ip()),
            tls: shared.certificates.as_ref().filter(|_| kind.has_tls()).map(|it| it.config(kind)),
            web_path: kind.has_web_socket().then(|| Arc::clone(&shared.web_path)),
        };
        Transport::new(kind, stream, wrapping)
    }

    /// Reads once from a connection on which something is wrapped around MQTT.
    pub(super) fn read_wrapped(&mut self, key: ConnectionKey, most: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let read = connection.transport.read_wrapped(&mut self.buffer, most);
        // Paused between the client's write and now: then the connection is gone, and what was read with it.
        self.turn();
        let Some(connection) = self.connections.get_mut(key) else {
            self.buffer.clear();
            return;
        };
        if matches!(read, Ok(1..)) {
            let opened = connection.transport.open(&mut self.buffer, &mut self.scratch);
            let mqtt = self.scratch.mqtt.split();
            self.receive_opened(key, mqtt);
            match opened {
                Ok(false) => {}
                Ok(true) => self.close(key, CloseReason::PeerClosed),
                Err(fault) => self.fail(key, &fault),
            }
        }
        self.after_read(key, read);
    }

    /// Gives MQTT that came out of the layers to the session, behind what is left of a half packet.
    fn receive_opened(&mut self, key: ConnectionKey, mqtt: BytesMut) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if mqtt.is_empty() {
            // The layers may have something to say.
            return self.touch(key);
        }
        if connection.rest.is_empty() {
            return self.receive(key, mqtt.freeze());
        }
        connection.rest.extend_from_slice(&mqtt);
        let rest = &connection.rest;
        if connection.session.needs(rest).is_none_or(|needs| needs <= rest.len()) {
            let input = std::mem::take(&mut connection.rest).freeze();
            self.receive(key, input);
        } else {
            self.touch(key);
        }
    }

    /// Ends a connection whose transport went wrong.
    pub(super) fn fail(&mut self, key: ConnectionKey, fault: &Fault) {
        if let Some(connection) = self.connections.get(key) {
            let transport = &connection.transport;
            self.tell_fault(transport.kind(), transport.client_address(), fault);
        }
        self.close(key, CloseReason::TransportFailed);
    }

    /// The CONNECT is here.
    pub(super) fn opened(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.get_mut(key)
            && std::mem::take(&mut connection.opening)
        {
            self.openings -= 1;
            self.shared.metrics.opening.dec();
        }
    }

    /// The connection ends: if its CONNECT never came in time, says what did not.
    pub(super) fn not_opened(&mut self, key: ConnectionKey, reason: CloseReason) {
        if reason == CloseReason::ConnectTimeout
            && let Some(connection) = self.connections.get(key)
            && let Some(fault) = connection.transport.overdue()
        {
            let transport = &connection.transport;
            self.tell_fault(transport.kind(), transport.client_address(), &fault);
        }
        self.opened(key);
    }

    // At debug: scanners of ports would fill the log with what the metric counts.
    fn tell_fault(&self, kind: TransportKind, client: Option<SocketAddr>, fault: &Fault) {
        self.shared.metrics.transport_failed(kind, fault.label());
        tracing::debug!(transport = kind.label(), ?client, reason = fault.label(), error = %fault, "a transport failed");
    }
}
