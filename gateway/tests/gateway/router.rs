//! A router that answers as the link contract says, unless a test holds an answer back; a test sees all that came in.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use futures::Stream;
use penstock_proto::link::{
    self, AuthResult, ControlDown, ControlUp, DataDown, DataUp, SettleResult, control_down, control_up,
    data_down, data_up, link_server,
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
    pub wills: AtomicBool,
}

type Senders<T> = Mutex<HashMap<String, mpsc::Sender<Result<T, Status>>>>;

pub struct Inner {
    pub incarnation: u64,
    pub hold: Hold,
    seen: mpsc::Sender<Seen>,
    /// By link number.
    control: Senders<ControlDown>,
    data: Senders<DataDown>,
    pub authenticated: AtomicU64,
    /// Epoch that provisional ones supersede; 0: none.
    pub superseded: AtomicU64,
    /// Wills are not kept.
    pub refuse_wills: AtomicBool,
}

pub struct Router {
    pub inner: Arc<Inner>,
    pub address: String,
    seen: mpsc::Receiver<Seen>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Service(Arc<Inner>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Router {
    pub async fn start(incarnation: u64) -> Self {
        let (seen, receiver) = mpsc::channel(65_536);
        let inner = Arc::new(Inner {
            incarnation,
            hold: Hold::default(),
            seen,
            control: Mutex::default(),
            data: Mutex::default(),
            authenticated: AtomicU64::new(0),
            superseded: AtomicU64::new(0),
            refuse_wills: AtomicBool::new(false),
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
        let senders: Vec<_> = self.inner.control.lock().unwrap().values().cloned().collect();
        for sender in senders {
            let _ = sender.send(Ok(ControlDown { kind: Some(kind.clone()) })).await;
        }
    }

    pub async fn data(&self, kind: data_down::Kind) {
        let links: Vec<_> = self.inner.data.lock().unwrap().keys().cloned().collect();
        for link in links {
            self.inner.data_down(&link, kind.clone()).await;
        }
    }

    /// Tells every link that a lane is open.
    pub async fn open(&self, lane: u32) {
        self.control(opened(lane)).await;
    }

    /// Ends the link, and takes no other while held.
    pub fn cut(&self) {
        self.inner.hold.links.store(true, Ordering::SeqCst);
        self.inner.control.lock().unwrap().clear();
        self.inner.data.lock().unwrap().clear();
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
        timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| panic!("router {}: no {what}", self.inner.incarnation))
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

    /// The next ownership that is told by itself.
    pub async fn expect_owner(&mut self) -> link::Owner {
        self.expect("Attach", |seen| match seen {
            Seen::Control(control_up::Kind::Attach(attach)) => Some(attach.owners[0].clone()),
            _ => None,
        })
        .await
    }

    /// The next end of a will.
    pub async fn expect_ended_will(&mut self) -> link::EndedWill {
        self.expect("EndWills", |seen| match seen {
            Seen::Control(control_up::Kind::EndWills(ends)) => Some(ends.ended[0].clone()),
            _ => None,
        })
        .await
    }

    /// Everything seen so far that nobody waited for.
    pub fn drain_seen(&mut self) -> Vec<Seen> {
        std::iter::from_fn(|| self.seen.try_recv().ok()).collect()
    }

    pub async fn settle(&self, append: &link::Append) {
        self.data(settled(append)).await;
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn settled(append: &link::Append) -> data_down::Kind {
    let settle = link::Settle {
        lane: append.lane,
        first: append.first,
        count: append.count,
        result: SettleResult::Stored.into(),
        credit: append.records.len() as u64,
    };
    data_down::Kind::Settles(link::Settles { settles: vec![settle] })
}

fn opened(lane: u32) -> control_down::Kind {
    control_down::Kind::LaneOpened(link::LaneOpened { lane, term: 1, credit: 1 << 20 })
}

fn link_of<T>(request: &Request<T>) -> String {
    request.metadata().get("penstock-link").unwrap().to_str().unwrap().to_owned()
}

impl Inner {
    async fn control_down(&self, link: &str, kind: control_down::Kind) {
        let sender = self.control.lock().unwrap().get(link).cloned();
        if let Some(sender) = sender {
            let _ = sender.send(Ok(ControlDown { kind: Some(kind) })).await;
        }
    }

    async fn data_down(&self, link: &str, kind: data_down::Kind) {
        let sender = self.data.lock().unwrap().get(link).cloned();
        if let Some(sender) = sender {
            let _ = sender.send(Ok(DataDown { kind: Some(kind) })).await;
        }
    }

    async fn answer(&self, link: &str, via: Option<u64>, kind: control_up::Kind) {
        use control_down::Kind as Down;
        use control_up::Kind as Up;
        let held = |flag: &AtomicBool| flag.load(Ordering::SeqCst);
        let answer = match kind {
            Up::Hello(_) => Down::Welcome(link::Welcome {
                // A relay passes the other router's answer on.
                router: via.unwrap_or(self.incarnation),
                heartbeat_ms: 200,
                silence_ms: 4_000,
            }),
            Up::Heartbeat(_) => Down::Heartbeat(link::Heartbeat {}),
            Up::OpenLane(open) if !held(&self.hold.lanes) => opened(open.lane),
            Up::Attach(attach) => {
                let wills = (0..).zip(&attach.owners).filter(|(_, owner)| !owner.will.is_empty());
                let refused = wills.map(|(index, _)| index).filter(|_| held(&self.refuse_wills)).collect();
                Down::Attached(link::Attached { seq: attach.seq, refused })
            }
            Up::EndWills(ends) if !held(&self.hold.wills) => {
                Down::WillsEnded(link::WillsEnded { seq: ends.seq, lane: ends.lane })
            }
            Up::Interest(interest) if !held(&self.hold.interest) => {
                Down::InterestConfirmed(link::InterestConfirmed { seq: interest.seq })
            }
            Up::ClaimProvisional(claim) => {
                let epoch = 1_000 + claim.id;
                let superseded = self.superseded.load(Ordering::SeqCst);
                Down::ProvisionalEpoch(link::ProvisionalEpoch { id: claim.id, epoch, superseded })
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
        self.control_down(link, answer).await;
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
        let link = link_of(&request);
        let via = request.metadata().get("penstock-via").map(|via| via.to_str().unwrap().parse().unwrap());
        self.0.control.lock().unwrap().insert(link.clone(), sender);
        let (inner, mut stream) = (Arc::clone(&self.0), request.into_inner());
        tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                let kind = message.kind.unwrap();
                let _ = inner.seen.try_send(Seen::Control(kind.clone()));
                inner.answer(&link, via, kind).await;
            }
            inner.control.lock().unwrap().remove(&link);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn data(&self, request: Request<Streaming<DataUp>>) -> Result<Response<Self::DataStream>, Status> {
        let (sender, receiver) = mpsc::channel(1_024);
        let link = link_of(&request);
        self.0.data.lock().unwrap().insert(link.clone(), sender);
        let (inner, mut stream) = (Arc::clone(&self.0), request.into_inner());
        tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                let kind = message.kind.unwrap();
                if let data_up::Kind::Append(append) = &kind
                    && !inner.hold.settles.load(Ordering::SeqCst)
                {
                    inner.data_down(&link, settled(append)).await;
                }
                let _ = inner.seen.try_send(Seen::Data(kind));
            }
            inner.data.lock().unwrap().remove(&link);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
