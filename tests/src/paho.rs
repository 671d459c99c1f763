//! A Python of its own with paho-mqtt and more in it, and the devices and microservices that are written in it.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::{command::run, tenant::TestTenant};

const PAHO: &str = "paho-mqtt>=2,<3";
/// A WebSocket client and an Avro library that know nothing of us.
const MICROSERVICE: [&str; 2] = ["websocket-client==1.9.2", "fastavro==1.13.1"];

/// Makes a virtual environment with paho-mqtt in `directory`, and gives its Python.
///
/// # Panics
/// When Python has no venv, or pip can't install paho-mqtt.
pub async fn python(directory: &Path) -> PathBuf {
    python_with(directory, &[PAHO]).await
}

/// The same with a WebSocket client and an Avro library.
///
/// # Panics
/// When Python has no venv, or pip can't install one of them.
pub async fn python_of_microservice(directory: &Path) -> PathBuf {
    python_with(directory, &[&[PAHO], &MICROSERVICE[..]].concat()).await
}

async fn python_with(directory: &Path, packages: &[&str]) -> PathBuf {
    let environment = directory.join("venv");
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(&environment);
    let made = run("python3 -m venv", venv).await;
    assert_eq!(made.code, Some(0), "python3 can't make a virtual environment (python3-venv?): {made:#?}");
    let mut pip = Command::new(environment.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(packages);
    let installed = run("pip", pip).await;
    assert_eq!(
        installed.code,
        Some(0),
        "pip can't install {packages:?}, which this test needs: {installed:#?}"
    );
    environment.join("bin/python")
}

/// The device on a target, `host:port`; with a file of authorities over TLS, with `web_socket` over WebSocket.
pub fn device(
    python: &Path,
    target: &str,
    tenant: &TestTenant,
    authorities: Option<&Path>,
    web_socket: bool,
) -> Command {
    let (host, port) = target.split_once(':').expect("host:port");
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/device_with_paho.py"));
    command.args([host, port, &tenant.device(), &tenant.password]);
    command.arg(if web_socket { "websockets" } else { "tcp" }).args(authorities);
    command
}

/// What a microservice in Python is told.
pub struct Microservice<'a> {
    /// WebSocket doors, one or more.
    pub doors: Vec<std::net::SocketAddr>,
    /// MQTT listeners, one or more.
    pub targets: Vec<String>,
    /// Whose it is.
    pub tenant: &'a TestTenant,
    /// Avro schema that the doors write: newer or older.
    pub generation: &'a str,
    /// Keys that sign tokens, where they are in a file.
    pub keys: Option<PathBuf>,
}

impl Microservice<'_> {
    /// The program, which prints `fine`.
    pub fn command(&self, python: &Path) -> Command {
        let doors: Vec<_> = self.doors.iter().map(ToString::to_string).collect();
        let mut command = Command::new(python);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/microservice_with_websockets.py"));
        command.args([&doors.join(","), &self.targets.join(","), &self.tenant.app(), &self.tenant.device()]);
        command.args([&self.tenant.password, self.generation]);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/avro")).args(&self.keys);
        command
    }
}
