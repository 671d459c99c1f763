//! Keeps the connections to one primary, named by the URL or by sentinels; the reconnect loop.

use std::{sync::Arc, time::Duration};

use tokio::time;
use tokio_util::sync::CancellationToken;

use super::{config::OpenError, connection::Server, live::Live, routes::Routes, sentinel, url::Kind};

const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MOST: Duration = Duration::from_secs(1);

/// Connects, and from then on a task keeps connected.
pub(super) async fn open(server: &Arc<Server>, stop: CancellationToken) -> Result<(), OpenError> {
    let live = connect(server).await?;
    server.route(Routes::One(Some(Arc::clone(&live))), true);
    tokio::spawn(keep(Arc::clone(server), live, stop));
    Ok(())
}

async fn keep(server: Arc<Server>, mut live: Arc<Live>, stop: CancellationToken) {
    loop {
        let stopped = stop.run_until_cancelled(watch(&server, &live)).await.is_none();
        server.route(Routes::One(None), false);
        live.cut.cancel();
        if stopped {
            return;
        }
        server.dialer.counts.lost.inc();
        tracing::warn!(redis = live.address, "lost the connection to Redis");
        let Some(next) = stop.run_until_cancelled(reconnect(&server)).await else { return };
        live = next;
        server.route(Routes::One(Some(Arc::clone(&live))), true);
        tracing::info!(redis = live.address, "connected to Redis again");
    }
}

async fn watch(server: &Server, live: &Live) {
    match &server.dialer.target.kind {
        Kind::Sentinel(name) => tokio::select! {
            () = server.dialer.watch(live) => {}
            () = sentinel::elsewhere(&server.dialer, name, &live.address) => {
                tracing::warn!(redis = live.address, "sentinels name another primary");
            }
        },
        Kind::Server | Kind::Cluster => server.dialer.watch(live).await,
    }
}

async fn reconnect(server: &Server) -> Arc<Live> {
    let mut backoff = BACKOFF_FIRST;
    let mut told = None;
    loop {
        match connect(server).await {
            Ok(live) => return live,
            Err(error) if told.as_ref() == Some(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "can't connect to Redis, trying on");
                told = Some(error);
            }
        }
        // Jitter: routers that lost one server together must not return together.
        time::sleep(backoff.mul_f64(rand::random_range(0.5..1.0))).await;
        backoff = (backoff * 2).min(BACKOFF_MOST);
    }
}

async fn connect(server: &Server) -> Result<Arc<Live>, OpenError> {
    let dialer = &server.dialer;
    let found = match &dialer.target.kind {
        Kind::Sentinel(name) => Some(sentinel::primary(dialer, name).await?),
        Kind::Server | Kind::Cluster => None,
    };
    let nobody = || OpenError::BadUrl(format!("{} names no host", dialer.target.shown));
    let host = found.as_ref().or_else(|| dialer.target.hosts.first()).ok_or_else(nobody)?;
    dialer.connect(host).await
}
