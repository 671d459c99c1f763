//! A Redis Cluster of a test's own: child processes, formed by `redis-cli --cluster create`.

// Child processes live in real time: conditions are polled with a deadline.
#![allow(clippy::disallowed_methods)]

use std::{
    process::Command,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::redis_server::{RedisServer, free_port};

const DEADLINE: Duration = Duration::from_secs(60);
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// The nodes; clones are the same cluster.
#[derive(Clone)]
pub struct RedisCluster {
    nodes: Arc<Mutex<Vec<RedisServer>>>,
}

impl RedisCluster {
    /// With so many primaries, and replicas of each; its nodes are durable and take a failed primary for dead after a
    /// second.
    pub fn start(primaries: usize, replicas: usize, settings: &[&str]) -> Self {
        let node = |_| {
            let bus = free_port().to_string();
            let own = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", &bus];
            RedisServer::start(&[&DURABLE[..], &own[..], settings].concat())
        };
        let nodes: Vec<_> = (0..primaries * (replicas + 1)).map(node).collect();
        let mut create = Command::new("redis-cli");
        create
            .args(["--cluster", "create"])
            .args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())));
        create.args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"]);
        let made = create.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        let cluster = Self { nodes: Arc::new(Mutex::new(nodes)) };
        cluster.answering();
        cluster
    }

    pub fn nodes(&self) -> MutexGuard<'_, Vec<RedisServer>> {
        self.nodes.lock().unwrap()
    }

    /// Names the first two nodes only: the others are found.
    pub fn url(&self) -> String {
        let nodes = self.nodes();
        let named: Vec<_> = nodes.iter().take(2).map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+cluster://{}", named.join(","))
    }

    /// Kills every node and starts it again.
    pub fn restart(&self) {
        self.nodes().iter_mut().for_each(RedisServer::kill);
        self.nodes().iter_mut().for_each(RedisServer::start_again);
        self.answering();
    }

    /// Removes all keys.
    pub fn empty(&self) {
        self.nodes().iter().for_each(|node| assert_eq!(node.command("FLUSHALL").unwrap(), "+OK\r\n"));
    }

    /// Waits until all nodes think that all is well, and replicas have what their primaries have.
    pub fn answering(&self) {
        until("the cluster is well", || {
            self.nodes().iter().all(|node| {
                let state = node.command("CLUSTER INFO").unwrap_or_default();
                let replication = node.command("INFO replication").unwrap_or_default();
                state.contains("cluster_state:ok") && !replication.contains("master_link_status:down")
            })
        });
    }

    /// Index of the node that says that it has the slot.
    pub fn owner(&self, slot: u16) -> Option<usize> {
        self.nodes().iter().position(|node| {
            let table = node.command("CLUSTER NODES").unwrap_or_default();
            let own = table.lines().find(|line| line.contains("myself,master"));
            own.is_some_and(|line| {
                line.split(' ').skip(8).filter_map(range).any(|range| range.contains(&slot))
            })
        })
    }

    /// Name of a node in the cluster.
    pub fn id(&self, node: usize) -> String {
        // A bulk string: its length, then it.
        self.nodes()[node].command("CLUSTER MYID").unwrap().lines().nth(1).unwrap().to_owned()
    }

    /// Runs a command on a node, which must not answer with an error.
    pub fn on(&self, node: usize, command: &str) -> String {
        let answer = self.nodes()[node].command(command).unwrap();
        assert!(!answer.starts_with('-'), "{command}: {answer}");
        answer
    }
}

fn range(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.trim().parse().ok()?)
}

/// Waits for a condition of processes.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "still waiting: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
