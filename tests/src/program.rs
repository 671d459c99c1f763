//! One of Penstock's server programs: started on ports that it picks and logs, restarted on the same ones.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::timeout,
};

use crate::{binaries, child::Child, wait::eventually};

/// For a program to serve, on a busy machine.
pub const START: Duration = Duration::from_secs(30);

/// A program, its command line and where it listens.
pub struct Program {
    name: String,
    binary: &'static str,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// Listener (mqtt, link, grpc, http, admin) to address; `:0` until the first start.
    listeners: BTreeMap<&'static str, SocketAddr>,
    child: Option<Child>,
}

impl Program {
    /// Not started yet. What has a WebSocket door has it on a port of its own.
    pub fn new(name: &str, binary: &'static str, listeners: &[&'static str]) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let http = matches!(binary, "penstock" | "penstock-router").then_some("http");
        let listeners = listeners.iter().copied().chain(http).map(|listener| (listener, any)).collect();
        let (arguments, environment) = (Vec::new(), Vec::new());
        Self { name: name.to_owned(), binary, arguments, environment, listeners, child: None }
    }

    /// Adds a flag with its value.
    pub fn flag(mut self, flag: &str, value: impl Into<String>) -> Self {
        self.arguments.extend([format!("--{flag}"), value.into()]);
        self
    }

    /// Adds a flag without a value.
    pub fn switch(mut self, flag: &str) -> Self {
        self.arguments.push(format!("--{flag}"));
        self
    }

    /// Adds an environment variable.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binaries::path(self.binary));
        command.args(&self.arguments);
        for (listener, address) in &self.listeners {
            command.arg(format!("--{listener}-listen")).arg(address.to_string());
        }
        command.envs(self.environment.iter().cloned());
        // An empty directory's worth of settings: nothing of the developer's own.
        command.env_remove("PENSTOCK_PASSWORD").env_remove("PENSTOCK_USER").env_remove("PENSTOCK_SERVER");
        command
    }

    /// Starts the process without waiting for it to serve.
    pub fn spawn(&mut self) {
        self.child = Some(Child::start(&self.name, self.command()));
    }

    /// Starts the process and waits until it is ready.
    ///
    /// # Panics
    /// When it ends, or isn't ready in time.
    pub async fn start(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// Waits until all listeners are logged and `/readyz` is 200.
    ///
    /// # Panics
    /// When it ends, or isn't ready in time.
    pub async fn ready(&mut self) {
        let child = self.child.as_mut().expect("started");
        for (listener, address) in &mut self.listeners {
            let what = format!("the listener {listener}");
            *address = child.line(&what, START, |line| listening(line, listener)).await;
        }
        let Some(admin) = self.listeners.get("admin").copied() else { return };
        let end = tokio::time::Instant::now() + START;
        while !matches!(get(admin, "/readyz").await, Some((200, _))) {
            let ended = child.ended();
            assert!(ended.is_none(), "{} ended before it was ready; {}", self.name, child.tail());
            assert!(tokio::time::Instant::now() < end, "{} is not ready; {}", self.name, child.tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its `--node-id`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    ///
    /// # Panics
    /// When it has no such listener.
    pub fn address(&self, listener: &str) -> SocketAddr {
        *self.listeners.get(listener).unwrap_or_else(|| panic!("{} has no listener {listener}", self.name))
    }

    /// Its process.
    ///
    /// # Panics
    /// When it is not started.
    pub fn child(&mut self) -> &mut Child {
        self.child.as_mut().unwrap_or_else(|| panic!("{} is not started", self.name))
    }

    /// Memory of its process that is resident, bytes; 0 when it does not run.
    pub fn resident_bytes(&self) -> u64 {
        self.child.as_ref().map_or(0, Child::resident_bytes)
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.child().kill().await;
    }

    /// SIGTERM, and waits for a good end.
    ///
    /// # Panics
    /// When it does not end with exit code 0 in time.
    pub async fn drain(&mut self) {
        let name = self.name.clone();
        let child = self.child();
        child.terminate();
        let code = child.exit(Duration::from_secs(40)).await;
        assert_eq!(code, Some(0), "{name} did not drain; {}", child.tail());
    }

    /// The value of a metric, summed over its labels; None: no answer, or no such metric.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let (status, body) = get(self.address("admin"), "/metrics").await?;
        let values = body.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let rest =
                rest.strip_prefix('{').map_or(rest, |labels| labels.split_once('}').map_or("", |p| p.1));
            rest.strip_prefix(' ')?.split(' ').next()?.parse::<f64>().ok()
        });
        let values: Vec<f64> = values.collect();
        (status == 200 && !values.is_empty()).then(|| values.iter().sum())
    }

    /// Waits until a metric satisfies a condition.
    ///
    /// # Panics
    /// When the limit is over.
    pub async fn metric_until(&self, name: &str, limit: Duration, fits: impl Fn(f64) -> bool) -> f64 {
        let fits = &fits;
        eventually(&format!("{name} of {}", self.name), limit, || async move {
            self.metric(name).await.filter(|value| fits(*value))
        })
        .await
    }
}

/// The address in a structured log line `listening` of that listener.
fn listening(line: &str, listener: &str) -> Option<SocketAddr> {
    let value: Value = serde_json::from_str(line).ok()?;
    let field = |name: &str| {
        value.get(name).or_else(|| value.get("fields")?.get(name)).and_then(Value::as_str).map(str::to_owned)
    };
    (field("message")? == "listening" && field("listener")? == listener)
        .then(|| field("address")?.parse().ok())
        .flatten()
}

/// One HTTP GET: status and body.
pub async fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    };
    timeout(Duration::from_secs(5), exchange).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_found_in_both_shapes_of_a_log_line() {
        let address = Some(SocketAddr::from(([127, 0, 0, 1], 1883)));
        let flat = r#"{"message":"listening","listener":"mqtt","address":"127.0.0.1:1883"}"#;
        let nested = r#"{"fields":{"message":"listening","listener":"mqtt","address":"127.0.0.1:1883"}}"#;
        assert_eq!(listening(flat, "mqtt"), address);
        assert_eq!(listening(nested, "mqtt"), address);
        assert_eq!(listening(nested, "grpc"), None);
        assert_eq!(listening("listening mqtt 127.0.0.1:1883", "mqtt"), None);
    }
}
