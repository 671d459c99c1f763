//! Redis Cluster under load at `replicated:1`: a partition's slot moves to another primary, and that primary dies with what it
//! had in memory. PUBACKs stall, then go on; nothing that was acknowledged is lost, stored twice or out of order.

use penstock_tests::{cluster::Cluster, load::Load, redis_cluster::RedisCluster, wait::alone};

use crate::under_load::RECOVERY;

#[tokio::test(flavor = "multi_thread")]
async fn move_a_slot_and_kill_its_new_primary_under_load() {
    let _alone = alone().await;
    let mut cluster = Cluster::start_on(2, 2, RedisCluster::start().await, "replicated:1").await;
    let tenant = cluster.tenant("acme").await;
    let load = Load::watched(cluster.client(&tenant), cluster.targets(), &tenant).await;
    load.progress(500, RECOVERY).await;
    let redis = &mut cluster.redis;
    let slot = redis.slot("acme", 0).await;
    let (from, to) = (redis.owner(&slot).await, redis.other(&slot).await);
    redis.move_slot(&slot, from, to).await;
    load.progress(500, RECOVERY).await;
    assert_eq!(redis.owner(&slot).await, to);
    redis.nodes[to].kill().await;
    let replica = redis.promoted(&slot, to).await;
    // It comes back as a replica: until then the new primary has none, and nothing is acknowledged.
    redis.nodes[to].restart().await;
    redis.well().await;
    load.progress(500, RECOVERY).await;
    assert_eq!(redis.owner(&slot).await, replica);
    assert_eq!(load.broken(), 0, "devices wait");
    load.balances().await;
}
