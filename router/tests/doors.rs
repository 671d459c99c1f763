//! Doors and peers of two routers over loopback, on one store and one registry, with homes that only append: roles, groups,
//! consuming across routers while homes move, credit, acks to a later home, pushes one hop away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use penstock_common::{name::partition_of, rendezvous};
use penstock_proto::{
    admin::{AddUserRequest, ClusterRequest, DeleteTenantRequest, ListUsersRequest, SetPasswordRequest},
    messaging::{DeleteGroupRequest, Nacks, PushRequest, ReceiptStatus, consume_request},
};
use penstock_router::groups::survey::Survey;
use prometheus_client::registry::Registry as Registered;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

const LIMIT: Duration = Duration::from_secs(20);
const PARTITIONS: u32 = 4;

#[path = "doors/dead.rs"]
mod dead;
#[path = "support/homes.rs"]
mod homes;
#[path = "doors/modes.rs"]
mod modes;
#[path = "doors/moves.rs"]
mod moves;
#[path = "doors/web.rs"]
mod web;
#[path = "doors/web_clients.rs"]
mod web_clients;
#[path = "support/world.rs"]
mod world;

use homes::*;
use world::*;

#[tokio::test(flavor = "multi_thread")]
async fn roles_and_passwords_open_only_their_doors() {
    let cluster = Cluster::start(1).await;
    let mut messaging = cluster.messaging(0).await;
    let mut list = async |credentials: &str| {
        let request = cluster.request(credentials, penstock_proto::messaging::ListGroupsRequest {});
        messaging.list_groups(request).await.map(|_| ()).map_err(|status| status.code())
    };
    assert_eq!(list(APP).await, Ok(()));
    let device = format!("demo/device:{}", cluster.device_secret);
    assert_eq!(list(&device).await, Err(Code::PermissionDenied));
    assert_eq!(list(OPERATOR).await, Err(Code::PermissionDenied));
    for wrong in
        ["demo/app:applicatioN", "demo/nobody:application", "other/app:application", "app:application"]
    {
        assert_eq!(list(wrong).await, Err(Code::Unauthenticated), "{wrong}");
    }
    let mut admin = cluster.admin(0).await;
    let add = |tenant: &str, name: &str, role: &str, password: &str| AddUserRequest {
        tenant: tenant.into(),
        name: name.into(),
        role: role.into(),
        password: password.into(),
    };
    let code =
        |result: Result<_, Status>| result.map(|_: tonic::Response<_>| ()).map_err(|status| status.code());
    let boss = add("demo", "boss", "tenant-admin", "boss-password");
    assert_eq!(code(admin.add_user(cluster.request(APP, boss.clone())).await), Err(Code::PermissionDenied));
    assert_eq!(code(admin.add_user(cluster.request(OPERATOR, boss.clone())).await), Ok(()));
    assert_eq!(code(admin.add_user(cluster.request(OPERATOR, boss)).await), Err(Code::AlreadyExists));
    let boss = "demo/boss:boss-password";
    assert_eq!(
        code(admin.add_user(cluster.request(boss, add("demo", "d2", "device", "short"))).await),
        Err(Code::InvalidArgument)
    );
    assert_eq!(
        code(admin.add_user(cluster.request(boss, add("demo", "d2", "admin", "longenough"))).await),
        Err(Code::InvalidArgument)
    );
    assert_eq!(
        code(admin.add_user(cluster.request(boss, add("system", "d2", "admin", "longenough"))).await),
        Err(Code::PermissionDenied)
    );
    let users =
        admin.list_users(cluster.request(boss, ListUsersRequest { tenant: "demo".into() })).await.unwrap();
    let names: Vec<_> = users.get_ref().users.iter().map(|user| user.name.as_str()).collect();
    assert_eq!(names, ["app", "boss", "device"]);
    assert!(admin.cluster(cluster.request(boss, ClusterRequest {})).await.is_err());
    let shown = admin.cluster(cluster.request(OPERATOR, ClusterRequest {})).await.unwrap().into_inner();
    assert_eq!(shown.members[0].kind, "router");
    // A new password ends the cached verdict of the old one.
    let change =
        SetPasswordRequest { tenant: "demo".into(), name: "app".into(), password: "new-password".into() };
    admin.set_password(cluster.request(boss, change)).await.unwrap();
    assert_eq!(list(APP).await, Err(Code::Unauthenticated));
    assert_eq!(list("demo/app:new-password").await, Ok(()));
    let gone = DeleteTenantRequest { name: "demo".into() };
    admin.delete_tenant(cluster.request(OPERATOR, gone)).await.unwrap();
    assert_eq!(list("demo/app:new-password").await, Err(Code::Unauthenticated));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_made_once_and_deleted_with_its_cursors() {
    let cluster = Cluster::start(1).await;
    let first = cluster.create_group(0, "g", &["a/#"]).await.unwrap();
    assert_eq!(cluster.create_group(0, "g", &["a/#"]).await.unwrap(), first);
    assert_eq!(cluster.create_group(0, "g", &["b"]).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(cluster.create_group(0, "h", &["a/#/b"]).await.unwrap_err().code(), Code::InvalidArgument);
    // A creation that died before its cursors is finished by the same one.
    let half = penstock_common::registry::Group {
        name: "half".into(),
        filters: vec![],
        start: penstock_common::registry::GroupStart::Earliest,
        options: penstock_common::registry::GroupOptions::default(),
        active: false,
        created_at: 1,
    };
    cluster.registry.create_group(&cluster.tenant, &half).await.unwrap();
    assert_eq!(cluster.lag(0, "g").await, 0);
    cluster.create_group(0, "half", &[]).await.unwrap();
    let cursors = cluster.store.cursors(&cluster.key(3)).await.unwrap();
    assert_eq!(cursors.groups.keys().collect::<Vec<_>>(), ["g", "half"]);
    let mut consumer = cluster.consume(0, "g", 10, 0).await;
    let delete = DeleteGroupRequest { name: "g".into() };
    cluster.messaging(0).await.delete_group(cluster.request(APP, delete.clone())).await.unwrap();
    let ended = timeout(LIMIT, async {
        while consumer.responses.message().await?.is_some() {}
        Ok::<_, Status>(())
    });
    assert_eq!(ended.await.unwrap().unwrap_err().code(), Code::NotFound);
    until("the cursors are gone", async || {
        let cursors = cluster.store.cursors(&cluster.key(3)).await.unwrap();
        cursors.groups.keys().collect::<Vec<_>>() == ["half"]
    })
    .await;
    let again = cluster.messaging(0).await.delete_group(cluster.request(APP, delete)).await;
    assert_eq!(again.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_gets_every_partition_from_two_routers_in_order_and_acks_stay() {
    let cluster = Cluster::start(2).await;
    cluster.create_group(0, "g", &["in/#"]).await.unwrap();
    for client in clients() {
        cluster.publish(&client, "in/a", 0..5).await;
        cluster.publish(&client, "out", 100..103).await;
    }
    let homes = |router: usize| cluster.routers[router].homes.homes.lock().unwrap().len();
    assert!(homes(0) > 0 && homes(1) > 0, "both routers are homes");
    let mut consumer = cluster.consume(0, "g", 1_000, 0).await;
    let mut got: Vec<Got> = vec![];
    while got.len() < 60 {
        got.extend(consumer.records().await);
    }
    for client in clients() {
        let own: Vec<u32> = got.iter().filter(|got| got.client == client).map(|got| got.number).collect();
        assert_eq!(own, [0, 1, 2, 3, 4], "{client}");
    }
    // Filtered records that follow the last wanted one are passed as well.
    until("only what is open lags", async || cluster.lag(1, "g").await == 60).await;
    let (keep, ack): (Vec<Got>, Vec<Got>) = got.into_iter().partition(|got| got.number == 2);
    consumer.ack(&ack).await;
    until("acks are counted", async || cluster.lag(1, "g").await == 12).await;
    drop(consumer);
    let mut consumer = cluster.consume(1, "g", 1_000, 0).await;
    let mut again: Vec<Got> = vec![];
    while again.len() < 12 {
        again.extend(consumer.records().await);
    }
    assert!(again.iter().all(|got| got.number == 2 && got.times == 2), "{again:?}");
    assert_eq!(again.len(), keep.len());
    assert!(consumer.quiet(Duration::from_millis(300)).await);
    consumer.ack(&again).await;
    until("nothing lags", async || cluster.lag(0, "g").await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_moves_takes_its_consumers_along_and_late_acks_count() {
    let cluster = Cluster::start(2).await;
    cluster.create_group(0, "g", &[]).await.unwrap();
    cluster.publish("client-1", "t", 0..10).await;
    let key = cluster.key(partition_of(b"client-1", PARTITIONS));
    let mut consumer = cluster.consume(0, "g", 1_000, 0).await;
    let first = consumer.records().await;
    assert_eq!(first.len(), 10);
    let from = usize::from(cluster.routers[0].homes.here(&key).is_none());
    let old = cluster.routers[from].homes.here(&key).unwrap();
    // The other router takes the partition; the old home learns of it and appends nothing any more.
    cluster.routers[1 - from].homes.take(&key).await.unwrap();
    old.lost.cancel();
    consumer.ack(&first[..5]).await;
    cluster.publish("client-1", "t", 10..12).await;
    let mut open: BTreeMap<u32, Got> = first[5..].iter().map(|got| (got.number, got.clone())).collect();
    while open.len() < 7 || consumer.joined < 2 {
        match consumer.next().await.unwrap() {
            Item::Joined => {}
            Item::Batch(batch) => {
                for got in self::open(&batch) {
                    // Acks said between two homes count; those told to the old one may come again.
                    if got.number < 5 {
                        consumer.ack(&[got]).await;
                    } else {
                        open.insert(got.number, got);
                    }
                }
            }
        }
    }
    assert_eq!(open.keys().copied().collect::<Vec<_>>(), (5..12).collect::<Vec<_>>());
    // These were handed out by the old home.
    consumer.ack(&first[5..]).await;
    consumer.ack(&open.values().filter(|got| got.number >= 10).cloned().collect::<Vec<_>>()).await;
    until("nothing lags", async || cluster.lag(0, "g").await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_credit_is_in_a_consumers_hands() {
    let cluster = Cluster::start(2).await;
    cluster.create_group(0, "g", &[]).await.unwrap();
    for client in clients() {
        cluster.publish(&client, "t", 0..5).await;
    }
    // Fewer than there are partitions.
    let mut consumer = cluster.consume(1, "g", 3, 60_000).await;
    let mut hands: Vec<Got> = vec![];
    while hands.len() < 3 {
        hands.extend(consumer.records().await);
    }
    assert_eq!(hands.len(), 3);
    assert!(consumer.quiet(Duration::from_millis(300)).await);
    let mut seen = 3;
    while seen < 60 {
        consumer.ack(&hands).await;
        hands = consumer.records().await;
        assert!(hands.len() <= 3);
        seen += hands.len();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nacks_and_ack_timeouts_bring_records_again() {
    let cluster = Cluster::start(1).await;
    cluster.create_group(0, "g", &[]).await.unwrap();
    cluster.publish("client-1", "t", 0..2).await;
    let mut consumer = cluster.consume(0, "g", 100, 400).await;
    let first = consumer.records().await;
    let nacks = Nacks { ranges: vec![first[0].range], delay_ms: 50 };
    consumer.requests.send(say(consume_request::Kind::Nacks(nacks))).await.unwrap();
    let again = consumer.records().await;
    assert_eq!((again[0].number, again[0].times), (0, 2));
    // The other one was never acked.
    let overdue = consumer.records().await;
    assert_eq!((overdue[0].number, overdue[0].times), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_goes_to_the_home_of_its_client() {
    let cluster = Cluster::start(2).await;
    let mut metrics = Registered::default();
    cluster.routers[0].inside.receipts.register(&mut metrics);
    let (requests, stream) = mpsc::channel(64);
    let request = cluster.request(APP, ReceiverStream::new(stream));
    let mut receipts = cluster.messaging(0).await.push(request).await.unwrap().into_inner();
    for (client, id) in clients().into_iter().zip(0..) {
        let push = PushRequest { id, topic: "t".into(), client, qos: 1, ..PushRequest::default() };
        requests.send(push).await.unwrap();
    }
    let bad = [("", "c", 0), ("a/+", "c", 0), ("$SYS/a", "c", 0), ("t", "c", 2)];
    for ((topic, client, qos), id) in bad.into_iter().zip(100..) {
        let push =
            PushRequest { id, topic: topic.into(), client: client.into(), qos, ..PushRequest::default() };
        requests.send(push).await.unwrap();
    }
    let large = PushRequest {
        id: 104,
        topic: "t".into(),
        payload: vec![0; 1_048_576].into(),
        ..PushRequest::default()
    };
    requests.send(large).await.unwrap();
    let mut by_id = BTreeMap::new();
    while by_id.len() < 17 {
        let receipt = timeout(LIMIT, receipts.message()).await.unwrap().unwrap().unwrap();
        by_id.insert(receipt.id, receipt);
    }
    assert!((0..12).all(|id| by_id[&id].status() == ReceiptStatus::Routed), "{by_id:?}");
    assert!(
        (100..105).all(|id| by_id[&id].status() == ReceiptStatus::Refused && !by_id[&id].reason.is_empty())
    );
    // Counted at the door where they were asked for, and nowhere else.
    assert_eq!(figure(&metrics, "penstock_receipts_total{status=\"routed\"}"), Some(12.0));
    assert_eq!(figure(&metrics, "penstock_receipts_total{status=\"refused\"}"), Some(5.0));
    let mut other = Registered::default();
    cluster.routers[1].inside.receipts.register(&mut other);
    assert_eq!(figure(&other, "penstock_receipts_total{status=\"routed\"}"), Some(0.0));
    for router in &cluster.routers {
        let pushed = router.homes.pushed.lock().unwrap();
        assert!(!pushed.is_empty());
        for push in pushed.iter() {
            let key = cluster.key(partition_of(push.client.as_bytes(), PARTITIONS));
            assert_eq!(rendezvous::home(&key, incarnations().take(2)), Some(router.homes.incarnation));
        }
    }
}

const LAG: &str = "penstock_group_lag_records{tenant=\"demo\",group=\"g\"}";
const OLDEST: &str = "penstock_group_oldest_seconds{tenant=\"demo\",group=\"g\"}";

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_of_a_group_is_shown_by_each_home_whether_it_is_consumed_or_not() {
    let cluster = Cluster::start(2).await;
    cluster.create_group(0, "g", &[]).await.unwrap();
    for client in clients() {
        cluster.publish(&client, "t", 0..5).await;
    }
    let mut metrics: Vec<Registered> = vec![Registered::default(), Registered::default()];
    let mut surveys = vec![];
    for (router, metrics) in cluster.routers.iter().zip(&mut metrics) {
        router.inside.serving.records.register(metrics);
        surveys.push(router.survey(metrics));
    }
    let lags = async |surveys: &mut Vec<Survey>| {
        for survey in surveys {
            survey.round().await;
        }
        metrics.iter().map(|metrics| figure(metrics, LAG)).collect::<Vec<_>>()
    };
    // Nobody consumes: half of the partitions, with 15 records each, are at home at each router.
    assert_eq!(lags(&mut surveys).await, [Some(30.0), Some(30.0)]);
    assert!(metrics.iter().all(|metrics| figure(metrics, OLDEST) > Some(1e9)), "received in 1970");
    let read = |home: &Arc<TestHome>| home.read.load(Ordering::Relaxed);
    let any_read = |router: &TestRouter| router.homes.homes.lock().unwrap().values().any(read);
    assert!(!cluster.routers.iter().any(any_read), "a survey counts as a reader");
    cluster.publish(&clients()[0], "t", 5..7).await;
    let sum = |lags: Vec<Option<f64>>| lags.into_iter().flatten().sum::<f64>();
    assert_eq!(sum(lags(&mut surveys).await), 62.0);
    let mut consumer = cluster.consume(0, "g", 1_000, 0).await;
    let mut got: Vec<Got> = vec![];
    while got.len() < 62 {
        got.extend(consumer.records().await);
    }
    assert_eq!(sum(lags(&mut surveys).await), 62.0);
    let last = got.split_off(61);
    consumer.ack(&got).await;
    timeout(LIMIT, async {
        while sum(lags(&mut surveys).await) > 1.0 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("acks are not shown");
    let results = |result: &str| -> f64 {
        let name = format!("penstock_group_records_total{{result=\"{result}\"}}");
        metrics.iter().filter_map(|metrics| figure(metrics, &name)).sum()
    };
    assert_eq!((results("handed_out"), results("acked"), results("nacked")), (62.0, 61.0, 0.0));
    drop(consumer);
    until("nobody is served", async || {
        for router in &cluster.routers {
            for partition in 0..PARTITIONS {
                if router.inside.serving.standing(&cluster.key(partition), "g").await.is_some() {
                    return false;
                }
            }
        }
        true
    })
    .await;
    assert_eq!(sum(lags(&mut surveys).await), 1.0);
    // The home of the record that is left is lost: what is left there is nobody's to show.
    let key = cluster.key(last[0].range.partition);
    let router = usize::from(cluster.routers[0].homes.here(&key).is_none());
    let others = |homes: &TestHomes| homes.homes.lock().unwrap().retain(|own, _| *own == key);
    others(&cluster.routers[router].homes);
    cluster.routers[router].homes.here(&key).unwrap().lost.cancel();
    let shown = lags(&mut surveys).await;
    assert_eq!((shown[router], shown[1 - router]), (None, Some(0.0)));
    assert_eq!(figure(&metrics[1 - router], OLDEST), Some(0.0));
    let delete = DeleteGroupRequest { name: "g".into() };
    cluster.messaging(0).await.delete_group(cluster.request(APP, delete)).await.unwrap();
    assert_eq!(lags(&mut surveys).await, [None, None]);
}
