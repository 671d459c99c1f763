//! A gateway is killed: its clients reconnect to another.

use penstock_tests::wait::alone;

use crate::under_load::{RECOVERY, start};

#[tokio::test(flavor = "multi_thread")]
async fn kill_a_gateway_and_start_it_again() {
    let _alone = alone().await;
    let (mut cluster, _tenant, load) = start().await;
    for at in [0, 1] {
        cluster.gateways[at].kill().await;
        load.all_connected(RECOVERY).await;
        load.progress(500, RECOVERY).await;
        cluster.gateways[at].start().await;
        cluster.linked().await;
    }
    load.balances().await;
}
