//! etcd is dead for 20 s: connected devices see nothing, new ones get in.

use std::time::Duration;

use penstock_tests::{
    device::Device,
    wait::{alone, lasting},
};

use crate::under_load::{RECOVERY, start_watched};

#[tokio::test(flavor = "multi_thread")]
async fn kill_etcd_for_20_seconds() {
    let _alone = alone().await;
    let (mut cluster, tenant, load) = start_watched().await;
    cluster.etcd.kill().await;
    load.progress(200, RECOVERY).await;
    let mut devices = Vec::new();
    for (at, target) in cluster.targets().iter().enumerate() {
        let mut device = Device::connect(target, &tenant, &format!("late-{at}")).await.unwrap();
        device.publish("late", "hello").await.unwrap();
        devices.push(device);
    }
    lasting(Duration::from_secs(20)).await;
    load.progress(200, RECOVERY).await;
    cluster.etcd.restart().await;
    cluster.linked().await;
    load.progress(200, RECOVERY).await;
    for device in &mut devices {
        device.publish("late", "still here").await.unwrap();
    }
    assert_eq!(load.broken(), 0, "devices see nothing");
    load.balances().await;
}
