//! Keeps a link to every router that is registered, and to every one that is still linked though its registration is gone
//! (two witnesses). A router that can't be dialled for a while is reached through another one. Knows nothing of what links
//! carry, beyond their beginning and heartbeats.

use std::{
    cell::Cell,
    collections::HashMap,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use penstock_common::registry::MemberKind;
use penstock_proto::link::{ControlDown, ControlUp, DataDown, DataUp, Hello, control_down, control_up};
use penstock_proto::link::{Heartbeat, link_client::LinkClient};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    metadata::{AsciiMetadataValue, errors::InvalidMetadataValue},
    transport::{Channel, Endpoint},
};

use crate::{
    link::table::{Link, LinkKey, Outbox},
    shard::{Shard, ShardCell, Shared},
};

const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Most that the router puts into one frame: each costs it a system call.
const FRAME_BYTES: u32 = 256 << 10;
/// Largest message from a router, bytes: an entry of records with room to spare.
const MESSAGE_BYTES: usize = 8 << 20;
const DIAL: Duration = Duration::from_secs(2);
const BEGIN: Duration = Duration::from_secs(5);
/// Messages between an outbox and its stream.
const STREAM_QUEUE: usize = 16;

/// A link that did not come up, or ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("cannot reach it: {0}")]
    Dial(#[from] tonic::transport::Error),
    #[error("it answers: {}", .0.message())]
    Refused(#[from] Box<Status>),
    #[error("it does not answer")]
    Silent,
    #[error("another router answers: {0}")]
    Other(u64),
    #[error("it closed the stream")]
    Ended,
    #[error("the shard has started anew")]
    Anew,
    #[error("the cluster secret can't be sent")]
    Secret(#[from] InvalidMetadataValue),
}

impl From<Status> for LinkError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// Routers that have a task which keeps their link.
#[derive(Default)]
pub(crate) struct Dialled {
    /// By incarnation; true: the router has left, it is not dialled again.
    routers: HashMap<u64, bool>,
}

impl Shard {
    /// Begins to dial registered routers that are not dialled yet.
    pub(crate) fn dial_all(&mut self) {
        let members = Arc::clone(&self.members);
        self.dialled.routers.retain(|router, left| !*left || members.routers.contains_key(router));
        for router in members.routers.keys() {
            if !self.dialled.routers.contains_key(router) {
                self.dialled.routers.insert(*router, false);
                let (me, router) = (self.me(), *router);
                tokio::task::spawn_local(async move {
                    if let Some(shard) = me.upgrade() {
                        keep(shard, router).await;
                    }
                });
            }
        }
    }

    fn address_of(&self, router: u64) -> Option<String> {
        match &self.members.routers.get(&router)?.kind {
            MemberKind::Router { link, .. } => Some(link.clone()),
            MemberKind::Gateway { .. } => None,
        }
    }

    /// A directly linked router, to reach this one through.
    fn relay_to(&self, router: u64) -> Option<Channel> {
        let mut others = self.links.iter().filter(|(_, link)| link.router != router && !link.leaving);
        others.find_map(|(_, link)| link.channel.clone())
    }
}

/// Keeps the link to one router until it is neither registered nor linked.
async fn keep(shard: ShardCell, router: u64) {
    let (mut failures, mut unreachable_since) = (0, None);
    loop {
        let Some((address, relay)) = next_try(&shard, router, unreachable_since) else { return };
        let began = Instant::now();
        let error = match link(&shard, router, &address, relay).await {
            Ok(()) => None,
            Err((error, true)) => Some(error),
            Err((error, false)) => {
                unreachable_since.get_or_insert(began);
                Some(error)
            }
        };
        if error.as_ref().is_none_or(|error| !matches!(error, LinkError::Dial(_) | LinkError::Silent)) {
            unreachable_since = None;
        }
        failures = if began.elapsed() > Duration::from_secs(2) { 0 } else { failures + 1 };
        if let Some(error) = error {
            // Once, not at every try: the first failure tells what is wrong.
            if failures <= 1 {
                tracing::warn!(router, address, %error, "a link is down");
            }
        }
        let wait = shard.borrow().backoff(failures);
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
}

/// Where to try, and through whom; None: the router is gone.
fn next_try(
    shard: &ShardCell,
    router: u64,
    unreachable_since: Option<Instant>,
) -> Option<(String, Option<Channel>)> {
    let mut shard = shard.borrow_mut();
    let left = shard.dialled.routers.get(&router).copied().unwrap_or(true);
    let Some(address) = shard.address_of(router) else {
        shard.dialled.routers.remove(&router);
        return None;
    };
    if left {
        return None;
    }
    let relay = unreachable_since
        .filter(|since| since.elapsed() > shard.shared.config.relay_after())
        .and_then(|_| shard.relay_to(router));
    Some((address, relay))
}

/// One life of a link. The flag of an error: the link was up before.
async fn link(
    shard: &ShardCell,
    router: u64,
    address: &str,
    relay: Option<Channel>,
) -> Result<(), (LinkError, bool)> {
    let via = relay.is_some();
    let channel = match relay {
        Some(channel) => channel,
        None => dial(address).await.map_err(|error| (error, false))?,
    };
    let opened = Opening::open(shard, router, channel, via).await.map_err(|error| (error, false))?;
    tracing::info!(router, address, via, "a link is up");
    let ended = opened.serve(shard, router).await;
    ended.map_err(|error| (error, true))
}

async fn dial(address: &str) -> Result<Channel, LinkError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(DIAL)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(10)))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(4))
        .keep_alive_while_idle(true);
    Ok(timeout(DIAL, endpoint.connect()).await.map_err(|_| LinkError::Silent)??)
}

/// A link whose streams are open.
struct Opening {
    channel: Option<Channel>,
    producer: u64,
    down: Down,
    control_up: mpsc::Sender<ControlUp>,
    data_up: mpsc::Sender<DataUp>,
}

impl Opening {
    async fn open(shard: &ShardCell, router: u64, channel: Channel, via: bool) -> Result<Self, LinkError> {
        let (shared, number, producer) = {
            let shard = shard.borrow();
            (Arc::clone(&shard.shared), shard.number, shard.producer)
        };
        let mark = Mark { link: shared.link_numbers.fetch_add(1, Ordering::Relaxed), number, router, via };
        let mut client = LinkClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let (control_up, control_queue) = mpsc::channel(STREAM_QUEUE);
        let (data_up, data_queue) = mpsc::channel(STREAM_QUEUE);
        let hello = Hello {
            gateway: shared.incarnation,
            shard: number,
            producer,
            node_id: shared.config.node_id.clone(),
        };
        let hello = ControlUp { kind: Some(control_up::Kind::Hello(hello)) };
        control_up.send(hello).await.map_err(|_| LinkError::Ended)?;
        let begin = async {
            let request = mark.on(&shared, ReceiverStream::new(control_queue))?;
            let mut control = client.control(request).await?.into_inner();
            let first = control.message().await?.and_then(|message| message.kind);
            let Some(control_down::Kind::Welcome(welcome)) = first else { return Err(LinkError::Ended) };
            if welcome.router != router {
                return Err(LinkError::Other(welcome.router));
            }
            let data = client.data(mark.on(&shared, ReceiverStream::new(data_queue))?).await?.into_inner();
            Ok((welcome, control, data))
        };
        let (welcome, control, data) = timeout(BEGIN, begin).await.map_err(|_| LinkError::Silent)??;
        let channel = (!via).then_some(channel);
        let down = Down {
            silence: Duration::from_millis(u64::from(welcome.silence_ms.max(100))),
            beat: Duration::from_millis(u64::from(welcome.heartbeat_ms.max(10))),
            control,
            data,
        };
        Ok(Self { channel, producer, down, control_up, data_up })
    }

    /// Reads and writes until the link ends.
    async fn serve(mut self, shard: &ShardCell, router: u64) -> Result<(), LinkError> {
        let (control, data, stop) = (Outbox::new(), Outbox::new(), Rc::new(Notify::new()));
        let bytes = Rc::new(Cell::new(0));
        let mut link =
            Link::new(router, Rc::clone(&control), Rc::clone(&data), Rc::clone(&bytes), Rc::clone(&stop));
        link.channel = self.channel.take();
        let key = {
            let mut shard = shard.borrow_mut();
            shard.turn();
            if shard.producer != self.producer {
                return Err(LinkError::Anew);
            }
            shard.link_up(link)
        };
        let written = |message: &ControlUp| {
            bytes.set(bytes.get().saturating_sub(prost::Message::encoded_len(message)));
        };
        let ended = tokio::select! {
            ended = self.down.read(shard, key) => ended,
            () = write(&control, &self.control_up, written) => Err(LinkError::Ended),
            () = write(&data, &self.data_up, |_| {}) => Err(LinkError::Ended),
            () = stop.notified() => Ok(()),
        };
        let mut shard = shard.borrow_mut();
        shard.turn();
        shard.link_down(key);
        ended
    }
}

/// What comes from the router.
struct Down {
    silence: Duration,
    beat: Duration,
    control: Streaming<ControlDown>,
    data: Streaming<DataDown>,
}

impl Down {
    async fn read(&mut self, shard: &ShardCell, key: LinkKey) -> Result<(), LinkError> {
        let mut beats = tokio::time::interval(self.beat.min(self.silence / 3));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                biased;
                message = self.control.message() => {
                    heard = Instant::now();
                    let kind = message?.ok_or(LinkError::Ended)?.kind;
                    let mut shard = shard.borrow_mut();
                    shard.turn();
                    kind.into_iter().for_each(|kind| shard.control_down(key, kind));
                }
                message = self.data.message() => {
                    heard = Instant::now();
                    let kind = message?.ok_or(LinkError::Ended)?.kind;
                    let mut shard = shard.borrow_mut();
                    shard.turn();
                    kind.into_iter().for_each(|kind| shard.data_down(key, kind));
                }
                _ = beats.tick() => {
                    if heard.elapsed() > self.silence {
                        return Err(LinkError::Silent);
                    }
                    if let Some(link) = shard.borrow().links.get(key) {
                        link.control(control_up::Kind::Heartbeat(Heartbeat {}));
                    }
                }
            }
        }
    }
}

/// Moves what waits to a stream; ends when the outbox or the stream is closed.
async fn write<T>(outbox: &Outbox<T>, stream: &mpsc::Sender<T>, written: impl Fn(&T)) {
    loop {
        while let Some(message) = outbox.pop() {
            written(&message);
            if stream.send(message).await.is_err() {
                return;
            }
        }
        if outbox.is_closed() {
            return;
        }
        outbox.filled().await;
    }
}

/// What both streams of a link show the router.
struct Mark {
    link: u64,
    number: u32,
    router: u64,
    via: bool,
}

impl Mark {
    fn on<T>(&self, shared: &Shared, message: T) -> Result<Request<T>, InvalidMetadataValue> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        if let Some(secret) = &shared.config.cluster_secret {
            let mut value: AsciiMetadataValue = secret.expose().parse()?;
            value.set_sensitive(true);
            metadata.insert("penstock-secret", value);
        }
        metadata.insert("penstock-link", AsciiMetadataValue::from(self.link));
        metadata.insert("penstock-gateway", AsciiMetadataValue::from(shared.incarnation));
        metadata.insert("penstock-shard", AsciiMetadataValue::from(self.number));
        metadata.insert("penstock-router", AsciiMetadataValue::from(self.router));
        if self.via {
            metadata.insert("penstock-via", AsciiMetadataValue::from(self.router));
        }
        Ok(request)
    }
}

impl Dialled {
    /// The router drains: its link is not made again.
    pub(crate) fn left(&mut self, router: u64) {
        self.routers.insert(router, true);
    }
}
