//! The Messaging service: consuming and pushing for microservices. Groups are made and shown in [`super::groups`].

use std::{collections::BTreeSet, pin::Pin};

use penstock_proto::messaging::{
    Batch, Begin, ConsumeRequest, ConsumeResponse, CreateGroupRequest, DeleteGroupRequest,
    DeleteGroupResponse, Group, GroupStatus, Joined, ListDeadRequest, ListDeadResponse, ListGroupsRequest,
    ListGroupsResponse, PushReceipt, PushRequest, RedriveRequest, RedriveResponse, SeekGroupRequest,
    SeekGroupResponse, SetGroupRequest, ShowGroupRequest, consume_request, consume_response,
    messaging_server::{Messaging, MessagingServer},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Inside,
    auth::{Auth, Caller},
    groups, orders, status,
};
use crate::{
    consume::{Consumer, Event, Partitions},
    hands::Hands,
    intake::{Intake, PUSHES},
};

/// Credit of a consumer: unless it says so, and at most.
const CREDIT: u32 = 1_000;
const CREDIT_MOST: u32 = 100_000;
/// Longest name of a consumer, bytes.
const CONSUMER_MAX: usize = 128;
/// Responses that wait for the network.
const RESPONSES: usize = 4;
/// A request: acks of many ranges, or a push of the largest payload.
const REQUEST: usize = 4 << 20;
const RESPONSE: usize = 8 << 20;

/// See the module.
pub struct MessagingService {
    inside: Inside,
    auth: Auth,
}

impl MessagingService {
    /// The service, to be added to the door's port.
    pub fn server(inside: Inside, auth: Auth) -> MessagingServer<Self> {
        let service = MessagingServer::new(Self { inside, auth });
        service.max_decoding_message_size(REQUEST).max_encoding_message_size(RESPONSE)
    }
}

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Messaging for MessagingService {
    type ConsumeStream = Answer<ConsumeResponse>;
    type PushStream = Answer<PushReceipt>;

    async fn create_group(&self, request: Request<CreateGroupRequest>) -> Result<Response<Group>, Status> {
        let caller = self.auth.messaging(&request).await?;
        let wanted = request.into_inner().group.ok_or_else(|| Status::invalid_argument("group: missing"))?;
        groups::create(&self.inside, &caller.tenant, wanted).await.map(Response::new)
    }

    async fn list_groups(
        &self,
        request: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        let caller = self.auth.messaging(&request).await?;
        let tenant = self.inside.tenant(&caller.tenant)?;
        let active = tenant.groups.values().filter(|group| group.active);
        let groups = active.map(|group| groups::to_proto(group)).collect();
        Ok(Response::new(ListGroupsResponse { groups }))
    }

    async fn show_group(&self, request: Request<ShowGroupRequest>) -> Result<Response<GroupStatus>, Status> {
        let caller = self.auth.messaging(&request).await?;
        groups::show(&self.inside, &caller.tenant, &request.into_inner().name).await.map(Response::new)
    }

    async fn set_group(&self, request: Request<SetGroupRequest>) -> Result<Response<Group>, Status> {
        let caller = self.auth.messaging(&request).await?;
        groups::set(&self.inside, &caller.tenant, request.into_inner()).await.map(Response::new)
    }

    async fn seek_group(
        &self,
        request: Request<SeekGroupRequest>,
    ) -> Result<Response<SeekGroupResponse>, Status> {
        let caller = self.auth.messaging(&request).await?;
        orders::seek(&self.inside, &caller.tenant, request.into_inner()).await?;
        Ok(Response::new(SeekGroupResponse {}))
    }

    async fn list_dead(
        &self,
        request: Request<ListDeadRequest>,
    ) -> Result<Response<ListDeadResponse>, Status> {
        let caller = self.auth.messaging(&request).await?;
        orders::list_dead(&self.inside, &caller.tenant, request.into_inner()).await.map(Response::new)
    }

    async fn redrive(&self, request: Request<RedriveRequest>) -> Result<Response<RedriveResponse>, Status> {
        let caller = self.auth.messaging(&request).await?;
        let redriven = orders::redrive(&self.inside, &caller.tenant, request.into_inner()).await?;
        Ok(Response::new(RedriveResponse { redriven }))
    }

    async fn delete_group(
        &self,
        request: Request<DeleteGroupRequest>,
    ) -> Result<Response<DeleteGroupResponse>, Status> {
        let caller = self.auth.messaging(&request).await?;
        groups::delete(&self.inside, &caller.tenant, &request.into_inner().name).await?;
        Ok(Response::new(DeleteGroupResponse {}))
    }

    async fn consume(
        &self,
        request: Request<Streaming<ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let caller = self.auth.messaging(&request).await?;
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.kind);
        let Some(consume_request::Kind::Begin(begin)) = first else {
            return Err(Status::invalid_argument("the first request must be a begin"));
        };
        let consumer = begin_consumer(&self.inside, &caller, &begin).await?;
        let (responses, stream) = mpsc::channel(RESPONSES);
        let door = Consuming::new(self.inside.clone(), consumer, requests, responses);
        tokio::spawn(Box::pin(door.run()));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn push(
        &self,
        request: Request<Streaming<PushRequest>>,
    ) -> Result<Response<Self::PushStream>, Status> {
        let caller = self.auth.messaging(&request).await?;
        let (receipts, stream) = mpsc::channel(PUSHES);
        tokio::spawn(pushes(self.inside.clone(), caller, request.into_inner(), receipts));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

async fn begin_consumer(inside: &Inside, caller: &Caller, begin: &Begin) -> Result<Consumer, Status> {
    if begin.consumer.len() > CONSUMER_MAX {
        return Err(Status::invalid_argument(format!("consumer: longer than {CONSUMER_MAX} bytes")));
    }
    let tenant = inside.tenant(&caller.tenant)?;
    let group = groups::await_active(inside, &caller.tenant, &begin.group).await?;
    let ack_timeout = match begin.ack_timeout_ms {
        0 => group.options.ack_timeout_ms,
        own => own,
    };
    Ok(Consumer {
        tenant: caller.tenant.clone(),
        partitions: tenant.tenant.partitions,
        group: begin.group.clone(),
        mode: group.options.mode,
        consumer: inside.seams.number(),
        credit: credit_of(begin.credit),
        ack_timeout_ms: ack_timeout.max(groups::ACK_TIMEOUT_LEAST),
    })
}

fn credit_of(asked: u32) -> u32 {
    if asked == 0 { CREDIT } else { asked.min(CREDIT_MOST) }
}

/// One consumer's stream.
struct Consuming {
    inside: Inside,
    consumer: Consumer,
    created_at: Option<u64>,
    requests: Streaming<ConsumeRequest>,
    responses: mpsc::Sender<Result<ConsumeResponse, Status>>,
    partitions: Partitions,
    joined: BTreeSet<u32>,
    hands: Hands,
    /// Beyond the credit: waits, and with it everything behind it.
    held: Option<Batch>,
    /// The next response; an error is the last one.
    ready: Option<Result<ConsumeResponse, Status>>,
}

impl Consuming {
    fn new(
        inside: Inside,
        consumer: Consumer,
        requests: Streaming<ConsumeRequest>,
        responses: mpsc::Sender<Result<ConsumeResponse, Status>>,
    ) -> Self {
        let partitions = Partitions::join(&inside, &consumer);
        let hands = Hands::new(consumer.credit, consumer.ack_timeout_ms);
        let mut own = Self {
            inside,
            consumer,
            created_at: None,
            requests,
            responses,
            partitions,
            joined: BTreeSet::new(),
            hands,
            held: None,
            ready: None,
        };
        own.created_at = own.group_created_at();
        own
    }

    async fn run(mut self) {
        let mut definitions = self.inside.registry.definitions();
        // The group may have been deleted since it was found.
        definitions.mark_changed();
        let responses = self.responses.clone();
        loop {
            self.take_held();
            tokio::select! {
                permit = responses.reserve(), if self.ready.is_some() => {
                    let (Ok(permit), Some(response)) = (permit, self.ready.take()) else { return };
                    let last = response.is_err();
                    permit.send(response);
                    if last {
                        return;
                    }
                }
                event = self.partitions.next(), if self.ready.is_none() && self.held.is_none() => match event {
                    Some(event) => self.event(event),
                    None => return,
                },
                () = self.hands.relief(), if self.held.is_some() && self.ready.is_none() => {}
                request = self.requests.message() => match request {
                    Ok(Some(request)) => self.request(request).await,
                    // The stream's end tells the consumer that its last acks are taken.
                    Ok(None) | Err(_) => return self.partitions.leave().await,
                },
                changed = definitions.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if self.group_created_at() != self.created_at {
                        let _ = self.responses.send(Err(status::no_group())).await;
                        return;
                    }
                }
                () = self.responses.closed() => return,
            }
        }
    }

    fn group_created_at(&self) -> Option<u64> {
        let tenant = self.inside.tenant(&self.consumer.tenant).ok()?;
        tenant.groups.get(&self.consumer.group).filter(|group| group.active).map(|group| group.created_at)
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Joined(partition) => {
                self.joined.insert(partition);
                if self.joined.len() == self.consumer.partitions as usize {
                    let joined = Joined { partitions: self.consumer.partitions };
                    self.respond(consume_response::Kind::Joined(joined));
                }
            }
            Event::Left(partition) => drop(self.joined.remove(&partition)),
            Event::Batch(batch) => self.held = Some(batch),
            Event::Occupied(status) => self.ready = Some(Err(status)),
        }
    }

    fn take_held(&mut self) {
        if self.ready.is_none()
            && let Some(batch) = self.held.take_if(|batch| self.hands.take(batch, Instant::now()))
        {
            self.respond(consume_response::Kind::Batch(batch));
        }
    }

    fn respond(&mut self, kind: consume_response::Kind) {
        self.ready = Some(Ok(ConsumeResponse { kind: Some(kind) }));
    }

    async fn request(&mut self, request: ConsumeRequest) {
        match request.kind {
            Some(consume_request::Kind::Acks(acks)) => {
                acks.ranges.iter().for_each(|range| self.hands.give(range));
                self.partitions.ack(acks).await;
            }
            Some(consume_request::Kind::Nacks(nacks)) => {
                nacks.ranges.iter().for_each(|range| self.hands.give(range));
                self.partitions.nack(nacks).await;
            }
            Some(consume_request::Kind::Credit(credit)) => {
                let credit = credit_of(credit);
                self.hands.set_credit(credit);
                self.partitions.set_credit(credit).await;
            }
            Some(consume_request::Kind::Begin(_)) | None => {}
        }
    }
}

async fn pushes(
    inside: Inside,
    caller: Caller,
    mut requests: Streaming<PushRequest>,
    receipts: mpsc::Sender<Result<PushReceipt, Status>>,
) {
    let mut intake = Intake::default();
    while let Ok(Some(push)) = requests.message().await {
        let Some(mut place) = intake.enter(caller.tenant.as_str(), &push).await else { return };
        let tenant = match inside.tenant(&caller.tenant) {
            Ok(tenant) => tenant,
            Err(status) => return drop(receipts.send(Err(status)).await),
        };
        let (inside, receipts) = (inside.clone(), receipts.clone());
        tokio::spawn(async move {
            place.turn().await;
            let (homes, peers) = (&inside.homes, &inside.peers);
            let receipt = crate::push::route_in_order(homes, peers, &tenant, push, &place.handed).await;
            inside.receipts.count(&receipt);
            let _ = receipts.send(Ok(receipt)).await;
            drop(place);
        });
    }
}
