//! A whole cluster: etcd, Redis, routers, gateways, as processes.

use std::{path::PathBuf, time::Duration};

use penstock_client::Client;
use tempfile::TempDir;

use crate::{
    etcd::Etcd, program::Program, redis::Redis, redis_cluster::RedisCluster, tenant::TestTenant,
    wait::eventually,
};

/// Of `system/admin`.
pub const ADMIN_PASSWORD: &str = "admin-password-0123456789";
/// TTL of the leases in etcd that members hold.
pub const LEASE: Duration = Duration::from_secs(10);

/// What routers can be pointed to.
pub trait Backend {
    /// For `--redis`.
    fn url(&self) -> String;
}

impl Backend for Redis {
    fn url(&self) -> String {
        self.url()
    }
}

impl Backend for RedisCluster {
    fn url(&self) -> String {
        self.url()
    }
}

/// Everything runs until it is dropped.
pub struct Cluster<S = Redis> {
    /// In the order of their start.
    pub gateways: Vec<Program>,
    /// In the order of their start.
    pub routers: Vec<Program>,
    /// The registry.
    pub etcd: Etcd,
    /// The store.
    pub redis: S,
    durability: String,
    secret: PathBuf,
    _directory: TempDir,
}

impl Cluster {
    /// Starts it and waits until all is ready, and linked.
    pub async fn start(gateways: usize, routers: usize) -> Self {
        Self::start_on(gateways, routers, Redis::start().await, "memory").await
    }
}

impl<S: Backend> Cluster<S> {
    /// The same on a store of the test's own, at a durability class.
    pub async fn start_on(gateways: usize, routers: usize, redis: S, durability: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let secret = directory.path().join("cluster-secret");
        std::fs::write(&secret, "a-cluster-secret-of-32-characters").expect("the secret is written");
        let mut cluster = Self {
            gateways: Vec::new(),
            routers: Vec::new(),
            etcd: Etcd::start().await,
            redis,
            durability: durability.to_owned(),
            secret,
            _directory: directory,
        };
        for _ in 0..routers {
            cluster.add_router().await;
        }
        for _ in 0..gateways {
            cluster.add_gateway().await;
        }
        cluster.linked().await;
        cluster
    }

    /// A router's program, not started.
    pub fn router(&self, name: &str) -> Program {
        Program::new(name, "penstock-router", &["admin", "grpc", "link"])
            .flag("node-id", name)
            .flag("etcd", self.etcd.url())
            .flag("redis", self.redis.url())
            .flag("durability", &self.durability)
            .flag("cluster-secret-file", self.secret.display().to_string())
            // Of WebSockets only; no test waits for a minute.
            .flag("http-ack-timeout", "3s")
            .variable("PENSTOCK_ADMIN_PASSWORD", ADMIN_PASSWORD)
    }

    /// A gateway's program, not started.
    pub fn gateway(&self, name: &str) -> Program {
        Program::new(name, "penstock-gateway", &["admin", "mqtt"])
            .flag("node-id", name)
            .flag("etcd", self.etcd.url())
            .flag("shards", "2")
            .flag("cluster-secret-file", self.secret.display().to_string())
    }

    /// One router more.
    pub async fn add_router(&mut self) {
        let mut router = self.router(&format!("router-{}", self.routers.len()));
        router.start().await;
        self.routers.push(router);
    }

    /// One gateway more.
    pub async fn add_gateway(&mut self) {
        let mut gateway = self.gateway(&format!("gateway-{}", self.gateways.len()));
        gateway.start().await;
        self.gateways.push(gateway);
    }

    /// A gateway of the test's own, started and linked.
    pub async fn add(&mut self, mut gateway: Program) {
        gateway.start().await;
        self.gateways.push(gateway);
        self.linked().await;
    }

    /// Routers' gRPC doors.
    pub fn servers(&self) -> Vec<String> {
        self.routers.iter().map(|router| format!("http://{}", router.address("grpc"))).collect()
    }

    /// Gateways' MQTT listeners.
    pub fn targets(&self) -> Vec<String> {
        self.gateways.iter().map(|gateway| gateway.address("mqtt").to_string()).collect()
    }

    /// `system/admin`.
    pub fn admin(&self) -> Client {
        let builder = self.servers().into_iter().fold(Client::builder(), |builder, url| builder.server(url));
        builder.credentials("system/admin", ADMIN_PASSWORD).connect_lazy().expect("a client")
    }

    /// A new tenant.
    pub async fn tenant(&self, name: &str) -> TestTenant {
        TestTenant::create(&self.admin(), name).await
    }

    /// A client of a tenant at all routers.
    pub fn client(&self, tenant: &TestTenant) -> Client {
        tenant.client(&self.servers())
    }

    /// Waits until every router has a link from every shard of every gateway, and all are registered.
    pub async fn linked(&self) {
        self.linked_by(self.gateways.len()).await;
    }

    /// The same, when only so many of the gateways are alive.
    pub async fn linked_by(&self, gateways: usize) {
        let members = gateways + self.routers.len();
        for server in self.servers() {
            let admin = Client::builder().server(server).credentials("system/admin", ADMIN_PASSWORD);
            let admin = admin.connect_lazy().expect("a client").admin();
            let admin = &admin;
            eventually("all are registered and linked", Duration::from_secs(30), || async move {
                let cluster = admin.cluster().await.ok()?;
                let linked: std::collections::BTreeSet<u64> =
                    cluster.links.iter().map(|link| link.gateway).collect();
                let registered = cluster.members.iter().filter(|member| member.registered).count();
                (registered >= members && linked.len() >= gateways).then_some(())
            })
            .await;
        }
    }
}
