//! What all faults begin with: two gateways, two routers, twenty publishers, and a group.

use std::time::Duration;

use penstock_tests::{cluster::Cluster, load::Load, tenant::TestTenant};

/// For things to go on after a fault: leases, silence limits and backoffs included.
pub const RECOVERY: Duration = Duration::from_secs(60);

/// As `start`, with a connected subscriber that must see everything.
pub async fn start_watched() -> (Cluster, TestTenant, Load) {
    let cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let load = Load::watched(cluster.client(&tenant), cluster.targets(), &tenant).await;
    load.progress(500, RECOVERY).await;
    (cluster, tenant, load)
}

/// A cluster of 2 + 2 with load on it.
pub async fn start() -> (Cluster, TestTenant, Load) {
    let cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let load = Load::start(cluster.client(&tenant), cluster.targets(), &tenant).await;
    load.progress(500, RECOVERY).await;
    (cluster, tenant, load)
}
