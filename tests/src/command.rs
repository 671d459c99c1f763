//! Programs that a person would run: `penstockctl`, `mosquitto_pub`, `mosquitto_sub`.

use std::time::Duration;

use tokio::process::Command;

use crate::{binaries, child::Child, tenant::TestTenant};

/// For a command to end.
const LIMIT: Duration = Duration::from_secs(60);

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; None: ended by a signal.
    pub code: Option<i32>,
    /// Standard output and error, by line.
    pub lines: Vec<String>,
}

impl Ran {
    /// Its lines.
    ///
    /// # Panics
    /// When it failed.
    pub fn fine(self) -> Vec<String> {
        assert_eq!(self.code, Some(0), "failed: {:#?}", self.lines);
        self.lines
    }
}

/// `penstockctl` as a user at a server.
pub fn ctl(server: &str, user: &str, password: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binaries::path("penstockctl"));
    command.args(["--server", server, "--user", user]).args(arguments).env("PENSTOCK_PASSWORD", password);
    command
}

/// One of the mosquitto clients as a tenant's device.
pub fn mosquitto(
    program: &str,
    target: &str,
    tenant: &TestTenant,
    client: &str,
    arguments: &[&str],
) -> Command {
    let (host, port) = target.split_once(':').expect("host:port");
    // Into a pipe they would print only when their buffer is full.
    let mut command = Command::new("stdbuf");
    command.args(["-oL", program]);
    command.args(["-h", host, "-p", port, "-i", client, "-u", &tenant.device(), "-P", &tenant.password]);
    command.args(["-V", "mqttv311"]).args(arguments);
    command
}

/// Runs a command to its end.
pub async fn run(name: &str, command: Command) -> Ran {
    let mut child = Child::start(name, command);
    let code = child.exit(LIMIT).await;
    Ran { code, lines: child.lines() }
}
