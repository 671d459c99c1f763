//! Wills as the gateway tells them: kept at the home before CONNACK, ended there once, after what was published before.

use std::sync::atomic::Ordering;

use mqttbytes::v4::Packet;
use penstock_proto::{
    link::{WillEnd, control_up},
    record::Record,
};
use prost::Message;

use crate::{
    client::Client,
    router::{Router, Seen},
    setup::{Setup, client_key, until},
};

async fn with_will(setup: &Setup, client: &str) -> Client {
    let mut it = Client::dial(setup.address).await;
    it.say_connect_with_will(client, "state/c1", "gone").await;
    let Some(Packet::ConnAck(ack)) = it.read().await else { panic!("no CONNACK") };
    assert_eq!(ack.code as u8, 0);
    it
}

fn endings(seen: &[Seen]) -> usize {
    seen.iter().filter(|seen| matches!(seen, Seen::Control(control_up::Kind::EndWills(_)))).count()
}

#[tokio::test]
async fn a_will_is_kept_at_the_home_and_ends_there_when_its_connection_does() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    for clean_end in [false, true] {
        let mut client = with_will(&setup, "c1").await;
        let (_, epoch) = setup.registry.owned(&client_key("c1")).unwrap();
        let owner = router.expect("the will", |seen| match seen {
            Seen::Control(control_up::Kind::Attach(attach)) => {
                attach.owners.iter().find(|owner| !owner.will.is_empty()).cloned()
            }
            _ => None,
        });
        let owner = owner.await;
        assert_eq!((&owner.client[..], owner.epoch, owner.will_epoch), (&b"c1"[..], epoch.0, epoch.0));
        let will = Record::decode(owner.will).unwrap();
        assert_eq!((&will.client[..], &will.user[..], will.epoch), (&b"c1"[..], &b"device"[..], epoch.0));
        assert_eq!((&will.topic[..], &will.payload[..], will.qos), (&b"state/c1"[..], &b"gone"[..], 1));
        assert!(will.last_will && will.received_at == 0);
        if clean_end {
            client.disconnect().await;
            client.expect_closed().await;
        } else {
            drop(client);
        }
        let ended = router.expect_ended_will().await;
        assert_eq!((&ended.client[..], ended.epoch), (&b"c1"[..], epoch.0));
        assert_eq!(ended.end(), if clean_end { WillEnd::Drop } else { WillEnd::Fire });
        until("released", || setup.registry.owned(&client_key("c1")).is_none()).await;
    }
    assert_eq!(endings(&router.drain_seen()), 0, "once");
}

#[tokio::test]
async fn a_connect_without_a_will_says_nothing_of_wills() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    drop(Client::connect(setup.address, "c1").await);
    until("released", || setup.registry.owned(&client_key("c1")).is_none()).await;
    let mut other = with_will(&setup, "c2").await;
    other.publish("a", 1, b"x").await;
    other.expect_puback(1).await;
    drop(other);
    assert_eq!(router.expect_ended_will().await.client, "c2");
}

#[tokio::test]
async fn the_end_of_a_will_follows_its_records_and_is_told_until_a_home_confirms_it() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut client = with_will(&setup, "c1").await;
    router.hold().settles.store(true, Ordering::SeqCst);
    router.hold().wills.store(true, Ordering::SeqCst);
    client.publish("a", 1, b"x").await;
    let append = router.expect_append().await;
    drop(client);
    until("released", || setup.registry.owned(&client_key("c1")).is_none()).await;
    assert_eq!(endings(&router.drain_seen()), 0, "before its records are settled");
    router.settle(&append).await;
    assert_eq!(router.expect_ended_will().await.end(), WillEnd::Fire);
    for _ in 0..2 {
        router.cut();
        router.hold().links.store(false, Ordering::SeqCst);
        assert_eq!(router.expect_ended_will().await.end(), WillEnd::Fire, "to the next home again");
    }
    router.cut();
    router.hold().wills.store(false, Ordering::SeqCst);
    router.hold().links.store(false, Ordering::SeqCst);
    router.expect_ended_will().await;
    router.cut();
    router.hold().links.store(false, Ordering::SeqCst);
    drop(with_will(&setup, "c2").await);
    assert_eq!(router.expect_ended_will().await.client, "c2", "what is confirmed is forgotten");
}

#[tokio::test]
async fn a_newer_connection_on_the_shard_is_told_after_the_older_ones_records_and_will() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut old = with_will(&setup, "c1").await;
    router.hold().settles.store(true, Ordering::SeqCst);
    old.publish("a", 1, b"x").await;
    let append = router.expect_append().await;
    let mut new = Client::dial(setup.address).await;
    new.say_connect_with_will("c1", "state/c1", "gone").await;
    old.expect_closed().await;
    let attaches = |seen: &Seen| matches!(seen, Seen::Control(control_up::Kind::Attach(_)));
    assert!(!router.drain_seen().iter().any(attaches), "before the older one's records are settled");
    router.settle(&append).await;
    let ended = router.expect_ended_will().await;
    assert_eq!(ended.end(), WillEnd::TakenOver);
    let owner = router.expect_owner().await;
    assert!(owner.will_epoch > ended.epoch && !owner.will.is_empty());
    assert!(matches!(new.read().await, Some(Packet::ConnAck(_))));
    // Nothing is under way: at once.
    router.hold().settles.store(false, Ordering::SeqCst);
    let _third = with_will(&setup, "c1").await;
    assert_eq!(router.expect_ended_will().await.epoch, owner.will_epoch);
    assert!(router.expect_owner().await.will_epoch > owner.will_epoch);
}

#[tokio::test]
async fn a_will_that_the_home_can_not_keep_refuses_its_connection_and_no_other() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    router.inner.refuse_wills.store(true, Ordering::SeqCst);
    let mut refused = Client::dial(setup.address).await;
    refused.say_connect_with_will("c1", "state/c1", "gone").await;
    let Some(Packet::ConnAck(ack)) = refused.read().await else { panic!("no CONNACK") };
    assert_eq!(ack.code as u8, 3);
    let _other = Client::connect(setup.address, "c2").await;
    assert_eq!(setup.metric("penstock_connects_total{result=\"will\"}"), Some(1.0));
    router.inner.refuse_wills.store(false, Ordering::SeqCst);
    drop(with_will(&setup, "c1").await);
    assert_eq!(router.expect_ended_will().await.end(), WillEnd::Fire, "of the second one only");
}

#[tokio::test]
async fn a_drain_waits_until_wills_have_ended() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    router.hold().wills.store(true, Ordering::SeqCst);
    let _client = with_will(&setup, "c1").await;
    let drain = tokio::spawn(setup.gateway.drain(std::time::Duration::from_secs(30)));
    let seen = router.expect("EndWills", |seen| match seen {
        Seen::Control(control_up::Kind::EndWills(ends)) => Some(ends.clone()),
        _ => None,
    });
    let ends = seen.await;
    assert_eq!(ends.ended[0].end(), WillEnd::Fire);
    assert!(!drain.is_finished());
    let done = penstock_proto::link::WillsEnded { seq: ends.seq, lane: ends.lane };
    router.control(penstock_proto::link::control_down::Kind::WillsEnded(done)).await;
    drain.await.unwrap();
}
