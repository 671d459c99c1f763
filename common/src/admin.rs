//! The admin listener of a process: `/livez`, `/readyz`, `/metrics`, `/config`. It serves from the first moment of the
//! process, so that a start that takes long can be seen; it holds no secret and changes nothing.

use std::{
    fmt::Write,
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::sync::watch;

use crate::{
    lifecycle::{Lifecycle, Phase},
    net,
};

const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A listener that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {purpose}: {source}{}", hint(.source, .flag))]
pub struct ListenError {
    /// Where.
    pub address: SocketAddr,
    /// What for.
    pub purpose: &'static str,
    /// The flag that moves it.
    pub flag: &'static str,
    /// Why not.
    pub source: io::Error,
}

fn hint(source: &io::Error, flag: &str) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => format!("; end what uses it, or choose another with {flag}"),
        _ => format!("; choose another with {flag}"),
    }
}

/// Logs that a listener serves, in the form that scripts and tests look for.
pub fn announce(listener: &'static str, address: SocketAddr) {
    tracing::info!(listener, %address, "listening");
}

/// A named condition of readiness.
pub struct Check {
    /// Shown when it doesn't hold.
    pub name: &'static str,
    /// Whether it holds.
    pub holds: watch::Receiver<bool>,
}

/// What the parts of the process show.
pub struct Shown {
    /// Metrics of all parts.
    pub metrics: Registry,
    /// All must hold for readiness.
    pub checks: Vec<Check>,
}

struct Admin {
    life: Lifecycle,
    config: String,
    shown: OnceLock<Shown>,
}

/// The listener, serving until the process ends.
pub struct RunningAdmin {
    admin: Arc<Admin>,
    address: SocketAddr,
}

/// Serves on this address. `config` is the settings in effect, without secrets.
pub fn start(address: SocketAddr, life: Lifecycle, config: String) -> Result<RunningAdmin, ListenError> {
    let wrong = |source| ListenError { address, purpose: "admin", flag: "--admin-listen", source };
    let listener = net::listen(address, false).map_err(wrong)?;
    let address = listener.local_addr().map_err(wrong)?;
    let admin = Arc::new(Admin { life, config, shown: OnceLock::new() });
    let routes = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/config", get(config_text))
        .with_state(Arc::clone(&admin));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "the admin listener has ended");
        }
    });
    announce("admin", address);
    Ok(RunningAdmin { admin, address })
}

impl RunningAdmin {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Shows the parts from now on. Only the first call counts.
    pub fn show(&self, shown: Shown) {
        let _ = self.admin.shown.set(shown);
    }
}

impl Admin {
    /// What keeps the process from being ready, if anything.
    fn obstacles(&self) -> Result<(), String> {
        let phase = *self.life.phase().borrow();
        let checks = match (phase, self.shown.get()) {
            (Phase::Ready, Some(shown)) => &shown.checks,
            (Phase::Draining, _) => return Err("draining\n".to_owned()),
            _ => return Err("starting\n".to_owned()),
        };
        let mut text = String::new();
        for check in checks.iter().filter(|check| !*check.holds.borrow()) {
            let _ = writeln!(text, "{}: not ready", check.name);
        }
        if text.is_empty() { Ok(()) } else { Err(text) }
    }
}

async fn readyz(State(admin): State<Arc<Admin>>) -> (StatusCode, String) {
    match admin.obstacles() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, text),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let mut text = String::new();
    let encoded = match admin.shown.get() {
        Some(shown) => encode(&mut text, &shown.metrics),
        None => encode(&mut text, &Registry::default()),
    };
    let status = if encoded.is_ok() { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    (status, [(CONTENT_TYPE, METRICS_TYPE)], text)
}

async fn config_text(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/toml; charset=utf-8")], admin.config.clone())
}

#[cfg(test)]
mod tests;
