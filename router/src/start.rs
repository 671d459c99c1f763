//! Starts a router and stops it: listeners first, so that a taken port is told before anything is registered; then the
//! membership; at the end the way back.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use penstock_common::{
    admin::announce,
    clock::Seams,
    net::{self, TcpListener},
    registry::{Member, MemberKind, Registry, RegistryError},
    store::Store,
};
use penstock_proto::link::{Leaving, control_down};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tracing::{error, warn};

use crate::{
    config::RouterConfig,
    door::web,
    doors::{Doors, DoorsError},
    executor,
    homes::Homes,
    metrics::Metrics,
    presence,
    relay::{CONNECTION_WINDOW, FRAME_BYTES, STREAM_WINDOW},
};

/// HTTP/2 pings on links: they find a cut connection that heartbeats would find later.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Between two looks at whether shards have moved their lanes away.
const DRAIN_STEP: Duration = Duration::from_millis(50);
/// For WebSockets to say goodbye.
const WEB_CLOSE: Duration = Duration::from_secs(5);

/// A router that could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken, or the address is not this machine's.
    #[error("cannot listen for {what} on {address}: {error}; give another address with --{flag}")]
    Listen {
        /// What for.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Flag that sets it.
        flag: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The services could not be made.
    #[error(transparent)]
    Doors(#[from] DoorsError),
    /// Registering failed.
    #[error("cannot register with the registry: {0}")]
    Registry(#[from] RegistryError),
}

/// A router at work.
pub struct RunningRouter {
    homes: Arc<Homes>,
    link: SocketAddr,
    grpc: SocketAddr,
    http: SocketAddr,
    stop_links: CancellationToken,
    stop_doors: CancellationToken,
    stop_web: CancellationToken,
    web: Arc<web::Door>,
    serving: Vec<JoinHandle<()>>,
    ready: watch::Sender<bool>,
}

/// Starts routers.
pub struct Router;

impl Router {
    /// Binds, registers and serves. The caller owns the store and the registry.
    pub async fn start(
        config: RouterConfig,
        registry: Arc<dyn Registry>,
        store: Arc<dyn Store>,
        seams: Seams,
        metrics: &mut prometheus_client::registry::Registry,
    ) -> Result<RunningRouter, StartError> {
        let (link, link_address) = bind("links", "link-listen", config.link_listen)?;
        let (grpc, grpc_address) = bind("the gRPC door", "grpc-listen", config.grpc_listen)?;
        let (http, http_address) = bind("the WebSocket door", "http-listen", config.http_listen)?;
        let incarnation = seams.number();
        let member = Member {
            incarnation,
            node_id: config.node_id.clone(),
            kind: MemberKind::Router {
                link: config.link_advertise.clone().unwrap_or_else(|| link_address.to_string()),
                grpc: config.grpc_advertise.clone().unwrap_or_else(|| grpc_address.to_string()),
            },
        };
        let own = Metrics::new(metrics);
        let (homes, took_over) = Homes::new(config, incarnation, store, registry, seams, own);
        let doors = Doors::new(&homes, took_over)?;
        let (stop_links, stop_doors) = (CancellationToken::new(), CancellationToken::new());
        let stop_web = CancellationToken::new();
        let web = doors.web(&homes, stop_web.clone());
        web.register(metrics);
        let serving = vec![
            serve(doors.inside(&homes), link, stop_links.clone()),
            serve(doors.outside(), grpc, stop_doors.clone()),
            tokio::spawn(presence::follow(Arc::clone(&homes), stop_links.clone())),
            tokio::spawn(executor::follow(Arc::clone(&homes), stop_links.clone())),
            tokio::spawn(doors.watch(&homes, metrics).run()),
            tokio::spawn(web::serve::serve(web.routes(), http, stop_web.clone())),
            tokio::spawn(Arc::clone(&web).sweep()),
        ];
        homes.registry.join(member).await?;
        announce("link", link_address);
        announce("grpc", grpc_address);
        announce("http", http_address);
        let ready = watch::Sender::new(true);
        Ok(RunningRouter {
            homes,
            link: link_address,
            grpc: grpc_address,
            http: http_address,
            stop_links,
            stop_doors,
            stop_web,
            web,
            serving,
            ready,
        })
    }
}

fn bind(
    what: &'static str,
    flag: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let wrong = |error| StartError::Listen { what, address, flag, error };
    let listener = net::listen(address, false).map_err(wrong)?;
    let bound = listener.local_addr().map_err(wrong)?;
    Ok((listener, bound))
}

/// Accepted connections, each without Nagle's delay: the builder's `tcp_nodelay` is only for listeners that it binds itself.
/// With the delay, what follows a small message waits for the peer's acknowledgement, some 40 ms.
fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

fn serve(routes: Routes, listener: TcpListener, stop: CancellationToken) -> JoinHandle<()> {
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_routes(routes);
    tokio::spawn(async move {
        let incoming = incoming(listener);
        let stopped = async move { stop.cancelled().await };
        // Streams that are open do not end by themselves: the caller closes links and doors before.
        if let Err(failed) = server.serve_with_incoming_shutdown(incoming, stopped).await {
            error!(error = %failed, "a listener ended");
        }
    })
}

impl RunningRouter {
    /// This life of the router.
    pub fn incarnation(&self) -> u64 {
        self.homes.incarnation
    }

    /// Where links are accepted.
    pub fn link_address(&self) -> SocketAddr {
        self.link
    }

    /// Where the gRPC door is.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    /// Where the WebSocket door is.
    pub fn http_address(&self) -> SocketAddr {
        self.http
    }

    /// True while it serves and does not drain.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Stops in order: leaves the registry, closes the WebSockets, tells the shards to move their lanes, waits for them until the deadline, closes the doors, commits
    /// what is open, closes the links.
    pub async fn drain(self, deadline: Duration) {
        self.ready.send_replace(false);
        let until = Instant::now() + deadline;
        self.homes.registry.leave().await;
        self.stop_web.cancel();
        for link in self.homes.links.all() {
            link.tell(control_down::Kind::Leaving(Leaving {}));
        }
        while Instant::now() < until && self.homes.links.all().iter().any(|link| link.lanes() > 0) {
            tokio::time::sleep(DRAIN_STEP).await;
        }
        if timeout(WEB_CLOSE, self.web.closed()).await.is_err() {
            warn!("WebSockets were still open when the drain ended");
        }
        self.stop_now().await;
    }

    /// Ends at once.
    pub async fn stop_now(self) {
        self.ready.send_replace(false);
        self.stop_web.cancel();
        self.stop_doors.cancel();
        for home in self.homes.all(None) {
            home.lose("the router stops");
        }
        for link in self.homes.links.all() {
            self.homes.link_closed(&link);
        }
        self.stop_links.cancel();
        for task in &self.serving {
            task.abort();
        }
        for task in self.serving {
            // Aborted, as asked.
            let _ = task.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn accepted_links_send_small_messages_at_once() {
        let (listener, address) =
            bind("a link", "link-listen", SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let _peer = net::connect(&address.to_string(), Duration::from_secs(30)).await.unwrap();
        let accepted = incoming(listener).next().await.unwrap().unwrap();
        assert!(accepted.nodelay().unwrap());
    }
}
