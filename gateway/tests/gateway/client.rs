//! An MQTT client that says exactly what the test says.

use std::{net::SocketAddr, time::Duration};

use bytes::BytesMut;
use mqttbytes::{
    QoS,
    v4::{self, Connect, Login, Packet, Publish, Subscribe, Unsubscribe},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Client {
    pub input: Input,
    pub output: Output,
}

/// What the gateway writes.
pub struct Input {
    stream: Box<dyn AsyncRead + Send + Unpin>,
    unread: BytesMut,
}

/// What the client writes.
pub struct Output {
    stream: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Output {
    pub async fn publish(&mut self, topic: &str, packet_id: u16, payload: &[u8]) {
        let qos = if packet_id == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let mut publish = Publish::new(topic, qos, payload);
        publish.pkid = packet_id;
        self.write(|out| publish.write(out)).await;
    }

    /// Writes what is no packet, or many.
    pub async fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn write(&mut self, packet: impl FnOnce(&mut BytesMut) -> Result<usize, mqttbytes::Error>) {
        let mut out = BytesMut::new();
        packet(&mut out).unwrap();
        self.stream.write_all(&out).await.unwrap();
        self.stream.flush().await.unwrap();
    }
}

impl Input {
    /// The next packet; None when the gateway has closed.
    pub async fn read(&mut self) -> Option<Packet> {
        loop {
            match v4::read(&mut self.unread, 2 << 20) {
                Ok(packet) => return Some(packet),
                Err(mqttbytes::Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("the gateway wrote something unreadable: {error:?}"),
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.unread)).await.expect("no packet");
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }
}

impl Client {
    pub async fn dial(address: SocketAddr) -> Self {
        let (input, output) = TcpStream::connect(address).await.unwrap().into_split();
        Self::on(input, output)
    }

    fn on(
        input: impl AsyncRead + Send + Unpin + 'static,
        output: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        let input = Input { stream: Box::new(input), unread: BytesMut::new() };
        Self { input, output: Output { stream: Box::new(output) } }
    }

    /// MQTT over whatever was dialled.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (input, output) = tokio::io::split(stream);
        Self::on(input, output)
    }

    /// Connects as `acme/device` over whatever was dialled.
    pub async fn connect_over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        client: &str,
    ) -> Self {
        let mut it = Self::over(stream);
        it.say_connect(client, "acme/device", "secret").await;
        match it.read().await {
            Some(Packet::ConnAck(ack)) => assert_eq!(ack.code as u8, 0),
            other => panic!("CONNACK expected, not {other:?}"),
        }
        it
    }

    /// Connects as `acme/device` and returns the CONNACK's code.
    pub async fn connect(address: SocketAddr, client: &str) -> Self {
        let (client, code) = Self::try_connect(address, client, "acme/device", "secret").await;
        assert_eq!(code, 0);
        client
    }

    pub async fn try_connect(address: SocketAddr, client: &str, user: &str, password: &str) -> (Self, u8) {
        let mut it = Self::dial(address).await;
        it.say_connect(client, user, password).await;
        let Some(Packet::ConnAck(ack)) = it.read().await else { panic!("no CONNACK") };
        (it, ack.code as u8)
    }

    pub async fn say_connect(&mut self, client: &str, user: &str, password: &str) {
        let mut connect = Connect::new(client);
        // A busy machine is no reason to lose it.
        connect.keep_alive = 600;
        connect.login = Some(Login::new(user, password));
        self.output.write(|out| connect.write(out)).await;
    }

    pub async fn say_connect_with_will(&mut self, client: &str, topic: &str, payload: &str) {
        let mut connect = Connect::new(client);
        connect.login = Some(Login::new("acme/device", "secret"));
        connect.last_will = Some(v4::LastWill::new(topic, payload, QoS::AtLeastOnce, false));
        self.output.write(|out| connect.write(out)).await;
    }

    pub async fn publish(&mut self, topic: &str, packet_id: u16, payload: &[u8]) {
        self.output.publish(topic, packet_id, payload).await;
    }

    pub async fn subscribe(&mut self, packet_id: u16, filters: &[(&str, QoS)]) {
        let mut subscribe = Subscribe::empty_subscribe();
        for (filter, qos) in filters {
            subscribe.add((*filter).to_owned(), *qos);
        }
        subscribe.pkid = packet_id;
        self.output.write(|out| subscribe.write(out)).await;
    }

    pub async fn unsubscribe(&mut self, packet_id: u16, filter: &str) {
        let mut unsubscribe = Unsubscribe::new(filter);
        unsubscribe.pkid = packet_id;
        self.output.write(|out| unsubscribe.write(out)).await;
    }

    pub async fn puback(&mut self, packet_id: u16) {
        self.output.write(|out| v4::PubAck::new(packet_id).write(out)).await;
    }

    pub async fn disconnect(&mut self) {
        self.output.write(|out| v4::Disconnect.write(out)).await;
    }

    pub async fn ping(&mut self) {
        self.output.write(|out| v4::PingReq.write(out)).await;
    }

    /// The next packet; None when the gateway has closed.
    pub async fn read(&mut self) -> Option<Packet> {
        self.input.read().await
    }

    pub async fn expect_puback(&mut self, packet_id: u16) {
        match self.read().await {
            Some(Packet::PubAck(ack)) => assert_eq!(ack.pkid, packet_id),
            other => panic!("PUBACK {packet_id} expected, not {other:?}"),
        }
    }

    pub async fn expect_suback(&mut self) -> v4::SubAck {
        match self.read().await {
            Some(Packet::SubAck(ack)) => ack,
            other => panic!("SUBACK expected, not {other:?}"),
        }
    }

    pub async fn expect_publish(&mut self) -> Publish {
        match self.read().await {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("PUBLISH expected, not {other:?}"),
        }
    }

    /// A PINGRESP is next: nothing was said before it.
    pub async fn expect_silence(&mut self) {
        self.ping().await;
        match self.read().await {
            Some(Packet::PingResp) => {}
            other => panic!("nothing expected, not {other:?}"),
        }
    }

    pub async fn expect_closed(&mut self) {
        if let Some(packet) = self.read().await {
            panic!("the end expected, not {packet:?}");
        }
    }
}
