//! Every process is drained and started again, one after the other, as an upgrade does it.

use penstock_tests::wait::alone;

use crate::under_load::{RECOVERY, start};

#[tokio::test(flavor = "multi_thread")]
async fn drain_and_restart_everything_in_turn() {
    let _alone = alone().await;
    let (mut cluster, _tenant, load) = start().await;
    for at in [0, 1] {
        cluster.routers[at].drain().await;
        load.progress(300, RECOVERY).await;
        cluster.routers[at].start().await;
        cluster.linked().await;
    }
    assert_eq!(load.broken(), 0, "devices don't see routers come and go");
    for at in [0, 1] {
        cluster.gateways[at].drain().await;
        load.all_connected(RECOVERY).await;
        load.progress(300, RECOVERY).await;
        cluster.gateways[at].start().await;
        cluster.linked().await;
    }
    load.balances().await;
}
