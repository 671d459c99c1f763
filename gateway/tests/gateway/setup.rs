//! A gateway with its registry and routers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use penstock_common::{
    clock::Seams,
    name::{ClientKey, PartitionKey, TenantName},
    rendezvous,
};
use penstock_gateway::{ClusterSecret, Gateway, GatewayConfig, RunningGateway, TransportKind};
use tokio::time::timeout;

use crate::{client::PATIENCE, registry::TestRegistry, router::Router};

pub struct Setup {
    pub registry: Arc<TestRegistry>,
    pub gateway: RunningGateway,
    pub address: SocketAddr,
    pub metrics: prometheus_client::registry::Registry,
}

pub fn config() -> GatewayConfig {
    GatewayConfig {
        mqtt_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        shards: 1,
        cluster_secret: Some(ClusterSecret::new("hush")),
        ..GatewayConfig::default()
    }
}

impl Setup {
    /// A ready gateway in front of these routers; tenant `acme` has one partition, tenant `wide` has four, tenant `small` has
    /// room for one connection.
    pub async fn new(routers: &[&Router]) -> Self {
        Self::with(config(), routers).await
    }

    pub async fn with(config: GatewayConfig, routers: &[&Router]) -> Self {
        let registry = TestRegistry::new();
        registry.define("acme", 1, 100);
        registry.define("wide", 4, 100);
        registry.define("small", 1, 1);
        for router in routers {
            registry.add_router(router.inner.incarnation, &router.address);
        }
        let mut metrics = prometheus_client::registry::Registry::default();
        let running = Gateway::start(config, registry.clone(), Seams::real(), &mut metrics).await.unwrap();
        let mut ready = running.ready();
        if !routers.is_empty() {
            timeout(PATIENCE, ready.wait_for(|ready| *ready)).await.expect("not ready").unwrap();
        }
        let address = running.address(TransportKind::Mqtt).unwrap();
        Self { registry, gateway: running, address, metrics }
    }

    pub fn metric(&self, line: &str) -> Option<f64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        let value = text.lines().find_map(|it| it.strip_prefix(line))?;
        value.trim().parse().ok()
    }
}

/// Waits until something holds that no message tells of.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub fn client_key(client: &str) -> ClientKey {
    ClientKey { tenant: TenantName::new("acme").unwrap(), client: client.to_owned().into() }
}

/// Two incarnations, the first of which is the home of acme's partition when both are there.
pub fn incarnations() -> (u64, u64) {
    let partition = PartitionKey { tenant: TenantName::new("acme").unwrap(), partition: 0 };
    let home = rendezvous::home(&partition, [1, 2]).unwrap();
    (home, 3 - home)
}
