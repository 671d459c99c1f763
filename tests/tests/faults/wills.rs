//! What clients leave behind when their gateway dies, or another connection takes them over: each will once, to groups and
//! to subscribers; none of those who left in good order, or are still there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use mqttbytes::QoS;
use penstock_client::{GroupSpec, Position};
use penstock_tests::{
    cluster::Cluster,
    device::Device,
    tenant::TestTenant,
    wait::{alone, eventually},
};
use tokio::task::JoinSet;

use crate::under_load::RECOVERY;

const PARTITIONS: usize = 4;

#[derive(Default)]
struct Seen {
    /// Where each payload is stored, as a group sees it.
    stored: BTreeMap<String, BTreeSet<Position>>,
    wills: BTreeSet<String>,
    /// How often each payload came to the subscriber.
    delivered: BTreeMap<String, usize>,
}

/// A group and a subscriber that see everything below `wills/`.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    _watching: JoinSet<()>,
}

impl Watch {
    pub async fn start(cluster: &Cluster, tenant: &TestTenant, target: &str) -> Self {
        let (seen, mut watching) = (Arc::<Mutex<Seen>>::default(), JoinSet::new());
        let client = cluster.client(tenant);
        client.create_group(&GroupSpec::new("wills").filter("wills/#")).await.unwrap();
        let mut subscriber = Device::connect(target, tenant, "subscriber").await.unwrap();
        subscriber.subscribe("wills/#", QoS::AtLeastOnce).await;
        let own = Arc::clone(&seen);
        watching.spawn(async move {
            while let Ok(packet) = subscriber.wait().await {
                let mqttbytes::v4::Packet::Publish(publish) = packet else { continue };
                let payload = String::from_utf8(publish.payload.to_vec()).unwrap();
                *own.lock().unwrap().delivered.entry(payload).or_default() += 1;
                subscriber.acknowledge(publish.pkid).await.unwrap();
            }
        });
        let own = Arc::clone(&seen);
        watching.spawn(async move {
            let mut consumer = client.consumer("wills").start();
            while let Ok(message) = consumer.next().await {
                consumer.ack(&message);
                let payload = String::from_utf8(message.payload.to_vec()).unwrap();
                let mut seen = own.lock().unwrap();
                if message.last_will {
                    seen.wills.insert(payload.clone());
                }
                seen.stored.entry(payload).or_default().insert(message.position);
            }
        });
        Self { seen, _watching: watching }
    }

    pub async fn sees(&self, what: &str, payloads: &[String]) {
        eventually(what, RECOVERY, || async {
            let seen = self.seen.lock().unwrap();
            let all =
                payloads.iter().all(|it| seen.stored.contains_key(it) && seen.delivered.contains_key(it));
            all.then_some(())
        })
        .await;
    }

    /// Everything that is stored by now has been seen: something newer came out of every partition.
    pub async fn is_up_to_date(&self, target: &str, tenant: &TestTenant, round: &str) {
        let mut partitions = BTreeSet::new();
        for number in 0.. {
            let payload = format!("marker {round} {number}");
            let client = format!("marker-{number}");
            let mut marker = eventually("a marker connects", RECOVERY, || async {
                Device::connect(target, tenant, &client).await.ok()
            })
            .await;
            marker.publish("wills/marker", &payload).await.unwrap();
            marker.disconnect().await.unwrap();
            self.sees("the marker", std::slice::from_ref(&payload)).await;
            let seen = self.seen.lock().unwrap();
            partitions.extend(seen.stored[&payload].iter().map(|position| position.partition));
            if partitions.len() == PARTITIONS {
                return;
            }
        }
    }

    pub fn has(&self, payload: &str) -> bool {
        let seen = self.seen.lock().unwrap();
        seen.stored.contains_key(payload) || seen.delivered.contains_key(payload)
    }

    /// Each of these once, and no other will that begins like them.
    pub fn only(&self, begin: &str, wills: &[String]) {
        let seen = self.seen.lock().unwrap();
        let ours: Vec<&String> = seen.wills.iter().filter(|will| will.starts_with(begin)).collect();
        let expected: BTreeSet<&String> = wills.iter().collect();
        assert_eq!(ours, expected.into_iter().collect::<Vec<_>>());
        for will in wills {
            assert_eq!((seen.stored[will].len(), seen.delivered[will]), (1, 1), "{will}");
        }
    }
}

/// Clients of a gateway that is to die.
struct Doomed {
    stay: Vec<Device>,
    leave: Vec<Device>,
    back: Vec<Device>,
}

const EACH: usize = 12;

async fn mortals(target: &str, tenant: &TestTenant, name: &str, payload: &str) -> Vec<Device> {
    let mut devices = Vec::new();
    for number in 0..EACH {
        let (client, will) = (format!("{name}-{number}"), format!("{payload}-{number}"));
        let connect = || async {
            let will = ("wills/w", will.as_str());
            Device::mortal(target, tenant, &client, number % 2 == 0, will).await.ok()
        };
        devices.push(eventually("a client connects", RECOVERY, connect).await);
    }
    devices
}

impl Doomed {
    async fn connect(target: &str, tenant: &TestTenant, round: &str) -> Self {
        Self {
            stay: mortals(target, tenant, "stay", &format!("{round} stay")).await,
            leave: mortals(target, tenant, "leave", &format!("{round} leave")).await,
            back: mortals(target, tenant, "back", &format!("{round} back")).await,
        }
    }
}

async fn wills_kept(cluster: &Cluster) -> Option<u64> {
    let mut kept = 0;
    for partition in 0..PARTITIONS {
        kept += cluster.redis.number(&format!("HLEN ps:{{acme/{partition}}}:wills")).await?;
    }
    Some(kept)
}

/// Every living router knows that the gateway is gone.
async fn gone_everywhere(cluster: &Cluster, members: usize, routers: std::ops::Range<usize>) {
    for server in cluster.servers().drain(routers) {
        let client = penstock_client::Client::builder().server(server);
        let admin = client.credentials("system/admin", penstock_tests::cluster::ADMIN_PASSWORD);
        let admin = admin.connect_lazy().unwrap().admin();
        let admin = &admin;
        eventually("the dead are forgotten", RECOVERY, || async move {
            let cluster = admin.cluster().await.ok()?;
            (cluster.members.iter().filter(|member| member.registered).count() <= members).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_gateway_leaves_each_will_once_also_when_a_router_dies_with_it() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let targets = cluster.targets();
    let watch = Watch::start(&cluster, &tenant, &targets[1]).await;
    for round in ["one", "two"] {
        let Doomed { stay, leave, back } = Doomed::connect(&targets[0], &tenant, round).await;
        for device in leave {
            device.disconnect().await.unwrap();
        }
        eventually("those who left have no will", RECOVERY, || async {
            (wills_kept(&cluster).await? == 2 * EACH as u64).then_some(())
        })
        .await;
        cluster.gateways[0].kill().await;
        let with_router = round == "two";
        if with_router {
            cluster.routers[0].kill().await;
        }
        let again = mortals(&targets[1], &tenant, "back", &format!("{round} never")).await;
        let of = |name: &'static str| (0..EACH).map(move |number| format!("{round} {name}-{number}"));
        let due: Vec<String> = of("stay").chain(of("back")).collect();
        watch.sees("all wills", &due).await;
        let (members, routers) = if with_router { (2, 1..2) } else { (3, 0..2) };
        gone_everywhere(&cluster, members, routers).await;
        watch.is_up_to_date(&targets[1], &tenant, round).await;
        watch.only(round, &due);
        for device in again {
            device.disconnect().await.unwrap();
        }
        drop((stay, back));
        if with_router {
            cluster.routers[0].start().await;
        }
        cluster.gateways[0].start().await;
        cluster.linked().await;
    }
}

/// One identifier, wanted by many at once.
const FIGHTERS: usize = 6;
/// CONNACKs until it is enough.
const ACCEPTED: usize = 40;
const PATIENCE: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn of_many_connections_with_one_identifier_one_stays_and_the_others_leave_a_will_each() {
    let _alone = alone().await;
    let cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let targets = cluster.targets();
    let watch = Watch::start(&cluster, &tenant, &targets[1]).await;
    let (accepted, mut fighters) = (Arc::new(Mutex::new(Vec::new())), JoinSet::new());
    for fighter in 0..FIGHTERS {
        let (target, tenant, accepted) =
            (targets[fighter % 2].clone(), tenant.clone(), Arc::clone(&accepted));
        fighters.spawn(async move {
            let (mut last, mut round) = (None, 0);
            while accepted.lock().unwrap().len() < ACCEPTED {
                round += 1;
                let payload = format!("fight {fighter}-{round}");
                let will = ("wills/w", payload.as_str());
                // Taken over before its CONNACK: again.
                let Ok(mut device) = Device::mortal(&target, &tenant, "one", true, will).await else {
                    continue;
                };
                accepted.lock().unwrap().push(payload.clone());
                // Its end, or the patience of a client that comes again before.
                let ended = tokio::time::timeout(PATIENCE, device.wait()).await;
                assert!(!matches!(ended, Ok(Ok(_))), "{ended:?}");
                last = Some((device, payload));
            }
            last
        });
    }
    let lasts: Vec<_> = fighters.join_all().await.into_iter().flatten().collect();
    // In bounded time all but one of the last ones are closed.
    let mut ends = JoinSet::new();
    for (mut device, payload) in lasts {
        ends.spawn(async move {
            let alive = device.publish("peace", &payload).await.is_ok();
            let ended = tokio::time::timeout(RECOVERY / 10, device.wait()).await.is_ok();
            (device, payload, alive && !ended)
        });
    }
    let mut alive: Vec<_> = ends.join_all().await.into_iter().filter(|(.., lives)| *lives).collect();
    assert_eq!(alive.len(), 1, "one live connection");
    let (winner, payload, _) = alive.remove(0);
    let mut due = accepted.lock().unwrap().clone();
    due.retain(|it| *it != payload);
    watch.sees("all wills", &due).await;
    winner.disconnect().await.unwrap();
    watch.is_up_to_date(&targets[1], &tenant, "peace").await;
    let seen = watch.seen.lock().unwrap();
    for (will, positions) in &seen.stored {
        // A CONNECT whose CONNACK was lost may have left one, too.
        assert_eq!((positions.len(), seen.delivered[will]), (1, 1), "{will}");
    }
    assert!(!seen.wills.contains(&payload), "of the one that stayed");
}
