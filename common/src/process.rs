//! The frame of a server program: command line, settings, runtime, telemetry, signals, admin listener, and in it the
//! program's own parts. It decides nothing about the parts.

use std::{fs, net::SocketAddr, process::ExitCode, time::Duration};

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    admin::{self, RunningAdmin},
    config::{Asked, Program, Reader, Setting},
    exit::{self, Failure},
    lifecycle::Lifecycle,
    secret::Secret,
    telemetry::{self, TelemetryConfig},
};

/// Names this process for people.
pub const NODE_ID: Setting = Setting::new(
    "node-id",
    "node.id",
    "NAME",
    "Name of this process for people; the host's name if not given",
);
/// Ends what is under way within this time.
pub const DRAIN_TIMEOUT: Setting =
    Setting::new("drain-timeout", "node.drain_timeout", "DURATION", "Longest drain after SIGTERM").or("30s");
/// Time for load balancers to see that this process is about to drain.
pub const DRAIN_DELAY: Setting = Setting::new(
    "drain-delay",
    "node.drain_delay",
    "DURATION",
    "After SIGTERM, go on serving so long, with /readyz 503, before the drain",
)
.or("0s");
/// Where the registry is.
pub const ETCD: Setting =
    Setting::new("etcd", "etcd.url", "URL[,URL…]", "etcd's client URLs, like http://127.0.0.1:2379");
/// Shows that a gateway or router belongs to the cluster.
pub const CLUSTER_SECRET_FILE: Setting = Setting::secret_file(
    "cluster-secret-file",
    "cluster.secret_file",
    "Secret that all gateways and routers share; needed when links leave this machine",
);

/// What the frame itself is told.
struct Frame {
    telemetry: TelemetryConfig,
    admin_listen: SocketAddr,
    drain_timeout: Duration,
    drain_delay: Duration,
}

/// What the parts get from the frame.
pub struct Process {
    /// Signals and phases.
    pub life: Lifecycle,
    /// Where metrics and readiness are shown.
    pub admin: RunningAdmin,
    /// Longest drain.
    pub drain_timeout: Duration,
}

/// Runs a program. Its settings must hold `admin-listen`, [`DRAIN_TIMEOUT`], [`DRAIN_DELAY`] and [`telemetry::SETTINGS`]; `read` takes the
/// others, `body` runs the parts until the drain is over.
pub fn run<C>(
    program: &'static Program,
    read: impl FnOnce(&mut Reader) -> C,
    body: impl AsyncFnOnce(C, Process) -> Result<(), Failure>,
) -> ExitCode {
    exit::run(program.name, || start(program, read, body))
}

fn start<C>(
    program: &'static Program,
    read: impl FnOnce(&mut Reader) -> C,
    body: impl AsyncFnOnce(C, Process) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut reader = match program.ask()? {
        Asked::Run(reader) => reader,
        Asked::Print(text) => {
            print!("{text}");
            return Ok(());
        }
    };
    let frame = Frame::read(&mut reader);
    let config = read(&mut reader);
    let effective = reader.finish()?;
    if effective.print {
        print!("{}", effective.text);
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start threads: {error}")))?;
    runtime.block_on(Box::pin(frame.serve(program, config, effective.text, body)))
}

impl Frame {
    fn read(reader: &mut Reader) -> Self {
        Self {
            telemetry: TelemetryConfig::read(reader),
            admin_listen: reader.value("admin-listen"),
            drain_timeout: reader.value(DRAIN_TIMEOUT.flag),
            drain_delay: reader.value(DRAIN_DELAY.flag),
        }
    }

    async fn serve<C>(
        self,
        program: &Program,
        config: C,
        shown: String,
        body: impl AsyncFnOnce(C, Process) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let telemetry = telemetry::start(program.name, &self.telemetry).map_err(Failure::of)?;
        let life = Lifecycle::new();
        life.handle_signals(self.drain_delay)
            .map_err(|error| Failure::Failed(format!("cannot handle signals: {error}")))?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "{} starts", program.name);
        let ended = match admin::start(self.admin_listen, life.clone(), shown) {
            Ok(admin) => {
                let stopped = life.drain().clone();
                let process = Process { life, admin, drain_timeout: self.drain_timeout };
                let ended = Box::pin(body(config, process)).await;
                tracing::info!(asked = stopped.is_cancelled(), "{} ends", program.name);
                ended
            }
            Err(error) => Err(Failure::of(error)),
        };
        telemetry.flush().await;
        ended
    }
}

/// The name of this process: as given, or the host's with the kind of process before it.
pub fn node_id(reader: &mut Reader, kind: &str) -> String {
    reader.optional(NODE_ID.flag).unwrap_or_else(|| {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        format!("{kind}-{}", host.trim()).trim_end_matches('-').to_owned()
    })
}

/// The cluster secret; without one, `listen` (of links) must not leave this machine.
pub fn cluster_secret(reader: &mut Reader, listen: Option<(&str, SocketAddr)>) -> Option<Secret> {
    let given = reader.optional::<String>(CLUSTER_SECRET_FILE.flag).is_some();
    let secret = reader.secret_file(CLUSTER_SECRET_FILE.flag);
    if let Some((flag, address)) = listen
        && !given
        && !address.ip().is_loopback()
    {
        let fault = format!(
            "{address} can be reached from other machines: give the cluster's secret with --cluster-secret-file, or listen on 127.0.0.1"
        );
        reader.fault(flag, &fault);
    }
    secret
}

/// Does something at every SIGHUP, which otherwise ends the process.
pub fn on_hangup(act: impl Fn() + Send + 'static) -> Result<(), Failure> {
    let mut hangups = signal(SignalKind::hangup())
        .map_err(|error| Failure::Failed(format!("cannot handle signals: {error}")))?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            act();
        }
    });
    Ok(())
}

/// Shows as a gauge of 0 or 1 whether something answers.
pub fn show_health(
    metrics: &mut Registry,
    name: &'static str,
    help: &'static str,
    mut health: watch::Receiver<bool>,
) {
    let gauge = Gauge::<i64>::default();
    metrics.register(name, help, gauge.clone());
    tokio::spawn(async move {
        loop {
            let up = *health.borrow_and_update();
            gauge.set(i64::from(up));
            if health.changed().await.is_err() {
                gauge.set(0);
                return;
            }
        }
    });
}

/// Races the start of a part against the drain: a signal during a start that hangs ends it.
pub async fn unless_drained<T>(
    life: &Lifecycle,
    starting: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        started = starting => started,
        () = life.drain().cancelled() => Err(Failure::Failed("stopped before it was ready".to_owned())),
    }
}
