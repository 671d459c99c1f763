//! The driver of a session: reads the transport into it, does what it asks for, writes what it says. Every decision about
//! MQTT is the session's, every effect is here or one call away.
//!
//! An idle connection holds no buffer: all connections of a shard read into one; what is left of a half-read packet moves
//! to a small buffer of its own. There is one task a connection, which only waits for the transport.

use std::{
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use penstock_mqtt::session::{CloseReason, Event};
use tokio::net::TcpStream;

use crate::{
    connection::table::ConnectionKey,
    shard::{READ_BYTES, Shard, ShardCell},
    transport::{self, Fault},
};

pub(crate) mod listener;
mod opening;
mod patience;
pub(crate) mod table;

/// Reads of one connection in one turn of its task; then others get theirs.
const READS: usize = 4;
/// What is read at once of a client whose lane has no room, and of one that has not connected: the rest may have to wait.
const LOOK_AHEAD: usize = 16 * 1_024;
const FIRST_READ: usize = 4 * 1_024;
/// How long, and how much, is still read and thrown away after the last byte was written, so that the client's kernel
/// does not discard it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1_024;

/// Waits for the transport of one connection until the connection is gone.
pub(crate) async fn drive(shard: ShardCell, key: ConnectionKey, stream: Rc<TcpStream>) {
    poll_fn(|context| poll(&shard, key, &stream, context)).await;
    drop(shard);
    let _ = tokio::time::timeout(LINGER, linger(&stream)).await;
}

fn poll(shard: &ShardCell, key: ConnectionKey, stream: &TcpStream, context: &mut Context<'_>) -> Poll<()> {
    let mut shard = shard.borrow_mut();
    shard.turn();
    for _ in 0..READS {
        let Some(connection) = shard.connections.get_mut(key) else { return Poll::Ready(()) };
        if !connection.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            connection.waker = Some(context.waker().clone());
        }
        if connection.blocked && stream.poll_write_ready(context).is_ready() {
            // The client has read something.
            connection.unread_until = u64::MAX;
            shard.transmit(key);
            continue;
        }
        if !connection.session.wants_read() {
            connection.reading = false;
            return Poll::Pending;
        }
        // Reading was paused: what came before goes first.
        if !connection.reading && !connection.rest.is_empty() {
            connection.reading = true;
            let rest = std::mem::take(&mut connection.rest).freeze();
            shard.receive(key, rest);
            continue;
        }
        connection.reading = true;
        match stream.poll_read_ready(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(())) => shard.read(key),
            Poll::Ready(Err(_)) => shard.close(key, CloseReason::TransportFailed),
        }
    }
    context.waker().wake_by_ref();
    Poll::Pending
}

/// What has to wait. A copy, so that nothing pins the shared buffer; but for much that is its own already: a client that is
/// read a little at a time would have it copied each time.
fn keep(input: Bytes) -> BytesMut {
    if input.len() < READ_BYTES / 8 {
        return BytesMut::from(&input[..]);
    }
    input.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]))
}

async fn linger(stream: &TcpStream) -> io::Result<()> {
    // The write side ends when the last handle is dropped; until then the client may still be writing.
    socket_shutdown(stream)?;
    // On the heap: every connection's task would hold it from the beginning.
    let (mut read, mut sink) = (0, vec![0; 1_024]);
    while read < LINGER_BYTES {
        stream.readable().await?;
        match stream.try_read(&mut sink) {
            Ok(0) => return Ok(()),
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn socket_shutdown(stream: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write)
}

impl Shard {
    /// Reads once.
    fn read(&mut self, key: ConnectionKey) {
        let most = self.most_to_read(key);
        let Some(connection) = self.connections.get_mut(key) else { return };
        if !connection.transport.is_plain() {
            return self.read_wrapped(key, most);
        }
        let own = !connection.rest.is_empty();
        let buffer = if own { &mut connection.rest } else { &mut self.buffer };
        let room = if own {
            let needs = connection.session.needs(buffer).unwrap_or_default();
            // Grows with what really came, so that a header alone reserves little.
            needs.saturating_sub(buffer.len()).clamp(1_024, buffer.len().clamp(4_096, most))
        } else {
            most
        };
        buffer.reserve(room);
        let read = connection.transport.read_plain(buffer, room);
        if connection.opening && transport::is_tls(buffer) {
            buffer.clear();
            return self.fail(key, &Fault::UnexpectedTls);
        }
        let complete = connection.session.needs(buffer).is_none_or(|needs| needs <= buffer.len());
        let input = match (own, &read) {
            (true, Ok(n)) if *n > 0 && !complete => Bytes::new(),
            (true, _) => std::mem::take(buffer).freeze(),
            (false, _) => buffer.split().freeze(),
        };
        // Paused between the client's write and now: then the connection is gone, and what was read with it.
        self.turn();
        self.receive(key, input);
        self.after_read(key, read);
    }

    fn most_to_read(&self, key: ConnectionKey) -> usize {
        if self.connections.get(key).is_some_and(|connection| connection.opening) {
            FIRST_READ
        } else if self.has_no_room(key) {
            LOOK_AHEAD
        } else {
            READ_BYTES
        }
    }

    /// The transport has ended, or failed.
    fn after_read(&mut self, key: ConnectionKey, read: io::Result<usize>) {
        match read {
            Ok(0) => self.close(key, CloseReason::PeerClosed),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                self.close(key, CloseReason::TransportFailed);
            }
            _ => {}
        }
    }

    /// Gives bytes to the session and does what it asks for.
    pub(crate) fn receive(&mut self, key: ConnectionKey, mut input: Bytes) {
        let hold_subscribes = self.holds_subscribes(key);
        loop {
            let hold = self.holds(key);
            let now = self.now;
            let Some(connection) = self.connections.get_mut(key) else { return };
            connection.session.hold_publishes(hold, now);
            connection.session.hold_subscribes(hold_subscribes);
            let consumed = connection.session.receive(&input, now);
            if consumed > 0 {
                // The next packet has a time of its own.
                connection.half_until = u64::MAX;
            }
            input.advance(consumed);
            self.serve_events(key);
            if consumed == 0 {
                break;
            }
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        if !input.is_empty() {
            connection.rest = keep(input);
        }
        self.touch(key);
    }

    fn serve_events(&mut self, key: ConnectionKey) {
        while let Some(connection) = self.connections.get_mut(key) {
            let Some(event) = connection.session.poll_event() else { return };
            let kept = connection.is_persistent();
            match event {
                Event::Connect(connect) => {
                    self.opened(key);
                    self.connect(key, *connect);
                }
                Event::Publish { publish, token } => {
                    self.shared.metrics.received(publish.qos);
                    self.publish(key, &publish, token);
                }
                Event::Subscribe { packet_id, filters } if kept => {
                    self.keep_subscribe(key, packet_id, filters)
                }
                Event::Unsubscribe { packet_id, filters } if kept => {
                    self.keep_unsubscribe(key, packet_id, filters);
                }
                Event::Subscribe { packet_id, filters } => self.subscribe(key, packet_id, &filters),
                Event::Unsubscribe { packet_id, filters } => self.unsubscribe(key, packet_id, &filters),
                Event::Acknowledged { token } => {
                    if !self.acknowledge_mail(key, token) {
                        self.acknowledge(token);
                    }
                }
                // Its home has it: `closed` tells how the connection ended.
                Event::Will(_) => {}
                Event::Closed(reason) => self.closed(key, reason),
            }
        }
    }

    /// The connection's part of the end of a turn.
    pub(crate) fn serve(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.dirty = false;
        }
        self.serve_events(key);
        self.step_mail(key);
        self.transmit(key);
        self.note_half(key);
        self.schedule(key);
        if let Some(connection) = self.connections.get_mut(key)
            && (connection.blocked || (connection.session.wants_read() && !connection.reading))
        {
            connection.wake();
        }
    }

    /// Writes what there is, as far as the transport takes it.
    fn transmit(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        match connection.transport.write(&mut connection.session, &mut self.scratch) {
            Ok(all) => {
                let was_blocked = std::mem::replace(&mut connection.blocked, !all);
                let room_for_mail = was_blocked && all && connection.kept.is_some();
                self.note_unread(key);
                if room_for_mail {
                    self.touch(key);
                }
            }
            Err(_) => self.close(key, CloseReason::TransportFailed),
        }
    }

    /// Closes a connection for the shard's reason.
    pub(crate) fn close(&mut self, key: ConnectionKey, reason: CloseReason) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.session.close(reason);
            self.serve_events(key);
        }
    }

    /// The session has ended: writes its last bytes and undoes everything that the connection was part of.
    pub(crate) fn closed(&mut self, key: ConnectionKey, reason: CloseReason) {
        if let Some(connection) = self.connections.get_mut(key) {
            let _ = connection.transport.write(&mut connection.session, &mut self.scratch);
            connection.transport.finish(reason, &mut self.scratch);
            let half = std::mem::take(&mut connection.half_bytes);
            self.count_half(half, 0);
        }
        self.not_opened(key, reason);
        self.log_end(key, reason);
        self.note_end(key, reason);
        self.unsubscribe_all(key);
        self.pushes_lost(key);
        self.leave_mailbox(key, reason);
        let Some(mut connection) = self.connections.remove(key) else { return };
        self.shared.metrics.close(reason);
        if let Some(admission) = connection.admission.take() {
            self.forget_question(key, &admission);
            self.admissions -= 1;
            self.shared.metrics.connect("aborted");
        }
        if connection.admitted {
            self.shared.metrics.connections.of(connection.transport.kind()).dec();
        }
        if let Some(identity) = connection.identity.take() {
            self.detach(key, &identity);
            self.end_will(&identity, connection.admitted, reason);
            self.disown(&identity, reason);
        }
        connection.wake();
    }

    /// Says who ended why; what an operator has to look for (a looping bridge, a client that can't keep up) louder.
    fn log_end(&mut self, key: ConnectionKey, reason: CloseReason) {
        let loud = matches!(
            reason,
            CloseReason::TopicReserved
                | CloseReason::TopicSystem
                | CloseReason::Overrun
                | CloseReason::StoreTimeout
                | CloseReason::PublishQuota
        );
        if loud && !self.voice.speaks(self.now) {
            return;
        }
        let (client, label) = (self.name_of(key), reason.label());
        match reason {
            CloseReason::TopicReserved | CloseReason::TopicSystem => {
                tracing::warn!(
                    client,
                    reason = label,
                    "closing a connection that published where it may not"
                );
            }
            CloseReason::Overrun | CloseReason::StoreTimeout | CloseReason::PublishQuota => {
                tracing::info!(client, reason = label, "closing a connection");
            }
            _ => tracing::debug!(client, reason = label, "a connection has ended"),
        }
    }

    /// Enters the connection's deadline into the shard's timers, unless an earlier look is already due.
    pub(crate) fn schedule(&mut self, key: ConnectionKey) {
        let soon = self.now + 1;
        if let Some(connection) = self.connections.get_mut(key)
            // Never now: the tick that is under way would see it again, and again.
            && let Some(deadline) = connection.deadline(self.now).map(|deadline| deadline.max(soon))
            && deadline < connection.scheduled
        {
            connection.scheduled = deadline;
            self.timers.push(std::cmp::Reverse((deadline, key)));
        }
    }

    /// Looks at every connection whose time has come.
    pub(crate) fn tick_connections(&mut self) {
        while let Some(std::cmp::Reverse((due, key))) = self.timers.peek().copied() {
            if due > self.now {
                break;
            }
            self.timers.pop();
            let now = self.now;
            let Some(connection) = self.connections.get_mut(key) else { continue };
            if connection.scheduled != due {
                continue;
            }
            connection.scheduled = u64::MAX;
            connection.session.tick(now);
            self.tick_patience(key);
            self.tick_admission(key);
            self.tick_mail(key);
            self.touch(key);
            self.schedule(key);
        }
    }
}
