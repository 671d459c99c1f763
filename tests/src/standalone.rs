//! `penstock`, everything in one process, on a data directory of its own.

use penstock_client::Client;
use tempfile::TempDir;

use crate::{program::Program, tenant::TestTenant};

const PASSWORD: &str = "demo-password-0123456789";

/// Runs until it is dropped; the data goes with it.
pub struct Penstock {
    /// The process.
    pub program: Program,
    /// Holds the data directory.
    pub directory: TempDir,
}

impl Penstock {
    /// Starts it on an empty data directory.
    pub async fn start() -> Self {
        Self::start_with(&[], &[]).await
    }

    /// Starts it with more listeners and flags.
    pub async fn start_with(listeners: &[&'static str], flags: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let listeners = [&["admin", "grpc", "mqtt"], listeners].concat();
        let program = Program::new("penstock", "penstock", &listeners);
        let program = flags.iter().fold(program, |program, (flag, value)| program.flag(flag, *value));
        let mut program = program
            .flag("data-dir", directory.path().join("data").display().to_string())
            .flag("log-format", "json")
            .variable("PENSTOCK_DEMO_PASSWORD", PASSWORD)
            .variable("PENSTOCK_ADMIN_PASSWORD", PASSWORD);
        program.start().await;
        Self { program, directory }
    }

    /// Tenant `demo`, as the first run made it.
    pub fn demo(&self) -> TestTenant {
        TestTenant { name: "demo".into(), password: PASSWORD.into() }
    }

    /// MQTT, `host:port`.
    pub fn target(&self) -> String {
        self.program.address("mqtt").to_string()
    }

    /// The gRPC door.
    pub fn server(&self) -> String {
        format!("http://{}", self.program.address("grpc"))
    }

    /// A client of `demo/app`.
    pub fn client(&self) -> Client {
        self.demo().client(&[self.server()])
    }

    /// SIGKILL, and the same data on the same ports again.
    pub async fn crash_and_restart(&mut self) {
        self.program.kill().await;
        self.program.start().await;
    }
}
