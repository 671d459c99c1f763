//! The link port: pairs the two streams of a link, reads them for as long as they live, and cleans up behind them. A router
//! always reads its streams; what bounds it is the credit that it gave and, beyond that, the ingest budget.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use penstock_common::store::Segment;
use penstock_proto::link::{
    Append, ControlDown, ControlUp, DataDown, DataUp, Heartbeat, Hello, LaneLost, Welcome, control_down,
    control_up, data_down, data_up, link_server,
};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};
use tracing::{debug, info, warn};

use crate::{
    batch,
    control::{self, Authenticator},
    fan::ShardId,
    home::Home,
    homes::Homes,
    lane::Batch,
    link::{CONTROL_QUEUE, Link},
    outbox::Outgoing,
    relay, secret,
};

/// A shard that does not say hello within this is no shard.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// The `Link` service.
#[derive(Clone)]
pub struct LinkServer {
    homes: Arc<Homes>,
    authenticator: Arc<dyn Authenticator>,
}

/// What both streams of a link say about it.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    shard: ShardId,
    chosen: u64,
    /// Router that the shard means to reach.
    router: Option<u64>,
    /// Router to relay to.
    pub via: Option<u64>,
}

impl LinkServer {
    /// Serves links for these homes.
    pub fn new(homes: Arc<Homes>, authenticator: Arc<dyn Authenticator>) -> Self {
        Self { homes, authenticator }
    }

    fn admit(&self, metadata: &MetadataMap) -> Result<Named, Status> {
        secret::check(self.homes.config.cluster_secret.as_ref(), metadata)?;
        let named = named(metadata)?;
        let via = named.via.filter(|via| *via != self.homes.incarnation);
        // A shard that still dials the router that had this address before would close its own link to this one.
        if via.is_none() && named.router.is_some_and(|router| router != self.homes.incarnation) {
            return Err(Status::failed_precondition("another router has this address now"));
        }
        Ok(Named { via, ..named })
    }
}

fn named(metadata: &MetadataMap) -> Result<Named, Status> {
    let number = |key: &str| -> Result<Option<u64>, Status> {
        let bad = |_| Status::invalid_argument(format!("{key} is not a number"));
        let Some(value) = metadata.get(key) else { return Ok(None) };
        let text = value.to_str().map_err(|_| Status::invalid_argument(format!("{key} is not a number")))?;
        text.parse().map(Some).map_err(bad)
    };
    let needed =
        |key: &str| number(key)?.ok_or_else(|| Status::invalid_argument(format!("{key} is missing")));
    let shard = u32::try_from(needed("penstock-shard")?)
        .map_err(|_| Status::invalid_argument("penstock-shard is out of range"))?;
    let shard = ShardId { gateway: needed("penstock-gateway")?, shard };
    let (router, via) = (number("penstock-router")?, number("penstock-via")?);
    Ok(Named { shard, chosen: needed("penstock-link")?, router, via })
}

type Down<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl link_server::Link for LinkServer {
    type ControlStream = Down<ControlDown>;
    type DataStream = Down<DataDown>;

    async fn control(
        &self,
        request: Request<Streaming<ControlUp>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let named = self.admit(request.metadata())?;
        if let Some(via) = named.via {
            return relay::control(&self.homes, via, request).await;
        }
        let (control, queue) = mpsc::channel(CONTROL_QUEUE);
        let server = self.clone();
        tokio::spawn(async move { server.run_control(named, request.into_inner(), control).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }

    async fn data(&self, request: Request<Streaming<DataUp>>) -> Result<Response<Self::DataStream>, Status> {
        let named = self.admit(request.metadata())?;
        if let Some(via) = named.via {
            return relay::data(&self.homes, via, request).await;
        }
        let link = self.homes.links.shard(&named.shard).filter(|link| link.chosen == named.chosen);
        let link = link.ok_or_else(|| Status::failed_precondition("the link has no control stream"))?;
        if !link.begin_data() {
            return Err(Status::already_exists("the link has a data stream"));
        }
        let outgoing = Outgoing(Arc::clone(&link.data));
        let homes = Arc::clone(&self.homes);
        tokio::spawn(async move {
            let end = run_data(&homes, &link, request.into_inner()).await;
            debug!(gateway = %link.node_id, shard = link.shard.shard, end, "a data stream ended");
            link.closed.cancel();
        });
        Ok(Response::new(Box::pin(outgoing)))
    }
}

impl LinkServer {
    async fn run_control(
        self,
        named: Named,
        mut inbound: Streaming<ControlUp>,
        control: mpsc::Sender<Result<ControlDown, Status>>,
    ) {
        let first = tokio::time::timeout(HELLO_WITHIN, inbound.message()).await;
        let Ok(Ok(Some(ControlUp { kind: Some(control_up::Kind::Hello(hello)) }))) = first else {
            // The shard may be gone already.
            let _ = control.try_send(Err(Status::invalid_argument("the first message is Hello")));
            return;
        };
        let link = self.begin(named, hello, control);
        let reason = self.read_control(&link, inbound).await;
        info!(gateway = %link.node_id, incarnation = format!("{:x}", link.shard.gateway), shard = link.shard.shard,
            reason, "a link is closed");
        self.homes.link_closed(&link);
        // What was read after another link of the shard had closed this one.
        self.homes.interest.forget(link.number);
    }

    fn begin(
        &self,
        named: Named,
        hello: Hello,
        control: mpsc::Sender<Result<ControlDown, Status>>,
    ) -> Arc<Link> {
        let config = &self.homes.config;
        let number = self.homes.seams.number();
        let link = Link::new(number, named.shard, hello.producer, hello.node_id, named.chosen, control);
        let link = Arc::new(link);
        if let Some(before) = self.homes.links.add(&link) {
            self.homes.link_closed(&before);
        }
        info!(gateway = %link.node_id, incarnation = format!("{:x}", link.shard.gateway), shard = link.shard.shard,
            "a link is open");
        link.tell(control_down::Kind::Welcome(Welcome {
            router: self.homes.incarnation,
            heartbeat_ms: config.heartbeat_ms,
            silence_ms: config.silence_ms,
        }));
        self.homes.metrics.links.set(i64::try_from(self.homes.links.len()).unwrap_or(i64::MAX));
        self.homes.presence.changed();
        link
    }

    async fn read_control(&self, link: &Arc<Link>, mut inbound: Streaming<ControlUp>) -> &'static str {
        let config = &self.homes.config;
        let mut beat = tokio::time::interval(Duration::from_millis(config.heartbeat_ms.into()));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let silence = Duration::from_millis(config.silence_ms.into());
        loop {
            tokio::select! {
                () = link.closed.cancelled() => return "closed by this router or with its data stream",
                message = inbound.message() => match message {
                    Ok(Some(ControlUp { kind: Some(kind) })) => {
                        link.heard();
                        if !control::handle(&self.homes, &self.authenticator, link, kind) {
                            return "the shard broke the contract";
                        }
                    }
                    Ok(Some(ControlUp { kind: None })) => link.heard(),
                    Ok(None) => return "closed by the gateway",
                    Err(_) => return "the connection broke",
                },
                _ = beat.tick() => {
                    if link.silent() > silence {
                        return "silent for too long";
                    }
                    link.sweep_pushes();
                    link.tell(control_down::Kind::Heartbeat(Heartbeat {}));
                }
            }
        }
    }
}

/// Returns why the stream ended.
async fn run_data(homes: &Arc<Homes>, link: &Arc<Link>, mut inbound: Streaming<DataUp>) -> &'static str {
    loop {
        let message = tokio::select! {
            () = link.closed.cancelled() => return "the link is closed",
            message = inbound.message() => message,
        };
        let kind = match message {
            Ok(Some(message)) => message.kind,
            Ok(None) => return "the link is closed",
            Err(_) => return "the connection broke",
        };
        link.heard();
        match kind {
            Some(data_up::Kind::Append(append)) => {
                if let Err(why) = receive(homes, link, append) {
                    warn!(gateway = %link.node_id, shard = link.shard.shard, why, "a link is closed");
                    return why;
                }
            }
            Some(data_up::Kind::Taken(taken)) => link.taken(taken.delivery),
            Some(data_up::Kind::PushResult(result)) => link.pushed(result),
            Some(data_up::Kind::Step(step)) => {
                // A lane that is lost: the shard asks the present home.
                if let Some(home) = link.lane(step.lane) {
                    tokio::spawn(home.step(Arc::clone(link), step));
                }
            }
            None => {}
        }
    }
}

/// Takes a batch into its lane.
fn receive(homes: &Arc<Homes>, link: &Arc<Link>, append: Append) -> Result<(), &'static str> {
    let Some(home) = link.lane(append.lane) else {
        // The lane was lost: the shard has been told, and sends the batch to the present home.
        return Ok(());
    };
    if append.first == 0 || append.count == 0 || batch::count(&append.records) != Ok(append.count) {
        return Err("a batch does not hold what it says");
    }
    let bytes = append.records.len() as u64;
    let (Some(held), Some(own)) = (homes.ingest(bytes), link.came(bytes, homes.config.ingest_bytes)) else {
        homes.metrics.overruns.inc();
        give_back(link, append.lane, &home);
        return Ok(());
    };
    home.accept(Batch {
        link: Arc::clone(link),
        lane: append.lane,
        segment: Segment { producer: link.producer, first: append.first, count: append.count },
        records: append.records,
        resent: append.resent,
        first_received_at: append.first_received_at,
        refused: false,
        held: Some(Box::new((held, own))),
    });
    Ok(())
}

/// More is held than the budget allows: the shard opens the lane again later, and sends what is unsettled then.
fn give_back(link: &Arc<Link>, lane: u32, home: &Home) {
    link.close_lane(lane);
    home.closed(link, lane);
    let lost = LaneLost { lane, reason: "too much waits for the store".to_owned() };
    // A closed link needs no word.
    let _ = link.data.send(data_down::Kind::LaneLost(lost));
}
