//! One process of the cluster: how it is started, when it is ready, how it ends. Its output goes to a file. It is in a process
//! group of its own, so that Ctrl-C in a terminal reaches only us, who stop all in order.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use penstock_tests::{ports, program::get};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// Lines of a log that an error shows.
const SHOWN: usize = 10;
const LOOK: Duration = Duration::from_millis(50);

/// How to see that it serves.
enum Probe {
    /// 200 at this path.
    Http(SocketAddr, &'static str),
    /// A connection.
    Tcp(SocketAddr),
}

/// A process.
pub struct Node {
    name: String,
    url: String,
    log: PathBuf,
    probe: Probe,
    process: Child,
    told: bool,
    web: Option<SocketAddr>,
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// One of Penstock's own programs: built beside this one.
fn own(name: &str) -> Result<Command> {
    let here = std::env::current_exe().context("where is this program?")?;
    let path = here.with_file_name(name);
    if !path.exists() {
        bail!("{} is not built: make cluster builds it", path.display());
    }
    Ok(Command::new(path))
}

impl Node {
    /// One member on free ports.
    pub fn etcd(dir: &Path) -> Result<Self> {
        let (client, peer) = (local(ports::free()), local(ports::free()));
        let (url, peer) = (format!("http://{client}"), format!("http://{peer}"));
        let mut command = Command::new("etcd");
        if cfg!(target_arch = "aarch64") {
            // Older releases refuse to start there without it.
            command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
        }
        command.arg("--data-dir").arg(dir.join("etcd")).args(["--log-level", "warn"]);
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        Self::start(dir, "etcd", url, Probe::Http(client, "/health"), command)
    }

    /// Append-only file, synced every second.
    pub fn redis(dir: &Path) -> Result<Self> {
        let address = local(ports::free());
        let data = dir.join("redis");
        fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", ""]);
        command.args(["--appendonly", "yes", "--appendfsync", "everysec"]);
        command.args(["--auto-aof-rewrite-min-size", "1gb", "--rdbcompression", "no"]);
        command.args(["--maxmemory-policy", "noeviction"]).arg("--dir").arg(data);
        Self::start(dir, "redis", format!("redis://{address}"), Probe::Tcp(address), command)
    }

    /// A router with its door on this port.
    pub fn router(
        dir: &Path,
        number: usize,
        port: u16,
        etcd: &str,
        redis: &str,
        secret: &Path,
        admin_password: &str,
    ) -> Result<Self> {
        let (name, admin) = (format!("router-{number}"), local(ports::free()));
        let web = local(ports::free());
        let mut command = own("penstock-router")?;
        command.args(["--node-id", &name, "--etcd", etcd, "--redis", redis, "--link-listen", "127.0.0.1:0"]);
        command.arg("--grpc-listen").arg(local(port).to_string()).arg("--http-listen").arg(web.to_string());
        command.arg("--admin-listen").arg(admin.to_string()).arg("--cluster-secret-file").arg(secret);
        command.env("PENSTOCK_ADMIN_PASSWORD", admin_password);
        let started = Self::start(
            dir,
            &name,
            format!("http://{}", local(port)),
            Probe::Http(admin, "/readyz"),
            command,
        );
        Ok(Self { web: Some(web), ..started? })
    }

    /// A gateway with MQTT on this port.
    pub fn gateway(dir: &Path, number: usize, port: u16, etcd: &str, secret: &Path) -> Result<Self> {
        let (name, admin) = (format!("gateway-{number}"), local(ports::free()));
        let mut command = own("penstock-gateway")?;
        command.args(["--node-id", &name, "--etcd", etcd, "--mqtt-listen"]).arg(local(port).to_string());
        command.arg("--admin-listen").arg(admin.to_string()).arg("--cluster-secret-file").arg(secret);
        Self::start(dir, &name, format!("mqtt://{}", local(port)), Probe::Http(admin, "/readyz"), command)
    }

    fn start(dir: &Path, name: &str, url: String, probe: Probe, mut command: Command) -> Result<Self> {
        let log = dir.join("logs").join(format!("{name}.log"));
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let also = out.try_clone().with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out).stderr(also).process_group(0).kill_on_drop(true);
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let process = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => anyhow!("{program} is not installed: make packages installs it"),
            _ => anyhow!("cannot start {program}: {error}"),
        })?;
        Ok(Self { name: name.to_owned(), url, log, probe, process, told: false, web: None })
    }

    /// Where it is reached.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// A router's WebSocket door.
    pub fn web(&self) -> Option<SocketAddr> {
        self.web
    }

    /// Name and admin listener of Penstock's own programs.
    pub fn admin(&self) -> Option<(&str, SocketAddr)> {
        match self.probe {
            Probe::Http(address, "/readyz") => Some((&self.name, address)),
            _ => None,
        }
    }

    /// Waits until it serves; an error shows the end of its log.
    pub async fn ready(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let serves = match self.probe {
                Probe::Http(address, path) => matches!(get(address, path).await, Some((200, _))),
                Probe::Tcp(address) => TcpStream::connect(address).await.is_ok(),
            };
            if serves {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("{} ended at once ({status}):\n{}", self.name, self.tail());
            }
            if Instant::now() >= end {
                bail!("{} was not ready within {limit:?}:\n{}", self.name, self.tail());
            }
            sleep(LOOK).await;
        }
    }

    fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(SHOWN)).map(|line| format!("  {line}\n")).collect()
    }

    /// A line about its end, once.
    pub fn news(&mut self) -> Option<String> {
        let status = self.process.try_wait().ok().flatten().filter(|_| !self.told)?;
        self.told = true;
        Some(format!(
            "{} has ended ({status}); its log is {}; the others go on",
            self.name,
            self.log.display()
        ))
    }

    /// SIGTERM, and waits for its end; what does not end in time is killed.
    pub async fn stop(&mut self, limit: Duration) -> Result<()> {
        let running = self.process.try_wait()?.is_none();
        let pid = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|_| running) else { return Ok(()) };
        kill_process(pid, Signal::TERM).with_context(|| format!("cannot stop {}", self.name))?;
        match timeout(limit, self.process.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            // etcd ends by the signal itself.
            Ok(_) if self.name == "etcd" => Ok(()),
            Ok(_) => bail!("{} did not end well:\n{}", self.name, self.tail()),
            Err(_) => {
                self.process.kill().await?;
                bail!("{} did not end within {limit:?} and was killed", self.name)
            }
        }
    }
}
