//! The port of the door: connections, their bounds, and their end. What is asked on them is answered by the routes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use penstock_common::net::{TcpListener, TcpStream};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

/// Connections at a time, WebSockets included.
const CONNECTIONS: usize = 10_000;
/// For a request's headers, and between two requests.
const HEADERS: Duration = Duration::from_secs(15);
/// Longest head of a request; its token is in it.
const HEAD_BYTES: usize = 32 << 10;
/// After the system refused a connection, most likely for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// For what is under way when the door closes.
const CLOSE: Duration = Duration::from_secs(5);

/// The ends of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// This router's.
    pub own: SocketAddr,
    /// The caller's.
    pub peer: SocketAddr,
}

/// Serves until `stop`, then a little longer what is under way.
pub async fn serve(routes: Router, listener: TcpListener, stop: CancellationToken) {
    let (places, tracker) = (Arc::new(Semaphore::new(CONNECTIONS)), TaskTracker::new());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "the HTTP door can't accept a connection");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            warn!(most = CONNECTIONS, "the HTTP door has no place for another connection");
            continue;
        };
        let (routes, stop) = (routes.clone(), stop.clone());
        tracker.spawn(async move {
            if let Err(error) = connection(routes, stream, peer, stop).await {
                debug!(%peer, %error, "a connection of the HTTP door ended");
            }
            drop(place);
        });
    }
    drop(listener);
    tracker.close();
    let _ = timeout(CLOSE, tracker.wait()).await;
}

async fn connection(
    routes: Router,
    stream: TcpStream,
    peer: SocketAddr,
    stop: CancellationToken,
) -> Result<(), hyper::Error> {
    let Ok(own) = stream.local_addr() else { return Ok(()) };
    // Acks and small frames are answered one by one.
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(routes.layer(Extension(Ends { own, peer })));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(HEAD_BYTES);
    let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
