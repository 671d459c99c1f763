//! Links themselves: relays, silence, a secret.

use std::sync::atomic::Ordering;

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
