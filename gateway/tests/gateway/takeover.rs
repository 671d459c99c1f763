//! At most one connection of a client, also when answers come late.

use std::{sync::atomic::Ordering, time::Duration};

use mqttbytes::v4::Packet;
use penstock_common::{epoch::Epoch, registry::Owner};
use penstock_proto::link::{self, control_down, control_up};
use tokio::time::Instant;

use crate::{
    client::Client,
    router::{Router, Seen},
    setup::{Setup, client_key, config, until},
};

async fn kick(router: &mut Router) -> link::Kick {
    router
        .expect("Kick", |seen| match seen {
            Seen::Control(control_up::Kind::Kick(kick)) => Some(kick.clone()),
            _ => None,
        })
        .await
}

async fn kicked(router: &mut Router) -> u64 {
    router
        .expect("Kicked", |seen| match seen {
            Seen::Control(control_up::Kind::Kicked(kicked)) => Some(kicked.id),
            _ => None,
        })
        .await
}

#[tokio::test]
async fn a_second_connection_on_the_shard_closes_the_first() {
    let router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut first = Client::connect(setup.address, "c1").await;
    let mut second = Client::connect(setup.address, "c1").await;
    first.expect_closed().await;
    second.expect_silence().await;
    assert_eq!(setup.metric("penstock_takeovers_total"), Some(1.0));
    assert!(setup.registry.owned(&client_key("c1")).is_some(), "the loser must not release the winner's");
}

#[tokio::test]
async fn a_second_connection_on_another_shard_closes_the_first() {
    let router = Router::start(1).await;
    let setup = Setup::with(penstock_gateway::GatewayConfig { shards: 4, ..config() }, &[&router]).await;
    let mut old = Client::connect(setup.address, "c1").await;
    for _ in 0..8 {
        let new = Client::connect(setup.address, "c1").await;
        old.expect_closed().await;
        old = new;
    }
    old.expect_silence().await;
}

#[tokio::test]
async fn an_owner_elsewhere_is_kicked_and_the_connack_waits_for_it_but_not_for_ever() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let elsewhere = Owner { gateway: 77, shard: 3, routers: [1, 0] };
    setup.registry.steal(&client_key("c1"), elsewhere);
    let mut client = Client::dial(setup.address).await;
    client.say_connect("c1", "acme/device", "secret").await;
    let asked = kick(&mut router).await;
    let (_, epoch) = setup.registry.owned(&client_key("c1")).unwrap();
    assert_eq!((asked.gateway, asked.shard, Epoch(asked.below)), (77, 3, epoch));
    let early = tokio::time::timeout(Duration::from_millis(200), client.read()).await;
    assert!(early.is_err(), "CONNACK before the older connection was gone");
    router.control(control_down::Kind::Kicked(link::Kicked { id: asked.id, gone: false })).await;
    assert!(matches!(client.read().await, Some(Packet::ConnAck(_))));

    setup.registry.steal(&client_key("c2"), elsewhere);
    let began = Instant::now();
    let _second = Client::connect(setup.address, "c2").await;
    assert!(began.elapsed() >= Duration::from_millis(900));
    let (once, twice) = (kick(&mut router).await, kick(&mut router).await);
    assert_eq!(once.id, twice.id, "repeated until confirmed");
}

#[tokio::test]
async fn a_kick_closes_what_is_older_confirms_and_leaves_what_is_newer() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut client = Client::connect(setup.address, "c1").await;
    let (_, epoch) = setup.registry.owned(&client_key("c1")).unwrap();
    let kick = |id, below: u64| {
        control_down::Kind::Kick(link::Kick {
            id,
            tenant: "acme".into(),
            client: "c1".into(),
            below,
            gateway: setup.registry.gateway(),
            shard: 0,
        })
    };
    router.control(kick(1, epoch.0)).await;
    assert_eq!(kicked(&mut router).await, 1);
    client.expect_silence().await;
    router.control(kick(2, epoch.0 + 1)).await;
    assert_eq!(kicked(&mut router).await, 2);
    client.expect_closed().await;
}

#[tokio::test]
async fn a_kick_that_overtakes_the_claims_answer_still_closes_the_connection() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    setup.registry.slow.store(true, Ordering::SeqCst);
    let mut client = Client::dial(setup.address).await;
    client.say_connect("c1", "acme/device", "secret").await;
    until("claimed", || setup.registry.owned(&client_key("c1")).is_some()).await;
    let elsewhere = Owner { gateway: 77, shard: 3, routers: [1, 0] };
    let newer = setup.registry.steal(&client_key("c1"), elsewhere);
    let kick = |id, client: &str| {
        control_down::Kind::Kick(link::Kick {
            id,
            tenant: "acme".into(),
            client: client.to_owned().into(),
            below: newer.0,
            gateway: setup.registry.gateway(),
            shard: 0,
        })
    };
    router.control(kick(9, "c1")).await;
    router.control(kick(10, "somebody else")).await;
    assert_eq!(kicked(&mut router).await, 10, "the first one waits for the claim's answer");
    setup.registry.release_claims();
    client.expect_closed().await;
    assert_eq!(kicked(&mut router).await, 9);
    assert_eq!(setup.registry.owned(&client_key("c1")).unwrap().1, newer);
}

#[tokio::test]
async fn a_provisional_connection_takes_over_from_the_older_one_on_its_own_shard() {
    let router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut half_open = Client::connect(setup.address, "c1").await;
    let (_, epoch) = setup.registry.owned(&client_key("c1")).unwrap();
    setup.registry.away.store(true, Ordering::SeqCst);
    router.inner.superseded.store(epoch.0, Ordering::SeqCst);
    let mut new = Client::connect(setup.address, "c1").await;
    half_open.expect_closed().await;
    new.expect_silence().await;
    let [(client, _, superseded)] = &setup.registry.adopted()[..] else { panic!("adopted once") };
    assert_eq!((client, *superseded), (&client_key("c1"), Some(epoch)));
}

#[tokio::test]
async fn a_provisional_connection_does_not_close_one_that_the_home_does_not_supersede() {
    let router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut newer = Client::connect(setup.address, "c1").await;
    let (_, epoch) = setup.registry.owned(&client_key("c1")).unwrap();
    setup.registry.away.store(true, Ordering::SeqCst);
    router.inner.superseded.store(epoch.0 - 1, Ordering::SeqCst);
    let mut late = Client::dial(setup.address).await;
    late.say_connect("c1", "acme/device", "secret").await;
    late.expect_closed().await;
    newer.expect_silence().await;
}
