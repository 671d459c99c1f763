//! `penstock-router` from settings to parts and back: etcd, Redis, the first administrator, the router, the drain.

use std::{net::SocketAddr, process::ExitCode, sync::Arc};

use crate::{bootstrap::bootstrap_admin, config::RouterConfig, settings, start::Router};
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
    secret::Secret,
    store::{
        Durability, Store,
        redis::{RedisConfig, RedisStore},
    },
    telemetry,
};

const OWN: &[Setting] = &[
    process::ETCD,
    Setting::new(
        "redis",
        "redis.url",
        "URL",
        "Redis 7.0 or later: redis://HOST:PORT, redis+cluster://HOST:PORT,… or redis+sentinel://HOST:PORT,…/NAME",
    ),
    Setting::new("durability", "redis.durability", "memory|replicated:N|fsynced", "What a PUBACK means")
        .or("memory"),
    Setting::switch(
        "accept-unreadable-redis-config",
        "redis.accept_unreadable_config",
        "Work with a Redis that does not show its CONFIG: you vouch for it",
    ),
    Setting::new("link-listen", "link.listen", "ADDRESS:PORT", "Where gateways and routers link")
        .or("127.0.0.1:7000"),
    Setting::new(
        "link-advertise",
        "link.advertise",
        "HOST:PORT",
        "How others reach --link-listen; needed when it is 0.0.0.0 or [::]",
    ),
    Setting::new(
        "grpc-advertise",
        "grpc.advertise",
        "HOST:PORT",
        "How others reach --grpc-listen, shown by penstockctl cluster",
    ),
    settings::ADMIN_PASSWORD_FILE,
    settings::ADMIN_PASSWORD,
    process::CLUSTER_SECRET_FILE,
    process::NODE_ID,
    process::DRAIN_TIMEOUT,
    process::DRAIN_DELAY,
    Setting::new("admin-listen", "admin.listen", "ADDRESS:PORT", "Where /livez /readyz /metrics /config are")
        .or("127.0.0.1:9091"),
];

/// The command line.
const PROGRAM: Program = Program {
    name: "penstock-router",
    about: "Penstock's router: gateways link to it, it stores in Redis, microservices and operators call it",
    examples: "
PENSTOCK_ADMIN_PASSWORD=… penstock-router --etcd http://127.0.0.1:2379 --redis redis://127.0.0.1:6379
penstock-router --etcd http://etcd-0:2379 --redis redis://redis:6379 --durability fsynced \\
    --link-listen 0.0.0.0:7000 --link-advertise router-0.routers:7000 \\
    --cluster-secret-file /run/secrets/cluster --admin-password-file /run/secrets/admin
penstock-router --config router.toml --print-config",
    settings: &[OWN, settings::DOORS, telemetry::SETTINGS],
};

/// What the program runs with.
pub struct RouterProgram {
    router: RouterConfig,
    etcd: Vec<String>,
    redis: RedisConfig,
    admin_password: Option<Secret>,
}

/// Runs `penstock-router` with the arguments and the environment of this process, until it has drained or failed.
pub fn main() -> ExitCode {
    process::run(&PROGRAM, read, run)
}

/// Reads the settings.
fn read(reader: &mut Reader) -> RouterProgram {
    let link_listen: SocketAddr = reader.value("link-listen");
    let link_advertise = reader.optional("link-advertise");
    if link_listen.ip().is_unspecified() && link_advertise.is_none() {
        reader.fault(
            "link-advertise",
            "is needed when --link-listen is on all addresses: others can't dial those",
        );
    }
    let secret = process::cluster_secret(reader, Some(("link-listen", link_listen)));
    let router = RouterConfig {
        node_id: process::node_id(reader, "router"),
        link_listen,
        link_advertise,
        grpc_listen: settings::grpc_listen(reader),
        http_listen: settings::http_listen(reader),
        web: settings::web(reader),
        plain_passwords: settings::plain_passwords(reader),
        grpc_advertise: reader.optional("grpc-advertise"),
        cluster_secret: secret,
        ..RouterConfig::default()
    };
    let file = reader.secret_file(settings::ADMIN_PASSWORD_FILE.flag);
    RouterProgram {
        router,
        etcd: reader.value(process::ETCD.flag),
        redis: read_redis(reader),
        admin_password: file.or_else(|| reader.secret_variable(settings::ADMIN_PASSWORD.flag)),
    }
}

fn read_redis(reader: &mut Reader) -> RedisConfig {
    let url: String = reader.value("redis");
    let durability = reader.value::<String>("durability").parse().unwrap_or_else(|error| {
        reader.fault("durability", &format!("{error}"));
        Durability::Memory
    });
    let mut config = RedisConfig::new(url, durability);
    config.accept_unreadable_config = reader.switch("accept-unreadable-redis-config");
    config
}

/// Runs until the drain is over.
async fn run(program: RouterProgram, process: Process) -> Result<(), Failure> {
    let Process { life, admin, drain_timeout } = process;
    let seams = Seams::real();
    let mut metrics = prometheus_client::registry::Registry::default();
    let store_ends = tokio_util::sync::CancellationToken::new();
    let opening = async {
        let store = RedisStore::open(program.redis, &store_ends).await.map_err(Failure::of)?;
        let registry =
            EtcdRegistry::open(EtcdConfig::new(program.etcd), seams.clone()).await.map_err(Failure::of)?;
        let password = program.admin_password.as_ref().map(Secret::expose);
        bootstrap_admin(&*store, &*registry, &seams, password).await.map_err(Failure::of)?;
        Ok((store, registry))
    };
    let (store, registry) = process::unless_drained(&life, Box::pin(opening)).await?;
    store.register(&mut metrics);
    process::show_health(&mut metrics, "penstock_store_up", "Whether the store answers", store.healthy());
    process::show_health(
        &mut metrics,
        "penstock_registry_up",
        "Whether the registry answers",
        registry.healthy(),
    );
    let starting = async {
        let (registry, store): (Arc<dyn Registry>, Arc<dyn Store>) = (registry.clone(), store);
        Router::start(program.router, registry, store, seams.clone(), &mut metrics).await.map_err(Failure::of)
    };
    let router = process::unless_drained(&life, Box::pin(starting)).await?;
    admin.show(Shown { metrics, checks: vec![Check { name: "router", holds: router.ready() }] });
    life.started();
    life.drain().cancelled().await;
    router.drain(drain_timeout).await;
    registry.leave().await;
    store_ends.cancel();
    Ok(())
}
