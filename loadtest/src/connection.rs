//! One MQTT connection of a load client, made for many: it reads into a buffer of its thread and holds none while it is
//! idle. It knows packets and keep-alive, nothing of messages.

use std::{
    cell::RefCell,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::Interest,
    net::{TcpSocket, TcpStream, lookup_host},
    time::{Instant, timeout},
};

use crate::{
    packets::{self, Incoming, Malformed},
    tally::Presence,
};

/// What one read takes, bytes.
const READ: usize = 64 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// A connection that could not be made, or broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the broker refused the connection with code {0}")]
    Refused(u8),
    #[error("the broker closed the connection")]
    Closed,
    #[error("the broker did not answer in time")]
    Silent,
    #[error("the broker does not grant a subscription")]
    NotGranted,
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Broken {
    /// The kind under which it is counted.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Refused(1) => "refused_code_1",
            Self::Refused(2) => "refused_code_2",
            Self::Refused(3) => "refused_code_3",
            Self::Refused(4) => "refused_code_4",
            Self::Refused(5) => "refused_code_5",
            Self::Refused(_) => "refused_code_other",
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::NotGranted => "subscription_refused",
            Self::Malformed(_) => "malformed",
            Self::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => "connection_refused",
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "closed",
                io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => "no_local_port",
                io::ErrorKind::TimedOut => "connect_timed_out",
                // EMFILE, ENFILE.
                _ if matches!(error.raw_os_error(), Some(23 | 24)) => "too_many_files",
                _ => "io",
            },
        }
    }
}

/// Where from, where to and as whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dial<'a> {
    /// `host:port`.
    pub(crate) target: &'a str,
    pub(crate) source: Option<IpAddr>,
    pub(crate) client_id: &'a str,
    /// User name and password.
    pub(crate) login: Option<(&'a str, &'a str)>,
    pub(crate) keep_alive: Duration,
    /// For all of it.
    pub(crate) limit: Duration,
}

/// One open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    /// The beginning of a packet that is not whole yet.
    rest: Vec<u8>,
    /// What is to be sent; `push` sends it.
    pub(crate) out: Vec<u8>,
    /// Bytes of `out` that are gone.
    written: usize,
    keep_alive: Duration,
    pinged: Instant,
    heard: Instant,
    /// Of whoever counts connections.
    pub(crate) presence: Option<Presence>,
}

impl Dial<'_> {
    /// Connects and waits for the CONNACK.
    pub(crate) async fn open(&self) -> Result<Connection, Broken> {
        match timeout(self.limit, self.connect()).await {
            Ok(opened) => opened,
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        }
    }

    async fn connect(&self) -> Result<Connection, Broken> {
        let address = match self.target.parse::<SocketAddr>() {
            Ok(address) => address,
            Err(_) => lookup_host(self.target)
                .await?
                .next()
                .ok_or(io::ErrorKind::NotFound)
                .map_err(io::Error::from)?,
        };
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(source) = self.source.filter(|source| source.is_ipv4() == address.is_ipv4()) {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        socket.set_nodelay(true)?;
        let stream = socket.connect(address).await?;
        let now = Instant::now();
        let keep_alive = self.keep_alive;
        let (rest, out) = (Vec::new(), Vec::new());
        let mut connection =
            Connection { stream, rest, out, written: 0, keep_alive, pinged: now, heard: now, presence: None };
        let seconds = u16::try_from(keep_alive.as_secs()).unwrap_or(u16::MAX);
        packets::connect(&mut connection.out, self.client_id, self.login, seconds);
        let mut code = None;
        while code.is_none() {
            connection.push()?;
            connection.ready().await?;
            connection.receive(|packet, _| match packet {
                Incoming::ConnAck(given) => code = Some(given),
                _ => code = code.or(Some(u8::MAX)),
            })?;
        }
        connection.out = Vec::new();
        match code {
            Some(0) => Ok(connection),
            other => Err(Broken::Refused(other.unwrap_or(u8::MAX))),
        }
    }
}

impl Connection {
    /// Waits until it can be read, or written if something waits for that. May be cancelled.
    pub(crate) async fn ready(&self) -> Result<(), Broken> {
        let interest =
            if self.waiting() > 0 { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.stream.ready(interest).await?;
        Ok(())
    }

    /// Bytes that wait to be sent.
    pub(crate) fn waiting(&self) -> usize {
        self.out.len() - self.written
    }

    /// Sends what the socket takes now.
    pub(crate) fn push(&mut self) -> Result<(), Broken> {
        while let Some(bytes) = self.out.get(self.written..).filter(|bytes| !bytes.is_empty()) {
            match self.stream.try_write(bytes) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Gives up the buffers: an idle connection holds none.
    pub(crate) fn idle(&mut self) {
        if self.waiting() == 0 {
            (self.out, self.written) = (Vec::new(), 0);
        }
    }

    /// Reads what is there, once, and hands over whole packets with what is to be sent.
    pub(crate) fn receive(&mut self, mut take: impl FnMut(Incoming<'_>, &mut Vec<u8>)) -> Result<(), Broken> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut rest = std::mem::take(&mut self.rest);
            let held = rest.len();
            // What is larger than a read is put together in a buffer of its own.
            let buffer = if held > READ / 2 {
                rest.resize(held + held.max(READ), 0);
                &mut rest
            } else {
                if let Some(start) = scratch.get_mut(..held) {
                    start.copy_from_slice(&rest);
                }
                scratch
            };
            let read = match self.stream.try_read(buffer.get_mut(held..).unwrap_or_default()) {
                Ok(0) => return Err(Broken::Closed),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    rest.truncate(held);
                    self.rest = rest;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            self.heard = Instant::now();
            let mut input = buffer.get(..held + read).unwrap_or_default();
            while let Some((packet, length)) = packets::parse(input)? {
                take(packet, &mut self.out);
                input = input.get(length..).unwrap_or_default();
            }
            // Empty: no allocation.
            self.rest = input.to_vec();
            Ok(())
        })
    }

    /// When `keep_alive` wants to be called.
    pub(crate) fn keep_alive_at(&self) -> Instant {
        self.pinged + self.keep_alive / 2
    }

    /// Pings; a broker that has been silent for 1.5 times the keep-alive, though pinged, is given up.
    pub(crate) fn keep_alive(&mut self) -> Result<(), Broken> {
        if self.heard.elapsed() >= self.keep_alive * 3 / 2 {
            return Err(Broken::Silent);
        }
        self.pinged = Instant::now();
        self.out.extend_from_slice(&packets::PINGREQ);
        Ok(())
    }

    /// Says good-bye: no will. What does not fit into the socket is not sent.
    pub(crate) fn disconnect(mut self) {
        self.out.extend_from_slice(&packets::DISCONNECT);
        // The connection ends either way.
        let _ = self.push();
    }
}
