//! `penstock` from settings to parts and back: directory, embedded store and registry, first run, router, gateway, drain.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use penstock_common::{
    admin::{Check, Shown},
    clock::Seams,
    config::{Program, Reader, Setting},
    exit::Failure,
    process::{self, Process},
    registry::{Registry, embedded::EmbeddedRegistry},
    secret::Secret,
    store::{Durability, Store, embedded::EmbeddedStore},
    telemetry,
};
use penstock_gateway::{Gateway, GatewayConfig, RunningGateway, TransportKind, settings as gateway_settings};
use penstock_router::{
    config::RouterConfig,
    door::web::WebConfig,
    settings as router_settings,
    start::{Router, RunningRouter},
};

use crate::{
    first_run::{self, Wishes},
    welcome::{self, Addresses},
};

const OWN: &[Setting] = &[
    Setting::new("data-dir", "data.dir", "DIR", "Where everything is kept; one process at a time")
        .or("./penstock-data"),
    Setting::new("durability", "data.durability", "memory|fsynced", "What a PUBACK means").or("fsynced"),
    Setting::switch("no-demo", "data.no_demo", "Create no tenant at the first start"),
    Setting::secret_variable("demo-password", "Password of demo/device and demo/app instead of random ones"),
    router_settings::ADMIN_PASSWORD,
    process::NODE_ID,
    process::DRAIN_TIMEOUT,
    process::DRAIN_DELAY,
    Setting::new("admin-listen", "admin.listen", "ADDRESS:PORT", "Where /livez /readyz /metrics /config are")
        .or("127.0.0.1:9090"),
];

/// The command line.
const PROGRAM: Program = Program {
    name: "penstock",
    about: "A whole MQTT endpoint in one process: gateway and router on an embedded registry and store",
    examples: "
penstock
penstock --data-dir /var/lib/penstock --mqtt-listen 0.0.0.0:1883
penstock --mqtts-listen 0.0.0.0:8883 --ws-listen 0.0.0.0:8083 --wss-listen 0.0.0.0:8084 \\
    --tls-cert-file tls/fullchain.pem --tls-key-file tls/key.pem
PENSTOCK_DEMO_PASSWORD=secret penstock --data-dir /tmp/try --mqtt-listen 127.0.0.1:0",
    settings: &[
        OWN,
        router_settings::DOORS,
        gateway_settings::SETTINGS,
        gateway_settings::LIMITS,
        telemetry::SETTINGS,
    ],
};

/// What the program runs with.
pub struct Standalone {
    dir: PathBuf,
    durability: Durability,
    gateway: GatewayConfig,
    grpc_listen: SocketAddr,
    http_listen: SocketAddr,
    web: WebConfig,
    plain_passwords: bool,
    node_id: String,
    wishes: Wishes,
}

/// Runs `penstock` with the arguments and the environment of this process, until it has drained or failed.
pub fn main() -> ExitCode {
    process::run(&PROGRAM, read, run)
}

/// Reads the settings.
fn read(reader: &mut Reader) -> Standalone {
    let node_id = process::node_id(reader, "penstock");
    let mut gateway = gateway_settings::read(reader);
    gateway.node_id.clone_from(&node_id);
    gateway_settings::check(&gateway, reader);
    let durability = reader.value::<String>("durability").parse().unwrap_or_else(|error| {
        reader.fault("durability", &format!("{error}"));
        Durability::Fsynced
    });
    if let Durability::Replicated(_) = durability {
        let fault = format!("{}", penstock_common::store::embedded::OpenError::Alone(durability));
        reader.fault("durability", &fault);
    }
    Standalone {
        dir: reader.value("data-dir"),
        durability,
        gateway,
        grpc_listen: router_settings::grpc_listen(reader),
        http_listen: router_settings::http_listen(reader),
        web: router_settings::web(reader),
        plain_passwords: router_settings::plain_passwords(reader),
        node_id,
        wishes: Wishes {
            demo: !reader.switch("no-demo"),
            demo_password: one_line(reader, "demo-password"),
            admin_password: one_line(reader, router_settings::ADMIN_PASSWORD.flag),
        },
    }
}

/// A password that fits on a line of the file of credentials.
fn one_line(reader: &mut Reader, name: &str) -> Option<Secret> {
    let secret = reader.secret_variable(name)?;
    if secret.expose().contains(['\n', '\r']) {
        reader.fault(name, "a password is one line");
    }
    Some(secret)
}

/// Runs until the drain is over.
async fn run(program: Standalone, process: Process) -> Result<(), Failure> {
    let Process { life, admin, drain_timeout } = process;
    let seams = Seams::real();
    let mut metrics = prometheus_client::registry::Registry::default();
    make_dir(&program.dir)?;
    let store = EmbeddedStore::open(&program.dir.join("store"), program.durability).map_err(Failure::of)?;
    let registry = EmbeddedRegistry::open(Some(&program.dir), seams.clone()).map_err(Failure::of)?;
    let (store, registry): (Arc<dyn Store>, Arc<dyn Registry>) = (store, registry);
    let first = first_run::complete(&program.dir, &program.wishes, &*registry, &*store, &seams);
    let first = first.await.map_err(Failure::of)?;
    process::show_health(&mut metrics, "penstock_store_up", "Whether the store answers", store.healthy());
    let dir = program.dir.clone();
    let starting = parts(program, &registry, store, &seams, &mut metrics);
    let (router, gateway) = process::unless_drained(&life, Box::pin(starting)).await?;
    let checks = vec![
        Check { name: "router", holds: router.ready() },
        Check { name: "gateway", holds: gateway.ready() },
    ];
    if let Some(reload) = gateway.certificate_reloader() {
        process::on_hangup(reload)?;
    }
    admin.show(Shown { metrics, checks });
    life.started();
    if let Some(mqtt) = gateway.address(TransportKind::Mqtt) {
        welcome::print(&dir, &first, &Addresses { mqtt, grpc: router.grpc_address() });
    }
    life.drain().cancelled().await;
    // The gateway first: what it has read is stored and acknowledged while the router still serves.
    gateway.drain(drain_timeout).await;
    router.drain(drain_timeout).await;
    registry.leave().await;
    Ok(())
}

async fn parts(
    program: Standalone,
    registry: &Arc<dyn Registry>,
    store: Arc<dyn Store>,
    seams: &Seams,
    metrics: &mut prometheus_client::registry::Registry,
) -> Result<(RunningRouter, RunningGateway), Failure> {
    let mut inside = [0; 32];
    seams.fill(&mut inside);
    let inside = Secret::new(inside.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let router = RouterConfig {
        node_id: program.node_id,
        link_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        grpc_listen: program.grpc_listen,
        http_listen: program.http_listen,
        web: program.web,
        cluster_secret: Some(inside.clone()),
        plain_passwords: program.plain_passwords,
        ..RouterConfig::default()
    };
    // Some metrics have the same name in both parts.
    let shown = metrics.sub_registry_with_label(("part".into(), "router".into()));
    let router = Router::start(router, Arc::clone(registry), store, seams.clone(), shown);
    let router = router.await.map_err(Failure::of)?;
    let gateway =
        GatewayConfig { cluster_secret: Some(gateway_settings::link_secret(&inside)), ..program.gateway };
    let shown = metrics.sub_registry_with_label(("part".into(), "gateway".into()));
    let gateway = Gateway::start(gateway, Arc::clone(registry), seams.clone(), shown);
    Ok((router, gateway.await.map_err(Failure::of)?))
}

fn make_dir(dir: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| {
        let what = match error.kind() {
            io::ErrorKind::PermissionDenied => "choose another with --data-dir, or run as its owner",
            _ => "choose another with --data-dir",
        };
        Failure::Failed(format!("cannot make the data directory {}: {error}; {what}", dir.display()))
    })
}
