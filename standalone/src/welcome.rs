//! What `penstock` prints to stdout when it serves: commands that work when they are pasted.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    path::Path,
};

use crate::{
    credentials,
    first_run::{ADMIN, APP, DEVICE, FirstRun},
};

/// Where things listen.
pub struct Addresses {
    /// MQTT.
    pub mqtt: SocketAddr,
    /// The gRPC door.
    pub grpc: SocketAddr,
}

/// Prints; after the first run passwords are shown to a terminal only.
pub fn print(dir: &Path, run: &FirstRun, at: &Addresses) {
    let show = run.now || io::stdout().is_terminal();
    let mut out = io::stdout().lock();
    // Nobody reads stdout: no reason to end.
    let _ = out.write_all(text(dir, run, at, show).as_bytes()).and_then(|()| out.flush());
}

fn text(dir: &Path, run: &FirstRun, at: &Addresses, show: bool) -> String {
    let mut text = String::new();
    let file = credentials::file(dir);
    let _ = writeln!(text, "\nPenstock serves MQTT on {} and gRPC on {}.", at.mqtt, at.grpc);
    let _ = writeln!(text, "Users and passwords are in {}.", file.display());
    if !show {
        return text;
    }
    let server = format!("http://{}", at.grpc);
    if let (Some(device), Some(app)) = (run.credentials.password(DEVICE), run.credentials.password(APP)) {
        let (device, app) = (quote(device.expose()), quote(app.expose()));
        let broker = format!("-h {} -p {} -u {DEVICE} -P {device}", at.mqtt.ip(), at.mqtt.port());
        let ctl = format!("PENSTOCK_PASSWORD={app} penstockctl --server {server} --user {APP}");
        let _ = writeln!(
            text,
            "
A microservice that waits for what devices publish (leave it running):
  {ctl} consume --group first --start earliest
A device that publishes:
  mosquitto_pub {broker} -i device-1 -q 1 -t sensors/1 -m '{{\"temperature\": 21.5}}'
A device that listens, and a push to it:
  mosquitto_sub {broker} -i device-2 -q 1 -t 'commands/#'
  {ctl} push --topic commands/1 --client device-2 --qos 1 --payload restart --wait"
        );
    }
    if let Some(admin) = run.credentials.password(ADMIN) {
        let admin = quote(admin.expose());
        let _ = writeln!(
            text,
            "The operator:\n  PENSTOCK_PASSWORD={admin} penstockctl --server {server} --user {ADMIN} tenant list"
        );
    }
    text
}

/// As one word for a POSIX shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use penstock_common::{clock::Seams, secret::Secret};

    use super::*;
    use crate::credentials::Credentials;

    fn shown(show: bool) -> String {
        let mut credentials = Credentials::default();
        for user in [ADMIN, APP, DEVICE] {
            credentials.provide(user, Some(&Secret::new(format!("it's-{user}"))), &Seams::real());
        }
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let run = FirstRun { now: show, credentials };
        text(Path::new("data"), &run, &Addresses { mqtt: local(1_884), grpc: local(7_071) }, show)
    }

    #[test]
    fn the_commands_name_the_real_ports_and_quote_the_passwords() {
        let text = shown(true);
        for part in [
            "-p 1884 -u demo/device -P 'it'\\''s-demo/device'",
            "PENSTOCK_PASSWORD='it'\\''s-demo/app' penstockctl --server http://127.0.0.1:7071 --user demo/app consume",
            "--user system/admin tenant list",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn a_later_start_into_a_log_shows_no_password() {
        let text = shown(false);
        assert!(text.contains("data/credentials") && !text.contains("it's"), "{text}");
    }
}
