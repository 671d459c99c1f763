//! A real etcd as a child process: on free ports, in a directory that goes with it. It can be killed, started again on its
//! data, stopped and continued.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{Arc, Weak},
    time::Duration,
};

use penstock_common::{
    clock::Seams,
    registry::etcd::{EtcdConfig, EtcdRegistry},
};
use tokio::{sync::Mutex, time::timeout};

use crate::contract::{Handle, LONG};

/// The shortest that is allowed.
pub const TTL: Duration = Duration::from_secs(5);

pub struct Etcd {
    child: Child,
    client: u16,
    peer: u16,
    extra: &'static [&'static str],
    dir: tempfile::TempDir,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(extra: &'static [&'static str]) -> Self {
        loop {
            let (client, peer, dir) = (free_port(), free_port(), tempfile::tempdir().unwrap());
            let child = spawn(client, peer, dir.path(), extra);
            let mut etcd = Self { child, client, peer, extra, dir };
            // Another process may have taken a port in between.
            if etcd.ready().await {
                return etcd;
            }
        }
    }

    async fn ready(&mut self) -> bool {
        let answers = async {
            loop {
                if let Ok(Some(_)) = self.child.try_wait() {
                    return false;
                }
                if EtcdRegistry::open(EtcdConfig::new(vec![self.url()]), Seams::real()).await.is_ok() {
                    return true;
                }
            }
        };
        timeout(LONG, answers).await.expect("etcd never became ready")
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    pub fn config(&self, prefix: &str) -> EtcdConfig {
        let prefix = prefix.to_owned();
        EtcdConfig { prefix, lease_ttl: TTL, lease_block: 100, ..EtcdConfig::new(vec![self.url()]) }
    }

    pub async fn open(&self, prefix: &str) -> Handle {
        EtcdRegistry::open(self.config(prefix), Seams::real()).await.unwrap()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// On the same data and ports.
    pub async fn start_again(&mut self) {
        self.child = spawn(self.client, self.peer, self.dir.path(), self.extra);
        assert!(self.ready().await, "etcd did not start again");
    }

    pub fn stop(&self) {
        self.signal("-STOP");
    }

    pub fn go_on(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(client: u16, peer: u16, dir: &std::path::Path, extra: &[&str]) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    Command::new("etcd")
        .args(["--name", "one", "--initial-cluster", &format!("one={peer}"), "--data-dir"])
        .arg(dir)
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(extra)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd is not installed")
}

static SHARED: Mutex<Weak<Etcd>> = Mutex::const_new(Weak::new());

/// One for all tests that do it no harm; it ends with the last of them.
pub async fn shared() -> Arc<Etcd> {
    let mut shared = SHARED.lock().await;
    if let Some(etcd) = shared.upgrade() {
        return etcd;
    }
    let etcd = Arc::new(Etcd::start().await);
    *shared = Arc::downgrade(&etcd);
    etcd
}
