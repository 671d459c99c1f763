//! Redis restarts with its append-only file: PUBACKs stall, then go on.

use penstock_tests::wait::alone;

use crate::under_load::{RECOVERY, start_watched};

#[tokio::test(flavor = "multi_thread")]
async fn restart_redis_under_load() {
    let _alone = alone().await;
    let (mut cluster, _tenant, load) = start_watched().await;
    cluster.redis.terminate().await;
    cluster.redis.restart().await;
    load.progress(500, RECOVERY).await;
    assert_eq!(load.broken(), 0, "devices wait");
    load.balances().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_redis_under_load() {
    let _alone = alone().await;
    let (mut cluster, _tenant, load) = start_watched().await;
    cluster.redis.kill().await;
    cluster.redis.restart().await;
    load.progress(500, RECOVERY).await;
    assert_eq!(load.broken(), 0, "devices wait");
    load.balances().await;
}
