//! What is measured: Penstock as a cluster (etcd, Redis, one router, one gateway), Penstock in one process, mosquitto.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::{
    load::Target,
    parts::{Part, free_address},
};

const PASSWORD: &str = "measure-measure";

/// Something that speaks MQTT, with everything that it needs.
pub struct System {
    /// For the table.
    pub name: &'static str,
    /// Where and as whom.
    pub target: Target,
    /// gRPC door, and the user and password of a service.
    pub door: Option<(String, String, String)>,
    parts: Vec<Part>,
    _dir: TempDir,
}

impl System {
    /// CPU seconds of all parts.
    pub fn cpu(&self) -> f64 {
        self.parts.iter().map(Part::cpu).sum()
    }

    /// CPU seconds of each part.
    pub fn cpu_each(&self) -> Vec<(String, f64)> {
        self.parts.iter().map(|part| (part.name().to_owned(), part.cpu())).collect()
    }

    /// Resident bytes of the parts with these names, all if none is given.
    pub fn rss(&self, names: &[&str]) -> u64 {
        self.parts.iter().filter(|part| names.is_empty() || names.contains(&part.name())).map(Part::rss).sum()
    }
}

fn arguments(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// mosquitto without persistence, Nagle off.
pub fn mosquitto() -> anyhow::Result<System> {
    let dir = TempDir::new()?;
    let address = free_address()?;
    let config = dir.path().join("mosquitto.conf");
    let text = format!(
        "listener {} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\nmax_inflight_messages 0\n\
         max_queued_messages 0\nlog_type error\nuser root\n",
        address.port()
    );
    fs::write(&config, text)?;
    let run = vec!["-c".to_owned(), config.display().to_string()];
    let mut part = Part::start(dir.path(), "mosquitto", &PathBuf::from("mosquitto"), &run, &[])?;
    part.wait_for(address)?;
    let target = Target { addresses: vec![address], login: None };
    Ok(System { name: "mosquitto", target, door: None, parts: vec![part], _dir: dir })
}

/// `penstock` on its embedded store, synced before PUBACK.
pub fn standalone(bin: &Path) -> anyhow::Result<System> {
    let dir = TempDir::new()?;
    let (mqtt, grpc, admin) = (free_address()?, free_address()?, free_address()?);
    let run = arguments(&format!(
        "--data-dir {} --shards 1 --mqtt-listen {mqtt} --grpc-listen {grpc} --admin-listen {admin}",
        dir.path().join("data").display()
    ));
    let run: Vec<String> = run.into_iter().filter(|part| !part.is_empty()).collect();
    let env = [("PENSTOCK_DEMO_PASSWORD", PASSWORD), ("PENSTOCK_ADMIN_PASSWORD", PASSWORD)];
    let mut part = Part::start(dir.path(), "penstock", &bin.join("penstock"), &run, &env)?;
    part.wait_for(grpc)?;
    part.wait_for(mqtt)?;
    let system = System {
        name: "penstock, one process, synced",
        target: Target { addresses: vec![mqtt], login: Some(("bench/load".to_owned(), PASSWORD.to_owned())) },
        door: Some((format!("http://{grpc}"), "bench/reader".to_owned(), PASSWORD.to_owned())),
        parts: vec![part],
        _dir: dir,
    };
    Ok(system)
}

/// etcd, Redis (everysec), one router, one gateway with one shard.
pub fn cluster(bin: &Path, fsync: &str) -> anyhow::Result<System> {
    let dir = TempDir::new()?;
    let at = dir.path();
    let (etcd, peer, redis) = (free_address()?, free_address()?, free_address()?);
    let run = arguments(&format!(
        "--data-dir {} --listen-client-urls http://{etcd} --advertise-client-urls http://{etcd} --listen-peer-urls \
         http://{peer} --initial-advertise-peer-urls http://{peer} --initial-cluster default=http://{peer} --log-level error",
        at.join("etcd").display()
    ));
    let mut parts = vec![Part::start(at, "etcd", &PathBuf::from("etcd"), &run, &[])?];
    let run = arguments(&format!(
        "--port {} --bind 127.0.0.1 --dir {} --appendonly yes --appendfsync {fsync} --save",
        redis.port(),
        at.display()
    ));
    let run: Vec<String> = run.into_iter().chain([String::new()]).collect();
    parts.push(Part::start(at, "redis", &PathBuf::from("redis-server"), &run, &[])?);
    parts[0].wait_for(etcd)?;
    parts[1].wait_for(redis)?;
    let (mqtt, link, grpc) = (free_address()?, free_address()?, free_address()?);
    let (admin_gateway, admin_router) = (free_address()?, free_address()?);
    let durability = if fsync == "always" { "fsynced" } else { "memory" };
    let run = arguments(&format!(
        "--etcd http://{etcd} --redis redis://{redis} --durability {durability} --link-listen {link} --grpc-listen {grpc} \
         --admin-listen {admin_router}"
    ));
    let env = [("PENSTOCK_ADMIN_PASSWORD", PASSWORD)];
    let mut router = Part::start(at, "router", &bin.join("penstock-router"), &run, &env)?;
    router.wait_for(grpc)?;
    parts.push(router);
    let run = arguments(&format!(
        "--etcd http://{etcd} --mqtt-listen {mqtt} --admin-listen {admin_gateway} --shards 1"
    ));
    let mut gateway = Part::start(at, "gateway", &bin.join("penstock-gateway"), &run, &[])?;
    gateway.wait_for(mqtt)?;
    parts.push(gateway);
    Ok(System {
        name: if fsync == "always" { "penstock, cluster, fsync" } else { "penstock, cluster, everysec" },
        target: Target { addresses: vec![mqtt], login: Some(("bench/load".to_owned(), PASSWORD.to_owned())) },
        door: Some((format!("http://{grpc}"), "bench/reader".to_owned(), PASSWORD.to_owned())),
        parts,
        _dir: dir,
    })
}

/// Creates the tenant and its users through the door, as an operator would.
pub fn prepare(bin: &Path, system: &System) -> anyhow::Result<()> {
    let Some((door, _, _)) = &system.door else { return Ok(()) };
    let dir = TempDir::new()?;
    let secret = dir.path().join("password");
    fs::write(&secret, PASSWORD)?;
    let ctl = |text: &str| -> anyhow::Result<()> {
        let output = Command::new(bin.join("penstockctl"))
            .args(["--server", door, "--user", "system/admin"])
            .args(text.split_whitespace())
            .env("PENSTOCK_PASSWORD", PASSWORD)
            .output()
            .context("penstockctl")?;
        ensure!(output.status.success(), "penstockctl {text}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    ctl("tenant create bench --connections 200000")?;
    let file = secret.display();
    ctl(&format!("user add bench/load --role device --new-password-file {file}"))?;
    ctl(&format!("user add bench/reader --role service --new-password-file {file}"))
}
