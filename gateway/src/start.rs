//! Starts the shards, joins the registry, and ends both again. What runs in between is in [`crate::shard`].

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    thread::JoinHandle,
    time::Duration,
};

use penstock_common::{
    clock::Seams,
    registry::{Member, MemberKind, OwnershipEvent, Registry, RegistryError},
};
use penstock_mqtt::reserved::Reserved;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
};

use crate::{
    certificates::{CertificateError, Certificates},
    config::{GatewayConfig, transports::TransportKind},
    connection::listener,
    metrics::Metrics,
    shard::{
        MAILBOX, Mail, Shared,
        run::{self, Unbound},
    },
    tenants::Seats,
};

/// The gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Settings that can't be used, all of them.
    #[error("the gateway's settings are wrong: {}", .0.join("; "))]
    Config(Vec<String>),
    /// An address can't be listened on.
    #[error(
        "cannot listen for {kind} on {address}: {source}; end what uses it, or give another address with --{}", .kind.flag()
    )]
    Listen {
        /// Whose it is.
        kind: TransportKind,
        /// As configured.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Certificate and key can't be used.
    #[error("cannot serve TLS: {0}")]
    Certificates(#[from] CertificateError),
    /// The machine gives no thread or runtime.
    #[error("cannot start a shard: {0}")]
    Shard(io::Error),
    /// The registry did not take this gateway.
    #[error("cannot join the registry: {0}")]
    Registry(#[from] RegistryError),
}

/// MQTT in front, links behind.
pub struct Gateway;

/// A gateway that runs. Dropping it stops it at once.
pub struct RunningGateway {
    shared: Arc<Shared>,
    listeners: Vec<(TransportKind, SocketAddr)>,
    ready: watch::Receiver<bool>,
    draining: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    tasks: Vec<AbortHandle>,
}

impl Gateway {
    /// Starts shards and listeners and registers the gateway. Must be called on the control runtime, where calls of the
    /// registry will run. Takes the registry's ownership events.
    pub async fn start(
        config: GatewayConfig,
        registry: Arc<dyn Registry>,
        seams: Seams,
        metrics: &mut prometheus_client::registry::Registry,
    ) -> Result<RunningGateway, StartError> {
        let faults = config.faults();
        if !faults.is_empty() {
            return Err(StartError::Config(faults));
        }
        let (listeners, shards) = (config.listeners(), config.shard_count());
        for &(kind, address) in &listeners {
            listener::probe(address).map_err(|source| StartError::Listen { kind, address, source })?;
        }
        let certificates = match config.transports.tls.clone() {
            Some(files) => Some(Arc::new(Certificates::open(files, &seams, metrics)?)),
            None => None,
        };
        let (mailboxes, receivers): (Vec<_>, Vec<_>) = (0..shards).map(|_| mpsc::channel(MAILBOX)).unzip();
        let shared = Arc::new(Shared {
            metrics: Metrics::register(metrics),
            incarnation: seams.number(),
            control: tokio::runtime::Handle::current(),
            mailboxes,
            seats: Seats::default(),
            link_numbers: AtomicU64::new(1),
            session_limits: Arc::new(config.session_limits()),
            reserved: Arc::new(Reserved::new(&config.reserved.prefixes, &config.reserved.names)),
            linked: watch::Sender::new(vec![0; shards as usize]),
            certificates,
            web_path: config.transports.ws_path.as_str().into(),
            config,
            registry,
            seams,
        });
        let mut running = RunningGateway::new(shared);
        running.start_shards(listeners, receivers).await?;
        running.join().await?;
        Ok(running)
    }
}

impl RunningGateway {
    fn new(shared: Arc<Shared>) -> Self {
        let (draining, is_draining) = watch::channel(false);
        let (sender, ready) = watch::channel(false);
        let task = tokio::spawn(watch_ready(shared.linked.subscribe(), is_draining, sender));
        let mut tasks = vec![task.abort_handle()];
        if let Some(certificates) = shared.certificates.clone() {
            let poll = Duration::from_millis(shared.config.transports.tls_poll_ms);
            let following = tokio::spawn(certificates.follow(poll, shared.seams.clone()));
            tasks.push(following.abort_handle());
        }
        Self { shared, listeners: Vec::new(), ready, draining, threads: Vec::new(), tasks }
    }

    async fn start_shards(
        &mut self,
        mut listeners: Vec<(TransportKind, SocketAddr)>,
        receivers: Vec<mpsc::Receiver<Mail>>,
    ) -> Result<(), StartError> {
        for (number, mailbox) in receivers.into_iter().enumerate() {
            let (sender, started) = oneshot::channel();
            let (shared, number) = (Arc::clone(&self.shared), u32::try_from(number).unwrap_or(u32::MAX));
            let addresses = listeners.clone();
            let body = move || {
                let linked = shared.linked.clone();
                // Also when the shard panics: a gateway that lost a shard is not ready.
                let _gone = Gone { linked, number };
                run::run(shared, number, addresses, mailbox, sender);
            };
            let thread = std::thread::Builder::new().name(format!("shard-{number}"));
            self.threads.push(thread.spawn(body).map_err(StartError::Shard)?);
            // The first shard picks the ports; the others share them.
            listeners = match started.await {
                Ok(Ok(bound)) => bound,
                Ok(Err(Unbound::Listener { kind, address, source })) => {
                    return Err(StartError::Listen { kind, address, source });
                }
                Ok(Err(Unbound::Runtime(error))) => return Err(StartError::Shard(error)),
                Err(_) => return Err(StartError::Shard(io::Error::other("the shard ended"))),
            };
        }
        for (kind, address) in &listeners {
            tracing::info!(listener = kind.label(), %address, shards = self.threads.len(), "listening");
        }
        self.listeners = listeners;
        Ok(())
    }

    async fn join(&mut self) -> Result<(), StartError> {
        if let Some(events) = self.shared.registry.ownership_events() {
            let task = tokio::spawn(pass_events(Arc::clone(&self.shared), events));
            self.tasks.push(task.abort_handle());
        }
        let shards = self.shared.config.shard_count();
        let member = Member {
            incarnation: self.shared.incarnation,
            node_id: self.shared.config.node_id.clone(),
            kind: MemberKind::Gateway { shards },
        };
        Ok(self.shared.registry.join(member).await?)
    }

    /// Where MQTT is served, plain TCP first.
    pub fn listeners(&self) -> &[(TransportKind, SocketAddr)] {
        &self.listeners
    }

    /// Where one of the transports is served.
    pub fn address(&self, kind: TransportKind) -> Option<SocketAddr> {
        self.listeners.iter().find(|(it, _)| *it == kind).map(|(_, address)| *address)
    }

    /// Reads certificate and key again when it is called; None without TLS.
    pub fn certificate_reloader(&self) -> Option<impl Fn() + Send + 'static> {
        let certificates = self.shared.certificates.clone()?;
        Some(move || certificates.wanted.notify_one())
    }

    /// This life of the gateway, as registered.
    pub fn incarnation(&self) -> u64 {
        self.shared.incarnation
    }

    /// True while every shard runs, is linked to a router, and nothing drains.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// Ends in good order: not ready, no new connections, what was received is settled and acknowledged, every client is
    /// closed and its ownership released; then the shards stop. What is not done after `within` is closed as it is.
    /// Leaving the registry is the caller's.
    pub async fn drain(mut self, within: Duration) {
        let _ = self.draining.send(true);
        let millis = u64::try_from(within.as_millis()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2);
        let mut ends = Vec::new();
        for mailbox in &self.shared.mailboxes {
            let (done, end) = oneshot::channel();
            if mailbox.send(Mail::Drain { within: millis, done }).await.is_ok() {
                ends.push(end);
            }
        }
        // A shard that hangs does not hold up the end.
        let all = async {
            for end in ends {
                let _ = end.await;
            }
        };
        let _ = tokio::time::timeout(within + Duration::from_secs(2), all).await;
        self.end().await;
    }

    /// Ends at once: connections and links are cut.
    pub async fn stop_now(mut self) {
        self.end().await;
    }

    async fn end(&mut self) {
        for mailbox in &self.shared.mailboxes {
            let _ = tokio::time::timeout(Duration::from_secs(1), mailbox.send(Mail::Stop)).await;
        }
        let threads = std::mem::take(&mut self.threads);
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|it| drop(it.join())));
        let _ = tokio::time::timeout(Duration::from_secs(5), joined).await;
    }
}

impl Drop for RunningGateway {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        for mailbox in &self.shared.mailboxes {
            let _ = mailbox.try_send(Mail::Stop);
        }
    }
}

struct Gone {
    linked: watch::Sender<Vec<usize>>,
    number: u32,
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.linked.send_modify(|linked| {
            if let Some(mine) = linked.get_mut(self.number as usize) {
                *mine = 0;
            }
        });
    }
}

async fn watch_ready(
    mut linked: watch::Receiver<Vec<usize>>,
    mut draining: watch::Receiver<bool>,
    ready: watch::Sender<bool>,
) {
    loop {
        let now = linked.borrow_and_update().iter().all(|links| *links > 0) && !*draining.borrow_and_update();
        ready.send_if_modified(|was| std::mem::replace(was, now) != now);
        tokio::select! {
            changed = linked.changed() => if changed.is_err() { return },
            changed = draining.changed() => if changed.is_err() { return },
        }
    }
}

async fn pass_events(shared: Arc<Shared>, mut events: mpsc::Receiver<OwnershipEvent>) {
    while let Some(event) = events.recv().await {
        let (OwnershipEvent::Renewed { shard, .. } | OwnershipEvent::Superseded { shard, .. }) = &event;
        if let Some(mailbox) = shared.mailboxes.get(*shard as usize) {
            let _ = mailbox.send(Mail::Ownership(event)).await;
        }
    }
}
