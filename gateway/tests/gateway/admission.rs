//! CONNECT to CONNACK.

use std::{sync::atomic::Ordering, time::Duration};

use penstock_common::{clock::Seams, epoch::Epoch, registry::OwnershipEvent};
use penstock_gateway::{Gateway, StartError};
use penstock_proto::link::{control_up, data_up};
use prost::Message;

use crate::{
    client::Client,
    router::{Router, Seen},
    setup::{Setup, client_key, config, until},
};

#[tokio::test]
async fn credentials_tenants_and_roles_decide_and_a_verdict_is_remembered() {
    let router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    for (user, password, code) in [
        ("acme/device", "secret", 0),
        ("acme/device", "wrong", 5),
        ("acme/app", "secret", 5),
        ("nobody/device", "secret", 5),
        ("system/admin", "secret", 5),
        ("acme", "secret", 5),
        ("acme/", "secret", 5),
        ("ACME/device", "secret", 5),
    ] {
        let (_client, got) = Client::try_connect(setup.address, "c1", user, password).await;
        assert_eq!(got, code, "{user} {password}");
    }
    let asked = router.inner.authenticated.load(Ordering::SeqCst);
    let _again = Client::connect(setup.address, "c2").await;
    assert_eq!(router.inner.authenticated.load(Ordering::SeqCst), asked, "the verdict was remembered");
    assert_eq!(setup.metric("penstock_connects_total{result=\"accepted\"}"), Some(2.0));
    assert_eq!(setup.metric("penstock_connects_total{result=\"denied\"}"), Some(1.0));
}

#[tokio::test]
async fn a_tenant_at_its_limit_is_told_to_come_again_and_a_close_makes_room() {
    let router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let (first, code) = Client::try_connect(setup.address, "a", "small/device", "secret").await;
    assert_eq!(code, 0);
    let (_second, code) = Client::try_connect(setup.address, "b", "small/device", "secret").await;
    assert_eq!(code, 3);
    drop(first);
    until("room", || setup.metric("penstock_connections{transport=\"mqtt\"}") == Some(0.0)).await;
    let (_third, code) = Client::try_connect(setup.address, "c", "small/device", "secret").await;
    assert_eq!(code, 0);
}

#[tokio::test]
async fn the_home_knows_the_owner_before_the_connack() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    router.hold().lanes.store(true, Ordering::SeqCst);
    let mut client = Client::dial(setup.address).await;
    client.say_connect("c1", "acme/device", "secret").await;
    let open = router.expect_open_lane().await;
    let (_, epoch) = setup.registry.owned(&client_key("c1")).unwrap();
    let owner = open.owners.first().unwrap();
    assert_eq!((&owner.client[..], Epoch(owner.epoch)), (&b"c1"[..], epoch));
    let early = tokio::time::timeout(Duration::from_millis(300), client.read()).await;
    assert!(early.is_err(), "CONNACK before the home knew");
    router.open(open.lane).await;
    assert!(matches!(client.read().await, Some(mqttbytes::v4::Packet::ConnAck(_))));
}

#[tokio::test]
async fn without_a_router_connects_are_refused_after_their_time() {
    let mut config = config();
    config.timeouts.admission_ms = 300;
    let setup = Setup::with(config, &[]).await;
    assert!(!*setup.gateway.ready().borrow());
    let (_client, code) = Client::try_connect(setup.address, "c1", "acme/device", "secret").await;
    assert_eq!(code, 3);
}

#[tokio::test]
async fn while_the_registry_is_away_the_home_hands_out_epochs_and_they_are_adopted() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    setup.registry.away.store(true, Ordering::SeqCst);
    let mut client = Client::connect(setup.address, "c1").await;
    let adopted = setup.registry.adopted();
    let (who, provisional, superseded) = adopted.first().unwrap().clone();
    assert_eq!((who, superseded), (client_key("c1"), None));
    client.publish("a", 1, b"x").await;
    let append = router.expect_append().await;
    assert_eq!(epoch_of(&append.records), provisional);
    client.expect_puback(1).await;
    // The registry is back.
    let new = Epoch::real(500);
    let event = OwnershipEvent::Renewed { shard: 0, client: client_key("c1"), old: provisional, new };
    setup.registry.tell(event).await;
    let attached = router
        .expect("Attach", |seen| match seen {
            Seen::Control(control_up::Kind::Attach(attach)) => {
                attach.owners.iter().map(|owner| owner.epoch).find(|epoch| *epoch == new.0)
            }
            _ => None,
        })
        .await;
    assert_eq!(attached, new.0);
    client.publish("a", 2, b"y").await;
    assert_eq!(epoch_of(&router.expect_append().await.records), new);
}

#[tokio::test]
async fn a_renewed_epoch_is_told_only_when_records_under_the_old_one_are_settled() {
    let mut router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut client = Client::connect(setup.address, "c1").await;
    let mut other = Client::connect(setup.address, "c2").await;
    let (_, old) = setup.registry.owned(&client_key("c1")).unwrap();
    router.hold().settles.store(true, Ordering::SeqCst);
    client.publish("a", 1, b"x").await;
    let append = router.expect_append().await;
    router.drain_seen();
    let new = Epoch::real(900);
    setup.registry.tell(OwnershipEvent::Renewed { shard: 0, client: client_key("c1"), old, new }).await;
    // The next event after it has been seen to work.
    let (_, void) = setup.registry.owned(&client_key("c2")).unwrap();
    let event = OwnershipEvent::Superseded { shard: 0, client: client_key("c2"), old: void };
    setup.registry.tell(event).await;
    other.expect_closed().await;
    client.publish("a", 2, b"y").await;
    let second = router
        .expect("Append before Attach", |seen| match seen {
            Seen::Data(data_up::Kind::Append(append)) => Some(append.clone()),
            Seen::Control(control_up::Kind::Attach(_)) => {
                panic!("told too early: the first record is stale then")
            }
            _ => None,
        })
        .await;
    router.settle(&append).await;
    router
        .expect("Attach", |seen| matches!(seen, Seen::Control(control_up::Kind::Attach(_))).then_some(()))
        .await;
    router.settle(&second).await;
    client.expect_puback(1).await;
    client.expect_puback(2).await;
}

#[tokio::test]
async fn a_superseded_ownership_closes_its_connection_and_no_other() {
    let router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let mut client = Client::connect(setup.address, "c1").await;
    let mut other = Client::connect(setup.address, "c2").await;
    let (_, old) = setup.registry.owned(&client_key("c1")).unwrap();
    setup.registry.tell(OwnershipEvent::Superseded { shard: 0, client: client_key("c1"), old }).await;
    client.expect_closed().await;
    other.expect_silence().await;
}

#[tokio::test]
async fn the_end_of_a_tenant_closes_its_connections_and_no_other() {
    let router = Router::start(1).await;
    let setup = Setup::new(&[&router]).await;
    let (mut gone, _) = Client::try_connect(setup.address, "a", "small/device", "secret").await;
    let mut other = Client::connect(setup.address, "c1").await;
    setup.registry.delete("small");
    gone.expect_closed().await;
    other.expect_silence().await;
    let (_late, code) = Client::try_connect(setup.address, "a", "small/device", "secret").await;
    assert_eq!(code, 5);
}

#[tokio::test]
async fn a_taken_port_is_told_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config();
    config.mqtt_listen = taken.local_addr().unwrap();
    let mut metrics = prometheus_client::registry::Registry::default();
    let registry = crate::registry::TestRegistry::new();
    let Err(error) = Gateway::start(config, registry, Seams::real(), &mut metrics).await else {
        panic!("it listens on a port that is taken");
    };
    assert!(matches!(error, StartError::Listen { .. }));
    assert_eq!(error.to_string().lines().count(), 1);
}

fn epoch_of(records: &bytes::Bytes) -> Epoch {
    let batch = penstock_proto::record::RecordBatch::decode(records.clone()).unwrap();
    Epoch(batch.records.last().unwrap().epoch)
}
