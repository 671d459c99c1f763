//! The TLS layer of a connection: records in, plaintext out, and back. It holds no buffers: input lies where the caller
//! has it, output goes where the caller wants it. Certificates are in [`crate::certificates`].

use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::{
    Error, ServerConfig,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic},
};

use super::fault::Fault;

/// Most plaintext that is sealed at a time: one record.
pub(super) const RECORD_BYTES: usize = 16_384;
/// What a record, and a change of keys before it, add.
const OVERHEAD_BYTES: usize = 512;

/// One client's TLS.
pub(super) struct Tls {
    connection: UnbufferedServerConnection,
    /// The client has said that nothing more comes.
    ended: bool,
}

impl Tls {
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, Fault> {
        let connection = UnbufferedServerConnection::new(config).map_err(Fault::TlsHandshake)?;
        Ok(Self { connection, ended: false })
    }

    pub(super) fn is_established(&self) -> bool {
        !self.connection.is_handshaking()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes whole records off `input`; plaintext goes to `clear`, answers of TLS itself to `out`. What stays in `input` is
    /// less than a record, or the beginning of a message of the handshake.
    pub(super) fn open(
        &mut self,
        input: &mut BytesMut,
        clear: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<(), Fault> {
        let mut taken = 0;
        loop {
            let rest = input.get_mut(taken..).unwrap_or_default();
            let UnbufferedStatus { discard, state } = self.connection.process_tls_records(rest);
            taken += discard;
            let step = match state.and_then(|state| step(state, clear, out)) {
                Ok(step) => step,
                Err(error) => {
                    self.alert(out);
                    return Err(self.fault(error));
                }
            };
            match step {
                Step::More { discard } => taken += discard,
                Step::Blocked => break,
                Step::Ended => {
                    self.ended = true;
                    break;
                }
            }
        }
        input.advance(taken.min(input.len()));
        Ok(())
    }

    /// Puts `payload`, at most [`RECORD_BYTES`], into a record at the end of `out`.
    pub(super) fn seal(&mut self, payload: &[u8], out: &mut BytesMut) -> Result<(), Fault> {
        self.write(out, payload.len() + OVERHEAD_BYTES, |traffic, room| traffic.encrypt(payload, room))
    }

    /// Says that nothing more comes from us.
    pub(super) fn close(&mut self, out: &mut BytesMut) {
        // What can't be said any more need not be: the transport ends.
        let _ = self.write(out, OVERHEAD_BYTES, |traffic, room| traffic.queue_close_notify(room));
    }

    fn write(
        &mut self,
        out: &mut BytesMut,
        room: usize,
        write: impl FnOnce(&mut WriteTraffic<'_, ServerConnectionData>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), Fault> {
        loop {
            let UnbufferedStatus { state, .. } = self.connection.process_tls_records(&mut []);
            match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let start = out.len();
                    out.resize(start + room, 0);
                    let written = write(&mut traffic, out.get_mut(start..).unwrap_or_default());
                    out.truncate(start + written.as_ref().copied().unwrap_or(0));
                    return written
                        .map(drop)
                        .map_err(|error| Fault::Tls(Error::General(format!("cannot encrypt: {error}"))));
                }
                Ok(state) => match step(state, &mut BytesMut::new(), out).map_err(Fault::Tls)? {
                    Step::More { .. } => {}
                    _ => return Err(Fault::Tls(Error::HandshakeNotComplete)),
                },
                Err(error) => return Err(Fault::Tls(error)),
            }
        }
    }

    /// Tells the client why, as far as TLS has a word for it.
    fn alert(&mut self, out: &mut BytesMut) {
        loop {
            let UnbufferedStatus { state, .. } = self.connection.process_tls_records(&mut []);
            match state.and_then(|state| step(state, &mut BytesMut::new(), out)) {
                Ok(Step::More { .. }) => {}
                _ => return,
            }
        }
    }

    fn fault(&self, error: Error) -> Fault {
        match error {
            error if self.is_established() => Fault::Tls(error),
            Error::InvalidMessage(_) => Fault::NotTls(error),
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Fault::TlsIncompatible(error),
            Error::AlertReceived(_) => Fault::TlsAlert(error),
            error => Fault::TlsHandshake(error),
        }
    }
}

enum Step {
    /// Something was done; there may be more.
    More { discard: usize },
    /// Bytes of the client's are needed, or ours are.
    Blocked,
    /// The client has closed.
    Ended,
}

fn step(
    state: ConnectionState<'_, '_, ServerConnectionData>,
    clear: &mut BytesMut,
    out: &mut BytesMut,
) -> Result<Step, Error> {
    match state {
        ConnectionState::ReadTraffic(mut records) => {
            let mut discard = 0;
            while let Some(record) = records.next_record() {
                let record = record?;
                clear.extend_from_slice(record.payload);
                discard += record.discard;
            }
            Ok(Step::More { discard })
        }
        ConnectionState::EncodeTlsData(mut data) => {
            let start = out.len();
            let mut room = OVERHEAD_BYTES;
            let written = loop {
                out.resize(start + room, 0);
                match data.encode(out.get_mut(start..).unwrap_or_default()) {
                    Ok(written) => break written,
                    Err(EncodeError::InsufficientSize(needs)) if needs.required_size > room => {
                        room = needs.required_size;
                    }
                    Err(error) => return Err(Error::General(format!("cannot encode: {error}"))),
                }
            };
            out.truncate(start + written);
            Ok(Step::More { discard: 0 })
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::More { discard: 0 })
        }
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Step::Ended),
        // WriteTraffic, BlockedHandshake; no early data is offered, and what later versions add is not asked for.
        _ => Ok(Step::Blocked),
    }
}
