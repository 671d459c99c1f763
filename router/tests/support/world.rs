//! Routers on test homes, the doors in front of them, and consumers: what the tests of the doors share.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use penstock_common::{
    clock::Seams,
    name::{PartitionKey, TenantName, partition_of},
    registry::{Member, MemberKind, Members, Registry, embedded::EmbeddedRegistry},
    rendezvous,
    secret::Secret,
    store::{Durability, Role, Store, User, embedded::EmbeddedStore},
};
use penstock_proto::{
    admin::{CreateTenantRequest, admin_client::AdminClient},
    messaging::{
        Acks, Batch, Begin, ConsumeRequest, ConsumeResponse, CreateGroupRequest, Group, PartitionStatus,
        Range, ShowGroupRequest, Start, consume_request, consume_response, messaging_client::MessagingClient,
        start,
    },
    record::{Record, RecordBatch},
};
use penstock_router::{
    bootstrap::bootstrap_admin,
    door::{
        Inside,
        admin::AdminService,
        auth::{Auth, DoorConfig},
        messaging::MessagingService,
        receipts::Receipts,
        web::{self, WebConfig},
    },
    groups::{home::PartitionHome, metrics::Lags, serve::Serving, survey::Survey},
    hashing::{generate_secret, hash_password},
    holdings::{Everywhere, Holdings},
    peer::PeerService,
    peers::Peers,
    verify::Verifier,
};
use prometheus_client::registry::Registry as Registered;
use prost::Message;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Server},
};

const LIMIT: Duration = Duration::from_secs(20);
const PARTITIONS: u32 = 4;

use super::homes::*;

pub struct TestRouter {
    pub homes: Arc<TestHomes>,
    pub inside: Inside,
    pub door: String,
    pub web: SocketAddr,
    pub auth: Auth,
    pub drain: CancellationToken,
}

impl TestRouter {
    pub fn survey(&self, metrics: &mut Registered) -> Survey {
        let (inside, lags, homes) = (&self.inside, Lags::default(), Arc::clone(&self.homes));
        lags.register(metrics);
        let all = move || -> Vec<Arc<dyn PartitionHome>> {
            let homes = homes.homes.lock().unwrap();
            homes.values().map(|home| Arc::clone(home) as Arc<dyn PartitionHome>).collect()
        };
        let (serving, store) = (Arc::clone(&inside.serving), Arc::clone(&inside.store));
        Survey::new(serving, store, inside.seams.clone(), Box::new(all), lags)
    }
}

/// A figure as it is shown.
pub fn figure(metrics: &Registered, name: &str) -> Option<f64> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, metrics).unwrap();
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(value)
}

pub struct Cluster {
    pub routers: Vec<TestRouter>,
    pub members: Arc<Mutex<Arc<Members>>>,
    pub store: Arc<dyn Store>,
    pub registry: Arc<dyn Registry>,
    pub tenant: TenantName,
    pub device_secret: String,
    pub _dir: tempfile::TempDir,
}

pub const APP: &str = "demo/app:application";
pub const OPERATOR: &str = "system/admin:operator-1";

impl Cluster {
    pub async fn start(routers: usize) -> Self {
        let seams = Seams::real();
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = EmbeddedStore::open(dir.path(), Durability::Memory).unwrap();
        let registry: Arc<dyn Registry> = EmbeddedRegistry::open(None, seams.clone()).unwrap();
        assert!(bootstrap_admin(&*store, &*registry, &seams, None).await.is_err());
        assert!(bootstrap_admin(&*store, &*registry, &seams, Some("operator-1")).await.unwrap());
        assert!(!bootstrap_admin(&*store, &*registry, &seams, None).await.unwrap());
        let members = Arc::new(Mutex::new(Arc::default()));
        let mut own = Self {
            routers: vec![],
            members,
            store,
            registry,
            tenant: TenantName::new("demo").unwrap(),
            device_secret: generate_secret(&seams),
            _dir: dir,
        };
        let mut all = Members::default();
        for incarnation in incarnations().take(routers) {
            let (router, member) = own.router(incarnation, &seams).await;
            own.routers.push(router);
            all.routers.insert(incarnation, member);
        }
        *own.members.lock().unwrap() = Arc::new(all);
        let mut admin = own.admin(0).await;
        let wanted = CreateTenantRequest {
            name: "demo".into(),
            partitions: PARTITIONS,
            ..CreateTenantRequest::default()
        };
        admin.create_tenant(own.request(OPERATOR, wanted)).await.unwrap();
        for (name, role, password) in [("app", Role::Service, "application"), ("device", Role::Device, "")] {
            let password = if password.is_empty() { own.device_secret.as_str() } else { password };
            let verifier = hash_password(password, &seams).unwrap();
            let user = User { name: name.into(), role, verifier };
            assert!(own.store.put_user(&own.tenant, &user, true).await.unwrap());
        }
        own
    }

    pub async fn router(&self, incarnation: u64, seams: &Seams) -> (TestRouter, Member) {
        let homes = Arc::new(TestHomes {
            incarnation,
            store: Arc::clone(&self.store),
            members: Arc::clone(&self.members),
            table: tokio::sync::Mutex::default(),
            homes: Mutex::default(),
            pushed: Mutex::default(),
        });
        let definitions = self.registry.definitions();
        let (holdings, peers) = (Arc::<Holdings>::default(), Peers::new(Some("s3cret")).unwrap());
        let holders = Everywhere { own: holdings.clone(), peers: peers.clone(), homes: homes.clone() };
        let inside = Inside {
            homes: homes.clone(),
            serving: Serving::new(
                Arc::clone(&self.store),
                definitions.clone(),
                seams.clone(),
                Arc::new(holders),
            ),
            holdings,
            peers,
            store: Arc::clone(&self.store),
            registry: Arc::clone(&self.registry),
            seams: seams.clone(),
            receipts: Receipts::default(),
        };
        let verifier = Verifier::new(Arc::clone(&self.store), definitions, seams).unwrap();
        let auth = Auth::new(Arc::clone(&verifier), DoorConfig::default());
        let (link, door, web) = (bind().await, bind().await, bind().await);
        let (link_address, door_address) = (link.local_addr().unwrap(), door.local_addr().unwrap());
        let peers = PeerService::server(inside.clone(), Some(Secret::new("s3cret")));
        tokio::spawn(Server::builder().add_service(peers).serve_with_incoming(TcpListenerStream::new(link)));
        let messaging = MessagingService::server(inside.clone(), auth.clone());
        let (drain, web_address) = (CancellationToken::new(), web.local_addr().unwrap());
        let (ack_timeout, patience) = (Duration::from_secs(2), Duration::from_millis(200));
        let config = WebConfig { ack_timeout, patience, sockets: 4, ..WebConfig::default() };
        let web_door = web::Door::new(inside.clone(), auth.clone(), config, drain.clone());
        tokio::spawn(web::serve::serve(web_door.routes(), web, drain.clone()));
        let admin = AdminService::server(inside.clone(), auth.clone(), verifier);
        let doors = Server::builder().add_service(messaging).add_service(admin);
        tokio::spawn(doors.serve_with_incoming(TcpListenerStream::new(door)));
        let kind = MemberKind::Router { link: link_address.to_string(), grpc: door_address.to_string() };
        let member = Member { incarnation, node_id: format!("router-{incarnation}"), kind };
        let door = format!("http://{door_address}");
        (TestRouter { homes, inside, door, web: web_address, auth, drain }, member)
    }

    pub async fn admin(&self, router: usize) -> AdminClient<Channel> {
        AdminClient::connect(self.routers[router].door.clone()).await.unwrap()
    }

    pub async fn messaging(&self, router: usize) -> MessagingClient<Channel> {
        MessagingClient::connect(self.routers[router].door.clone()).await.unwrap()
    }

    pub fn request<T>(&self, credentials: &str, body: T) -> Request<T> {
        let mut request = Request::new(body);
        let value = format!("Basic {}", STANDARD.encode(credentials));
        request.metadata_mut().insert("authorization", value.parse().unwrap());
        request
    }

    pub fn key(&self, partition: u32) -> PartitionKey {
        PartitionKey { tenant: self.tenant.clone(), partition }
    }

    /// Appends at the present home; makes the named one if there is none.
    pub async fn publish(&self, client: &str, topic: &str, payloads: std::ops::Range<u32>) {
        let key = self.key(partition_of(client.as_bytes(), PARTITIONS));
        let present = self.routers.iter().find_map(|router| router.homes.here(&key));
        let named = rendezvous::home(&key, self.routers.iter().map(|router| router.homes.incarnation));
        let named = self.routers.iter().find(|router| Some(router.homes.incarnation) == named).unwrap();
        let home = match present {
            Some(home) => home,
            None => named.homes.take(&key).await.unwrap(),
        };
        let record = |n: u32| Record {
            client: Bytes::copy_from_slice(client.as_bytes()),
            topic: Bytes::copy_from_slice(topic.as_bytes()),
            payload: n.to_be_bytes().to_vec().into(),
            ..Record::default()
        };
        home.append(payloads.map(record).collect()).await;
    }

    pub async fn create_group(&self, router: usize, name: &str, filters: &[&str]) -> Result<Group, Status> {
        let filters = filters.iter().map(|f| (*f).to_owned()).collect();
        self.create(router, Group { filters, ..group(name) }).await
    }

    pub async fn create(&self, router: usize, group: Group) -> Result<Group, Status> {
        let request = self.request(APP, CreateGroupRequest { group: Some(group) });
        self.messaging(router).await.create_group(request).await.map(tonic::Response::into_inner)
    }

    pub async fn consume(
        &self,
        router: usize,
        group: &str,
        credit: u32,
        ack_timeout_ms: u32,
    ) -> TestConsumer {
        let mut consumer = self.begin(router, group, credit, ack_timeout_ms).await;
        // Partitions that are joined hand out at once.
        while let Item::Batch(batch) = consumer.receive().await.expect("the stream ended") {
            consumer.early.push_back(batch);
        }
        consumer
    }

    /// A consumer that may have to wait before it is joined.
    pub async fn begin(&self, router: usize, group: &str, credit: u32, ack_timeout_ms: u32) -> TestConsumer {
        let (requests, stream) = mpsc::channel(64);
        let begin = Begin { group: group.into(), consumer: "test".into(), credit, ack_timeout_ms };
        requests.send(say(consume_request::Kind::Begin(begin))).await.unwrap();
        let request = self.request(APP, ReceiverStream::new(stream));
        let responses = self.messaging(router).await.consume(request).await.unwrap().into_inner();
        TestConsumer { requests, responses, joined: 0, early: VecDeque::new() }
    }

    pub async fn show(&self, router: usize, group: &str) -> Vec<PartitionStatus> {
        let request = self.request(APP, ShowGroupRequest { name: group.into() });
        let status = self.messaging(router).await.show_group(request).await.unwrap().into_inner();
        assert_eq!(status.partitions.len(), PARTITIONS as usize);
        status.partitions
    }

    pub async fn lag(&self, router: usize, group: &str) -> u64 {
        self.show(router, group).await.iter().map(|partition| partition.lag_records).sum()
    }
}

/// From the earliest record on.
pub fn group(name: &str) -> Group {
    let start = Some(Start { at: Some(start::At::Earliest(true)) });
    Group { name: name.into(), start, ..Group::default() }
}

pub async fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

pub fn say(kind: consume_request::Kind) -> ConsumeRequest {
    ConsumeRequest { kind: Some(kind) }
}

pub enum Item {
    Joined,
    Batch(Batch),
}

#[derive(Debug, Clone)]
pub struct Got {
    pub client: String,
    pub number: u32,
    pub times: u32,
    pub range: Range,
}

pub struct TestConsumer {
    pub requests: mpsc::Sender<ConsumeRequest>,
    pub responses: Streaming<ConsumeResponse>,
    pub joined: usize,
    pub early: VecDeque<Batch>,
}

impl TestConsumer {
    pub async fn next(&mut self) -> Option<Item> {
        match self.early.pop_front() {
            Some(batch) => Some(Item::Batch(batch)),
            None => self.receive().await,
        }
    }

    pub async fn receive(&mut self) -> Option<Item> {
        let response = timeout(LIMIT, self.responses.message()).await.expect("nothing came").unwrap()?;
        Some(match response.kind.unwrap() {
            consume_response::Kind::Joined(_) => {
                self.joined += 1;
                Item::Joined
            }
            consume_response::Kind::Batch(batch) => Item::Batch(batch),
        })
    }

    pub async fn records(&mut self) -> Vec<Got> {
        loop {
            match self.next().await.expect("the stream ended") {
                Item::Joined => {}
                Item::Batch(batch) => return open(&batch),
            }
        }
    }

    pub async fn ack(&self, got: &[Got]) {
        let ranges = got.iter().map(|got| got.range).collect();
        self.requests.send(say(consume_request::Kind::Acks(Acks { ranges }))).await.unwrap();
    }

    pub async fn quiet(&mut self, time: Duration) -> bool {
        timeout(time, self.responses.message()).await.is_err()
    }
}

pub fn open(batch: &Batch) -> Vec<Got> {
    let records = RecordBatch::decode(batch.records.clone()).unwrap().records;
    let got = |(at, record): (usize, &Record)| Got {
        client: String::from_utf8(record.client.to_vec()).unwrap(),
        number: u32::from_be_bytes(record.payload[..].try_into().unwrap()),
        times: batch.delivery_counts.get(at).copied().unwrap_or(1),
        range: Range {
            partition: batch.partition,
            term: batch.term,
            sequence: batch.sequence,
            index: batch.indexes.get(at).copied().unwrap_or(at as u32),
            count: 1,
        },
    };
    records.iter().enumerate().map(got).collect()
}

pub async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let waited = timeout(LIMIT, async {
        while !holds().await {
            sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

/// Two that share the partitions of tenant `demo`.
pub fn incarnations() -> impl Iterator<Item = u64> {
    let tenant = TenantName::new("demo").unwrap();
    let both = |second: &u64| {
        let key = |partition| PartitionKey { tenant: tenant.clone(), partition };
        let of_first =
            (0..PARTITIONS).filter(|p| rendezvous::home(&key(*p), [1, *second]) == Some(1)).count();
        of_first as u32 * 2 == PARTITIONS
    };
    let second = (2..).find(both).unwrap();
    [1, second].into_iter()
}

/// Three of each partition.
pub fn clients() -> Vec<String> {
    let of = |partition| {
        let all = (0..).map(|n| format!("client-{n}"));
        all.filter(move |client| partition_of(client.as_bytes(), PARTITIONS) == partition).take(3)
    };
    (0..PARTITIONS).flat_map(of).collect()
}
