//! The Peer service: serves groups, pushes and standings to other routers, from the homes of this one. Nothing that comes
//! here is passed on.

use std::{pin::Pin, sync::Arc};

use penstock_common::{
    name::{PartitionKey, TenantName},
    position::Term,
    rendezvous,
    secret::Secret,
};
use penstock_proto::{
    admin::ClientStatus,
    messaging::{PartitionStatus, PushReceipt},
    peer::{
        AskClient, AskHoldings, ClientsHere, ClientsOfTenant, FollowFiltersRequest, FollowFiltersResponse,
        GroupOrder, GroupOrderDone, HeldHere, Join, PartitionGroup, PeerPush, ServeRequest, ServeResponse,
        TookRequest, TookResponse,
        peer_server::{Peer, PeerServer},
        serve_request, serve_response,
    },
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    clients::Page,
    door::{Inside, clients::PAGE_MOST, orders::order_of, status},
    groups::{
        home::PartitionHome,
        lag, orders,
        served::{Joining, Say, Served},
    },
    intake::{Intake, PUSHES},
    secret,
};

/// Batches between a served group and the stream.
const RESPONSES: usize = 4;
/// A message of a peer: a batch of one entry.
const MESSAGE: usize = 8 << 20;

/// See the module.
pub struct PeerService {
    inside: Inside,
    secret: Option<Secret>,
}

impl PeerService {
    /// The service, to be added to the link port. Without a secret (loopback only) everybody may call.
    pub fn server(inside: Inside, secret: Option<Secret>) -> PeerServer<Self> {
        let service = PeerServer::new(Self { inside, secret });
        service.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE)
    }

    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        secret::check(self.secret.as_ref(), request.metadata())
    }
}

/// The home of a partition on this router: as it is, or taken now when no other router that is alive holds it and either
/// `take` is given or rendezvous names this one. FAILED_PRECONDITION names the other holder.
pub async fn present_home(
    inside: &Inside,
    key: &PartitionKey,
    take: bool,
) -> Result<Arc<dyn PartitionHome>, Status> {
    if let Some(home) = inside.homes.get(key) {
        return Ok(home);
    }
    if key.partition >= inside.tenant(&key.tenant)?.tenant.partitions {
        return Err(Status::invalid_argument("the tenant has no such partition"));
    }
    let (members, own) = (inside.homes.members(), inside.homes.incarnation());
    let holder = inside.store.holder(key).await.map_err(|error| status::of_store(&error))?;
    let other = holder.map(|(_, holder)| holder).filter(|holder| *holder != own);
    if let Some(other) = other.filter(|holder| members.routers.contains_key(holder)) {
        return Err(status::not_home(Some(other)));
    }
    let named = rendezvous::home(key, members.routers.keys().copied());
    if !take && named != Some(own) {
        return Err(status::not_home(None));
    }
    inside.homes.open(key).await.map_err(|error| status::of_store(&error))
}

fn tenant(name: &str) -> Result<TenantName, Status> {
    TenantName::new(name).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn partition(name: &str, partition: u32) -> Result<PartitionKey, Status> {
    Ok(PartitionKey { tenant: tenant(name)?, partition })
}

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for PeerService {
    type ServeStream = Answer<ServeResponse>;
    type PushStream = Answer<PushReceipt>;

    async fn serve(
        &self,
        request: Request<Streaming<ServeRequest>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        self.check(&request)?;
        let mut requests = request.into_inner();
        let Some(serve_request::Kind::Join(join)) = requests.message().await?.and_then(|first| first.kind)
        else {
            return Err(Status::invalid_argument("the first request must be a join"));
        };
        let (served, term) = self.join(&join).await?;
        let (responses, stream) = mpsc::channel(RESPONSES);
        tokio::spawn(serve(served, term, requests, responses));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn push(
        &self,
        request: Request<Streaming<PeerPush>>,
    ) -> Result<Response<Self::PushStream>, Status> {
        self.check(&request)?;
        let (receipts, stream) = mpsc::channel(PUSHES);
        tokio::spawn(pushes(self.inside.clone(), request.into_inner(), receipts));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn took(&self, request: Request<TookRequest>) -> Result<Response<TookResponse>, Status> {
        self.check(&request)?;
        let took = request.into_inner();
        self.inside.homes.taken(&partition(&took.tenant, took.partition)?, Term(took.term));
        Ok(Response::new(TookResponse {}))
    }

    async fn follow_filters(
        &self,
        request: Request<FollowFiltersRequest>,
    ) -> Result<Response<FollowFiltersResponse>, Status> {
        self.check(&request)?;
        let tenant = tenant(&request.into_inner().tenant)?;
        let followed = self.inside.homes.follow_filters(&tenant).await;
        followed.map_err(|error| status::of_store(&error))?;
        Ok(Response::new(FollowFiltersResponse {}))
    }

    async fn holdings(&self, request: Request<AskHoldings>) -> Result<Response<HeldHere>, Status> {
        self.check(&request)?;
        let AskHoldings { group, term } = request.into_inner();
        let named = group.ok_or_else(|| Status::invalid_argument("group: missing"))?;
        let slot = (partition(&named.tenant, named.partition)?, named.group);
        Ok(Response::new(self.inside.holdings.ask(&slot, Term(term))))
    }

    async fn clients(&self, request: Request<ClientsOfTenant>) -> Result<Response<ClientsHere>, Status> {
        self.check(&request)?;
        let asked = request.into_inner();
        let tenant = tenant(&asked.tenant)?;
        let limit = (asked.limit as usize).min(PAGE_MOST + 1);
        let page = Page { after: asked.after, prefix: asked.prefix, limit };
        Ok(Response::new(ClientsHere { clients: self.inside.homes.connected(&tenant, &page) }))
    }

    async fn client(&self, request: Request<AskClient>) -> Result<Response<ClientStatus>, Status> {
        self.check(&request)?;
        let asked = request.into_inner();
        let tenant = tenant(&asked.tenant)?;
        Ok(Response::new(self.inside.homes.client(&tenant, &asked.client, asked.close).await))
    }

    async fn order_group(&self, request: Request<GroupOrder>) -> Result<Response<GroupOrderDone>, Status> {
        self.check(&request)?;
        let GroupOrder { group, take, what } = request.into_inner();
        let named = group.ok_or_else(|| Status::invalid_argument("group: missing"))?;
        let key = partition(&named.tenant, named.partition)?;
        let home = present_home(&self.inside, &key, take).await?;
        let followed = orders::follow(&self.inside.serving, &home, &named.group, order_of(what)?).await;
        let redriven = followed.map_err(|error| status::of_join(&error))?;
        Ok(Response::new(GroupOrderDone { redriven }))
    }

    async fn group_status(
        &self,
        request: Request<PartitionGroup>,
    ) -> Result<Response<PartitionStatus>, Status> {
        self.check(&request)?;
        let asked = request.into_inner();
        let key = partition(&asked.tenant, asked.partition)?;
        let home = self.inside.homes.get(&key).ok_or_else(|| status::not_home(None))?;
        let now = self.inside.seams.now_ms();
        let status = lag::at_home(&self.inside.serving, &home, &asked.group, now).await;
        status.map(Response::new).map_err(|error| status::of_store(&error))
    }
}

impl PeerService {
    async fn join(&self, join: &Join) -> Result<(Served, Term), Status> {
        let key = partition(&join.tenant, join.partition)?;
        let home = present_home(&self.inside, &key, join.take).await?;
        let joining = Joining {
            consumer: join.consumer,
            credit: join.credit.max(1),
            ack_timeout_ms: u64::from(join.ack_timeout_ms.max(1)),
        };
        let joined = self.inside.serving.join(&home, &join.group, joining).await;
        let served = joined.map_err(|error| status::of_join(&error))?;
        Ok((served, home.term()))
    }
}

async fn serve(
    mut served: Served,
    term: Term,
    mut requests: Streaming<ServeRequest>,
    responses: mpsc::Sender<Result<ServeResponse, Status>>,
) {
    let respond = |kind| Ok(ServeResponse { kind: Some(kind), term: 0 });
    let joined = Some(serve_response::Kind::Joined(true));
    let mut next = Some(Ok(ServeResponse { kind: joined, term: term.0 }));
    loop {
        tokio::select! {
            // One response at a time waits for room; requests are read meanwhile.
            permit = responses.reserve(), if next.is_some() => {
                let (Ok(permit), Some(response)) = (permit, next.take()) else { return };
                let last = response.is_err();
                permit.send(response);
                if last {
                    return;
                }
            }
            batch = served.next(), if next.is_none() => {
                next = Some(match batch {
                    Ok(batch) => respond(serve_response::Kind::Batch(batch)),
                    Err(ended) => Err(status::of_ended(ended)),
                });
            }
            request = requests.message() => match request {
                Ok(Some(request)) => {
                    let say = match request.kind {
                        Some(serve_request::Kind::Acks(acks)) => Say::Acks(acks),
                        Some(serve_request::Kind::Nacks(nacks)) => Say::Nacks(nacks),
                        Some(serve_request::Kind::Credit(credit)) => Say::Credit(credit),
                        Some(serve_request::Kind::Join(_)) | None => continue,
                    };
                    served.say(say).await;
                }
                Ok(None) | Err(_) => return,
            },
            () = responses.closed() => return,
        }
    }
}

async fn pushes(
    inside: Inside,
    mut requests: Streaming<PeerPush>,
    receipts: mpsc::Sender<Result<PushReceipt, Status>>,
) {
    let mut intake = Intake::default();
    while let Ok(Some(PeerPush { tenant, push: Some(push) })) = requests.message().await {
        let Some(mut place) = intake.enter(&tenant, &push).await else { return };
        let (inside, receipts) = (inside.clone(), receipts.clone());
        tokio::spawn(async move {
            place.turn().await;
            let receipt = match TenantName::new(&tenant) {
                Ok(tenant) => inside.homes.push(&tenant, push, &place.handed).await,
                Err(error) => crate::push::refused(push.id, &error.to_string()),
            };
            let _ = receipts.send(Ok(receipt)).await;
            drop(place);
        });
    }
}
