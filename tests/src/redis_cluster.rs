//! A real Redis Cluster: primaries with replicas, formed by `redis-cli --cluster create`.

use std::time::Duration;

use tokio::process::Command;

use crate::{command::run, ports, redis::Redis, wait::eventually};

const LIMIT: Duration = Duration::from_secs(60);

/// The nodes. A primary is taken for dead after two seconds.
pub struct RedisCluster {
    /// In no order: any may be a primary or a replica.
    pub nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Three primaries with a replica each, as `replicated:1` wants them.
    pub async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..6 {
            let bus = ports::free().to_string();
            let settings = [
                ["--cluster-enabled", "yes"],
                ["--cluster-node-timeout", "2000"],
                ["--cluster-port", &bus],
                ["--appendonly", "yes"],
                ["--min-replicas-to-write", "1"],
                ["--repl-diskless-sync-delay", "0"],
            ];
            nodes.push(Redis::with(&settings.concat()).await);
        }
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(nodes.iter().map(Redis::address));
        create.args(["--cluster-replicas", "1", "--cluster-yes"]);
        run("redis-cli", create).await.fine();
        let cluster = Self { nodes };
        cluster.well().await;
        cluster
    }

    /// Names two of the nodes.
    pub fn url(&self) -> String {
        let named: Vec<_> = self.nodes.iter().take(2).map(Redis::address).collect();
        format!("redis+cluster://{}", named.join(","))
    }

    /// Waits until all nodes think that all is well and every primary has a replica in step.
    pub async fn well(&self) {
        for node in &self.nodes {
            eventually("a node is well", LIMIT, || async {
                let state = node.ask(&["CLUSTER", "INFO"]).await.join("\n");
                let replication = node.ask(&["INFO", "replication"]).await.join("\n");
                let in_step =
                    replication.contains("master_link_status:up") || replication.contains("state=online");
                (state.contains("cluster_state:ok") && in_step).then_some(())
            })
            .await;
        }
    }

    /// Slot of a tenant's partition.
    pub async fn slot(&self, tenant: &str, partition: u32) -> String {
        let key = format!("{{{tenant}/{partition}}}");
        self.nodes[0].ask(&["CLUSTER", "KEYSLOT", &key]).await.remove(0)
    }

    /// Index of the primary that has a slot.
    pub async fn owner(&self, slot: &str) -> usize {
        self.find(slot, None).await.unwrap_or_else(|| panic!("nobody has keys of slot {slot}"))
    }

    /// Waits until another node than the one that had the slot has it.
    pub async fn promoted(&self, slot: &str, instead_of: usize) -> usize {
        eventually("a replica is promoted", LIMIT, || self.find(slot, Some(instead_of))).await
    }

    async fn find(&self, slot: &str, but: Option<usize>) -> Option<usize> {
        for (at, node) in self.nodes.iter().enumerate().filter(|(at, _)| Some(*at) != but) {
            let count = node.ask(&["CLUSTER", "COUNTKEYSINSLOT", slot]).await;
            if node.is_primary().await && count.first().is_some_and(|count| count != "0") {
                return Some(at);
            }
        }
        None
    }

    /// Index of a primary without keys of the slot.
    pub async fn other(&self, slot: &str) -> usize {
        let owner = self.owner(slot).await;
        for (at, node) in self.nodes.iter().enumerate() {
            if at != owner && node.is_primary().await {
                return at;
            }
        }
        panic!("there is one primary only");
    }

    /// Moves a slot as `redis-cli --cluster reshard` does: key by key, then its ownership.
    pub async fn move_slot(&self, slot: &str, from: usize, to: usize) {
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let (source_id, target_id) =
            (source.ask(&["CLUSTER", "MYID"]).await, target.ask(&["CLUSTER", "MYID"]).await);
        let ok = |answer: Vec<String>| assert_eq!(answer, ["OK"]);
        ok(target.ask(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &source_id[0]]).await);
        ok(source.ask(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &target_id[0]]).await);
        let address = target.address();
        let (host, port) = address.split_once(':').expect("host:port");
        loop {
            let keys = source.ask(&["CLUSTER", "GETKEYSINSLOT", slot, "1"]).await;
            let Some(key) = keys.first() else { break };
            let moved = source.ask(&["MIGRATE", host, port, key, "0", "10000"]).await;
            assert!(moved == ["OK"] || moved == ["NOKEY"], "{moved:?}");
        }
        ok(target.ask(&["CLUSTER", "SETSLOT", slot, "NODE", &target_id[0]]).await);
        ok(source.ask(&["CLUSTER", "SETSLOT", slot, "NODE", &target_id[0]]).await);
    }
}
