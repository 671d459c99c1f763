//! A router is killed: devices see nothing but latency.

use penstock_tests::wait::alone;

use crate::under_load::{RECOVERY, start_watched};

#[tokio::test(flavor = "multi_thread")]
async fn kill_each_router_in_turn() {
    let _alone = alone().await;
    let (mut cluster, _tenant, load) = start_watched().await;
    for at in [0, 1] {
        cluster.routers[at].kill().await;
        load.progress(500, RECOVERY).await;
        cluster.routers[at].start().await;
        cluster.linked().await;
        load.progress(500, RECOVERY).await;
        // Shards still dial its former life, at the same address: that must not cost them their links to this one.
        let lines = cluster.routers[at].child().lines();
        let closed = lines.iter().filter(|line| line.contains("a link is closed")).count();
        assert_eq!(closed, 0, "links flap: {lines:#?}");
    }
    assert_eq!(load.broken(), 0, "devices see nothing");
    load.balances().await;
}
