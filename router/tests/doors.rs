//! Doors and peers of two routers over loopback, on one store and one registry, with homes that only append: roles, groups,
//! consuming across routers while homes move, credit, acks to a later home, pushes one hop away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use penstock_common::{
    clock::Seams,
    name::{PartitionKey, TenantName, partition_of},
    position::{EntryId, Term},
    registry::{Member, MemberKind, Members, Registry, embedded::EmbeddedRegistry},
    rendezvous,
    secret::Secret,
    store::{
        CommitError, CursorChange, Cursors, Durability, Entry, Role, Store, StoreError, StoredEntry, Totals,
        User, embedded::EmbeddedStore,
    },
};
use penstock_proto::{
    admin::{
        AddUserRequest, ClusterRequest, CreateTenantRequest, DeleteTenantRequest, ListUsersRequest,
        SetPasswordRequest, admin_client::AdminClient,
    },
    messaging::{
        Acks, Batch, Begin, ConsumeRequest, ConsumeResponse, CreateGroupRequest, DeleteGroupRequest, Group,
        Nacks, PushReceipt, PushRequest, Range, ReceiptStatus, ShowGroupRequest, Start, consume_request,
        consume_response, messaging_client::MessagingClient, start,
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
    },
    groups::{
        home::{Homes, PartitionHome},
        metrics::Lags,
        serve::Serving,
        survey::Survey,
    },
    hashing::{generate_secret, hash_password},
    peer::PeerService,
    peers::Peers,
    verify::Verifier,
};
use prometheus_client::registry::Registry as Registered;
use prost::Message;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status, Streaming,
    transport::{Channel, Server},
};

const LIMIT: Duration = Duration::from_secs(20);
const PARTITIONS: u32 = 4;

struct TestHome {
    key: PartitionKey,
    term: Term,
    store: Arc<dyn Store>,
    last: watch::Sender<EntryId>,
    totals: Mutex<Totals>,
    lost: CancellationToken,
    /// Somebody has read through the home.
    read: AtomicBool,
}

impl TestHome {
    async fn append(&self, records: Vec<Record>) -> EntryId {
        let count = u32::try_from(records.len()).unwrap();
        let bytes: Bytes = RecordBatch { records }.encode_to_vec().into();
        let mut totals = *self.totals.lock().unwrap();
        totals.records += u64::from(count);
        totals.bytes += bytes.len() as u64;
        let entry = Entry { records: bytes, segments: vec![], count, first_received_at: 1, totals };
        let id = self.store.append(&self.key, self.term, &entry).await.unwrap();
        *self.totals.lock().unwrap() = totals;
        self.last.send_replace(id);
        id
    }
}

#[async_trait]
impl PartitionHome for TestHome {
    fn key(&self) -> &PartitionKey {
        &self.key
    }
    fn term(&self) -> Term {
        self.term
    }
    fn last(&self) -> watch::Receiver<EntryId> {
        self.last.subscribe()
    }
    fn totals(&self) -> Totals {
        *self.totals.lock().unwrap()
    }
    async fn read(
        &self,
        after: EntryId,
        entries: usize,
        bytes: usize,
    ) -> Result<Vec<Arc<StoredEntry>>, StoreError> {
        self.read.store(true, Ordering::Relaxed);
        let read = self.store.read(&self.key, after, entries, bytes).await?;
        Ok(read.into_iter().map(Arc::new).collect())
    }
    async fn commit(&self, changes: Vec<CursorChange>) -> Result<(), CommitError> {
        let committed = self.store.commit(&self.key, self.term, &changes).await;
        if matches!(committed, Err(CommitError::Fenced)) {
            self.lost.cancel();
        }
        committed
    }
    async fn cursors(&self) -> Result<Cursors, StoreError> {
        self.store.cursors(&self.key).await
    }
    fn lost(&self) -> &CancellationToken {
        &self.lost
    }
}

struct TestHomes {
    incarnation: u64,
    store: Arc<dyn Store>,
    members: Arc<Mutex<Arc<Members>>>,
    table: tokio::sync::Mutex<()>,
    homes: Mutex<BTreeMap<PartitionKey, Arc<TestHome>>>,
    pushed: Mutex<Vec<PushRequest>>,
}

impl TestHomes {
    fn here(&self, key: &PartitionKey) -> Option<Arc<TestHome>> {
        let home = self.homes.lock().unwrap().get(key).cloned()?;
        (!home.lost.is_cancelled()).then_some(home)
    }

    async fn take(&self, key: &PartitionKey) -> Result<Arc<TestHome>, StoreError> {
        let _one = self.table.lock().await;
        if let Some(home) = self.here(key) {
            return Ok(home);
        }
        let took = self.store.take(key, self.incarnation).await?;
        let home = Arc::new(TestHome {
            key: key.clone(),
            term: took.term,
            store: Arc::clone(&self.store),
            last: watch::Sender::new(took.last),
            totals: Mutex::new(took.totals),
            lost: CancellationToken::new(),
            read: AtomicBool::default(),
        });
        self.homes.lock().unwrap().insert(key.clone(), Arc::clone(&home));
        Ok(home)
    }
}

#[async_trait]
impl Homes for TestHomes {
    fn get(&self, key: &PartitionKey) -> Option<Arc<dyn PartitionHome>> {
        self.here(key).map(|home| home as Arc<dyn PartitionHome>)
    }
    async fn open(&self, key: &PartitionKey) -> Result<Arc<dyn PartitionHome>, StoreError> {
        self.take(key).await.map(|home| home as Arc<dyn PartitionHome>)
    }
    async fn push(&self, _: &TenantName, request: PushRequest) -> PushReceipt {
        let receipt =
            PushReceipt { id: request.id, status: ReceiptStatus::Routed.into(), ..PushReceipt::default() };
        self.pushed.lock().unwrap().push(request);
        receipt
    }
    fn taken(&self, key: &PartitionKey, term: Term) {
        if let Some(home) = self.here(key).filter(|home| home.term < term) {
            home.lost.cancel();
        }
    }
    fn members(&self) -> Arc<Members> {
        self.members.lock().unwrap().clone()
    }
    fn registered(&self) -> Arc<Members> {
        self.members()
    }
    fn incarnation(&self) -> u64 {
        self.incarnation
    }
    fn links(&self) -> Vec<penstock_proto::admin::LinkStatus> {
        vec![]
    }
}

struct TestRouter {
    homes: Arc<TestHomes>,
    inside: Inside,
    door: String,
}

impl TestRouter {
    fn survey(&self, metrics: &mut Registered) -> Survey {
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
fn figure(metrics: &Registered, name: &str) -> Option<f64> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, metrics).unwrap();
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(value)
}

struct Cluster {
    routers: Vec<TestRouter>,
    members: Arc<Mutex<Arc<Members>>>,
    store: Arc<dyn Store>,
    registry: Arc<dyn Registry>,
    tenant: TenantName,
    device_secret: String,
    _dir: tempfile::TempDir,
}

const APP: &str = "demo/app:application";
const OPERATOR: &str = "system/admin:operator-1";

impl Cluster {
    async fn start(routers: usize) -> Self {
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
        let wanted = CreateTenantRequest { name: "demo".into(), partitions: PARTITIONS, limits: None };
        admin.create_tenant(own.request(OPERATOR, wanted)).await.unwrap();
        for (name, role, password) in [("app", Role::Service, "application"), ("device", Role::Device, "")] {
            let password = if password.is_empty() { own.device_secret.as_str() } else { password };
            let verifier = hash_password(password, &seams).unwrap();
            let user = User { name: name.into(), role, verifier };
            assert!(own.store.put_user(&own.tenant, &user, true).await.unwrap());
        }
        own
    }

    async fn router(&self, incarnation: u64, seams: &Seams) -> (TestRouter, Member) {
        let homes = Arc::new(TestHomes {
            incarnation,
            store: Arc::clone(&self.store),
            members: Arc::clone(&self.members),
            table: tokio::sync::Mutex::default(),
            homes: Mutex::default(),
            pushed: Mutex::default(),
        });
        let definitions = self.registry.definitions();
        let inside = Inside {
            homes: homes.clone(),
            serving: Serving::new(Arc::clone(&self.store), definitions.clone(), seams.clone()),
            peers: Peers::new(Some("s3cret")).unwrap(),
            store: Arc::clone(&self.store),
            registry: Arc::clone(&self.registry),
            seams: seams.clone(),
            receipts: Receipts::default(),
        };
        let verifier = Verifier::new(Arc::clone(&self.store), definitions, seams).unwrap();
        let auth = Auth::new(Arc::clone(&verifier), DoorConfig::default());
        let (link, door) = (bind().await, bind().await);
        let (link_address, door_address) = (link.local_addr().unwrap(), door.local_addr().unwrap());
        let peers = PeerService::server(inside.clone(), Some(Secret::new("s3cret")));
        tokio::spawn(Server::builder().add_service(peers).serve_with_incoming(TcpListenerStream::new(link)));
        let messaging = MessagingService::server(inside.clone(), auth.clone());
        let admin = AdminService::server(inside.clone(), auth, verifier);
        let doors = Server::builder().add_service(messaging).add_service(admin);
        tokio::spawn(doors.serve_with_incoming(TcpListenerStream::new(door)));
        let kind = MemberKind::Router { link: link_address.to_string(), grpc: door_address.to_string() };
        let member = Member { incarnation, node_id: format!("router-{incarnation}"), kind };
        (TestRouter { homes, inside, door: format!("http://{door_address}") }, member)
    }

    async fn admin(&self, router: usize) -> AdminClient<Channel> {
        AdminClient::connect(self.routers[router].door.clone()).await.unwrap()
    }

    async fn messaging(&self, router: usize) -> MessagingClient<Channel> {
        MessagingClient::connect(self.routers[router].door.clone()).await.unwrap()
    }

    fn request<T>(&self, credentials: &str, body: T) -> Request<T> {
        let mut request = Request::new(body);
        let value = format!("Basic {}", STANDARD.encode(credentials));
        request.metadata_mut().insert("authorization", value.parse().unwrap());
        request
    }

    fn key(&self, partition: u32) -> PartitionKey {
        PartitionKey { tenant: self.tenant.clone(), partition }
    }

    /// Appends at the present home; makes the named one if there is none.
    async fn publish(&self, client: &str, topic: &str, payloads: std::ops::Range<u32>) {
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

    async fn create_group(&self, router: usize, name: &str, filters: &[&str]) -> Result<Group, Status> {
        let group = Group {
            name: name.into(),
            filters: filters.iter().map(|f| (*f).to_owned()).collect(),
            start: Some(Start { at: Some(start::At::Earliest(true)) }),
            ..Group::default()
        };
        let request = self.request(APP, CreateGroupRequest { group: Some(group) });
        self.messaging(router).await.create_group(request).await.map(tonic::Response::into_inner)
    }

    async fn consume(&self, router: usize, group: &str, credit: u32, ack_timeout_ms: u32) -> TestConsumer {
        let (requests, stream) = mpsc::channel(64);
        let begin = Begin { group: group.into(), consumer: "test".into(), credit, ack_timeout_ms };
        requests.send(say(consume_request::Kind::Begin(begin))).await.unwrap();
        let request = self.request(APP, ReceiverStream::new(stream));
        let responses = self.messaging(router).await.consume(request).await.unwrap().into_inner();
        let mut consumer = TestConsumer { requests, responses, joined: 0, early: VecDeque::new() };
        // Partitions that are joined hand out at once.
        while let Item::Batch(batch) = consumer.receive().await.expect("the stream ended") {
            consumer.early.push_back(batch);
        }
        consumer
    }

    async fn lag(&self, router: usize, group: &str) -> u64 {
        let request = self.request(APP, ShowGroupRequest { name: group.into() });
        let status = self.messaging(router).await.show_group(request).await.unwrap().into_inner();
        assert_eq!(status.partitions.len(), PARTITIONS as usize);
        status.partitions.iter().map(|partition| partition.lag_records).sum()
    }
}

async fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn say(kind: consume_request::Kind) -> ConsumeRequest {
    ConsumeRequest { kind: Some(kind) }
}

enum Item {
    Joined,
    Batch(Batch),
}

#[derive(Debug, Clone)]
struct Got {
    client: String,
    number: u32,
    times: u32,
    range: Range,
}

struct TestConsumer {
    requests: mpsc::Sender<ConsumeRequest>,
    responses: Streaming<ConsumeResponse>,
    joined: usize,
    early: VecDeque<Batch>,
}

impl TestConsumer {
    async fn next(&mut self) -> Option<Item> {
        match self.early.pop_front() {
            Some(batch) => Some(Item::Batch(batch)),
            None => self.receive().await,
        }
    }

    async fn receive(&mut self) -> Option<Item> {
        let response = timeout(LIMIT, self.responses.message()).await.expect("nothing came").unwrap()?;
        Some(match response.kind.unwrap() {
            consume_response::Kind::Joined(_) => {
                self.joined += 1;
                Item::Joined
            }
            consume_response::Kind::Batch(batch) => Item::Batch(batch),
        })
    }

    async fn records(&mut self) -> Vec<Got> {
        loop {
            match self.next().await.expect("the stream ended") {
                Item::Joined => {}
                Item::Batch(batch) => return open(&batch),
            }
        }
    }

    async fn ack(&self, got: &[Got]) {
        let ranges = got.iter().map(|got| got.range).collect();
        self.requests.send(say(consume_request::Kind::Acks(Acks { ranges }))).await.unwrap();
    }

    async fn quiet(&mut self, time: Duration) -> bool {
        timeout(time, self.responses.message()).await.is_err()
    }
}

fn open(batch: &Batch) -> Vec<Got> {
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

async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let waited = timeout(LIMIT, async {
        while !holds().await {
            sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

/// Two that share the partitions of tenant `demo`.
fn incarnations() -> impl Iterator<Item = u64> {
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
fn clients() -> Vec<String> {
    let of = |partition| {
        let all = (0..).map(|n| format!("client-{n}"));
        all.filter(move |client| partition_of(client.as_bytes(), PARTITIONS) == partition).take(3)
    };
    (0..PARTITIONS).flat_map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_and_passwords_open_only_their_doors() {
    let cluster = Cluster::start(1).await;
    let mut messaging = cluster.messaging(0).await;
    let mut list = async |credentials: &str| {
        let request = cluster.request(credentials, penstock_proto::messaging::ListGroupsRequest {});
        messaging.list_groups(request).await.map(|_| ()).map_err(|status| status.code())
    };
    assert_eq!(list(APP).await, Ok(()));
    let device = format!("demo/device:{}", cluster.device_secret);
    assert_eq!(list(&device).await, Err(Code::PermissionDenied));
    assert_eq!(list(OPERATOR).await, Err(Code::PermissionDenied));
    for wrong in
        ["demo/app:applicatioN", "demo/nobody:application", "other/app:application", "app:application"]
    {
        assert_eq!(list(wrong).await, Err(Code::Unauthenticated), "{wrong}");
    }
    let mut admin = cluster.admin(0).await;
    let add = |tenant: &str, name: &str, role: &str, password: &str| AddUserRequest {
        tenant: tenant.into(),
        name: name.into(),
        role: role.into(),
        password: password.into(),
    };
    let code =
        |result: Result<_, Status>| result.map(|_: tonic::Response<_>| ()).map_err(|status| status.code());
    let boss = add("demo", "boss", "tenant-admin", "boss-password");
    assert_eq!(code(admin.add_user(cluster.request(APP, boss.clone())).await), Err(Code::PermissionDenied));
    assert_eq!(code(admin.add_user(cluster.request(OPERATOR, boss.clone())).await), Ok(()));
    assert_eq!(code(admin.add_user(cluster.request(OPERATOR, boss)).await), Err(Code::AlreadyExists));
    let boss = "demo/boss:boss-password";
    assert_eq!(
        code(admin.add_user(cluster.request(boss, add("demo", "d2", "device", "short"))).await),
        Err(Code::InvalidArgument)
    );
    assert_eq!(
        code(admin.add_user(cluster.request(boss, add("demo", "d2", "admin", "longenough"))).await),
        Err(Code::InvalidArgument)
    );
    assert_eq!(
        code(admin.add_user(cluster.request(boss, add("system", "d2", "admin", "longenough"))).await),
        Err(Code::PermissionDenied)
    );
    let users =
        admin.list_users(cluster.request(boss, ListUsersRequest { tenant: "demo".into() })).await.unwrap();
    let names: Vec<_> = users.get_ref().users.iter().map(|user| user.name.as_str()).collect();
    assert_eq!(names, ["app", "boss", "device"]);
    assert!(admin.cluster(cluster.request(boss, ClusterRequest {})).await.is_err());
    let shown = admin.cluster(cluster.request(OPERATOR, ClusterRequest {})).await.unwrap().into_inner();
    assert_eq!(shown.members[0].kind, "router");
    // A new password ends the cached verdict of the old one.
    let change =
        SetPasswordRequest { tenant: "demo".into(), name: "app".into(), password: "new-password".into() };
    admin.set_password(cluster.request(boss, change)).await.unwrap();
    assert_eq!(list(APP).await, Err(Code::Unauthenticated));
    assert_eq!(list("demo/app:new-password").await, Ok(()));
    let gone = DeleteTenantRequest { name: "demo".into() };
    admin.delete_tenant(cluster.request(OPERATOR, gone)).await.unwrap();
    assert_eq!(list("demo/app:new-password").await, Err(Code::Unauthenticated));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_made_once_and_deleted_with_its_cursors() {
    let cluster = Cluster::start(1).await;
    let first = cluster.create_group(0, "g", &["a/#"]).await.unwrap();
    assert_eq!(cluster.create_group(0, "g", &["a/#"]).await.unwrap(), first);
    assert_eq!(cluster.create_group(0, "g", &["b"]).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(cluster.create_group(0, "h", &["a/#/b"]).await.unwrap_err().code(), Code::InvalidArgument);
    // A creation that died before its cursors is finished by the same one.
    let half = penstock_common::registry::Group {
        name: "half".into(),
        filters: vec![],
        start: penstock_common::registry::GroupStart::Earliest,
        active: false,
        created_at: 1,
    };
    cluster.registry.create_group(&cluster.tenant, &half).await.unwrap();
    assert_eq!(cluster.lag(0, "g").await, 0);
    cluster.create_group(0, "half", &[]).await.unwrap();
    let cursors = cluster.store.cursors(&cluster.key(3)).await.unwrap();
    assert_eq!(cursors.groups.keys().collect::<Vec<_>>(), ["g", "half"]);
    let mut consumer = cluster.consume(0, "g", 10, 0).await;
    let delete = DeleteGroupRequest { name: "g".into() };
    cluster.messaging(0).await.delete_group(cluster.request(APP, delete.clone())).await.unwrap();
    let ended = timeout(LIMIT, async {
        while consumer.responses.message().await?.is_some() {}
        Ok::<_, Status>(())
    });
    assert_eq!(ended.await.unwrap().unwrap_err().code(), Code::NotFound);
    until("the cursors are gone", async || {
        let cursors = cluster.store.cursors(&cluster.key(3)).await.unwrap();
        cursors.groups.keys().collect::<Vec<_>>() == ["half"]
    })
    .await;
    let again = cluster.messaging(0).await.delete_group(cluster.request(APP, delete)).await;
    assert_eq!(again.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_gets_every_partition_from_two_routers_in_order_and_acks_stay() {
    let cluster = Cluster::start(2).await;
    cluster.create_group(0, "g", &["in/#"]).await.unwrap();
    for client in clients() {
        cluster.publish(&client, "in/a", 0..5).await;
        cluster.publish(&client, "out", 100..103).await;
    }
    let homes = |router: usize| cluster.routers[router].homes.homes.lock().unwrap().len();
    assert!(homes(0) > 0 && homes(1) > 0, "both routers are homes");
    let mut consumer = cluster.consume(0, "g", 1_000, 0).await;
    let mut got: Vec<Got> = vec![];
    while got.len() < 60 {
        got.extend(consumer.records().await);
    }
    for client in clients() {
        let own: Vec<u32> = got.iter().filter(|got| got.client == client).map(|got| got.number).collect();
        assert_eq!(own, [0, 1, 2, 3, 4], "{client}");
    }
    // Filtered records that follow the last wanted one are passed as well.
    until("only what is open lags", async || cluster.lag(1, "g").await == 60).await;
    let (keep, ack): (Vec<Got>, Vec<Got>) = got.into_iter().partition(|got| got.number == 2);
    consumer.ack(&ack).await;
    until("acks are counted", async || cluster.lag(1, "g").await == 12).await;
    drop(consumer);
    let mut consumer = cluster.consume(1, "g", 1_000, 0).await;
    let mut again: Vec<Got> = vec![];
    while again.len() < 12 {
        again.extend(consumer.records().await);
    }
    assert!(again.iter().all(|got| got.number == 2 && got.times == 2), "{again:?}");
    assert_eq!(again.len(), keep.len());
    assert!(consumer.quiet(Duration::from_millis(300)).await);
    consumer.ack(&again).await;
    until("nothing lags", async || cluster.lag(0, "g").await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_moves_takes_its_consumers_along_and_late_acks_count() {
    let cluster = Cluster::start(2).await;
    cluster.create_group(0, "g", &[]).await.unwrap();
    cluster.publish("client-1", "t", 0..10).await;
    let key = cluster.key(partition_of(b"client-1", PARTITIONS));
    let mut consumer = cluster.consume(0, "g", 1_000, 0).await;
    let first = consumer.records().await;
    assert_eq!(first.len(), 10);
    let from = usize::from(cluster.routers[0].homes.here(&key).is_none());
    let old = cluster.routers[from].homes.here(&key).unwrap();
    // The other router takes the partition; the old home learns of it and appends nothing any more.
    cluster.routers[1 - from].homes.take(&key).await.unwrap();
    old.lost.cancel();
    consumer.ack(&first[..5]).await;
    cluster.publish("client-1", "t", 10..12).await;
    let mut open: BTreeMap<u32, Got> = first[5..].iter().map(|got| (got.number, got.clone())).collect();
    while open.len() < 7 || consumer.joined < 2 {
        match consumer.next().await.unwrap() {
            Item::Joined => {}
            Item::Batch(batch) => {
                for got in self::open(&batch) {
                    // Acks said between two homes count; those told to the old one may come again.
                    if got.number < 5 {
                        consumer.ack(&[got]).await;
                    } else {
                        open.insert(got.number, got);
                    }
                }
            }
        }
    }
    assert_eq!(open.keys().copied().collect::<Vec<_>>(), (5..12).collect::<Vec<_>>());
    // These were handed out by the old home.
    consumer.ack(&first[5..]).await;
    consumer.ack(&open.values().filter(|got| got.number >= 10).cloned().collect::<Vec<_>>()).await;
    until("nothing lags", async || cluster.lag(0, "g").await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_credit_is_in_a_consumers_hands() {
    let cluster = Cluster::start(2).await;
    cluster.create_group(0, "g", &[]).await.unwrap();
    for client in clients() {
        cluster.publish(&client, "t", 0..5).await;
    }
    // Fewer than there are partitions.
    let mut consumer = cluster.consume(1, "g", 3, 60_000).await;
    let mut hands: Vec<Got> = vec![];
    while hands.len() < 3 {
        hands.extend(consumer.records().await);
    }
    assert_eq!(hands.len(), 3);
    assert!(consumer.quiet(Duration::from_millis(300)).await);
    let mut seen = 3;
    while seen < 60 {
        consumer.ack(&hands).await;
        hands = consumer.records().await;
        assert!(hands.len() <= 3);
        seen += hands.len();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nacks_and_ack_timeouts_bring_records_again() {
    let cluster = Cluster::start(1).await;
    cluster.create_group(0, "g", &[]).await.unwrap();
    cluster.publish("client-1", "t", 0..2).await;
    let mut consumer = cluster.consume(0, "g", 100, 400).await;
    let first = consumer.records().await;
    let nacks = Nacks { ranges: vec![first[0].range], delay_ms: 50 };
    consumer.requests.send(say(consume_request::Kind::Nacks(nacks))).await.unwrap();
    let again = consumer.records().await;
    assert_eq!((again[0].number, again[0].times), (0, 2));
    // The other one was never acked.
    let overdue = consumer.records().await;
    assert_eq!((overdue[0].number, overdue[0].times), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_goes_to_the_home_of_its_client() {
    let cluster = Cluster::start(2).await;
    let mut metrics = Registered::default();
    cluster.routers[0].inside.receipts.register(&mut metrics);
    let (requests, stream) = mpsc::channel(64);
    let request = cluster.request(APP, ReceiverStream::new(stream));
    let mut receipts = cluster.messaging(0).await.push(request).await.unwrap().into_inner();
    for (client, id) in clients().into_iter().zip(0..) {
        let push = PushRequest { id, topic: "t".into(), client, qos: 1, ..PushRequest::default() };
        requests.send(push).await.unwrap();
    }
    let bad = [("", "c", 0), ("a/+", "c", 0), ("$SYS/a", "c", 0), ("t", "c", 2)];
    for ((topic, client, qos), id) in bad.into_iter().zip(100..) {
        let push =
            PushRequest { id, topic: topic.into(), client: client.into(), qos, ..PushRequest::default() };
        requests.send(push).await.unwrap();
    }
    let large = PushRequest {
        id: 104,
        topic: "t".into(),
        payload: vec![0; 1_048_576].into(),
        ..PushRequest::default()
    };
    requests.send(large).await.unwrap();
    let mut by_id = BTreeMap::new();
    while by_id.len() < 17 {
        let receipt = timeout(LIMIT, receipts.message()).await.unwrap().unwrap().unwrap();
        by_id.insert(receipt.id, receipt);
    }
    assert!((0..12).all(|id| by_id[&id].status() == ReceiptStatus::Routed), "{by_id:?}");
    assert!(
        (100..105).all(|id| by_id[&id].status() == ReceiptStatus::Refused && !by_id[&id].reason.is_empty())
    );
    // Counted at the door where they were asked for, and nowhere else.
    assert_eq!(figure(&metrics, "penstock_receipts_total{status=\"routed\"}"), Some(12.0));
    assert_eq!(figure(&metrics, "penstock_receipts_total{status=\"refused\"}"), Some(5.0));
    let mut other = Registered::default();
    cluster.routers[1].inside.receipts.register(&mut other);
    assert_eq!(figure(&other, "penstock_receipts_total{status=\"routed\"}"), Some(0.0));
    for router in &cluster.routers {
        let pushed = router.homes.pushed.lock().unwrap();
        assert!(!pushed.is_empty());
        for push in pushed.iter() {
            let key = cluster.key(partition_of(push.client.as_bytes(), PARTITIONS));
            assert_eq!(rendezvous::home(&key, incarnations().take(2)), Some(router.homes.incarnation));
        }
    }
}

const LAG: &str = "penstock_group_lag_records{tenant=\"demo\",group=\"g\"}";
const OLDEST: &str = "penstock_group_oldest_seconds{tenant=\"demo\",group=\"g\"}";

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_of_a_group_is_shown_by_each_home_whether_it_is_consumed_or_not() {
    let cluster = Cluster::start(2).await;
    cluster.create_group(0, "g", &[]).await.unwrap();
    for client in clients() {
        cluster.publish(&client, "t", 0..5).await;
    }
    let mut metrics: Vec<Registered> = vec![Registered::default(), Registered::default()];
    let mut surveys = vec![];
    for (router, metrics) in cluster.routers.iter().zip(&mut metrics) {
        router.inside.serving.records.register(metrics);
        surveys.push(router.survey(metrics));
    }
    let lags = async |surveys: &mut Vec<Survey>| {
        for survey in surveys {
            survey.round().await;
        }
        metrics.iter().map(|metrics| figure(metrics, LAG)).collect::<Vec<_>>()
    };
    // Nobody consumes: half of the partitions, with 15 records each, are at home at each router.
    assert_eq!(lags(&mut surveys).await, [Some(30.0), Some(30.0)]);
    assert!(metrics.iter().all(|metrics| figure(metrics, OLDEST) > Some(1e9)), "received in 1970");
    let read = |home: &Arc<TestHome>| home.read.load(Ordering::Relaxed);
    let any_read = |router: &TestRouter| router.homes.homes.lock().unwrap().values().any(read);
    assert!(!cluster.routers.iter().any(any_read), "a survey counts as a reader");
    cluster.publish(&clients()[0], "t", 5..7).await;
    let sum = |lags: Vec<Option<f64>>| lags.into_iter().flatten().sum::<f64>();
    assert_eq!(sum(lags(&mut surveys).await), 62.0);
    let mut consumer = cluster.consume(0, "g", 1_000, 0).await;
    let mut got: Vec<Got> = vec![];
    while got.len() < 62 {
        got.extend(consumer.records().await);
    }
    assert_eq!(sum(lags(&mut surveys).await), 62.0);
    let last = got.split_off(61);
    consumer.ack(&got).await;
    timeout(LIMIT, async {
        while sum(lags(&mut surveys).await) > 1.0 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("acks are not shown");
    let results = |result: &str| -> f64 {
        let name = format!("penstock_group_records_total{{result=\"{result}\"}}");
        metrics.iter().filter_map(|metrics| figure(metrics, &name)).sum()
    };
    assert_eq!((results("handed_out"), results("acked"), results("nacked")), (62.0, 61.0, 0.0));
    drop(consumer);
    until("nobody is served", async || {
        for router in &cluster.routers {
            for partition in 0..PARTITIONS {
                if router.inside.serving.standing(&cluster.key(partition), "g").await.is_some() {
                    return false;
                }
            }
        }
        true
    })
    .await;
    assert_eq!(sum(lags(&mut surveys).await), 1.0);
    // The home of the record that is left is lost: what is left there is nobody's to show.
    let key = cluster.key(last[0].range.partition);
    let router = usize::from(cluster.routers[0].homes.here(&key).is_none());
    let others = |homes: &TestHomes| homes.homes.lock().unwrap().retain(|own, _| *own == key);
    others(&cluster.routers[router].homes);
    cluster.routers[router].homes.here(&key).unwrap().lost.cancel();
    let shown = lags(&mut surveys).await;
    assert_eq!((shown[router], shown[1 - router]), (None, Some(0.0)));
    assert_eq!(figure(&metrics[1 - router], OLDEST), Some(0.0));
    let delete = DeleteGroupRequest { name: "g".into() };
    cluster.messaging(0).await.delete_group(cluster.request(APP, delete)).await.unwrap();
    assert_eq!(lags(&mut surveys).await, [None, None]);
}
