//! A Python of its own with paho-mqtt in it, and the device that is written in it.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::{command::run, tenant::TestTenant};

/// Makes a virtual environment with paho-mqtt in `directory`, and gives its Python.
///
/// # Panics
/// When Python has no venv, or pip can't install paho-mqtt.
pub async fn python(directory: &Path) -> PathBuf {
    let environment = directory.join("venv");
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(&environment);
    let made = run("python3 -m venv", venv).await;
    assert_eq!(made.code, Some(0), "python3 can't make a virtual environment (python3-venv?): {made:#?}");
    let mut pip = Command::new(environment.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "paho-mqtt>=2,<3"]);
    let installed = run("pip", pip).await;
    assert_eq!(installed.code, Some(0), "pip can't install paho-mqtt, which this test needs: {installed:#?}");
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
