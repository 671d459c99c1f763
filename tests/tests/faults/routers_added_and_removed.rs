//! Routers come and go under load: partitions move, in order, and devices see nothing.

use penstock_tests::wait::alone;

use crate::under_load::{RECOVERY, start_watched};

#[tokio::test(flavor = "multi_thread")]
async fn scale_out_and_in_under_load() {
    let _alone = alone().await;
    let (mut cluster, _tenant, load) = start_watched().await;
    cluster.add_router().await;
    cluster.linked().await;
    load.progress(500, RECOVERY).await;
    let mut leaving = cluster.routers.remove(0);
    leaving.drain().await;
    load.progress(500, RECOVERY).await;
    // It comes back, as in a rolling upgrade, and the next one goes.
    leaving.start().await;
    cluster.routers.push(leaving);
    cluster.linked().await;
    cluster.routers[0].drain().await;
    load.progress(500, RECOVERY).await;
    assert_eq!(load.broken(), 0, "devices see nothing");
    load.balances().await;
}
