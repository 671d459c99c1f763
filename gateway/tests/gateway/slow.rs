//! Receivers that are slow or dead: what waits for them is bounded, what is lost is counted.

use mqttbytes::{QoS, v4::Packet};
use penstock_common::name::ClientKey;
use penstock_proto::link::{self, PushStatus, data_down};

use crate::{
    client::Client,
    router::Router,
    setup::{Setup, client_key, config, until},
    way_out::{deliver_payload, deliver_qos_1, push_result, taken},
};

const DROPPED: &str = "penstock_deliveries_total{result=\"dropped\"}";

async fn subscribed(setup: &Setup, name: &str, qos: QoS) -> Client {
    let mut client = Client::connect(setup.address, name).await;
    client.subscribe(1, &[("a", qos)]).await;
    client.expect_suback().await;
    client
}

fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_be_bytes().to_vec();
    payload.resize(10_000, 0);
    payload
}

#[tokio::test]
async fn a_reader_that_stops_loses_the_oldest_of_qos_0_and_each_is_counted() {
    let mut router = Router::start(1).await;
    let mut config = config();
    config.limits.outbound_bytes = 400_000;
    let setup = Setup::with(config, &[&router]).await;
    let mut client = subscribed(&setup, "slow", QoS::AtMostOnce).await;
    let mut sent = 0;
    while setup.metric(DROPPED).unwrap_or(0.0) < 100.0 {
        sent += 1;
        router.data(deliver_payload(sent, "a", &payload(sent))).await;
        taken(&mut router).await;
        assert!(sent < 2_000, "what waits has no end: the kernel takes all of it");
    }
    let mut read = Vec::new();
    while read.last() != Some(&sent) {
        let publish = client.expect_publish().await;
        read.push(u64::from_be_bytes(publish.payload[..8].try_into().unwrap()));
    }
    let dropped = setup.metric(DROPPED).unwrap() as u64;
    assert_eq!(read.len() as u64 + dropped, sent, "what was not read was counted");
    assert!(read.is_sorted());
    let gap = read.windows(2).position(|pair| pair[1] != pair[0] + 1).unwrap();
    assert!(read[gap + 1..].windows(2).all(|pair| pair[1] == pair[0] + 1), "one gap: the oldest that waited");
    assert_eq!(read[gap + 1] - read[gap] - 1, dropped);
    client.expect_silence().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_at_all_is_closed_in_time() {
    let mut router = Router::start(1).await;
    let mut config = config();
    config.limits.outbound_bytes = 100_000;
    config.timeouts.unread_ms = 500;
    let setup = Setup::with(config, &[&router]).await;
    let _dead = subscribed(&setup, "dead", QoS::AtMostOnce).await;
    let mut reader = subscribed(&setup, "reader", QoS::AtMostOnce).await;
    let mut sent = 0;
    let unread = "penstock_closes_total{reason=\"unread\"}";
    while setup.metric(DROPPED).unwrap_or(0.0) < 1.0 {
        sent += 1;
        router.data(deliver_payload(sent, "a", &payload(sent))).await;
        taken(&mut router).await;
        reader.expect_publish().await;
    }
    until("its time is over", || setup.metric(unread) == Some(1.0)).await;
    reader.expect_silence().await;
}

#[tokio::test]
async fn a_clean_session_that_acknowledges_nothing_is_closed_at_its_limit() {
    let mut router = Router::start(1).await;
    let mut config = config();
    config.limits.outbound_bytes = 400_000;
    let setup = Setup::with(config, &[&router]).await;
    let mut mute = subscribed(&setup, "mute", QoS::AtLeastOnce).await;
    let mut good = subscribed(&setup, "good", QoS::AtLeastOnce).await;
    let overrun = "penstock_closes_total{reason=\"overrun\"}";
    let mut sent = 0;
    while setup.metric(overrun) != Some(1.0) {
        sent += 1;
        router.data(deliver_qos_1(sent, "a", &payload(sent))).await;
        taken(&mut router).await;
        let publish = good.expect_publish().await;
        good.puback(publish.pkid).await;
        assert!(sent <= 64 + 40, "more than the window and what may wait");
    }
    // What the socket had no room for is given up with the session.
    let mut written = 0;
    while let Some(packet) = mute.read().await {
        assert!(matches!(packet, Packet::Publish(_)), "{packet:?}");
        written += 1;
    }
    assert!((1..=64).contains(&written), "{written}: never more than the window");
    good.expect_silence().await;
}

fn push(id: u64, key: &ClientKey, epoch: u64) -> data_down::Kind {
    data_down::Kind::Push(link::Push {
        id,
        tenant: "acme".into(),
        client: key.client.clone(),
        epoch,
        topic: "a".into(),
        payload: payload(id).into(),
        qos: 1,
        wait_ms: 0,
    })
}

#[tokio::test]
async fn a_push_that_does_not_fit_is_refused_and_the_session_lives_on() {
    let mut router = Router::start(1).await;
    let mut config = config();
    config.limits.outbound_bytes = 400_000;
    let setup = Setup::with(config, &[&router]).await;
    let mut client = subscribed(&setup, "slow", QoS::AtLeastOnce).await;
    let (_, epoch) = setup.registry.owned(&client_key("slow")).unwrap();
    let mut routed = 0;
    loop {
        router.data(push(routed + 1, &client_key("slow"), epoch.0)).await;
        let result = push_result(&mut router).await;
        if result.status() == PushStatus::Refused {
            assert_eq!(result.reason, "the client reads too slowly");
            break;
        }
        routed += 1;
        assert!(routed <= 64 + 40);
    }
    assert_eq!(setup.metric("penstock_deliveries_total{result=\"refused\"}"), Some(1.0));
    for _ in 0..routed {
        let publish = client.expect_publish().await;
        client.puback(publish.pkid).await;
    }
    client.expect_silence().await;
}
