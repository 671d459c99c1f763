//! A real Redis with its append-only file on.

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Command,
};

use crate::{child::Child, command::run, ports, program::START, wait::eventually};

/// Redis on a free port, in a directory of its own.
pub struct Redis {
    directory: TempDir,
    port: u16,
    settings: Vec<String>,
    child: Child,
}

impl Redis {
    /// With `appendonly yes`, `appendfsync everysec`, `noeviction`.
    pub async fn start() -> Self {
        Self::with(&["--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"])
            .await
    }

    /// With settings of the test's own.
    pub async fn with(settings: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let port = ports::free();
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let child = Child::start("redis-server", command(&directory, port, &settings));
        let mut redis = Self { directory, port, settings, child };
        redis.answering().await;
        redis
    }

    /// `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Lines of an answer, as `redis-cli` prints them to a pipe, without empty ones; none when Redis is away.
    pub async fn ask(&self, command: &[&str]) -> Vec<String> {
        let mut asking = Command::new("redis-cli");
        asking.args(["-p", &self.port.to_string()]).args(command);
        let ran = run("redis-cli", asking).await;
        let lines = ran.lines.iter().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty());
        if ran.code == Some(0) { lines.collect() } else { Vec::new() }
    }

    /// Whether it says that it is one.
    pub async fn is_primary(&self) -> bool {
        self.ask(&["ROLE"]).await.first().is_some_and(|role| role == "master")
    }

    /// SIGTERM: Redis syncs its append-only file and ends.
    pub async fn terminate(&mut self) {
        self.child.terminate();
        self.child.exit(START).await;
    }

    /// SIGKILL. What was written in the last second may be gone with the page cache of a machine that fails, but not with
    /// the process.
    pub async fn kill(&mut self) {
        self.child.kill().await;
    }

    /// The same data on the same port again.
    pub async fn restart(&mut self) {
        self.child = Child::start("redis-server", command(&self.directory, self.port, &self.settings));
        self.answering().await;
    }

    /// SIGSTOP.
    pub async fn pause(&self) {
        self.child.pause().await;
    }

    /// SIGCONT.
    pub fn wake(&self) {
        self.child.wake();
    }

    /// The number that a command of plain words is answered with.
    pub async fn number(&self, command: &str) -> Option<u64> {
        ask(self.port, command).await?.strip_prefix(':')?.parse().ok()
    }

    async fn answering(&mut self) {
        let (port, child) = (self.port, &mut self.child);
        eventually("Redis answers", START, || {
            assert!(child.ended().is_none(), "Redis ended; {}", child.tail());
            async move { ask(port, "PING").await.filter(|answer| answer == "+PONG").map(drop) }
        })
        .await;
    }
}

/// The first line of an answer.
async fn ask(port: u16, command: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.write_all(format!("{command}\r\n").as_bytes()).await.ok()?;
    BufReader::new(stream).lines().next_line().await.ok()?
}

fn command(directory: &TempDir, port: u16, settings: &[String]) -> Command {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.arg("--dir").arg(directory.path()).args(settings);
    command
}
