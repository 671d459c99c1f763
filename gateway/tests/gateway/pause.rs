//! A shard that stood still past its lease.

use std::sync::atomic::Ordering;

use penstock_proto::link::{WillEnd, control_up, data_up};

use crate::{
    client::Client,
    router::{Router, Seen},
    setup::{Setup, client_key, config, until},
};

#[tokio::test]
async fn a_shard_that_was_paused_publishes_nothing_stale_and_numbers_anew() {
    let mut config = config();
    config.timeouts.pause_ms = 2_500;
    let mut router = Router::start(1).await;
    let setup = Setup::with(config, &[&router]).await;
    let hello = |seen: &Seen| match seen {
        Seen::Control(control_up::Kind::Hello(hello)) => Some(hello.producer),
        _ => None,
    };
    let before = router.expect("Hello", hello).await;
    let mut stale = Client::dial(setup.address).await;
    stale.say_connect_with_will("c1", "will", "of the past").await;
    stale.read().await.unwrap();
    router.hold().settles.store(true, Ordering::SeqCst);
    stale.publish("a", 1, b"unsettled").await;
    router.expect_append().await;
    let bystander = Client::connect(setup.address, "c2").await;

    setup.registry.stop_ms.store(3_500, Ordering::SeqCst);
    drop(bystander);
    until("standing still", || setup.registry.stop_ms.load(Ordering::SeqCst) == 0).await;
    stale.publish("a", 2, b"sent while it stood still").await;
    stale.expect_closed().await;

    router.hold().settles.store(false, Ordering::SeqCst);
    assert_ne!(router.expect("Hello", hello).await, before, "a new producer");
    // The home decides whether it is due: a newer connection elsewhere has ended it.
    assert_eq!(router.expect_ended_will().await.end(), WillEnd::Fire);
    assert_eq!(setup.registry.owned(&client_key("c1")), None);
    let mut fresh = Client::connect(setup.address, "c1").await;
    fresh.publish("a", 1, b"fresh").await;
    fresh.expect_puback(1).await;
    let append = router
        .expect("Append", |seen| match seen {
            Seen::Data(data_up::Kind::Append(append)) => Some(append.clone()),
            _ => None,
        })
        .await;
    assert_eq!((append.first, append.count, append.resent), (1, 1, false), "nothing of the past is sent");
}
