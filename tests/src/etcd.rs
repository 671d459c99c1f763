//! A real etcd of one member.

use std::time::Duration;

use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    child::Child,
    ports,
    program::{START, get},
    wait::eventually,
};

/// etcd on a free port, in a directory of its own.
pub struct Etcd {
    directory: TempDir,
    client: u16,
    peer: u16,
    child: Child,
}

impl Etcd {
    /// Starts it and waits until it answers.
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (client, peer) = (ports::free(), ports::free());
        let child = Child::start("etcd", command(&directory, client, peer));
        let mut etcd = Self { directory, client, peer, child };
        etcd.answering(START).await;
        etcd
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.child.kill().await;
    }

    /// The same data on the same port again.
    pub async fn restart(&mut self) {
        self.child = Child::start("etcd", command(&self.directory, self.client, self.peer));
        self.answering(START).await;
    }

    /// SIGSTOP.
    pub async fn pause(&self) {
        self.child.pause().await;
    }

    /// SIGCONT, and waits until it answers.
    pub async fn wake(&mut self) {
        self.child.wake();
        self.answering(START).await;
    }

    async fn answering(&mut self, limit: Duration) {
        let address = ([127, 0, 0, 1], self.client).into();
        let child = &mut self.child;
        eventually("etcd answers", limit, || {
            assert!(child.ended().is_none(), "etcd ended; {}", child.tail());
            async move {
                let (status, body) = get(address, "/health").await?;
                (status == 200 && body.contains("true")).then_some(())
            }
        })
        .await;
    }
}

fn command(directory: &TempDir, client: u16, peer: u16) -> Command {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let mut command = Command::new("etcd");
    if cfg!(target_arch = "aarch64") {
        // Older releases refuse to start there without it.
        command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
    }
    command.arg("--data-dir").arg(directory.path().join("etcd"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}"), "--log-level", "warn"]);
    command
}
