//! What is printed when the cluster serves: commands that work when they are pasted.

use std::{
    fmt::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use crate::{arguments::Arguments, demo::Passwords};

/// What there is to say.
pub struct Shown {
    /// Data and logs.
    pub dir: PathBuf,
    /// Its URL.
    pub etcd: String,
    /// Its URL.
    pub redis: String,
    /// Admin listeners of gateways and routers.
    pub admin: Vec<(String, SocketAddr)>,
    /// WebSocket doors of routers.
    pub web: Vec<SocketAddr>,
    /// Of all users.
    pub passwords: Passwords,
    /// With the password of `demo/app`.
    pub app_file: PathBuf,
}

/// A program beside this one.
fn near(program: &str) -> String {
    let path = std::env::current_exe().ok().map(|here| here.with_file_name(program));
    path.map_or_else(|| program.to_owned(), |path| path.display().to_string())
}

impl Shown {
    /// The text.
    pub fn text(&self, arguments: &Arguments) -> String {
        let (device, app) = (self.passwords.password("demo/device"), self.passwords.password("demo/app"));
        let (ctl, mapper) = (near("penstockctl"), near("penstock-mapper"));
        let routes =
            Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("mapper").join("examples/json.toml");
        let (first, last) = (arguments.mqtt.first(), arguments.mqtt.last());
        let (first, last) = (first.copied().unwrap_or_default(), last.copied().unwrap_or_default());
        let servers = arguments.servers();
        let (router, other) = (servers.first(), servers.last());
        let (router, other) = (router.map_or("", String::as_str), other.map_or("", String::as_str));
        let mut text = format!(
            "
A Penstock cluster serves: {} gateways, {} routers, tenant demo. Ctrl-C stops it.

A microservice that waits for what devices publish (leave it running), at one router:
  PENSTOCK_PASSWORD={app} {ctl} --server {router} --user demo/app consume --group first --start earliest
A device that publishes, at one gateway:
  mosquitto_pub -p {first} -u demo/device -P {device} -i device-1 -q 1 -t sensors/1/readings -m '{{\"temperature\": 21.5}}'
A device that listens at another gateway, and a push to it through another router:
  mosquitto_sub -p {last} -u demo/device -P {device} -i device-2 -q 1 -t 'commands/#'
  PENSTOCK_PASSWORD={app} {ctl} --server {other} --user demo/app push --topic commands/1 --client device-2 --qos 1 --payload restart --wait
A mapper that shows what it would send to a REST API (mapper/README.md):
  {mapper} --config {} --server {router} --user demo/app --password-file {} --start earliest --admin-listen 127.0.0.1:0 --dry-run
The operator:
  PENSTOCK_PASSWORD={} {ctl} --server {} --user system/admin cluster
",
            arguments.mqtt.len(),
            arguments.grpc.len(),
            routes.display(),
            self.app_file.display(),
            self.passwords.admin(),
            servers.join(","),
        );
        let _ = writeln!(text, "\netcd {}, Redis {}", self.etcd, self.redis);
        for address in &self.web {
            let _ = writeln!(text, "WebSocket door: http://{address}/notification2/");
        }
        for (name, address) in &self.admin {
            let _ = writeln!(text, "{name}: http://{address}/metrics, /readyz, /config");
        }
        let _ = write!(
            text,
            "Logs: {}. Passwords: {}.",
            self.dir.join("logs").display(),
            self.dir.join("credentials").display()
        );
        text
    }
}
