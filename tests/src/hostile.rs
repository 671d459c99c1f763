//! Clients that mean harm, by what they do, and a well-behaved one beside them whose waits are timed.
//!
//! An attacker that is refused or closed comes again after a moment: it never gives up by itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use mqttbytes::{QoS, v4};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, interval, timeout},
};

use crate::{
    device::Device,
    tenant::TestTenant,
    wait::{eventually, lasting},
};

/// Before an attacker comes again.
const AGAIN: Duration = Duration::from_millis(200);
/// Of the message that all attackers who subscribe get, over and over.
const FLOOD: &str = "flood/a";
const FLOOD_BYTES: usize = 4_096;
/// For one wait of the well-behaved one.
const LIMIT: Duration = Duration::from_secs(30);

/// What an attacker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A CONNECT, a byte a second.
    SlowConnect,
    /// 256 KiB of a PUBLISH of 1 MB, and nothing more.
    HalfPacket,
    /// Announces 256 MB, again and again.
    Announce,
    /// Subscribes, and reads nothing.
    NeverReads,
    /// Subscribes with QoS 1, and acknowledges nothing.
    NeverAcknowledges,
    /// PINGREQ after PINGREQ.
    Pings,
    /// PUBLISH after PUBLISH of QoS 0.
    FloodQos0,
    /// PUBLISH after PUBLISH of QoS 1.
    FloodQos1,
    /// 100,000 subscriptions.
    Subscriptions,
    /// 1 MiB of tiny filters in one SUBSCRIBE, again and again.
    TinyFilters,
    /// Connects with wrong passwords, again and again.
    BadPasswords,
    /// The beginning of TLS, or nonsense, again and again.
    Garbage,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::SlowConnect,
        Self::HalfPacket,
        Self::Announce,
        Self::NeverReads,
        Self::NeverAcknowledges,
        Self::Pings,
        Self::FloodQos0,
        Self::FloodQos1,
        Self::Subscriptions,
        Self::TinyFilters,
        Self::BadPasswords,
        Self::Garbage,
    ];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::SlowConnect => "slow CONNECT",
            Self::HalfPacket => "half packets",
            Self::Announce => "256 MB announced",
            Self::NeverReads => "never reads",
            Self::NeverAcknowledges => "never acknowledges",
            Self::Pings => "PINGREQ flood",
            Self::FloodQos0 => "PUBLISH flood, QoS 0",
            Self::FloodQos1 => "PUBLISH flood, QoS 1",
            Self::Subscriptions => "100,000 subscriptions",
            Self::TinyFilters => "1 MiB of tiny filters",
            Self::BadPasswords => "wrong passwords",
            Self::Garbage => "TLS and nonsense",
        }
    }
}

/// Many attackers of one kind. They end when it is dropped.
pub struct Attack {
    _tasks: JoinSet<()>,
    turns: Arc<AtomicU64>,
}

impl Attack {
    /// Starts them, as clients of the tenant.
    pub fn start(kind: Kind, count: usize, target: &str, tenant: &TestTenant) -> Self {
        let (mut tasks, turns) = (JoinSet::new(), Arc::new(AtomicU64::new(0)));
        // Made once: what attackers compute is taken from their neighbours' time.
        let packets: Arc<[u8]> = packets(kind).into();
        for number in 0..count {
            let attacker = Attacker {
                kind,
                packets: Arc::clone(&packets),
                target: target.to_owned(),
                tenant: tenant.clone(),
                name: format!("{number:08}-hostile"),
                turns: Arc::clone(&turns),
            };
            tasks.spawn(async move {
                loop {
                    // How it ends is the other side's decision.
                    let _ = attacker.turn().await;
                    lasting(AGAIN).await;
                }
            });
        }
        if matches!(kind, Kind::NeverReads | Kind::NeverAcknowledges) {
            let (target, tenant) = (target.to_owned(), tenant.clone());
            tasks.spawn(async move {
                while feed(&target, &tenant).await.is_none() {
                    lasting(AGAIN).await;
                }
            });
        }
        Self { _tasks: tasks, turns }
    }

    /// Times that an attacker was where it does its harm.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}

/// Publishes what subscribers don't read, 100 times a second.
async fn feed(target: &str, tenant: &TestTenant) -> Option<()> {
    let mut device = Device::connect(target, tenant, "feeder").await.ok()?;
    let mut pace = interval(Duration::from_millis(10));
    let payload = "x".repeat(FLOOD_BYTES);
    loop {
        pace.tick().await;
        device.publish(FLOOD, &payload).await.ok()?;
    }
}

struct Attacker {
    kind: Kind,
    packets: Arc<[u8]>,
    target: String,
    tenant: TestTenant,
    name: String,
    turns: Arc<AtomicU64>,
}

impl Attacker {
    async fn turn(&self) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(&self.target).await?;
        match self.kind {
            Kind::SlowConnect | Kind::Garbage => {}
            Kind::BadPasswords => {
                let password = format!("wrong-{}", self.turns.load(Ordering::Relaxed));
                self.connect(&mut stream, &password).await?;
            }
            _ => self.connect(&mut stream, &self.tenant.password).await?,
        }
        self.turns.fetch_add(1, Ordering::Relaxed);
        match self.kind {
            Kind::SlowConnect => {
                stream.write_all(&[0x10, 0x7f]).await?;
                loop {
                    stream.write_all(&[0]).await?;
                    lasting(Duration::from_secs(1)).await;
                }
            }
            Kind::HalfPacket => {
                stream.write_all(&[0x30, 0xc0, 0x84, 0x3d, 0, 1, b'a']).await?;
                stream.write_all(&vec![0; 256 << 10]).await?;
                drain(&mut stream).await
            }
            Kind::Announce => {
                stream.write_all(&[0x30, 0xff, 0xff, 0xff, 0x7f]).await?;
                drain(&mut stream).await
            }
            Kind::NeverReads => {
                stream.write_all(&subscribe(1, [FLOOD.to_owned()])).await?;
                // Until it is closed, which only writing shows.
                loop {
                    lasting(Duration::from_secs(1)).await;
                    stream.write_all(&[0xc0, 0]).await?;
                }
            }
            Kind::NeverAcknowledges => {
                stream.write_all(&subscribe(1, [FLOOD.to_owned()])).await?;
                drain(&mut stream).await
            }
            Kind::Pings | Kind::FloodQos0 | Kind::FloodQos1 => flood(stream, &self.packets).await,
            Kind::Subscriptions => self.subscribe_all(stream).await,
            Kind::TinyFilters => {
                stream.write_all(&self.packets).await?;
                drain(&mut stream).await
            }
            Kind::BadPasswords => drain(&mut stream).await,
            Kind::Garbage => {
                let hello = self.turns.load(Ordering::Relaxed).is_multiple_of(2);
                let first: &[u8] = if hello { &[0x16, 3, 1, 2, 0, 1] } else { &[0xc0, 0] };
                stream.write_all(first).await?;
                stream.write_all(&[0x5a; 4_096]).await?;
                drain(&mut stream).await
            }
        }
    }

    /// CONNECT and, unless the password is wrong, a CONNACK that is yes.
    async fn connect(&self, stream: &mut TcpStream, password: &str) -> std::io::Result<()> {
        let mut connect = v4::Connect::new(&self.name);
        connect.set_login(self.tenant.device().as_str(), password).keep_alive = 0;
        stream.write_all(&written(|out| connect.write(out))).await?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await?;
        let refused = self.kind != Kind::BadPasswords && answer != [0x20, 2, 0, 0];
        if refused { Err(std::io::Error::other("refused")) } else { Ok(()) }
    }

    async fn subscribe_all(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut packets = self.packets.to_vec();
        // Filters of its own.
        for filter in packets.as_chunks_mut::<FILTER>().0 {
            filter[FILTER - 9..FILTER - 1].copy_from_slice(&self.name.as_bytes()[..8]);
        }
        let (mut read, mut write) = stream.into_split();
        let asked = async { write.write_all(&packets).await };
        let (_, asked) = tokio::join!(drain(&mut read), asked);
        asked
    }
}

/// Bytes of a SUBSCRIBE for one filter of 16 bytes.
const FILTER: usize = 23;

/// What an attacker of this kind sends, but for its name.
fn packets(kind: Kind) -> Vec<u8> {
    match kind {
        Kind::Pings => [0xc0, 0].repeat(32_768),
        Kind::FloodQos0 => publishes(0),
        Kind::FloodQos1 => publishes(1),
        Kind::Subscriptions => (0..100_000).flat_map(subscribe_to_one).collect(),
        Kind::TinyFilters => {
            let filters = b"\0\x01a\0".repeat(250_000);
            [&[0x82, 0xc2, 0x84, 0x3d, 0, 1][..], &filters].concat()
        }
        _ => Vec::new(),
    }
}

fn subscribe_to_one(number: u32) -> [u8; FILTER] {
    let mut packet = [0; FILTER];
    let [high, low] = (number as u16).max(1).to_be_bytes();
    packet[..6].copy_from_slice(&[0x82, 21, high, low, 0, 16]);
    packet[6..14].copy_from_slice(format!("{number:07}/").as_bytes());
    packet
}

fn written(packet: impl FnOnce(&mut BytesMut) -> Result<usize, mqttbytes::Error>) -> BytesMut {
    let mut out = BytesMut::new();
    packet(&mut out).expect("encodes");
    out
}

/// A SUBSCRIBE with QoS 1.
fn subscribe(id: u16, filters: impl IntoIterator<Item = String>) -> BytesMut {
    let filter = |path| v4::SubscribeFilter { path, qos: QoS::AtLeastOnce };
    let mut subscribe = v4::Subscribe::new_many(filters.into_iter().map(filter));
    subscribe.pkid = id;
    written(|out| subscribe.write(out))
}

/// Some 64 KiB of them.
fn publishes(qos: u8) -> Vec<u8> {
    let mut all = Vec::new();
    for id in 1..=1_000u16 {
        let level = if qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let mut publish = v4::Publish::new("load/hostile", level, vec![0; 48]);
        publish.pkid = if qos == 0 { 0 } else { id };
        all.extend_from_slice(&written(|out| publish.write(out)));
    }
    all
}

/// Reads until the end, and throws it away.
async fn drain(stream: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<()> {
    let mut sink = vec![0; 4_096];
    while stream.read(&mut sink).await? > 0 {}
    Ok(())
}

/// Writes the same without end, and reads what comes.
async fn flood(stream: TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let endless = async {
        loop {
            write.write_all(bytes).await?;
        }
    };
    tokio::select! { ended = drain(&mut read) => ended, ended = endless => ended }
}

/// Connects, again when it is refused: that is part of the wait.
async fn let_in(target: &str, tenant: &TestTenant, client: &str) -> Device {
    eventually("the neighbour is let in", LIMIT, || async {
        Device::connect(target, tenant, client).await.ok()
    })
    .await
}

/// Waits of a well-behaved client, in ascending order.
#[derive(Debug)]
pub struct Waits {
    /// PUBLISH to PUBACK.
    pub puback: Vec<Duration>,
    /// TCP connection to CONNACK.
    pub connack: Vec<Duration>,
}

impl Waits {
    /// Publishes 100 times a second and connects anew 5 times a second, for so long.
    ///
    /// # Panics
    /// When it is refused, or closed, or waits too long.
    pub async fn measure(target: &str, tenant: &TestTenant, time: Duration) -> Self {
        let (mut puback, mut connack) = (Vec::new(), Vec::new());
        let mut device = let_in(target, tenant, "neighbour").await;
        let (end, mut pace) = (Instant::now() + time, interval(Duration::from_millis(10)));
        while Instant::now() < end {
            pace.tick().await;
            let began = Instant::now();
            let published = timeout(LIMIT, device.publish("neighbour/a", "x")).await;
            published.expect("a PUBACK in time").expect("the neighbour is not closed");
            puback.push(began.elapsed());
            if puback.len() % 20 == 1 {
                let began = Instant::now();
                let other = let_in(target, tenant, "neighbour-2").await;
                connack.push(began.elapsed());
                other.disconnect().await.expect("disconnects");
            }
        }
        puback.sort_unstable();
        connack.sort_unstable();
        Self { puback, connack }
    }

    /// Which so many of a hundred stay below.
    pub fn percentile(waits: &[Duration], percent: usize) -> Duration {
        let place = (waits.len() * percent / 100).min(waits.len().saturating_sub(1));
        waits.get(place).copied().unwrap_or_default()
    }
}
