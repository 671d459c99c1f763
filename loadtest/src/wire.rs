//! One MQTT 3.1.1 connection of a load client: packets in, packets out, keep-alive. It decides nothing about messages.

use std::{io, time::Duration};

use bytes::BytesMut;
use mqttbytes::{
    Error as MqttError, QoS,
    v4::{Connect, ConnectReturnCode, LastWill, Packet, PingReq, read},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

/// For connecting, and for the CONNACK.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest packet of MQTT.
const PACKET_MAX: usize = 256 << 20;

/// A connection that could not be made, or broke.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// CONNACK with another code than 0.
    #[error("the broker refused the connection: {0:?}")]
    Refused(ConnectReturnCode),
    /// The connection ended.
    #[error("the broker closed the connection")]
    Closed,
    /// Nothing came though it should have.
    #[error("the broker did not answer in time")]
    Silent,
    /// A packet that can't be read or written.
    #[error("malformed packet: {0:?}")]
    Malformed(MqttError),
}

/// Who connects, and how.
#[derive(Debug, Clone)]
pub struct Login {
    /// Client identifier.
    pub client_id: String,
    /// `tenant/user`.
    pub username: String,
    /// Its password.
    pub password: String,
    /// MQTT keep-alive.
    pub keep_alive: Duration,
    /// As in CONNECT.
    pub clean_session: bool,
    /// Topic and payload of a will of QoS 1.
    pub will: Option<(String, String)>,
}

/// One connection.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    received: BytesMut,
    /// Written by `send` and friends, sent by `flush`.
    pub out: BytesMut,
    /// The server kept state of this client, as its CONNACK said.
    pub session_present: bool,
    keep_alive: Duration,
    last_ping: Instant,
    last_heard: Instant,
}

impl Wire {
    /// Connects and waits for the CONNACK.
    pub async fn open(target: &str, login: &Login) -> Result<Self, WireError> {
        match timeout(OPEN_TIMEOUT, Self::connect(target, login)).await {
            Ok(wire) => wire,
            Err(_) => Err(WireError::Silent),
        }
    }

    async fn connect(target: &str, login: &Login) -> Result<Self, WireError> {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        let now = Instant::now();
        let (received, out) = (BytesMut::new(), BytesMut::new());
        let keep_alive = login.keep_alive;
        let mut wire = Self {
            stream,
            received,
            out,
            session_present: false,
            keep_alive,
            last_ping: now,
            last_heard: now,
        };
        let mut connect = Connect::new(&login.client_id);
        connect.set_login(&login.username, &login.password);
        connect.keep_alive = u16::try_from(login.keep_alive.as_secs()).unwrap_or(u16::MAX);
        connect.clean_session = login.clean_session;
        connect.last_will = login
            .will
            .as_ref()
            .map(|(topic, payload)| LastWill::new(topic.as_str(), payload.as_str(), QoS::AtLeastOnce, false));
        connect.write(&mut wire.out).map_err(WireError::Malformed)?;
        wire.flush().await?;
        match wire.next().await? {
            Packet::ConnAck(ack) if ack.code == ConnectReturnCode::Success => {
                wire.session_present = ack.session_present;
                Ok(wire)
            }
            Packet::ConnAck(ack) => Err(WireError::Refused(ack.code)),
            _ => Err(WireError::Malformed(MqttError::IncorrectPacketFormat)),
        }
    }

    /// Sends what is in `out`. Not to be cancelled: a packet would be cut in two.
    pub async fn flush(&mut self) -> Result<(), WireError> {
        if !self.out.is_empty() {
            // A broker that reads nothing for that long is as good as silent.
            let written = timeout(self.patience(), self.stream.write_all(&self.out)).await;
            written.map_err(|_| WireError::Silent)??;
            self.out.clear();
        }
        Ok(())
    }

    /// The next packet. May be cancelled.
    pub async fn next(&mut self) -> Result<Packet, WireError> {
        loop {
            if let Some(packet) = self.buffered()? {
                return Ok(packet);
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(WireError::Closed);
            }
            self.last_heard = Instant::now();
        }
    }

    /// A packet that has been received already.
    pub fn buffered(&mut self) -> Result<Option<Packet>, WireError> {
        match read(&mut self.received, PACKET_MAX) {
            Ok(packet) => Ok(Some(packet)),
            Err(MqttError::InsufficientBytes(_)) => Ok(None),
            Err(error) => Err(WireError::Malformed(error)),
        }
    }

    fn patience(&self) -> Duration {
        self.keep_alive * 3 / 2
    }

    /// When `keep_alive` wants to be called.
    pub fn keep_alive_at(&self) -> Instant {
        self.last_ping + self.keep_alive / 2
    }

    /// Pings; a broker that has been silent for 1.5 times the keep-alive, though pinged, is given up.
    pub async fn keep_alive(&mut self) -> Result<(), WireError> {
        if self.last_heard.elapsed() >= self.patience() {
            return Err(WireError::Silent);
        }
        self.last_ping = Instant::now();
        PingReq.write(&mut self.out).map_err(WireError::Malformed)?;
        self.flush().await
    }

    /// Says good-bye: no will.
    pub async fn disconnect(&mut self) -> Result<(), WireError> {
        mqttbytes::v4::Disconnect.write(&mut self.out).map_err(WireError::Malformed)?;
        self.flush().await?;
        self.stream.shutdown().await?;
        Ok(())
    }
}
