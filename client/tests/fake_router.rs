//! The client against a router that does exactly what a test tells it: streams that break, acknowledgements that must
//! arrive, receipts out of order.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use penstock_client::{CallError, Client, ConsumeError, Push, PushError, ReceiptStatus};
use penstock_proto::{
    messaging::{
        self as wire, ConsumeRequest, ConsumeResponse, PushReceipt, PushRequest, consume_request,
        consume_response::Kind,
        messaging_server::{Messaging, MessagingServer},
    },
    record::{Record, RecordBatch},
};
use prost::Message as _;
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_stream::{
    StreamExt,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming};

const SOON: Duration = Duration::from_secs(10);

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One stream as the test holds it.
struct Held<I, O> {
    requests: Streaming<I>,
    responses: mpsc::Sender<Result<O, Status>>,
}

impl<I, O> Held<I, O> {
    async fn request(&mut self) -> Option<I> {
        timeout(SOON, self.requests.next()).await.expect("a request in time").and_then(Result::ok)
    }

    async fn respond(&self, response: O) {
        self.responses.send(Ok(response)).await.expect("the stream is open");
    }
}

type Consuming = Held<ConsumeRequest, ConsumeResponse>;
type Pushing = Held<PushRequest, PushReceipt>;

/// Hands every stream to the test.
struct Fake {
    consuming: mpsc::Sender<Consuming>,
    pushing: mpsc::Sender<Pushing>,
    refuse: Option<Status>,
}

#[tonic::async_trait]
impl Messaging for Fake {
    type ConsumeStream = Responses<ConsumeResponse>;
    type PushStream = Responses<PushReceipt>;

    async fn create_group(
        &self,
        _: Request<wire::CreateGroupRequest>,
    ) -> Result<Response<wire::Group>, Status> {
        Err(Status::already_exists("group g exists with other filters"))
    }

    async fn list_groups(
        &self,
        request: Request<wire::ListGroupsRequest>,
    ) -> Result<Response<wire::ListGroupsResponse>, Status> {
        let given = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        // demo/app:secret
        match given == Some("Basic ZGVtby9hcHA6c2VjcmV0") {
            true => Ok(Response::new(wire::ListGroupsResponse::default())),
            false => Err(Status::unauthenticated("no")),
        }
    }

    async fn show_group(
        &self,
        _: Request<wire::ShowGroupRequest>,
    ) -> Result<Response<wire::GroupStatus>, Status> {
        Err(Status::not_found("there is no group g"))
    }

    async fn seek_group(
        &self,
        _: Request<wire::SeekGroupRequest>,
    ) -> Result<Response<wire::SeekGroupResponse>, Status> {
        Ok(Response::new(wire::SeekGroupResponse::default()))
    }

    async fn list_dead(
        &self,
        _: Request<wire::ListDeadRequest>,
    ) -> Result<Response<wire::ListDeadResponse>, Status> {
        Ok(Response::new(wire::ListDeadResponse::default()))
    }

    async fn redrive(
        &self,
        _: Request<wire::RedriveRequest>,
    ) -> Result<Response<wire::RedriveResponse>, Status> {
        Ok(Response::new(wire::RedriveResponse::default()))
    }

    async fn set_group(&self, _: Request<wire::SetGroupRequest>) -> Result<Response<wire::Group>, Status> {
        Ok(Response::new(wire::Group::default()))
    }

    async fn delete_group(
        &self,
        _: Request<wire::DeleteGroupRequest>,
    ) -> Result<Response<wire::DeleteGroupResponse>, Status> {
        Ok(Response::new(wire::DeleteGroupResponse {}))
    }

    async fn consume(
        &self,
        request: Request<Streaming<ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        if let Some(status) = &self.refuse {
            return Err(status.clone());
        }
        let (responses, receiver) = mpsc::channel(64);
        let held = Held { requests: request.into_inner(), responses };
        self.consuming.send(held).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn push(
        &self,
        request: Request<Streaming<PushRequest>>,
    ) -> Result<Response<Self::PushStream>, Status> {
        let (responses, receiver) = mpsc::channel(64);
        let held = Held { requests: request.into_inner(), responses };
        self.pushing.send(held).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

struct Router {
    url: String,
    consuming: Mutex<mpsc::Receiver<Consuming>>,
    pushing: Mutex<mpsc::Receiver<Pushing>>,
}

impl Router {
    async fn start(refuse: Option<Status>) -> Arc<Self> {
        let (consuming, consumers) = mpsc::channel(8);
        let (pushing, pushers) = mpsc::channel(8);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let fake = MessagingServer::new(Fake { consuming, pushing, refuse });
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(fake).serve_with_incoming(incoming));
        Arc::new(Self { url, consuming: Mutex::new(consumers), pushing: Mutex::new(pushers) })
    }

    fn client(&self) -> Client {
        Client::builder().server(&self.url).credentials("demo/app", "secret").connect_lazy().unwrap()
    }

    /// The next consumer's stream, after its Begin.
    async fn consumer(&self) -> (wire::Begin, Consuming) {
        let mut held = timeout(SOON, self.consuming.lock().await.recv()).await.unwrap().unwrap();
        match held.request().await.and_then(|request| request.kind) {
            Some(consume_request::Kind::Begin(begin)) => (begin, held),
            other => panic!("a stream begins with {other:?}"),
        }
    }
}

fn batch(sequence: u64, payloads: &[u32]) -> ConsumeResponse {
    let record = |n: &u32| Record {
        client: "c".into(),
        topic: "t".into(),
        payload: n.to_string().into(),
        ..Record::default()
    };
    let records = RecordBatch { records: payloads.iter().map(record).collect() }.encode_to_vec().into();
    let batch = wire::Batch { term: 1, sequence, records, ..wire::Batch::default() };
    ConsumeResponse { kind: Some(Kind::Batch(batch)) }
}

fn joined() -> ConsumeResponse {
    ConsumeResponse { kind: Some(Kind::Joined(wire::Joined { partitions: 4 })) }
}

/// Records acknowledged by the requests until the client ends the stream.
async fn acknowledged(held: &mut Consuming) -> u32 {
    let mut count = 0;
    while let Some(request) = held.request().await {
        if let Some(consume_request::Kind::Acks(acks)) = request.kind {
            assert!(acks.ranges.len() <= 64);
            count += acks.ranges.iter().map(|range| range.count).sum::<u32>();
        }
    }
    count
}

#[tokio::test]
async fn closing_sends_every_acknowledgement_before_it_returns() {
    let router = Router::start(None).await;
    let mut consumer = router.client().consumer("g").name("worker").credit(200).start();
    let (begin, mut held) = router.consumer().await;
    assert_eq!((begin.group.as_str(), begin.consumer.as_str(), begin.credit), ("g", "worker", 200));
    held.respond(joined()).await;
    consumer.joined().await.unwrap();
    held.respond(batch(1, &(0..100).collect::<Vec<_>>())).await;
    held.respond(batch(2, &(100..150).collect::<Vec<_>>())).await;
    for expected in 0..150 {
        let message = consumer.next().await.unwrap();
        assert_eq!(message.payload, expected.to_string());
        // Every second one out of order would do as well: here, all but ten.
        if expected >= 10 {
            consumer.ack(&message);
        }
    }
    let closing = tokio::spawn(consumer.close());
    assert_eq!(acknowledged(&mut held).await, 140);
    drop(held);
    closing.await.unwrap().unwrap();
}

#[tokio::test]
async fn after_a_break_the_rest_of_the_old_connection_is_not_handed_out() {
    let router = Router::start(None).await;
    let mut consumer = router.client().consumer("g").start();
    let (_, held) = router.consumer().await;
    held.respond(joined()).await;
    held.respond(batch(1, &[0, 1, 2])).await;
    held.respond(batch(2, &[3])).await;
    assert_eq!(consumer.next().await.unwrap().payload, "0");
    drop(held);
    let (_, held) = router.consumer().await;
    // Nothing was acknowledged: all of it comes again, in order.
    held.respond(batch(1, &[0, 1, 2])).await;
    held.respond(batch(2, &[3])).await;
    held.respond(joined()).await;
    // What the old connection had handed over may be taken until the new one is there, and not after.
    consumer.joined().await.unwrap();
    for expected in ["0", "1", "2", "3"] {
        assert_eq!(consumer.next().await.unwrap().payload, expected);
    }
}

#[tokio::test]
async fn what_is_acknowledged_while_no_server_answers_reaches_the_next_connection() {
    let router = Router::start(None).await;
    let mut consumer = router.client().consumer("g").start();
    let mut connected = consumer.connected();
    let (_, held) = router.consumer().await;
    held.respond(joined()).await;
    held.respond(batch(1, &[0, 1])).await;
    let messages = [consumer.next().await.unwrap(), consumer.next().await.unwrap()];
    timeout(SOON, connected.wait_for(|connected| *connected)).await.unwrap().unwrap();
    drop(held);
    timeout(SOON, connected.wait_for(|connected| !*connected)).await.unwrap().unwrap();
    messages.iter().for_each(|message| consumer.ack(message));
    let (_, mut held) = router.consumer().await;
    match held.request().await.and_then(|request| request.kind) {
        Some(consume_request::Kind::Acks(acks)) => assert_eq!(acks.ranges[0].count, 2),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_changed_credit_is_told_and_kept_over_a_break() {
    let router = Router::start(None).await;
    let consumer = router.client().consumer("g").credit(10).start();
    let (begin, mut held) = router.consumer().await;
    assert_eq!(begin.credit, 10);
    held.respond(joined()).await;
    consumer.set_credit(3);
    assert_eq!(held.request().await.and_then(|request| request.kind), Some(consume_request::Kind::Credit(3)));
    drop(held);
    let (begin, _held) = router.consumer().await;
    assert_eq!(begin.credit, 3);
}

#[tokio::test]
async fn batches_are_acknowledged_whole() {
    let router = Router::start(None).await;
    let mut consumer = router.client().consumer("g").start();
    let (_, mut held) = router.consumer().await;
    held.respond(batch(1, &[0, 1, 2])).await;
    let taken = consumer.next_batch().await.unwrap();
    assert_eq!(taken.messages().unwrap().len(), 3);
    consumer.ack_batch(&taken).unwrap();
    match held.request().await.and_then(|request| request.kind) {
        Some(consume_request::Kind::Acks(acks)) => assert_eq!(acks.ranges[0].count, 3),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_trying_again_cannot_cure_ends_the_consumer() {
    for (status, expected) in [
        (Status::not_found(""), ConsumeError::GroupNotFound("g".into())),
        (Status::unauthenticated(""), ConsumeError::Unauthorized),
        (Status::permission_denied("no"), ConsumeError::Forbidden("no".into())),
    ] {
        let router = Router::start(Some(status)).await;
        let mut consumer = router.client().consumer("g").start();
        assert_eq!(consumer.next().await.unwrap_err(), expected);
        assert_eq!(consumer.next().await.unwrap_err(), expected, "for ever");
    }
}

#[tokio::test]
async fn a_consumer_gives_up_when_told_to() {
    let router = Router::start(Some(Status::unavailable("no home"))).await;
    let mut consumer = router.client().consumer("g").give_up_after(Duration::from_millis(100)).start();
    let ended = timeout(SOON, consumer.next()).await.expect("it gives up");
    assert_eq!(ended.unwrap_err(), ConsumeError::Unavailable("no home".into()));
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_is_not_there() {
    let absent = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let router = Router::start(None).await;
    let client = Client::builder()
        .server(format!("http://{absent}"))
        .server(&router.url)
        .credentials("demo/app", "secret")
        .connect_lazy()
        .unwrap();
    assert_eq!(client.groups().await, Ok(Vec::new()));
    let mut consumer = client.consumer("g").start();
    let (_, held) = router.consumer().await;
    held.respond(batch(1, &[7])).await;
    assert_eq!(consumer.next().await.unwrap().payload, "7");
}

#[tokio::test]
async fn answers_of_calls_are_typed() {
    let router = Router::start(None).await;
    let client = router.client();
    assert!(matches!(client.group("g").await, Err(CallError::NotFound(_))));
    let created = client.create_group(&penstock_client::GroupSpec::new("g")).await;
    assert!(matches!(created, Err(CallError::Exists(_))));
    let wrong =
        Client::builder().server(&router.url).credentials("demo/app", "wrong").connect_lazy().unwrap();
    assert_eq!(wrong.groups().await, Err(CallError::Unauthorized));
}

#[tokio::test]
async fn receipts_find_their_pushes_in_any_order_and_a_break_leaves_doubt() {
    let router = Router::start(None).await;
    let pusher = router.client().pusher();
    let mut waiting = Vec::new();
    for n in 0..3 {
        waiting.push(pusher.push(Push::new("t", n.to_string()).client("c").qos(1)).await.unwrap());
    }
    let mut held = timeout(SOON, router.pushing.lock().await.recv()).await.unwrap().unwrap();
    let mut requests = Vec::new();
    for expected in ["0", "1", "2"] {
        let request = held.request().await.unwrap();
        assert_eq!(request.payload, expected);
        requests.push(request);
    }
    let receipt = |request: &PushRequest, status| PushReceipt {
        id: request.id,
        status: status as i32,
        ..PushReceipt::default()
    };
    held.respond(receipt(&requests[2], ReceiptStatus::Delivered)).await;
    held.respond(receipt(&requests[0], ReceiptStatus::NotConnected)).await;
    let third = waiting.pop().unwrap();
    assert_eq!(third.await.unwrap().status, ReceiptStatus::Delivered);
    let second = waiting.pop().unwrap();
    assert_eq!(waiting.pop().unwrap().await.unwrap().status, ReceiptStatus::NotConnected);
    drop(held);
    assert!(matches!(second.await, Err(PushError::InDoubt(_))));
}
