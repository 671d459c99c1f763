//! A router that answers as the link contract says, unless a test holds an answer back; a test sees all that came in.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use futures::Stream;
use penstock_proto::link::{
    self, AuthResult, ControlDown, ControlUp, DataDown, DataUp, SettleResult, control_down, control_up, data_down,
    data_up, link_server,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::client::PATIENCE;

#[derive(Debug, Clone)]
pub enum Seen {
    Control(control_up::Kind),
    Data(data_up::Kind),
}

/// What a test may hold back.
#[derive(Default)]
pub struct Hold {
    pub settles: AtomicBool,
    pub interest: AtomicBool,
    pub lanes: AtomicBool,
    pub links: AtomicBool,
}

pub struct Inner {
    pub incarnation: u64,
    pub hold: Hold,
    seen: mpsc::UnboundedSender<Seen>,
    control: Mutex<Option<mpsc::Sender<Result<ControlDown, Status>>>>,
    data: Mutex<Option<mpsc::Sender<Result<DataDown, Status>>>>,
    pub authenticated: AtomicU64,
}

pub struct Router {
    pub inner: Arc<Inner>,
    pub address: String,
    seen: mpsc::UnboundedReceiver<Seen>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Service(Arc<Inner>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Router {
    pub async fn start(incarnation: u64) -> Self {
        let (seen, receiver) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            incarnation,
            hold: Hold::default(),
            seen,
            control: Mutex::default(),
            data: Mutex::default(),
            authenticated: AtomicU64::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let service = link_server::LinkServer::new(Service(Arc::clone(&inner)));
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
        let server = tokio::spawn(async move { server.await.unwrap() });
        Self { inner, address, seen: receiver, server }
    }

    pub fn hold(&self) -> &Hold {
        &self.inner.hold
    }

    pub async fn control(&self, kind: control_down::Kind) {
        self.inner.control_down(kind).await;
    }

    pub async fn data(&self, kind: data_down::Kind) {
        self.inner.data_down(kind).await;
    }

    /// Ends the link, and takes no other while held.
    pub fn cut(&self) {
        self.inner.hold.links.store(true, Ordering::SeqCst);
        self.inner.control.lock().unwrap().take();
        self.inner.data.lock().unwrap().take();
    }

    /// Waits for something that the gateway says; skips everything else.
    pub async fn expect<T>(&mut self, what: &str, mut is: impl FnMut(&Seen) -> Option<T>) -> T {
        let wait = async {
            loop {
                let seen = self.seen.recv().await.unwrap();
                if let Some(found) = is(&seen) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("router {}: no {what}", self.inner.incarnation))
    }

    pub async fn expect_append(&mut self) -> link::Append {
        self.expect("Append", |seen| match seen {
            Seen::Data(data_up::Kind::Append(append)) => Some(append.clone()),
            _ => None,
        })
        .await
    }

    pub async fn expect_open_lane(&mut self) -> link::OpenLane {
        self.expect("OpenLane", |seen| match seen {
            Seen::Control(control_up::Kind::OpenLane(open)) => Some(open.clone()),
            _ => None,
        })
        .await
    }

    /// Everything seen so far that nobody waited for.
    pub fn drain_seen(&mut self) -> Vec<Seen> {
        std::iter::from_fn(|| self.seen.try_recv().ok()).collect()
    }

    pub async fn settle(&self, append: &link::Append) {
        self.inner.settle(append.lane, append.first, append.count, append.records.len()).await;
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Inner {
    async fn control_down(&self, kind: control_down::Kind) {
        let sender = self.control.lock().unwrap().clone();
        if let Some(sender) = sender {
            let _ = sender.send(Ok(ControlDown { kind: Some(kind) })).await;
        }
    }

    async fn data_down(&self, kind: data_down::Kind) {
        let sender = self.data.lock().unwrap().clone();
        if let Some(sender) = sender {
            let _ = sender.send(Ok(DataDown { kind: Some(kind) })).await;
        }
    }

    async fn settle(&self, lane: u32, first: u64, count: u32, bytes: usize) {
        let result = SettleResult::Stored.into();
        let settle = link::Settle { lane, first, count, result, credit: bytes as u64 };
        self.data_down(data_down::Kind::Settles(link::Settles { settles: vec![settle] })).await;
    }

    pub async fn open(&self, lane: u32) {
        self.control_down(control_down::Kind::LaneOpened(link::LaneOpened { lane, term: 1, credit: 1 << 20 })).await;
    }

    async fn answer(&self, kind: control_up::Kind) {
        use control_down::Kind as Down;
        use control_up::Kind as Up;
        let held = |flag: &AtomicBool| flag.load(Ordering::SeqCst);
        let answer = match kind {
            Up::Hello(_) => {
                Down::Welcome(link::Welcome { router: self.incarnation, heartbeat_ms: 200, silence_ms: 4_000 })
            }
            Up::Heartbeat(_) => Down::Heartbeat(link::Heartbeat {}),
            Up::OpenLane(open) if !held(&self.hold.lanes) => return self.open(open.lane).await,
            Up::Attach(attach) => Down::Attached(link::Attached { seq: attach.seq }),
            Up::Interest(interest) if !held(&self.hold.interest) => {
                Down::InterestConfirmed(link::InterestConfirmed { seq: interest.seq })
            }
            Up::ClaimProvisional(claim) => {
                let epoch = 1_000 + claim.id;
                Down::ProvisionalEpoch(link::ProvisionalEpoch { id: claim.id, epoch, superseded: 0 })
            }
            Up::Authenticate(asked) => {
                self.authenticated.fetch_add(1, Ordering::SeqCst);
                let good = asked.password == "secret";
                let result = if good { AuthResult::Allowed } else { AuthResult::Denied };
                let role = if asked.user == "app" { "service" } else { "device" };
                Down::Verdict(link::Verdict {
                    id: asked.id,
                    result: result.into(),
                    role: role.into(),
                    users_version: 1,
                })
            }
            _ => return,
        };
        self.control_down(answer).await;
    }
}

#[tonic::async_trait]
impl link_server::Link for Service {
    type ControlStream = Answers<ControlDown>;
    type DataStream = Answers<DataDown>;

    async fn control(
        &self,
        request: Request<Streaming<ControlUp>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        if self.0.hold.links.load(Ordering::SeqCst) {
            return Err(Status::unavailable("held by the test"));
        }
        for name in ["penstock-link", "penstock-gateway", "penstock-shard"] {
            assert!(request.metadata().contains_key(name), "{name}");
        }
        assert_eq!(request.metadata().get("penstock-secret").unwrap(), "hush");
        let (sender, receiver) = mpsc::channel(1_024);
        *self.0.control.lock().unwrap() = Some(sender);
        let (inner, mut stream) = (Arc::clone(&self.0), request.into_inner());
        tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                let kind = message.kind.unwrap();
                let _ = inner.seen.send(Seen::Control(kind.clone()));
                inner.answer(kind).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn data(&self, request: Request<Streaming<DataUp>>) -> Result<Response<Self::DataStream>, Status> {
        let (sender, receiver) = mpsc::channel(1_024);
        *self.0.data.lock().unwrap() = Some(sender);
        let (inner, mut stream) = (Arc::clone(&self.0), request.into_inner());
        tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                let kind = message.kind.unwrap();
                if let data_up::Kind::Append(append) = &kind
                    && !inner.hold.settles.load(Ordering::SeqCst)
                {
                    let (lane, first, count) = (append.lane, append.first, append.count);
                    inner.settle(lane, first, count, append.records.len()).await;
                }
                let _ = inner.seen.send(Seen::Data(kind));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
