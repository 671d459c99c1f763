//! Redis sleeps: nothing is acknowledged, nothing is lost, and nothing is stored twice when it wakes with commands in its
//! sockets whose senders have long taken a new term.

use std::time::Duration;

use penstock_tests::wait::{alone, lasting};

use crate::under_load::{RECOVERY, start};

#[tokio::test(flavor = "multi_thread")]
async fn pause_redis_for_15_seconds() {
    let _alone = alone().await;
    let (cluster, _tenant, load) = start().await;
    cluster.redis.pause().await;
    lasting(Duration::from_secs(15)).await;
    cluster.redis.wake();
    load.progress(500, RECOVERY).await;
    load.balances().await;
}
