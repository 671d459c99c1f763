//! A broker that stands in for real ones, and does one thing wrong on request. It knows tenants by the user name, delivers
//! everything of a tenant to each of its subscribers, and does its wrong at one message of each publisher.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use bytes::{Bytes, BytesMut};
use mqttbytes::{
    Error, QoS,
    v4::{ConnAck, ConnectReturnCode, Packet, PingResp, PubAck, Publish, SubAck, SubscribeReasonCode, read},
};
use penstock_loadtest::stamp::Stamp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::mpsc,
    task::JoinSet,
};

/// The message of each publisher that something happens to.
const THE_ONE: u64 = 5;
/// Packets that wait for a client.
const QUEUE: usize = 10_000;

/// What it does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    Nothing,
    /// Acknowledges a message and delivers it to nobody.
    Loses,
    /// Delivers a message twice.
    DeliversTwice,
    /// Delivers a message after the next one.
    Reorders,
    /// Delivers a message to all tenants.
    Leaks,
    /// Changes a byte of a payload.
    Corrupts,
    /// Delivers a message that nobody sent.
    Invents,
    /// Acknowledges a message after the next one.
    AcksOutOfOrder,
    /// Acknowledges all messages but one.
    ForgetsAnAck,
    /// CONNACK 5.
    Refuses,
    /// Reads and does nothing at all, as fast as it can.
    Swallows,
    /// Cuts the connection at a message, once for each client.
    Cuts,
}

struct Subscriber {
    tenant: String,
    out: mpsc::Sender<Bytes>,
}

#[derive(Default)]
struct State {
    subscribers: Vec<Subscriber>,
    peers: BTreeSet<IpAddr>,
    cut: BTreeSet<String>,
    published: u64,
}

/// Runs until it is dropped.
pub struct StandIn {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _task: JoinSet<()>,
}

impl StandIn {
    pub async fn start(wrong: Wrong) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let mut task = JoinSet::new();
        let shared = Arc::clone(&state);
        task.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((stream, peer)) = listener.accept().await {
                shared.lock().unwrap().peers.insert(peer.ip());
                clients.spawn(client(stream, wrong, Arc::clone(&shared)));
            }
        });
        Self { address, state, _task: task }
    }

    pub fn target(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// Waits until so many messages have come.
    pub async fn published(&self, count: u64) {
        let limit = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        while self.state.lock().unwrap().published < count {
            assert!(tokio::time::Instant::now() < limit, "no {count} messages came");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Addresses that clients came from.
    pub fn peers(&self) -> usize {
        self.state.lock().unwrap().peers.len()
    }
}

struct Client {
    wrong: Wrong,
    state: Arc<Mutex<State>>,
    out: mpsc::Sender<Bytes>,
    id: String,
    tenant: String,
    count: u64,
    held_message: Option<Publish>,
    held_ack: Option<u16>,
}

async fn client(stream: TcpStream, wrong: Wrong, state: Arc<Mutex<State>>) {
    let (mut reading, mut writing) = stream.into_split();
    let (out, mut packets) = mpsc::channel::<Bytes>(QUEUE);
    let writer = tokio::spawn(async move {
        while let Some(bytes) = packets.recv().await {
            if writing.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
    let (id, tenant) = (String::new(), String::new());
    let mut client = Client { wrong, state, out, id, tenant, count: 0, held_message: None, held_ack: None };
    // It ends when the client goes.
    let _ = client.serve(&mut reading).await;
    writer.abort();
}

fn encode(write: impl FnOnce(&mut BytesMut) -> Result<usize, Error>) -> Bytes {
    let mut out = BytesMut::new();
    write(&mut out).unwrap();
    out.freeze()
}

impl Client {
    async fn serve(&mut self, reading: &mut OwnedReadHalf) -> Option<()> {
        let mut buffer = BytesMut::with_capacity(64 * 1024);
        loop {
            if self.wrong == Wrong::Swallows && !self.id.is_empty() {
                buffer.clear();
                (reading.read_buf(&mut buffer).await.ok()? > 0).then_some(())?;
                continue;
            }
            match read(&mut buffer, 1 << 20) {
                Ok(packet) => self.handle(packet).await?,
                Err(Error::InsufficientBytes(_)) => {
                    (reading.read_buf(&mut buffer).await.ok()? > 0).then_some(())?
                }
                Err(error) => panic!("the program sent what can't be read: {error:?}"),
            }
        }
    }

    async fn send(&self, bytes: Bytes) -> Option<()> {
        self.out.send(bytes).await.ok()
    }

    async fn handle(&mut self, packet: Packet) -> Option<()> {
        match packet {
            Packet::Connect(connect) => {
                let user = connect.login.map_or_else(|| "anonymous/".to_owned(), |login| login.username);
                self.tenant = user.split('/').next().unwrap().to_owned();
                self.id = connect.client_id;
                let refused = self.wrong == Wrong::Refuses;
                let code =
                    if refused { ConnectReturnCode::NotAuthorized } else { ConnectReturnCode::Success };
                self.send(encode(|out| ConnAck::new(code, false).write(out))).await
            }
            Packet::Subscribe(subscribe) => {
                let subscriber = Subscriber { tenant: self.tenant.clone(), out: self.out.clone() };
                self.state.lock().unwrap().subscribers.push(subscriber);
                let codes = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce); subscribe.filters.len()];
                self.send(encode(|out| SubAck::new(subscribe.pkid, codes).write(out))).await
            }
            Packet::Publish(publish) => self.publish(publish).await,
            Packet::PingReq => self.send(encode(|out| PingResp.write(out))).await,
            Packet::Disconnect => None,
            _ => Some(()),
        }
    }

    async fn publish(&mut self, publish: Publish) -> Option<()> {
        self.count += 1;
        self.state.lock().unwrap().published += 1;
        let the_one = self.count == THE_ONE;
        if the_one && self.wrong == Wrong::Cuts && self.state.lock().unwrap().cut.insert(self.id.clone()) {
            return None;
        }
        self.deliver(&publish, the_one).await;
        let id = publish.pkid;
        if publish.qos == QoS::AtMostOnce || the_one && self.wrong == Wrong::ForgetsAnAck {
            return Some(());
        }
        if the_one && self.wrong == Wrong::AcksOutOfOrder {
            self.held_ack = Some(id);
            return Some(());
        }
        self.send(encode(|out| PubAck::new(id).write(out))).await?;
        match self.held_ack.take() {
            Some(held) => self.send(encode(|out| PubAck::new(held).write(out))).await,
            None => Some(()),
        }
    }

    async fn deliver(&mut self, publish: &Publish, the_one: bool) {
        let mut message = publish.clone();
        match self.wrong {
            Wrong::Loses if the_one => return,
            Wrong::DeliversTwice if the_one => self.hand_out(&message, false).await,
            Wrong::Corrupts if the_one => {
                let mut payload = message.payload.to_vec();
                *payload.last_mut().unwrap() ^= 1;
                message.payload = payload.into();
            }
            Wrong::Invents if the_one => {
                let stamp = Stamp::decode(&message.payload).unwrap();
                let never = Stamp { sequence: stamp.sequence + 1_000_000, ..stamp };
                let invented = Publish { payload: never.encode(64), ..message.clone() };
                self.hand_out(&invented, false).await;
            }
            Wrong::Reorders if the_one => {
                self.held_message = Some(message);
                return;
            }
            _ => {}
        }
        self.hand_out(&message, the_one && self.wrong == Wrong::Leaks).await;
        if let Some(held) = self.held_message.take() {
            self.hand_out(&held, false).await;
        }
    }

    async fn hand_out(&self, message: &Publish, to_all: bool) {
        let bytes = encode(|out| Publish { dup: false, ..message.clone() }.write(out));
        let to: Vec<_> = {
            let state = self.state.lock().unwrap();
            let to = state.subscribers.iter().filter(|own| to_all || own.tenant == self.tenant);
            to.map(|own| own.out.clone()).collect()
        };
        for out in to {
            // A subscriber that has gone gets nothing.
            let _ = out.send(bytes.clone()).await;
        }
    }
}
