//! The home of a partition is killed, and with it the router that the consumer reached: nobody remembers what was acknowledged
//! but the stored cursor. It is written within 100 ms, so what was acknowledged before that does not come again.

use std::time::Duration;

use penstock_client::{Consumer, GroupSpec, Message};
use penstock_tests::{
    cluster::Cluster,
    device::Device,
    stored::Stored,
    wait::{alone, eventually},
};
use tokio::time::{Instant, timeout};

use crate::under_load::RECOVERY;

const GROUP: &str = "g";
const RECORDS: usize = 40;
const TRIES: usize = 10;
/// For an acknowledgement to be stored, in the best of [`TRIES`]: 100 ms and some for a machine that has others to serve.
const STORED_WITHIN: Duration = Duration::from_millis(300);

async fn next(consumer: &mut Consumer) -> Message {
    timeout(RECOVERY, consumer.next()).await.expect("a message in time").expect("a message")
}

async fn publish(device: &mut Device, round: usize, numbers: std::ops::Range<usize>) {
    for number in numbers.clone() {
        device.send("data/x", &format!("{round}-{number}")).await.unwrap();
    }
    for _ in numbers {
        device.next().await.expect("a PUBACK");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_and_stored_does_not_come_again() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let stored = Stored::of(&cluster, &tenant).await;
    cluster.client(&tenant).create_group(&GroupSpec::new(GROUP).filter("data/#")).await.unwrap();
    let mut device = Device::connect(&cluster.targets()[0], &tenant, "device").await.unwrap();
    let mut consumer = cluster.client(&tenant).consumer(GROUP).start();
    let mut best = Duration::MAX;
    let mut partition = 0;
    for _ in 0..TRIES {
        publish(&mut device, 0, 0..1).await;
        let message = next(&mut consumer).await;
        partition = message.position.partition;
        consumer.ack(&message);
        let since = Instant::now();
        eventually("the acknowledgement is stored", RECOVERY, || async {
            stored.all_done(GROUP, [&message.position]).await.then_some(())
        })
        .await;
        best = best.min(since.elapsed());
    }
    assert!(best < STORED_WITHIN, "stored after {best:?}");
    consumer.close().await.unwrap();

    for round in [1, 2] {
        let home =
            eventually("the partition has a home", RECOVERY, || stored.holder(&cluster, partition)).await;
        let mut servers = cluster.servers();
        servers.swap(0, home);
        let mut consumer = tenant.client(&servers).consumer(GROUP).ack_timeout(RECOVERY).start();
        publish(&mut device, round, 0..RECORDS).await;
        let (mut done, mut open) = (Vec::new(), Vec::new());
        for number in 0..RECORDS {
            let message = next(&mut consumer).await;
            assert_eq!(message.payload, format!("{round}-{number}"));
            if number % 3 == 0 { open.push(message) } else { done.push(message) }
        }
        // In another order than they came.
        done.iter().rev().for_each(|message| consumer.ack(message));
        eventually("the acknowledgements are stored", RECOVERY, || async {
            stored.all_done(GROUP, done.iter().map(|message| &message.position)).await.then_some(())
        })
        .await;
        cluster.routers[home].kill().await;
        publish(&mut device, round, RECORDS..RECORDS + 1).await;
        for message in &open {
            let again = next(&mut consumer).await;
            assert_eq!((again.position, &again.payload), (message.position, &message.payload));
            consumer.ack(&again);
        }
        let marker = next(&mut consumer).await;
        assert_eq!(marker.payload, format!("{round}-{RECORDS}"), "nothing else came before it");
        consumer.ack(&marker);
        consumer.close().await.unwrap();
        cluster.routers[home].start().await;
        cluster.linked().await;
    }
}
