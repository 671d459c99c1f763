//! `penstock-gateway` from settings to parts and back: etcd, the gateway, the drain.

use crate::{Gateway, GatewayConfig, settings};
use std::process::ExitCode;

use penstock_common::{
    admin::{Check, Shown},
    clock::Seams,
    config::{Program, Reader, Setting},
    exit::Failure,
    process::{self, Process},
    registry::{
        Registry,
        etcd::{EtcdConfig, EtcdRegistry},
    },
    telemetry,
};

const OWN: &[Setting] = &[
    process::ETCD,
    process::CLUSTER_SECRET_FILE,
    process::NODE_ID,
    process::DRAIN_TIMEOUT,
    process::DRAIN_DELAY,
    Setting::new("admin-listen", "admin.listen", "ADDRESS:PORT", "Where /livez /readyz /metrics /config are")
        .or("127.0.0.1:9090"),
];

/// The command line.
const PROGRAM: Program = Program {
    name: "penstock-gateway",
    about: "Penstock's gateway: devices speak MQTT to it, it forwards to every router in etcd",
    examples: "
penstock-gateway --etcd http://127.0.0.1:2379
penstock-gateway --etcd http://etcd-0:2379,http://etcd-1:2379 --mqtt-listen 0.0.0.0:1883 \\
    --admin-listen 0.0.0.0:9090 --cluster-secret-file /run/secrets/cluster
penstock-gateway --etcd http://127.0.0.1:2379 --mqtts-listen 0.0.0.0:8883 --wss-listen 0.0.0.0:8084 \\
    --tls-cert-file tls/fullchain.pem --tls-key-file tls/key.pem --proxy-protocol-from 10.0.0.0/8
penstock-gateway --config gateway.toml --print-config",
    settings: &[settings::SETTINGS, settings::LIMITS, OWN, telemetry::SETTINGS],
};

/// What the program runs with.
pub struct GatewayProgram {
    gateway: GatewayConfig,
    etcd: Vec<String>,
}

/// Runs `penstock-gateway` with the arguments and the environment of this process, until it has drained or failed.
pub fn main() -> ExitCode {
    process::run(&PROGRAM, read, run)
}

/// Reads the settings.
fn read(reader: &mut Reader) -> GatewayProgram {
    let mut gateway = settings::read(reader);
    gateway.node_id = process::node_id(reader, "gateway");
    let secret = process::cluster_secret(reader, None);
    gateway.cluster_secret = secret.as_ref().map(settings::link_secret);
    settings::check(&gateway, reader);
    GatewayProgram { gateway, etcd: reader.value(process::ETCD.flag) }
}

/// Runs until the drain is over.
async fn run(program: GatewayProgram, process: Process) -> Result<(), Failure> {
    let Process { life, admin, drain_timeout } = process;
    let seams = Seams::real();
    let mut metrics = prometheus_client::registry::Registry::default();
    let registry =
        async { EtcdRegistry::open(EtcdConfig::new(program.etcd), seams.clone()).await.map_err(Failure::of) };
    let registry = process::unless_drained(&life, Box::pin(registry)).await?;
    let up = "Whether the registry answers";
    process::show_health(&mut metrics, "penstock_registry_up", up, registry.healthy());
    let starting = async {
        let registry = registry.clone();
        Gateway::start(program.gateway, registry, seams.clone(), &mut metrics).await.map_err(Failure::of)
    };
    let gateway = process::unless_drained(&life, Box::pin(starting)).await?;
    if let Some(reload) = gateway.certificate_reloader() {
        process::on_hangup(reload)?;
    }
    admin.show(Shown { metrics, checks: vec![Check { name: "gateway", holds: gateway.ready() }] });
    life.started();
    life.drain().cancelled().await;
    gateway.drain(drain_timeout).await;
    registry.leave().await;
    Ok(())
}
