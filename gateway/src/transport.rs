//! What lies between the socket and MQTT: PROXY protocol header, TLS, WebSocket, each of them optional, in this order from
//! the outside. It moves bytes and judges nothing about MQTT; when it is read and written is the driver's business.
//!
//! Invariants: plain TCP passes through without a copy. An idle connection holds no buffer here: input is opened in the
//! shard's buffers, output sealed in them, and only what is incomplete, or what the socket did not take, is kept. Kept
//! input is less than a record of TLS, a message of its handshake (64 KiB at most), an HTTP request (8 KiB) or a PROXY
//! header (4 KiB); kept output is a record and what TLS itself says, at most [`UNREAD_BYTES`].

use std::{io, mem, net::SocketAddr, rc::Rc, sync::Arc};

use bytes::{Buf, BufMut, BytesMut};
use penstock_mqtt::session::{CloseReason, Session};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tungstenite::protocol::frame::coding::CloseCode;

pub(crate) use self::fault::Fault;
use self::{frames::Frames, tls::Tls};
use crate::config::transports::TransportKind;

mod fault;
mod frames;
mod proxy;
mod tls;
mod upgrade;

/// Most bytes that the layers' own answers may wait to be written; a client that reads never comes near.
const UNREAD_BYTES: usize = 64 * 1_024;
/// Most bytes of MQTT that are sealed at a time: with a frame's header they fit into a record.
const DATA_BYTES: usize = tls::RECORD_BYTES - 16;

/// The socket of a connection with everything that is wrapped around MQTT on it.
pub(crate) struct Transport {
    kind: TransportKind,
    stream: Rc<TcpStream>,
    /// The client's address as a trusted proxy told it.
    proxied: Option<Box<SocketAddr>>,
    /// None when MQTT is on the socket itself.
    layers: Option<Box<Layers>>,
}

/// Buffers of a shard that all its connections use in turn. Empty between uses.
#[derive(Default)]
pub(crate) struct Scratch {
    /// MQTT that came.
    pub(crate) mqtt: BytesMut,
    clear: BytesMut,
    sealed: BytesMut,
}

/// How a connection's layers begin.
pub(crate) struct Wrapping {
    /// The peer is a trusted proxy: a header comes first.
    pub(crate) proxied: bool,
    /// For a listener with TLS.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// The path, for a listener with WebSocket.
    pub(crate) web_path: Option<Arc<str>>,
}

struct Layers {
    /// A PROXY header has to come first.
    awaits_proxy: bool,
    tls: Option<Box<Tls>>,
    web: Option<Box<Web>>,
    kept: BytesMut,
    out: BytesMut,
    /// Nothing of MQTT is read or written any more.
    failed: bool,
}

enum Web {
    /// The request is coming.
    Upgrade {
        head: BytesMut,
        path: Arc<str>,
    },
    Open(Frames),
}

impl Transport {
    pub(crate) fn new(kind: TransportKind, stream: Rc<TcpStream>, wrapping: Wrapping) -> Result<Self, Fault> {
        let plain = !wrapping.proxied && wrapping.tls.is_none() && wrapping.web_path.is_none();
        let tls = wrapping.tls.map(Tls::new).transpose()?;
        let web = wrapping.web_path.map(|path| Web::Upgrade { head: BytesMut::new(), path });
        let layers = Layers {
            awaits_proxy: wrapping.proxied,
            tls: tls.map(Box::new),
            web: web.map(Box::new),
            kept: BytesMut::new(),
            out: BytesMut::new(),
            failed: false,
        };
        Ok(Self { kind, stream, proxied: None, layers: (!plain).then(|| Box::new(layers)) })
    }

    pub(crate) fn kind(&self) -> TransportKind {
        self.kind
    }

    /// The client's address: what a trusted proxy says, else the socket's.
    pub(crate) fn client_address(&self) -> Option<SocketAddr> {
        self.proxied.as_deref().copied().or_else(|| self.stream.peer_addr().ok())
    }

    /// Whether MQTT is on the socket itself, to be read by [`Transport::read_plain`].
    pub(crate) fn is_plain(&self) -> bool {
        self.layers.is_none()
    }

    /// Reads so much at most, once, from the socket.
    pub(crate) fn read_plain(&self, into: &mut BytesMut, most: usize) -> io::Result<usize> {
        self.stream.try_read_buf(&mut into.limit(most))
    }

    /// Bytes of input that the layers keep until the rest of it comes.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.layers.as_deref().map_or(0, Layers::kept_bytes)
    }

    /// Whether something that the client sent waits in the socket.
    pub(crate) fn has_unread(&self) -> bool {
        let mut byte = [mem::MaybeUninit::uninit()];
        socket2::SockRef::from(&*self.stream).peek(&mut byte).is_ok()
    }

    /// What the kernel still holds for the client is thrown away when the socket is closed.
    fn give_up(&self) {
        let _ = socket2::SockRef::from(&*self.stream).set_linger(Some(std::time::Duration::ZERO));
    }

    /// Reads once, into `raw` or what is kept; [`Transport::open`] goes on with it. `raw` is empty.
    pub(crate) fn read_wrapped(&mut self, raw: &mut BytesMut, room: usize) -> io::Result<usize> {
        match self.layers.as_deref_mut().map(|layers| &mut layers.kept).filter(|kept| !kept.is_empty()) {
            Some(kept) => {
                // Grows with what really came, so that a header alone reserves little.
                kept.reserve(kept.len().clamp(1_024, tls::RECORD_BYTES));
                self.stream.try_read_buf(kept)
            }
            None => {
                raw.reserve(room);
                self.stream.try_read_buf(&mut raw.limit(room))
            }
        }
    }

    /// Opens what was read; MQTT is appended to `scratch.mqtt`. True: the client has ended the transport in good form.
    /// `raw` is empty afterwards.
    pub(crate) fn open(&mut self, raw: &mut BytesMut, scratch: &mut Scratch) -> Result<bool, Fault> {
        let Some(layers) = self.layers.as_deref_mut() else {
            scratch.mqtt.extend_from_slice(&raw.split());
            return Ok(false);
        };
        let mut kept = mem::take(&mut layers.kept);
        let own = !kept.is_empty();
        let input = if own { &mut kept } else { &mut *raw };
        let opened = layers.open(input, scratch, &mut self.proxied);
        if own && !kept.is_empty() {
            layers.kept = kept;
        } else if !raw.is_empty() {
            // A copy, so that nothing pins the shared buffer.
            layers.kept = BytesMut::from(&raw[..]);
        }
        raw.clear();
        scratch.clear.clear();
        if let Err(fault) = opened {
            layers.failed = true;
            return Err(fault);
        }
        if layers.out.len() > UNREAD_BYTES {
            layers.failed = true;
            return Err(Fault::Unread);
        }
        let ended = layers.has_ended();
        if layers.is_done() {
            self.layers = None;
        }
        Ok(ended)
    }

    /// Writes what the layers and the session have to say; false: the socket did not take all of it.
    pub(crate) fn write(&mut self, session: &mut Session, scratch: &mut Scratch) -> io::Result<bool> {
        let Some(layers) = self.layers.as_deref_mut() else { return write_plain(&self.stream, session) };
        loop {
            while !layers.out.is_empty() {
                match self.stream.try_write(&layers.out) {
                    Ok(n) => layers.out.advance(n),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) => return Err(error),
                }
            }
            layers.out = BytesMut::new();
            let sealed = layers.seal_next(session, scratch);
            let Scratch { sealed: out, .. } = scratch;
            if !sealed.map_err(io::Error::other)? {
                return Ok(true);
            }
            let written = match self.stream.try_write(out) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            out.advance(written);
            if !out.is_empty() {
                layers.out = BytesMut::from(&out[..]);
            }
            out.clear();
        }
    }

    /// The last bytes of the layers, as far as the socket takes them now.
    pub(crate) fn finish(&mut self, reason: CloseReason, scratch: &mut Scratch) {
        if reason == CloseReason::Unread {
            self.give_up();
        }
        let Some(layers) = self.layers.as_deref_mut() else { return };
        if layers.is_established() && !layers.failed {
            let code = if reason == CloseReason::Draining { CloseCode::Away } else { CloseCode::Normal };
            layers.close(code, scratch);
        }
        if !layers.out.is_empty() {
            let _ = self.stream.try_write(&layers.out);
        }
    }

    /// What the client did not complete, when its time is over before MQTT began.
    pub(crate) fn overdue(&self) -> Option<Fault> {
        let layers = self.layers.as_deref()?;
        if layers.awaits_proxy {
            Some(Fault::ProxyTimeout)
        } else if layers.tls.as_ref().is_some_and(|tls| !tls.is_established()) {
            Some(Fault::TlsTimeout)
        } else if matches!(layers.web.as_deref(), Some(Web::Upgrade { .. })) {
            Some(Fault::WebTimeout)
        } else {
            None
        }
    }
}

/// Whether this is the beginning of a handshake of TLS, or of nothing.
pub(crate) fn is_tls(input: &[u8]) -> bool {
    input.starts_with(&[0x16, 0x03])
}

fn write_plain(stream: &TcpStream, session: &mut Session) -> io::Result<bool> {
    loop {
        let out = session.transmit();
        if out.is_empty() {
            return Ok(true);
        }
        match stream.try_write(out) {
            Ok(n) => session.written(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

impl Layers {
    fn kept_bytes(&self) -> usize {
        let head = match self.web.as_deref() {
            Some(Web::Upgrade { head, .. }) => head.capacity(),
            _ => 0,
        };
        self.kept.capacity() + head
    }

    fn is_established(&self) -> bool {
        let tls = self.tls.as_ref().is_none_or(|tls| tls.is_established());
        let web = self.web.as_ref().is_none_or(|web| matches!(**web, Web::Open(_)));
        !self.awaits_proxy && tls && web
    }

    fn has_ended(&self) -> bool {
        let tls = self.tls.as_ref().is_some_and(|tls| tls.has_ended());
        let web = matches!(self.web.as_deref(), Some(Web::Open(frames)) if frames.has_ended());
        tls || web
    }

    /// Whether nothing is wrapped any more.
    fn is_done(&self) -> bool {
        !self.awaits_proxy && self.tls.is_none() && self.web.is_none()
    }

    fn open(
        &mut self,
        input: &mut BytesMut,
        scratch: &mut Scratch,
        proxied: &mut Option<Box<SocketAddr>>,
    ) -> Result<(), Fault> {
        if self.awaits_proxy {
            let Some(header) = proxy::parse(input)? else { return Ok(()) };
            input.advance(header.bytes.min(input.len()));
            *proxied = header.client.map(Box::new);
            self.awaits_proxy = false;
        }
        let Scratch { mqtt, clear, sealed } = scratch;
        let Some(tls) = self.tls.as_deref_mut() else {
            return match self.web {
                Some(_) => self.open_web(&input.split(), mqtt, sealed),
                None => {
                    mqtt.extend_from_slice(&input.split());
                    Ok(())
                }
            };
        };
        if self.web.is_none() {
            return tls.open(input, mqtt, &mut self.out);
        }
        tls.open(input, clear, &mut self.out)?;
        self.open_web(&clear.split(), mqtt, sealed)
    }

    fn open_web(&mut self, input: &[u8], mqtt: &mut BytesMut, scratch: &mut BytesMut) -> Result<(), Fault> {
        let Some(web) = self.web.as_deref_mut() else { return Ok(()) };
        match web {
            Web::Open(frames) => {
                let opened = frames.open(input, mqtt);
                match &opened {
                    Err(Fault::WebText) => self.close_web(CloseCode::Unsupported, scratch),
                    Err(_) => self.close_web(CloseCode::Protocol, scratch),
                    Ok(()) => {}
                }
                opened
            }
            Web::Upgrade { head, path } => {
                let seen = head.len();
                head.extend_from_slice(input);
                let upgrade = match upgrade::answer(head, seen, path) {
                    Ok(None) => return Ok(()),
                    Ok(Some(upgrade)) => upgrade,
                    Err(refusal) => {
                        self.say(&refusal.response);
                        return Err(refusal.fault);
                    }
                };
                head.advance(upgrade.bytes.min(head.len()));
                let rest = mem::take(head);
                *web = Web::Open(Frames::default());
                self.say(&upgrade.response);
                self.open_web(&rest, mqtt, scratch)
            }
        }
    }

    /// Appends bytes of the layers' own to what is to be written.
    fn say(&mut self, bytes: &[u8]) {
        match self.tls.as_deref_mut() {
            // Its failure shows at the next write.
            Some(tls) if !bytes.is_empty() => drop(tls.seal(bytes, &mut self.out)),
            Some(_) => {}
            None => self.out.extend_from_slice(bytes),
        }
    }

    fn close_web(&mut self, code: CloseCode, scratch: &mut BytesMut) {
        scratch.clear();
        frames::write_close(code, scratch);
        let frame = scratch.split();
        self.say(&frame);
    }

    fn close(&mut self, code: CloseCode, scratch: &mut Scratch) {
        if self.web.is_some() {
            self.close_web(code, &mut scratch.clear);
        }
        if let Some(tls) = self.tls.as_deref_mut() {
            tls.close(&mut self.out);
        }
    }

    /// Seals the next piece of what is to be written into `scratch.sealed`; false: there is none.
    fn seal_next(&mut self, session: &mut Session, scratch: &mut Scratch) -> Result<bool, Fault> {
        if self.failed || !self.is_established() {
            return Ok(false);
        }
        let Scratch { clear, sealed, .. } = scratch;
        clear.clear();
        sealed.clear();
        let pong = match self.web.as_deref_mut() {
            Some(Web::Open(frames)) => frames.take_pong(),
            _ => None,
        };
        if let Some(pong) = pong {
            frames::write_pong(&pong, clear);
            return self.seal(clear, sealed).map(|()| true);
        }
        let data = session.transmit();
        let length = data.len().min(DATA_BYTES);
        let Some(data) = data.get(..length).filter(|data| !data.is_empty()) else { return Ok(false) };
        let done = if self.web.is_some() {
            frames::write_binary(data, clear);
            self.seal(clear, sealed)
        } else {
            self.seal(data, sealed)
        };
        session.written(length);
        done.map(|()| true)
    }

    fn seal(&mut self, bytes: &[u8], out: &mut BytesMut) -> Result<(), Fault> {
        match self.tls.as_deref_mut() {
            Some(tls) => tls.seal(bytes, out),
            None => {
                out.extend_from_slice(bytes);
                Ok(())
            }
        }
    }
}
