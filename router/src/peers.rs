//! Channels to other routers, with the cluster secret, and what is asked over them: to serve a group, to push, to be told
//! that a partition was taken. One hop, never passed on; the other side is [`crate::peer`].

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hashbrown::HashMap;
use penstock_common::{
    name::TenantName,
    registry::{Member, MemberKind, Members},
};
use penstock_proto::{
    admin::{ClientStatus, ClientSummary},
    messaging::{PushReceipt, PushRequest, ReceiptStatus},
    peer::{
        AskClient, AskHoldings, ClientsOfTenant, FollowFiltersRequest, HeldHere, PeerPush, TookRequest,
        peer_client::PeerClient,
    },
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tracing::debug;

use crate::{
    clients::Page,
    homes::TookOver,
    intake::Handed,
    relay::{CONNECTION_WINDOW, FRAME_BYTES, STREAM_WINDOW},
    secret,
};

const CONNECT: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Pushes that wait for one router, and those that wait for its receipts.
const PUSHES: usize = 1_024;
/// A push's own limit of 10 s, or what it asks for, plus the way.
const PUSH_SLACK: Duration = Duration::from_secs(5);
/// Pushes that nobody waits for any more make room.
const FORGET_EVERY: Duration = Duration::from_millis(200);
/// Longest that a call is answered in.
const ANSWER: Duration = Duration::from_secs(5);
/// A new home hands out nothing before all routers have said what their consumers hold, or this is over: one that is paused or
/// dying must not hold up everybody.
const HOLDINGS: Duration = Duration::from_secs(1);
/// A message of a peer: a batch of one entry.
const MESSAGE: usize = 8 << 20;

/// A client of another router.
pub type Client = PeerClient<InterceptedService<Channel, Secret>>;

/// Adds the cluster secret to each call.
#[derive(Clone)]
pub struct Secret(Option<MetadataValue<Ascii>>);

impl Interceptor for Secret {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(secret) = &self.0 {
            request.metadata_mut().insert(secret::KEY, secret.clone());
        }
        Ok(request)
    }
}

/// A router that can't be called.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerError {
    /// It is no router, or its address is none.
    #[error("the member has no usable address: {0}")]
    Address(String),
    /// The secret has characters that can't be sent.
    #[error("the cluster secret holds characters that a header can't carry")]
    Secret,
}

struct Peer {
    client: Client,
    pushes: Option<mpsc::Sender<Pushing>>,
}

struct Pushing {
    tenant: String,
    push: PushRequest,
    /// None: the stream broke with the push on it. Dropped: it was not sent.
    receipt: oneshot::Sender<Option<PushReceipt>>,
}

type Waiting = HashMap<u64, oneshot::Sender<Option<PushReceipt>>>;

/// See the module.
pub struct Peers {
    secret: Secret,
    peers: Mutex<HashMap<u64, Peer>>,
}

impl Peers {
    /// Calls with this secret.
    pub fn new(secret: Option<&str>) -> Result<Arc<Self>, PeerError> {
        let secret =
            secret.map(str::parse::<MetadataValue<Ascii>>).transpose().map_err(|_| PeerError::Secret)?;
        let secret = secret.map(|mut value| {
            value.set_sensitive(true);
            value
        });
        Ok(Arc::new(Self { secret: Secret(secret), peers: Mutex::default() }))
    }

    /// A client of a router. Connects when it is first used.
    pub fn client(&self, member: &Member) -> Result<Client, PeerError> {
        let mut peers = self.lock();
        Ok(self.peer(&mut peers, member)?.client.clone())
    }

    /// Lets go of routers that are members no longer.
    pub fn keep(&self, members: &Members) {
        self.lock().retain(|incarnation, _| members.routers.contains_key(incarnation));
    }

    /// Sends a push to the router that is the client's home; waits while too many do.
    pub async fn push(
        &self,
        member: &Member,
        tenant: &str,
        push: PushRequest,
        handed: &Handed,
    ) -> PushReceipt {
        let id = push.id;
        let limit = crate::push::wait_of(&push) + PUSH_SLACK;
        let (receipt, received) = oneshot::channel();
        let sender = {
            let mut peers = self.lock();
            match self.peer(&mut peers, member) {
                Ok(peer) => peer.pusher(),
                Err(error) => return crate::push::refused(id, &error.to_string()),
            }
        };
        let pushing = Pushing { tenant: tenant.to_owned(), push, receipt };
        if tokio::time::timeout(PUSH_SLACK, sender.send(pushing)).await.is_err() {
            return crate::push::refused(id, "too many pushes wait for the client's router: try again");
        }
        handed.over();
        match tokio::time::timeout(limit, received).await {
            Ok(Ok(Some(receipt))) => PushReceipt { id, ..receipt },
            Ok(Ok(None)) => crate::push::in_doubt(id),
            Ok(Err(_)) => crate::push::refused(id, crate::push::MOVING),
            Err(_) => PushReceipt { id, status: ReceiptStatus::Expired.into(), ..PushReceipt::default() },
        }
    }

    /// Asks a router to follow the filters of a tenant's sessions; false: it did not say that it has.
    pub async fn follow_filters(&self, member: &Member, tenant: &str) -> bool {
        let Ok(mut client) = self.client(member) else { return false };
        let ask = FollowFiltersRequest { tenant: tenant.to_owned() };
        matches!(tokio::time::timeout(ANSWER, client.follow_filters(ask)).await, Ok(Ok(_)))
    }

    /// What consumers at a router hold of a group on one partition; None: it does not say so soon enough to wait for it.
    pub async fn holdings(&self, member: &Member, ask: AskHoldings) -> Option<HeldHere> {
        let mut client = self.client(member).ok()?;
        match tokio::time::timeout(HOLDINGS, client.holdings(ask)).await {
            Ok(Ok(held)) => Some(held.into_inner()),
            failed => {
                debug!(router = member.node_id, ?failed, "a router did not say what its consumers hold");
                None
            }
        }
    }

    /// Clients that are connected at the homes of a router; None: it does not answer.
    pub async fn connected(
        &self,
        member: &Member,
        tenant: &TenantName,
        page: &Page,
    ) -> Option<Vec<ClientSummary>> {
        let mut client = self.client(member).ok()?;
        let ask = ClientsOfTenant {
            tenant: tenant.to_string(),
            after: page.after.clone(),
            prefix: page.prefix.clone(),
            limit: u32::try_from(page.limit).unwrap_or(u32::MAX),
        };
        let answer = tokio::time::timeout(ANSWER, client.clients(ask)).await.ok()?.ok()?;
        Some(answer.into_inner().clients)
    }

    /// What a router knows of a client; None: it does not answer.
    pub async fn status(&self, member: &Member, ask: AskClient) -> Option<ClientStatus> {
        let mut client = self.client(member).ok()?;
        let answer = tokio::time::timeout(ANSWER, client.client(ask)).await.ok()?.ok()?;
        Some(answer.into_inner())
    }

    /// Tells routers whose partitions were taken, until the channel closes: they learn sooner than by being refused.
    pub async fn tell_previous(
        self: Arc<Self>,
        mut taken: mpsc::Receiver<TookOver>,
        members: impl Fn() -> Arc<Members> + Send,
    ) {
        while let Some(TookOver { previous, key, term }) = taken.recv().await {
            let members = members();
            let Some(Ok(mut client)) = members.routers.get(&previous).map(|member| self.client(member))
            else {
                continue;
            };
            let told = TookRequest { tenant: key.tenant.to_string(), partition: key.partition, term: term.0 };
            // A dead router must not hold up the others.
            tokio::spawn(async move {
                if let Ok(Err(status)) = tokio::time::timeout(ANSWER, client.took(told)).await {
                    debug!(%key, router = format!("{previous:x}"), %status, "the previous home was not told");
                }
            });
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peer<'a>(
        &self,
        peers: &'a mut HashMap<u64, Peer>,
        member: &Member,
    ) -> Result<&'a mut Peer, PeerError> {
        let MemberKind::Router { link, .. } = &member.kind else {
            return Err(PeerError::Address(member.node_id.clone()));
        };
        let client = || {
            let endpoint = Endpoint::from_shared(format!("http://{link}"))
                .map_err(|error| PeerError::Address(format!("{link}: {error}")))?
                .connect_timeout(CONNECT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_frame_size(FRAME_BYTES);
            let client = PeerClient::with_interceptor(endpoint.connect_lazy(), self.secret.clone());
            Ok(client.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
        };
        match peers.entry(member.incarnation) {
            hashbrown::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            hashbrown::hash_map::Entry::Vacant(entry) => {
                Ok(entry.insert(Peer { client: client()?, pushes: None }))
            }
        }
    }
}

impl Peer {
    /// The stream of pushes to this router; begun when there is none.
    fn pusher(&mut self) -> mpsc::Sender<Pushing> {
        if let Some(pushes) = self.pushes.as_ref().filter(|pushes| !pushes.is_closed()) {
            return pushes.clone();
        }
        let (pushes, queue) = mpsc::channel(PUSHES);
        self.pushes = Some(pushes.clone());
        tokio::spawn(run_pushes(self.client.clone(), queue));
        pushes
    }
}

/// One stream of pushes: numbers them anew, so that the ids of all callers fit on it. Ends with the stream.
async fn run_pushes(mut client: Client, queue: mpsc::Receiver<Pushing>) {
    let (out, stream) = mpsc::channel(PUSHES);
    let request = client.push(Request::new(ReceiverStream::new(stream)));
    let Ok(Ok(answer)) = tokio::time::timeout(ANSWER, request).await else { return };
    let mut waiting = Waiting::new();
    serve_pushes(queue, &out, answer.into_inner(), &mut waiting).await;
    for (_, receipt) in waiting {
        // Whoever waited may have given up.
        let _ = receipt.send(None);
    }
}

async fn serve_pushes(
    mut queue: mpsc::Receiver<Pushing>,
    out: &mpsc::Sender<PeerPush>,
    mut receipts: Streaming<PushReceipt>,
    waiting: &mut Waiting,
) {
    let mut number = 0;
    loop {
        tokio::select! {
            pushing = queue.recv(), if waiting.len() < PUSHES => {
                let Some(Pushing { tenant, mut push, receipt }) = pushing else { return };
                number += 1;
                push.id = number;
                // Dropped with its receipt when the stream has gone: not sent.
                if out.send(PeerPush { tenant, push: Some(push) }).await.is_err() {
                    return;
                }
                waiting.insert(number, receipt);
            }
            receipt = receipts.next() => {
                let Some(Ok(receipt)) = receipt else { return };
                if let Some(waiting) = waiting.remove(&receipt.id) {
                    let _ = waiting.send(Some(receipt));
                }
            }
            () = tokio::time::sleep(FORGET_EVERY), if waiting.len() >= PUSHES => {
                waiting.retain(|_, receipt| !receipt.is_closed());
            }
        }
    }
}
