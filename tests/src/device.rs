//! A device under a test's own hand: it connects once, and does nothing by itself.

use std::time::Duration;

use mqttbytes::{
    QoS,
    v4::{ConnectReturnCode, Packet, PubAck, Publish, Subscribe},
};
use penstock_loadtest::wire::{Login, Wire, WireError};
use tokio::time::timeout;

use crate::tenant::TestTenant;

/// For one answer.
const LIMIT: Duration = Duration::from_secs(20);

/// One connection of one client.
pub struct Device {
    wire: Wire,
    next_id: u16,
}

impl Device {
    /// Connects as the tenant's `device`.
    pub async fn connect(target: &str, tenant: &TestTenant, client: &str) -> Result<Self, WireError> {
        Self::connect_as(target, &tenant.device(), &tenant.password, client).await
    }

    /// Connects as anybody.
    pub async fn connect_as(
        target: &str,
        username: &str,
        password: &str,
        client: &str,
    ) -> Result<Self, WireError> {
        Self::open(target, Self::login(username, password, client)).await
    }

    fn login(username: &str, password: &str, client: &str) -> Login {
        Login {
            client_id: client.into(),
            username: username.into(),
            password: password.into(),
            keep_alive: Duration::from_secs(60),
            clean_session: true,
            will: None,
        }
    }

    /// Connects with clean session 0.
    pub async fn resume(target: &str, tenant: &TestTenant, client: &str) -> Result<Self, WireError> {
        let login = Self::login(&tenant.device(), &tenant.password, client);
        Self::open(target, Login { clean_session: false, ..login }).await
    }

    /// Connects, leaving a will of QoS 1.
    pub async fn mortal(
        target: &str,
        tenant: &TestTenant,
        client: &str,
        clean_session: bool,
        will: (&str, &str),
    ) -> Result<Self, WireError> {
        let login = Self::login(&tenant.device(), &tenant.password, client);
        let will = Some((will.0.to_owned(), will.1.to_owned()));
        Self::open(target, Login { clean_session, will, ..login }).await
    }

    async fn open(target: &str, login: Login) -> Result<Self, WireError> {
        Ok(Self { wire: Wire::open(target, &login).await?, next_id: 1 })
    }

    /// What the CONNACK said.
    pub fn session_present(&self) -> bool {
        self.wire.session_present
    }

    /// The CONNACK code of a connection that must be refused.
    pub async fn refused(target: &str, username: &str, password: &str, client: &str) -> ConnectReturnCode {
        match Self::connect_as(target, username, password, client).await {
            Err(WireError::Refused(code)) => code,
            Err(other) => panic!("neither accepted nor refused: {other}"),
            Ok(_) => panic!("{username} is accepted"),
        }
    }

    fn id(&mut self) -> u16 {
        self.next_id += 1;
        self.next_id
    }

    /// The next packet; an error when the connection ends.
    ///
    /// # Panics
    /// When none comes.
    pub async fn next(&mut self) -> Result<Packet, WireError> {
        timeout(LIMIT, self.wire.next()).await.unwrap_or_else(|_| panic!("no packet within {LIMIT:?}"))
    }

    /// SUBSCRIBE, and waits for the SUBACK.
    pub async fn subscribe(&mut self, filter: &str, qos: QoS) {
        let mut subscribe = Subscribe::new(filter, qos);
        subscribe.pkid = self.id();
        subscribe.write(&mut self.wire.out).expect("encodes");
        self.wire.flush().await.expect("sent");
        let answer = self.next().await.expect("a SUBACK");
        assert!(matches!(answer, Packet::SubAck(_)), "{answer:?}");
    }

    /// PUBLISH with QoS 1, and waits for the PUBACK.
    pub async fn publish(&mut self, topic: &str, payload: &str) -> Result<(), WireError> {
        self.say(topic, payload).await?;
        let (answer, id) = (self.next().await?, self.next_id);
        assert!(matches!(&answer, Packet::PubAck(ack) if ack.pkid == id), "{answer:?}");
        Ok(())
    }

    /// Writes a PUBLISH with QoS 1 and waits for nothing.
    pub async fn say(&mut self, topic: &str, payload: &str) -> Result<(), WireError> {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload);
        publish.pkid = self.id();
        publish.write(&mut self.wire.out).expect("encodes");
        self.wire.flush().await
    }

    /// PUBLISH with QoS 1; the PUBACK is among what comes next.
    pub async fn send(&mut self, topic: &str, payload: &str) -> Result<(), WireError> {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload);
        publish.pkid = self.id();
        publish.write(&mut self.wire.out).expect("encodes");
        self.wire.flush().await
    }

    /// The next message, acknowledged.
    pub async fn message(&mut self) -> Publish {
        let publish = self.unacknowledged().await;
        if publish.qos != QoS::AtMostOnce {
            self.acknowledge(publish.pkid).await.expect("sent");
        }
        publish
    }

    /// The next message, not acknowledged.
    pub async fn unacknowledged(&mut self) -> Publish {
        match self.next().await {
            Ok(Packet::Publish(publish)) => publish,
            other => panic!("no message: {other:?}"),
        }
    }

    /// PUBACK.
    pub async fn acknowledge(&mut self, packet_id: u16) -> Result<(), WireError> {
        PubAck::new(packet_id).write(&mut self.wire.out).expect("encodes");
        self.wire.flush().await
    }

    /// DISCONNECT.
    pub async fn disconnect(mut self) -> Result<(), WireError> {
        self.wire.disconnect().await
    }

    /// The next packet, or the end of the connection, however long it takes.
    pub async fn wait(&mut self) -> Result<Packet, WireError> {
        self.wire.next().await
    }

    /// Waits until the server closes the connection.
    ///
    /// # Panics
    /// When a packet comes, or nothing.
    pub async fn closed(&mut self) {
        let ended = self.next().await;
        assert!(matches!(ended, Err(WireError::Closed | WireError::Io(_))), "{ended:?}");
    }
}
