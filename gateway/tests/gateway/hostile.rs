//! Clients that mean harm, or are broken: each is bounded, counted, and costs its neighbours nothing.

use std::{sync::atomic::Ordering, time::Duration};

use mqttbytes::{QoS, v4::Packet};
use tokio::time::{Instant, timeout};

use crate::{
    client::{Client, PATIENCE},
    router::Router,
    setup::{Setup, config, until},
};

fn closed(setup: &Setup, reason: &str) -> f64 {
    setup.metric(&format!("penstock_closes_total{{reason=\"{reason}\"}}")).unwrap_or(0.0)
}

/// The beginning of a PUBLISH of so many bytes in all.
fn half_publish(remaining: usize, there: usize) -> Vec<u8> {
    let length = [remaining & 0x7f | 0x80, remaining >> 7 & 0x7f | 0x80, remaining >> 14].map(|it| it as u8);
    let mut bytes = [&[0x30][..], &length, b"\0\x01a"].concat();
    bytes.resize(there, b'x');
    bytes
}

/// Ends when the gateway has closed, by a FIN or (something was unread) a reset.
async fn gone(client: &mut Client) {
    let end = async { while client.read().await.is_some() {} };
    timeout(PATIENCE, end).await.expect("not closed");
}

#[tokio::test]
async fn a_connect_that_drips_makes_way_for_one_that_comes_whole() {
    let router = Router::start(1).await;
    let mut config = config();
    config.limits.handshakes = 4;
    config.timeouts.connect_ms = 3_000;
    let setup = Setup::with(config, &[&router]).await;
    let mut dripping = Vec::new();
    for _ in 0..4 {
        let mut client = Client::dial(setup.address).await;
        client.output.say(&[0x10, 0x20, 0]).await;
        dripping.push(client);
    }
    until("all four are there", || setup.metric("penstock_connections_opening") == Some(4.0)).await;
    // None of them is slow yet: then it is the new one that has to go.
    let began = Instant::now();
    let mut tries = 0;
    let mut whole = loop {
        tries += 1;
        let mut client = Client::dial(setup.address).await;
        client.say_connect("whole", "acme/device", "secret").await;
        if matches!(client.read().await, Some(Packet::ConnAck(_))) {
            break client;
        }
        assert!(began.elapsed() < PATIENCE, "never let in");
    };
    whole.expect_silence().await;
    assert!(
        closed(&setup, "crowded") >= f64::from(tries),
        "each refusal is counted, and the one that made way"
    );
    gone(&mut dripping.remove(0)).await;
    until("their time is over", || closed(&setup, "connect_timeout") == 3.0).await;
    assert_eq!(setup.metric("penstock_connections_opening"), Some(0.0));
}

#[tokio::test]
async fn half_a_packet_is_not_waited_for_for_ever() {
    let router = Router::start(1).await;
    let mut config = config();
    config.timeouts.packet_ms = 400;
    let setup = Setup::with(config, &[&router]).await;
    let mut quick = Client::connect(setup.address, "quick").await;
    let mut half = Client::connect(setup.address, "half").await;
    half.output.say(&half_publish(100_000, 50_000)).await;
    until("it is held", || setup.metric("penstock_half_packet_bytes") >= Some(50_000.0)).await;
    // Dripping on does not help.
    let end = timeout(PATIENCE, async {
        while closed(&setup, "packet_timeout") < 1.0 {
            quick.expect_silence().await;
        }
    });
    end.await.expect("never closed");
    gone(&mut half).await;
    assert_eq!(setup.metric("penstock_half_packet_bytes"), Some(0.0));
    quick.publish("a", 1, &[0; 200_000]).await;
    quick.expect_puback(1).await;
}

#[tokio::test]
async fn half_packets_of_many_take_a_bounded_room_and_the_slowest_makes_it() {
    let router = Router::start(1).await;
    let mut config = config();
    config.limits.half_bytes = 1 << 20;
    let setup = Setup::with(config, &[&router]).await;
    let mut halves = Vec::new();
    for n in 0..12 {
        let mut client = Client::connect(setup.address, &format!("half-{n}")).await;
        client.output.say(&half_publish(200_000, 150_000)).await;
        let held = || setup.metric("penstock_half_packet_bytes").unwrap();
        let (shed, most) = (closed(&setup, "crowded"), (1 << 20) as f64);
        until("it is held", || held() >= 150_000.0 || closed(&setup, "crowded") > shed).await;
        assert!(held() <= most, "{}", held());
        halves.push(client);
    }
    until("some made room", || closed(&setup, "crowded") >= 3.0).await;
    gone(&mut halves.remove(0)).await;
    let mut last = halves.pop().unwrap();
    last.output.say(&[b'x'; 50_004]).await;
    last.expect_silence().await;
}

#[tokio::test]
async fn a_length_of_256_mb_is_refused_before_its_body() {
    let router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut client = Client::connect(setup.address, "c1").await;
    client.output.say(&[0x30, 0xff, 0xff, 0xff, 0x7f]).await;
    client.expect_closed().await;
    let mut first = Client::dial(setup.address).await;
    first.output.say(&[0x10, 0xff, 0xff, 0xff, 0x7f]).await;
    first.expect_closed().await;
    assert_eq!(closed(&setup, "packet_too_large"), 2.0);
}

#[tokio::test]
async fn a_megabyte_of_tiny_filters_closes_and_100_000_subscriptions_are_1_000() {
    let router = Router::start(1).await;
    let mut config = config();
    config.limits.control_rate = u16::MAX;
    let setup = Setup::with(config, &[&router]).await;
    let mut client = Client::connect(setup.address, "c1").await;
    let filters = b"\0\x01a\0".repeat(250_000);
    let length = filters.len() + 2;
    let head = [length & 0x7f | 0x80, length >> 7 & 0x7f | 0x80, length >> 14].map(|it| it as u8);
    client.output.say(&[&[0x82][..], &head, &[0, 1], &filters].concat()).await;
    gone(&mut client).await;
    assert_eq!(closed(&setup, "malformed"), 1.0);

    let Client { mut input, mut output } = Client::connect(setup.address, "c2").await;
    let ask = async {
        for packet in 0..1_563u32 {
            let filters: Vec<u8> = (0..64u32)
                .flat_map(|n| [&[0, 8][..], format!("{:08}", packet * 64 + n).as_bytes(), &[0]].concat())
                .collect();
            let length = filters.len() + 2;
            let [high, low] = (packet as u16 + 1).to_be_bytes();
            let head = [0x82, (length & 0x7f | 0x80) as u8, (length >> 7) as u8, high, low];
            output.say(&[&head[..], &filters].concat()).await;
        }
    };
    let answers = async {
        let mut granted = 0;
        for _ in 0..1_563 {
            let Some(Packet::SubAck(ack)) = input.read().await else { panic!("no SUBACK") };
            let success = |code: &&mqttbytes::v4::SubscribeReasonCode| {
                !matches!(code, mqttbytes::v4::SubscribeReasonCode::Failure)
            };
            granted += ack.return_codes.iter().filter(success).count();
        }
        granted
    };
    let ((), granted) = tokio::join!(ask, answers);
    assert_eq!(granted, 1_000);
    assert_eq!(setup.metric("penstock_subscriptions_refused_total"), Some(100_032.0 - 1_000.0));
}

#[tokio::test]
async fn a_flood_of_pings_is_answered_at_a_pace_and_nobody_else_notices() {
    let router = Router::start(1).await;
    let mut config = config();
    config.limits.control_rate = 20;
    let setup = Setup::with(config, &[&router]).await;
    let mut quiet = Client::connect(setup.address, "quiet").await;
    let mut flood = Client::connect(setup.address, "flood").await;
    flood.output.say(&[0xc0, 0].repeat(20_000)).await;
    for _ in 0..600 {
        assert!(matches!(flood.read().await, Some(Packet::PingResp)));
    }
    for n in 1..=50 {
        quiet.publish("a", n, b"x").await;
        quiet.expect_puback(n).await;
    }
    let early = timeout(Duration::from_millis(20), async {
        for _ in 0..200 {
            flood.read().await;
        }
    });
    assert!(early.await.is_err(), "200 more at once");
    assert!(matches!(flood.read().await, Some(Packet::PingResp)), "it goes on");
}

#[tokio::test]
async fn passwords_that_nobody_can_have_are_refused_without_asking_a_router() {
    let router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut kept = Client::connect(setup.address, "kept").await;
    let asked = router.inner.authenticated.load(Ordering::SeqCst);
    let mut clients = Vec::new();
    for n in 0..300 {
        let mut client = Client::dial(setup.address).await;
        client.say_connect(&format!("c{n}"), "acme/device", &"x".repeat(60_000)).await;
        clients.push(client);
    }
    for mut client in clients {
        let Some(Packet::ConnAck(ack)) = client.read().await else { panic!("no CONNACK") };
        assert_eq!(ack.code as u8, 5);
    }
    assert_eq!(router.inner.authenticated.load(Ordering::SeqCst), asked);
    assert_eq!(setup.metric("penstock_connects_total{result=\"denied\"}"), Some(300.0));
    kept.expect_silence().await;
    assert_eq!(setup.metric("penstock_links"), Some(1.0), "18 MB of passwords did not wait for the link");
}

#[tokio::test]
async fn subscribe_churn_has_a_pace_too() {
    let router = Router::start(1).await;
    let mut config = config();
    config.limits.control_rate = 20;
    let setup = Setup::with(config, &[&router]).await;
    let mut client = Client::connect(setup.address, "churn").await;
    let began = Instant::now();
    let churn = async {
        for _ in 0..110 {
            client.subscribe(1, &[("a", QoS::AtMostOnce)]).await;
            client.expect_suback().await;
            client.unsubscribe(2, "a").await;
            client.read().await.unwrap();
        }
    };
    churn.await;
    assert!(began.elapsed() > Duration::from_millis(2_500), "660 counted, 600 in store, 20 a second");
}
