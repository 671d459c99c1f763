//! The load: MQTT 3.1.1 publishers on one thread, as cheap as they can be, so that the server is the bottleneck. Speaks to
//! any broker. Not an oracle: it counts what is acknowledged, the ledger judges elsewhere.

use std::{
    cell::RefCell,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::LocalSet,
    time::{Instant, sleep_until, timeout},
};

/// Whom to load, and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    /// Addresses; clients are spread over them.
    pub addresses: Vec<SocketAddr>,
    /// User name and password, for brokers that ask.
    pub login: Option<(String, String)>,
}

/// What an ingest run did.
#[derive(Debug, Clone, Copy)]
pub struct Ingested {
    /// Publishes acknowledged (QoS 1) or written (QoS 0).
    pub messages: u64,
    /// Seconds.
    pub seconds: f64,
}

/// Shape of an ingest run.
#[derive(Debug, Clone, Copy)]
pub struct Ingest {
    /// Publishers.
    pub clients: usize,
    /// Publishes of a client that wait for their PUBACK.
    pub window: usize,
    /// Bytes.
    pub payload: usize,
    /// How long.
    pub duration: Duration,
}

impl Target {
    /// Connects one client; `source` spreads connections over loopback addresses, since one has 28,000 ports.
    pub async fn connect(&self, index: usize, prefix: &str) -> anyhow::Result<TcpStream> {
        let address = *self.addresses.get(index % self.addresses.len()).context("no address")?;
        let socket = TcpSocket::new_v4()?;
        let source = Ipv4Addr::new(127, 0, 1 + u8::try_from(index / 20_000)?, 1);
        socket.bind(SocketAddr::from((source, 0)))?;
        let mut stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&self.hello(&format!("{prefix}-{index}"))).await?;
        let mut answer = [0; 4];
        timeout(Duration::from_secs(60), stream.read_exact(&mut answer)).await??;
        ensure!(answer[0] == 0x20 && answer[3] == 0, "CONNACK {answer:?}");
        Ok(stream)
    }

    fn hello(&self, client: &str) -> Vec<u8> {
        let mut flags = 0x02;
        let mut rest = Vec::new();
        string(&mut rest, client.as_bytes());
        if let Some((user, password)) = &self.login {
            flags |= 0xc0;
            string(&mut rest, user.as_bytes());
            string(&mut rest, password.as_bytes());
        }
        let mut body = b"\0\x04MQTT\x04".to_vec();
        body.push(flags);
        body.extend(60u16.to_be_bytes());
        body.extend(rest);
        packet(0x10, &body)
    }
}

fn string(out: &mut Vec<u8>, value: &[u8]) {
    out.extend((value.len() as u16).to_be_bytes());
    out.extend(value);
}

fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    let mut length = body.len();
    loop {
        let byte = (length % 128) as u8;
        length /= 128;
        out.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    out.extend(body);
    out
}

/// A PUBLISH with packet identifier 0, and where the identifier is.
fn publish(topic: &str, payload: usize, qos: u8) -> (Vec<u8>, usize) {
    let mut body = Vec::new();
    string(&mut body, topic.as_bytes());
    if qos > 0 {
        body.extend([0, 0]);
    }
    body.resize(body.len() + payload, b'x');
    let out = packet(0x30 | (qos << 1), &body);
    let id = out.len() - payload - 2;
    (out, id)
}

/// Publishes as fast as the window allows.
pub async fn ingest(target: &Target, shape: Ingest, qos: u8) -> anyhow::Result<Ingested> {
    let local = LocalSet::new();
    let total = Rc::new(RefCell::new(0u64));
    let mut streams = Vec::new();
    for index in 0..shape.clients {
        streams.push(target.connect(index, "ingest").await?);
    }
    let started = Instant::now();
    let until = started + shape.duration;
    let tasks: Vec<_> = streams
        .into_iter()
        .enumerate()
        .map(|(index, stream)| {
            let total = Rc::clone(&total);
            local.spawn_local(async move {
                let done = match qos {
                    0 => flood(stream, index, shape, until).await?,
                    _ => publisher(stream, index, shape, until).await?,
                };
                *total.borrow_mut() += done;
                anyhow::Ok(())
            })
        })
        .collect();
    local
        .run_until(async {
            for task in tasks {
                task.await??;
            }
            anyhow::Ok(())
        })
        .await?;
    let messages = *total.borrow();
    Ok(Ingested { messages, seconds: started.elapsed().as_secs_f64() })
}

async fn publisher(
    mut stream: TcpStream,
    index: usize,
    shape: Ingest,
    until: Instant,
) -> anyhow::Result<u64> {
    let (message, id_at) = publish(&format!("bench/client/{index}"), shape.payload, 1);
    let (mut acked, mut under_way, mut id) = (0u64, 0usize, 0u16);
    let mut out = Vec::with_capacity(message.len() * shape.window);
    let mut buffer = vec![0; 16 * 1024];
    let mut partial = 0usize;
    loop {
        out.clear();
        let open = Instant::now() < until;
        while open && under_way < shape.window {
            id = if id == u16::MAX { 1 } else { id + 1 };
            let at = out.len() + id_at;
            out.extend_from_slice(&message);
            out[at..at + 2].copy_from_slice(&id.to_be_bytes());
            under_way += 1;
        }
        if !out.is_empty() {
            stream.write_all(&out).await?;
        }
        if under_way == 0 {
            return Ok(acked);
        }
        let read = timeout(Duration::from_secs(60), stream.read(&mut buffer))
            .await
            .context("no PUBACK for 60 s")??;
        if read == 0 {
            bail!("the broker closed the connection");
        }
        let whole = (partial + read) / 4;
        partial = (partial + read) % 4;
        acked += whole as u64;
        under_way -= whole;
    }
}

/// QoS 0: writes as fast as the socket takes it.
async fn flood(mut stream: TcpStream, index: usize, shape: Ingest, until: Instant) -> anyhow::Result<u64> {
    let (message, _) = publish(&format!("bench/client/{index}"), shape.payload, 0);
    let burst = message.repeat(shape.window);
    let mut sent = 0;
    while Instant::now() < until {
        stream.write_all(&burst).await?;
        sent += shape.window as u64;
        tokio::task::yield_now().await;
    }
    Ok(sent)
}

/// PUBLISH→PUBACK times at a fixed rate, seconds, sorted; a late send counts from when it was due.
pub async fn latency(
    target: &Target,
    clients: usize,
    rate: u32,
    duration: Duration,
) -> anyhow::Result<Vec<f64>> {
    let local = LocalSet::new();
    let started = Instant::now() + Duration::from_millis(100);
    let gap = Duration::from_secs(1) * u32::try_from(clients)? / rate;
    let mut tasks = Vec::new();
    for index in 0..clients {
        let mut stream = target.connect(index, "latency").await?;
        let offset = gap * u32::try_from(index)? / u32::try_from(clients)?;
        tasks.push(local.spawn_local(async move {
            let (message, id_at) = publish(&format!("bench/client/{index}"), 64, 1);
            let mut times = Vec::new();
            let mut due = started + offset;
            while due < started + duration {
                sleep_until(due).await;
                let mut out = message.clone();
                out[id_at + 1] = 1;
                stream.write_all(&out).await?;
                let mut ack = [0; 4];
                timeout(Duration::from_secs(60), stream.read_exact(&mut ack)).await??;
                times.push(due.elapsed().as_secs_f64());
                due += gap;
            }
            anyhow::Ok(times)
        }));
    }
    let mut all = Vec::new();
    local
        .run_until(async {
            for task in tasks {
                all.extend(task.await??);
            }
            anyhow::Ok(())
        })
        .await?;
    all.sort_by(f64::total_cmp);
    Ok(all)
}

/// Connects clients, some at a time, and gives them back with the seconds it took.
pub async fn connect_all(
    target: &Target,
    clients: usize,
    at_a_time: usize,
) -> anyhow::Result<(Vec<TcpStream>, f64)> {
    let local = LocalSet::new();
    let next = Rc::new(RefCell::new(0usize));
    let streams = Rc::new(RefCell::new(Vec::with_capacity(clients)));
    let started = Instant::now();
    let tasks: Vec<_> = (0..at_a_time)
        .map(|_| {
            let (next, streams, target) = (Rc::clone(&next), Rc::clone(&streams), target.clone());
            local.spawn_local(async move {
                loop {
                    let index = {
                        let mut next = next.borrow_mut();
                        *next += 1;
                        *next - 1
                    };
                    if index >= clients {
                        return anyhow::Ok(());
                    }
                    let stream = target.connect(index, "idle").await?;
                    streams.borrow_mut().push(stream);
                }
            })
        })
        .collect();
    local
        .run_until(async {
            for task in tasks {
                task.await??;
            }
            anyhow::Ok(())
        })
        .await?;
    let seconds = started.elapsed().as_secs_f64();
    Ok((streams.take(), seconds))
}
