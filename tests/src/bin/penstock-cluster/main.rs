//! `penstock-cluster` (make cluster): etcd, Redis, routers, gateways and tenant `demo` on loopback, for people who want to
//! see a cluster at work. It starts them, says how to use them, watches them and stops them in order. Not for serving:
//! there is one etcd and one Redis, without passwords.

mod arguments;
mod demo;
mod node;
mod welcome;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Parser;
use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{arguments::Arguments, demo::Passwords, node::Node, welcome::Shown};

/// For one process to be ready, on a busy machine.
const START: Duration = Duration::from_secs(60);
/// For one process to end by itself: longer than the programs' own drain.
const STOP: Duration = Duration::from_secs(40);
/// Between two looks at whether a process has ended.
const LOOK: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    match runtime.block_on(run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("penstock-cluster: {error:#}");
    ExitCode::FAILURE
}

/// Where data and logs are; a temporary one goes when the cluster has stopped.
enum Place {
    Given(PathBuf),
    Temporary(TempDir),
}

impl Place {
    fn new(arguments: &Arguments) -> Result<Self> {
        let place = match &arguments.dir {
            Some(dir) => Self::Given(dir.clone()),
            None => Self::Temporary(tempfile::Builder::new().prefix("penstock-cluster-").tempdir()?),
        };
        let logs = place.path().join("logs");
        std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        Ok(place)
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Given(dir) => dir.clone(),
            Self::Temporary(dir) => dir.path().to_owned(),
        }
    }
}

/// The two signals that end everything.
struct Stop(Signal, Signal);

impl Stop {
    fn new() -> Result<Self> {
        Ok(Self(signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    }

    async fn asked(&mut self) {
        tokio::select! { _ = self.0.recv() => {}, _ = self.1.recv() => {} }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    let mut stop = Stop::new()?;
    arguments.check_ports()?;
    let place = Place::new(&arguments)?;
    let dir = place.path();
    let mut nodes = Vec::new();
    let started = tokio::select! {
        started = Box::pin(start(&arguments, &dir, &mut nodes)) => Some(started),
        () = stop.asked() => None,
    };
    let ended = match started {
        Some(Ok(shown)) => {
            println!("{}", shown.text(&arguments));
            Box::pin(watch(&mut nodes, &mut stop)).await;
            Ok(())
        }
        Some(Err(error)) => Err(error),
        None => Ok(()),
    };
    println!("\nStopping: gateways, routers, Redis, etcd (once more to kill them)");
    tokio::select! {
        () = stop_all(&mut nodes) => {}
        () = stop.asked() => println!("killing what is left"),
    }
    match (&ended, place) {
        // Logs are wanted now.
        (Err(_), Place::Temporary(kept)) => println!("logs are in {}/logs", kept.keep().display()),
        (Err(_), Place::Given(dir)) => println!("logs are in {}/logs", dir.display()),
        (Ok(()), Place::Given(dir)) => println!("stopped; data and logs stay in {}", dir.display()),
        (Ok(()), Place::Temporary(_)) => println!("stopped; data and logs are removed"),
    }
    ended
}

/// Starts all in the order in which they need each other; each is in `nodes` as soon as it runs.
async fn start(arguments: &Arguments, dir: &std::path::Path, nodes: &mut Vec<Node>) -> Result<Shown> {
    let passwords = Passwords::of(dir)?;
    let secret = passwords.cluster_secret(dir)?;
    let say = |name: &str| println!("starting {name}");
    say("etcd");
    let etcd = add(nodes, Node::etcd(dir)?).await?;
    say("Redis");
    let redis = add(nodes, Node::redis(dir)?).await?;
    for (number, port) in arguments.grpc.iter().enumerate() {
        say(&format!("router-{number}"));
        let password = passwords.admin();
        add(nodes, Node::router(dir, number, *port, &etcd, &redis, &secret, password)?).await?;
    }
    for (number, port) in arguments.mqtt.iter().enumerate() {
        say(&format!("gateway-{number}"));
        add(nodes, Node::gateway(dir, number, *port, &etcd, &secret)?).await?;
    }
    demo::create(&arguments.servers(), &passwords).await?;
    let admin = nodes.iter().filter_map(Node::admin).map(|(name, at)| (name.to_owned(), at)).collect();
    let web = nodes.iter().filter_map(Node::web).collect();
    let app_file = passwords.app_file(dir)?;
    Ok(Shown { dir: dir.to_owned(), etcd, redis, admin, web, passwords, app_file })
}

async fn add(nodes: &mut Vec<Node>, node: Node) -> Result<String> {
    let url = node.url();
    nodes.push(node);
    if let Some(node) = nodes.last_mut() {
        node.ready(START).await?;
    }
    Ok(url)
}

/// Until a signal; a process that ends meanwhile is told, and the others go on: that is what a cluster is for.
async fn watch(nodes: &mut [Node], stop: &mut Stop) {
    loop {
        tokio::select! {
            () = stop.asked() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        for line in nodes.iter_mut().filter_map(Node::news) {
            println!("{line}");
        }
    }
}

async fn stop_all(nodes: &mut [Node]) {
    for node in nodes.iter_mut().rev() {
        if let Err(error) = node.stop(STOP).await {
            println!("{error:#}");
        }
    }
}

/// A port that is taken, with what to do.
fn taken(what: &str, port: u16, flag: &str, error: &std::io::Error) -> Result<()> {
    bail!(
        "{what} can't listen on 127.0.0.1:{port}: {error}; end what uses it, or give other ports with --{flag}"
    )
}
