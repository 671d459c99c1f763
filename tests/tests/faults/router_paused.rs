//! A router sleeps for 15 s with batches in its hands, and wakes when others hold its partitions.

use std::time::Duration;

use penstock_tests::wait::{alone, lasting};

use crate::under_load::{RECOVERY, start_watched};

#[tokio::test(flavor = "multi_thread")]
async fn pause_each_router_and_wake_it() {
    let _alone = alone().await;
    let (mut cluster, _tenant, load) = start_watched().await;
    for at in [0, 1] {
        cluster.routers[at].child().pause().await;
        lasting(Duration::from_secs(15)).await;
        load.progress(500, RECOVERY).await;
        cluster.routers[at].child().wake();
        cluster.linked().await;
        load.progress(500, RECOVERY).await;
    }
    assert_eq!(load.broken(), 0, "devices see nothing");
    load.balances().await;
}
