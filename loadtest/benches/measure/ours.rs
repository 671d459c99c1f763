//! Starts Penstock: a cluster of etcd, Redis, one router and one gateway with one shard, or everything in one process.
//! Release programs, built before.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::{
    parts::{Launch, Part, find, free_address},
    systems::{Kind, Login, System},
};

const PASSWORD: &str = "measure-measure";
/// Connections far above what is offered. What the tenant keeps is soon full, as a log is whose groups keep up: new entries take
/// the memory of old ones.
const LIMITS: &str = "--connections 200000 --backlog 256MiB";
/// What is looked at in Redis stays there: all of it fits, in each partition.
const KEPT: &str = "--backlog 8GiB";

static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();

/// Says where the release programs are.
pub fn programs_are_in(directory: PathBuf) {
    PROGRAMS.get_or_init(|| directory);
}

/// Path of one of our programs.
pub fn program(name: &str) -> PathBuf {
    PROGRAMS.get().map_or_else(|| PathBuf::from(name), |dir| dir.join(name))
}

/// What the cluster needs and this machine lacks.
pub fn missing(kind: Kind) -> Option<String> {
    if kind == Kind::Standalone {
        return None;
    }
    let needed = [
        ("PENSTOCK_BENCH_ETCD", "etcd", "etcd-server"),
        ("PENSTOCK_BENCH_REDIS", "redis-server", "redis-server"),
    ];
    let lacking = needed.iter().find(|(variable, name, _)| find(variable, name).is_none())?;
    Some(format!("{} is not here: apt-get install {}", lacking.1, lacking.2))
}

/// Versions of what the cluster stands on.
pub fn part_versions() -> Vec<String> {
    let first = |program: &str| {
        let output = Command::new(program).arg("--version").output().ok()?;
        let line = String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned();
        // Redis says how it was built, too.
        Some(line.split(" sha=").next()?.to_owned())
    };
    ["redis-server", "etcd"].iter().filter_map(|program| first(program)).collect()
}

/// Starts it with a tenant `bench` and its users.
pub fn start(kind: Kind) -> anyhow::Result<System> {
    let system = match kind {
        Kind::Standalone => standalone()?,
        Kind::Redis => bare_redis()?,
        Kind::Pair => pair()?,
        Kind::ClusterFsync => cluster("always", "fsynced")?,
        _ => cluster("everysec", "memory")?,
    };
    prepare(&system)?;
    if let (Kind::Backlog, Some(door)) = (kind, system.door) {
        ctl(door, "system/admin", &format!("tenant set bench {KEPT}"))?;
        // Without consumers: nothing is trimmed.
        ctl(door, "bench/app", "group create keep")?;
    }
    Ok(system)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn login(dir: &Path) -> anyhow::Result<Login> {
    let password_file = dir.join("password");
    fs::write(&password_file, PASSWORD)?;
    Ok(Login { user: "bench/load".to_owned(), password_file })
}

/// `penstock` on its embedded store, synced before PUBACK.
fn standalone() -> anyhow::Result<System> {
    let dir = TempDir::new()?;
    let (mqtt, grpc, admin) = (free_address()?, free_address()?, free_address()?);
    let arguments = words(&format!(
        "--data-dir {}/data --shards 1 --mqtt-listen {mqtt} --grpc-listen {grpc} --http-listen 127.0.0.1:0 --admin-listen {admin}",
        dir.path().display()
    ));
    let env = [("PENSTOCK_DEMO_PASSWORD", PASSWORD), ("PENSTOCK_ADMIN_PASSWORD", PASSWORD)];
    let program = program("penstock");
    let launch = Launch { name: "penstock", program: &program, arguments: &arguments, env: &env };
    let mut part = Part::start(dir.path(), &launch)?;
    part.wait_for(grpc)?;
    part.wait_for(mqtt)?;
    Ok(System {
        target: mqtt,
        login: Some(login(dir.path())?),
        door: Some(grpc),
        redis: None,
        parts: vec![part],
        holders: &[],
        second: None,
        another: None,
        dir,
    })
}

/// etcd, Redis, one router, one gateway with one shard.
fn cluster(fsync: &str, durability: &str) -> anyhow::Result<System> {
    let dir = TempDir::new()?;
    let at = dir.path();
    let (etcd, redis) = (etcd(at)?, redis(at, fsync)?);
    let (router, grpc) = router(at, "router", (etcd.1, redis.1), durability)?;
    let another = Gateway { etcd: etcd.1 };
    let (gateway, mqtt) = another.start(at, "gateway")?;
    Ok(System {
        target: mqtt,
        login: Some(login(at)?),
        door: Some(grpc),
        redis: Some(redis.1),
        parts: vec![etcd.0, redis.0, router, gateway],
        holders: &["router", "gateway"],
        second: None,
        another: Some(another),
        dir,
    })
}

/// A second router and a second gateway beside those of a cluster.
fn pair() -> anyhow::Result<System> {
    let mut system = cluster("everysec", "memory")?;
    let (Some(redis), Some(gateways)) = (system.redis, &system.another) else { return Ok(system) };
    let at = system.dir.path();
    let (router, door) = router(at, "router-2", (gateways.etcd, redis), "memory")?;
    let (gateway, mqtt) = gateways.start(at, "gateway-2")?;
    system.parts.extend([router, gateway]);
    system.second = Some((mqtt, door));
    Ok(system)
}

/// A router between etcd and Redis, and its messaging door.
fn router(
    at: &Path,
    name: &str,
    (etcd, redis): (SocketAddr, SocketAddr),
    durability: &str,
) -> anyhow::Result<(Part, SocketAddr)> {
    let (link, grpc, admin) = (free_address()?, free_address()?, free_address()?);
    let arguments = words(&format!(
        "--etcd http://{etcd} --redis redis://{redis} --durability {durability} --link-listen {link} --grpc-listen {grpc} \
         --http-listen 127.0.0.1:0 --admin-listen {admin}"
    ));
    let program = program("penstock-router");
    let env = [("PENSTOCK_ADMIN_PASSWORD", PASSWORD)];
    let launch = Launch { name, program: &program, arguments: &arguments, env: &env };
    let mut router = Part::start(at, &launch)?;
    router.wait_for(grpc)?;
    Ok((router, grpc))
}

fn etcd(at: &Path) -> anyhow::Result<(Part, SocketAddr)> {
    let (client, peer) = (free_address()?, free_address()?);
    let arguments = words(&format!(
        "--data-dir {}/etcd --listen-client-urls http://{client} --advertise-client-urls http://{client} \
         --listen-peer-urls http://{peer} --initial-advertise-peer-urls http://{peer} \
         --initial-cluster default=http://{peer} --log-level error",
        at.display()
    ));
    let program = find("PENSTOCK_BENCH_ETCD", "etcd").context("etcd is not here")?;
    let mut part =
        Part::start(at, &Launch { name: "etcd", program: &program, arguments: &arguments, env: &[] })?;
    part.wait_for(client)?;
    Ok((part, client))
}

fn redis(at: &Path, fsync: &str) -> anyhow::Result<(Part, SocketAddr)> {
    let address = free_address()?;
    let mut arguments = words(&format!(
        "--port {} --bind 127.0.0.1 --dir {} --appendonly yes --appendfsync {fsync} --maxmemory-policy noeviction \
         --auto-aof-rewrite-min-size 1gb --rdbcompression no --save",
        address.port(),
        at.display()
    ));
    arguments.push(String::new());
    let program = find("PENSTOCK_BENCH_REDIS", "redis-server").context("redis-server is not here")?;
    let mut part =
        Part::start(at, &Launch { name: "redis", program: &program, arguments: &arguments, env: &[] })?;
    part.wait_for(address)?;
    Ok((part, address))
}

fn bare_redis() -> anyhow::Result<System> {
    let dir = TempDir::new()?;
    let (part, address) = redis(dir.path(), "everysec")?;
    Ok(System {
        target: address,
        login: None,
        door: None,
        redis: None,
        parts: vec![part],
        holders: &[],
        second: None,
        another: None,
        dir,
    })
}

/// Starts gateways of a cluster.
pub struct Gateway {
    etcd: SocketAddr,
}

impl Gateway {
    /// A gateway with one shard, and where its clients connect.
    pub fn start(&self, at: &Path, name: &str) -> anyhow::Result<(Part, SocketAddr)> {
        let (mqtt, admin) = (free_address()?, free_address()?);
        let arguments = words(&format!(
            "--etcd http://{} --mqtt-listen {mqtt} --admin-listen {admin} --shards 1",
            self.etcd
        ));
        let program = program("penstock-gateway");
        let mut part = Part::start(at, &Launch { name, program: &program, arguments: &arguments, env: &[] })?;
        part.wait_for(mqtt)?;
        Ok((part, mqtt))
    }
}

/// Creates the tenant and its users through the door, as an operator would.
fn prepare(system: &System) -> anyhow::Result<()> {
    let (Some(door), Some(login)) = (system.door, &system.login) else { return Ok(()) };
    let ctl = |text: &str| ctl(door, "system/admin", text);
    let file = login.password_file.display();
    ctl(&format!("tenant create bench {LIMITS}"))?;
    ctl(&format!("user add bench/load --role device --new-password-file {file}"))?;
    ctl(&format!("user add bench/app --role service --new-password-file {file}"))
}

/// Runs `penstockctl` at a door.
fn ctl(door: SocketAddr, user: &str, text: &str) -> anyhow::Result<()> {
    let output = Command::new(program("penstockctl"))
        .args(["--server", &format!("http://{door}"), "--user", user])
        .args(text.split_whitespace())
        .env("PENSTOCK_PASSWORD", PASSWORD)
        .output()
        .context("penstockctl")?;
    ensure!(output.status.success(), "penstockctl {text}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
