//! A Redis server of a test's own: a child process on a free port with a directory of its own, killed when dropped.

// Child processes live in real time: conditions are polled with a deadline.
#![allow(clippy::disallowed_methods)]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(20);

/// The server and its directory.
pub struct RedisServer {
    child: Child,
    port: u16,
    directory: TempDir,
    settings: Vec<String>,
}

impl RedisServer {
    /// With an append-only file that is synced always.
    pub fn durable() -> Self {
        Self::start(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// With settings of the caller's; without any, it keeps nothing over a restart.
    pub fn start(settings: &[&str]) -> Self {
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        // Another process may take the free port first.
        for _ in 0..10 {
            let port = free_port();
            let directory = tempfile::tempdir().unwrap();
            let child = spawn(port, &directory, &settings);
            let mut server = Self { child, port, directory, settings: settings.clone() };
            if server.answers() {
                return server;
            }
        }
        panic!("no redis-server could be started");
    }

    /// A sentinel instead, with the lines of its file.
    pub fn sentinel(lines: &str) -> Self {
        for _ in 0..10 {
            let (port, directory) = (free_port(), tempfile::tempdir().unwrap());
            let file = directory.path().join("sentinel.conf");
            std::fs::write(&file, format!("port {port}\nbind 127.0.0.1\n{lines}")).unwrap();
            let mut command = Command::new("redis-server");
            command.arg(&file).arg("--sentinel").current_dir(directory.path()).stdout(Stdio::null());
            let child = command.spawn().unwrap();
            let mut server = Self { child, port, directory, settings: Vec::new() };
            if server.answers() {
                return server;
            }
        }
        panic!("no sentinel could be started");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it without warning.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, on the same port and directory, after `kill`.
    pub fn start_again(&mut self) {
        self.child = spawn(self.port, &self.directory, &self.settings);
        assert!(self.answers(), "redis-server did not come back");
    }

    /// Replaces its settings, from the next start on.
    pub fn set(&mut self, settings: &[&str]) {
        self.settings = settings.iter().map(|s| (*s).to_owned()).collect();
    }

    /// Stops its processor time: connections stay, answers don't come.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// After `pause`.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Sends an inline command on a connection of its own and returns the first bytes of the answer.
    pub fn command(&self, line: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("{line}\r\n").as_bytes())?;
        let mut answer = [0; 16_384];
        let len = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
    }

    fn answers(&mut self) -> bool {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            if self
                .command("PING")
                .is_ok_and(|answer| answer.starts_with("+PONG") || answer.starts_with("-NOAUTH"))
            {
                return self.child.try_wait().unwrap().is_none();
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(port: u16, directory: &TempDir, settings: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"])
        .args(["--dir", directory.path().to_str().unwrap()])
        .args(settings)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}
