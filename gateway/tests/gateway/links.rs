//! Links themselves: relays, silence, a secret.

use std::sync::atomic::Ordering;

use mqttbytes::QoS;
use penstock_proto::link::control_up;

use crate::{
    client::Client,
    router::{Router, Seen},
    setup::{Setup, incarnations, until},
};

#[tokio::test]
async fn a_router_that_can_not_be_dialled_is_reached_through_another_one() {
    let (unreachable, relay) = incarnations();
    let mut router = Router::start(relay).await;
    let setup = Setup::new(&[&router]).await;
    // Bound, never accepted from: dialling neither fails nor succeeds.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    setup.registry.add_router(unreachable, &silent.local_addr().unwrap().to_string());
    until("a link through the relay", || setup.metric("penstock_links") == Some(2.0)).await;
    let mut client = Client::connect(setup.address, "c1").await;
    router.expect_open_lane().await;
    client.publish("a", 1, b"x").await;
    client.expect_puback(1).await;
}

#[tokio::test]
async fn another_incarnation_at_the_address_is_not_taken_for_the_router() {
    let router = Router::start(1).await;
    let setup = Setup::new(&[]).await;
    setup.registry.add_router(2, &router.address);
    setup.registry.add_router(1, &router.address);
    until("the right link", || setup.metric("penstock_links") == Some(1.0)).await;
}

#[tokio::test]
async fn a_cut_link_is_made_again() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut client = Client::connect(setup.address, "c1").await;
    router.cut();
    until("no link", || setup.metric("penstock_links") == Some(0.0)).await;
    until("not ready", || !*setup.gateway.ready().borrow()).await;
    client.publish("a", 1, b"x").await;
    router.drain_seen();
    router.hold().links.store(false, Ordering::SeqCst);
    let hello = |seen: &Seen| matches!(seen, Seen::Control(control_up::Kind::Hello(_))).then_some(());
    router.expect("Hello", hello).await;
    assert_eq!(router.expect_open_lane().await.owners.len(), 1, "the home learns its owners anew");
    client.expect_puback(1).await;
}

#[tokio::test]
async fn a_shard_with_more_filters_than_a_stream_may_hold_back_links_all_the_same() {
    const CLIENTS: usize = 19;
    const PACKETS: usize = 15;
    const FILTERS: usize = CLIENTS * PACKETS * 64;
    let (first, mut late) = (Router::start(1).await, Router::start(2).await);
    let setup = Setup::new(&[&first]).await;
    let mut clients = Vec::new();
    for name in 0..CLIENTS {
        let mut client = Client::connect(setup.address, &format!("c{name}")).await;
        // 64 in a packet is what a client may ask for.
        for packet in 1..=PACKETS {
            let filters: Vec<_> = (0..64).map(|n| format!("{n}/{packet}/{name}/{:0>1000}", 0)).collect();
            let filters: Vec<_> = filters.iter().map(|filter| (filter.as_str(), QoS::AtMostOnce)).collect();
            client.subscribe(packet as u16, &filters).await;
            client.expect_suback().await;
        }
        clients.push(client);
    }
    setup.registry.add_router(2, &late.address);
    let (mut told, mut end) = (0, false);
    while !end {
        let interest = |seen: &Seen| match seen {
            Seen::Control(control_up::Kind::Interest(it)) => Some((it.changes.len(), it.snapshot_end)),
            _ => None,
        };
        let (changes, last) = late.expect("Interest", interest).await;
        (told, end) = (told + changes, last);
    }
    assert_eq!(told, FILTERS);
    until("both links", || setup.metric("penstock_links") == Some(2.0)).await;
    // All of them end at once: that is as much to tell, and no reason to give a link up.
    drop(clients);
    let mut ended = 0;
    while ended < FILTERS {
        let gone = |seen: &Seen| match seen {
            Seen::Control(control_up::Kind::Interest(it)) => {
                Some(it.changes.iter().filter(|change| !change.present).count())
            }
            Seen::Control(control_up::Kind::Hello(_)) => panic!("the link was cut"),
            _ => None,
        };
        ended += late.expect("Interest", gone).await;
    }
    assert_eq!(setup.metric("penstock_links"), Some(2.0));
}
