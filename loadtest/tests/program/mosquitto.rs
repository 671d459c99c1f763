//! Against mosquitto, as it comes: the program needs nothing of Penstock.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::Instant;

use crate::process::run;

/// A mosquitto; killed when dropped.
struct Mosquitto {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Mosquitto {
    /// Starts one on a free port. Another process may take the port first: then it is tried again.
    fn start() -> Self {
        for _ in 0..5 {
            if let Some(started) = Self::try_start() {
                return started;
            }
        }
        panic!("mosquitto does not start");
    }

    fn try_start() -> Option<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("mosquitto.conf");
        // Its default queue of 1,000 messages a subscriber drops, rightly reported as lost, on a busy machine.
        let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n");
        std::fs::write(&config, text).unwrap();
        // Debian puts it where a user's PATH does not look.
        let debian = Path::new("/usr/sbin/mosquitto");
        let program = if debian.exists() { debian } else { Path::new("mosquitto") };
        let mut command = Command::new(program);
        command.arg("-c").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("mosquitto is installed (make packages)");
        let mut own = Self { child, port, _folder: folder };
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end && own.child.try_wait().unwrap().is_none() {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(own);
            }
            std::thread::yield_now();
        }
        None
    }
}

#[tokio::test]
async fn mosquitto_passes() {
    let broker = Mosquitto::start();
    let target = format!("--target mqtt://127.0.0.1:{} --json", broker.port);
    let json = run(&format!("ingest {target} --clients 10 --messages 2000 --duration 60s")).await.passed();
    assert_eq!(
        (&json["verdict"]["seen"], &json["verdict"]["verified_by"]),
        (&2_000.into(), &"subscriber".into())
    );
    let json =
        run(&format!("ingest {target} --clients 10 --qos 0 --rate 500/s --duration 1s")).await.passed();
    assert!(json["verdict"]["seen"].as_u64().unwrap() > 100, "{json}");
    let json = run(&format!("fanout {target} --clients 20 --rate 50/s --duration 1s")).await.passed();
    assert_eq!(
        json["messages"]["received"].as_u64(),
        json["messages"]["sent"].as_u64().map(|sent| sent * 20)
    );
    let json = run(&format!("storm {target} --clients 100 --rounds 2")).await.passed();
    assert_eq!(json["measured"]["connects"], 200);
    let json = run(&format!("takeover {target} --clients 50")).await.passed();
    assert_eq!(json["latency_ms"]["takeover"]["count"], 50);
}
