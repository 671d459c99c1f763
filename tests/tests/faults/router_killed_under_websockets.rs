//! A router is killed under a microservice at its WebSocket door, which connects again at the other one with the same token: a
//! consumer misses nothing and sees nothing again that its group had stored as done, a producer's messages arrive, and a
//! subscription for one consumer is free at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use penstock_client::Position;
use penstock_loadtest::{
    fleet::FleetConfig,
    ledger::{Ledger, ReaderId},
};
use penstock_tests::{
    cluster::Cluster,
    load::Load,
    pushing::{self, Receivers},
    stored::Stored,
    tenant::TestTenant,
    wait::{alone, eventually},
    web::{self, Refused, Socket},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, Interval, interval, timeout},
};

use crate::under_load::RECOVERY;

/// The group behind the token.
const GROUP: &str = "notification2/s/load/#";
/// That are produced for.
const DEVICES: u64 = 12;
/// Between two messages for any of them.
const PACE: Duration = Duration::from_millis(2);
/// For a subscription without traffic to be free after its consumer's router was killed: the lease of 10 s, a look at the dead a
/// second later, pauses between tries, and some for a busy machine.
const IDLE_WITHIN: Duration = Duration::from_secs(30);

fn doors(cluster: &Cluster) -> Vec<SocketAddr> {
    cluster.routers.iter().map(|router| router.address("http")).collect()
}

/// How often each refusal was met.
type Refusals = BTreeMap<Refused, u64>;

/// Opens a socket at any door, beginning at one of them; gives which.
async fn open(
    doors: &[SocketAddr],
    first: usize,
    what: &str,
    token: &str,
    met: &mut Refusals,
) -> (Socket, usize) {
    let (met, turn) = (Mutex::new(met), AtomicU64::new(first as u64));
    eventually("a socket is opened", RECOVERY, || async {
        let at = turn.fetch_add(1, Ordering::Relaxed) as usize % doors.len();
        match Socket::open(doors[at], what, token).await {
            Ok(socket) => Some((socket, at)),
            Err(refused) => {
                *met.lock().unwrap().entry(refused).or_default() += 1;
                None
            }
        }
    })
    .await
}

/// What a consumer at work and its test share.
#[derive(Default)]
struct Shared {
    /// Said.
    acked: BTreeSet<Position>,
    /// Of these, what was stored as done while the router that is killed lived.
    stored: BTreeSet<Position>,
    /// Those that came again all the same.
    repeated: Vec<Position>,
    refusals: Refusals,
}

/// A consumer that acknowledges everything, and connects again, to another door, whenever it is cut off.
struct Consuming {
    shared: Arc<Mutex<Shared>>,
    /// Sockets opened so far, and the door of the last one; 0: it is cut off.
    connected: watch::Receiver<(u64, usize)>,
    _task: JoinSet<()>,
}

impl Consuming {
    async fn start(doors: Vec<SocketAddr>, token: String, ledger: Ledger, reader: ReaderId) -> Self {
        let shared = Arc::<Mutex<Shared>>::default();
        let (said, connected) = watch::channel((0, 0));
        let mut task = JoinSet::new();
        let own = Arc::clone(&shared);
        task.spawn(async move {
            let (mut first, mut sockets) = (0, 0);
            loop {
                let mut met = Refusals::new();
                let (mut socket, at) = open(&doors, first, "consumer", &token, &mut met).await;
                met.into_iter()
                    .for_each(|(refused, n)| *own.lock().unwrap().refusals.entry(refused).or_default() += n);
                (first, sockets) = (at + 1, sockets + 1);
                said.send_replace((sockets, at));
                while let Some(got) = socket.record().await {
                    ledger.seen(reader, &got.payload, Some(got.position));
                    if own.lock().unwrap().stored.contains(&got.position) {
                        own.lock().unwrap().repeated.push(got.position);
                    }
                    if !socket.say(got.ack).await {
                        break;
                    }
                    own.lock().unwrap().acked.insert(got.position);
                }
            }
        });
        let mut own = Self { shared, connected, _task: task };
        own.opened(1).await;
        own
    }

    /// Waits for the socket of this number; gives its door.
    async fn opened(&mut self, number: u64) -> usize {
        let opened = timeout(RECOVERY, self.connected.wait_for(|(sockets, _)| *sockets >= number)).await;
        let (sockets, at) = *opened.unwrap_or_else(|_| panic!("no socket number {number}")).unwrap();
        assert_eq!(sockets, number, "cut off in between");
        at
    }

    /// Everything that was acknowledged until now is stored as done.
    async fn is_stored(&self, stored: &Stored) {
        let acked = self.shared.lock().unwrap().acked.clone();
        let all = || async { stored.all_done(GROUP, &acked).await.then_some(()) };
        eventually("what was acknowledged is stored", RECOVERY, all).await;
        self.shared.lock().unwrap().stored.extend(acked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_goes_on_at_the_other_router() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let (doors, stored) = (doors(&cluster), Stored::of(&cluster, &tenant).await);
    let token = web::token(doors[0], &tenant, "s", "load/#").await;
    let ledger = Ledger::new();
    let reader = ledger.reader("acme");
    let mut consuming = Consuming::start(doors.clone(), token.clone(), ledger.clone(), reader).await;
    let fleet = FleetConfig {
        publishers: 20,
        rate: Some(25.0),
        ..FleetConfig::new(cluster.targets(), "acme", &tenant.device(), &tenant.password)
    };
    let load = Load::over(cluster.client(&tenant), fleet, &ledger).await;
    load.progress(300, RECOVERY).await;
    for socket in [1, 2] {
        let at = consuming.opened(socket).await;
        consuming.is_stored(&stored).await;
        cluster.routers[at].kill().await;
        let since = Instant::now();
        assert_eq!(consuming.opened(socket + 1).await, 1 - at);
        eprintln!("the other router's door lets it in after {:?}", since.elapsed());
        load.progress(300, RECOVERY).await;
        // The one that is there is still the only one.
        let second = Socket::open(doors[1 - at], "consumer", &token).await.err();
        assert_eq!(second, Some(Refused::Status(409)));
        cluster.routers[at].start().await;
        cluster.linked().await;
        load.progress(300, RECOVERY).await;
    }
    load.balances().await;
    eventually("the consumer has everything", RECOVERY, || async { ledger.complete(reader).then_some(()) })
        .await;
    let (verdict, shared) = (ledger.verdict(reader), consuming.shared.lock().unwrap());
    eprintln!("consumer: {verdict} {:?}", shared.refusals);
    assert!(verdict.balanced(), "consumer: {verdict}");
    assert_eq!(shared.repeated, [], "of {} that were stored as done", shared.stored.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_without_traffic_is_free_when_the_dead_routers_lease_is_over() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(1, 2).await;
    let tenant = cluster.tenant("acme").await;
    let (doors, stored) = (doors(&cluster), Stored::of(&cluster, &tenant).await);
    let token = web::token(doors[0], &tenant, "s", "load/#").await;
    let mut met = Refusals::new();
    let (socket, _) = open(&doors, 0, "consumer", &token, &mut met).await;
    // Its home decides who may consume.
    let at = eventually("the first partition has a home", RECOVERY, || stored.holder(&cluster, 0)).await;
    drop(socket);
    let (mut socket, _) = open(&doors[at..=at], 0, "consumer", &token, &mut met).await;
    cluster.routers[at].kill().await;
    let since = Instant::now();
    assert!(socket.record().await.is_none(), "nothing is to be had");
    open(&doors[1 - at..=1 - at], 0, "consumer", &token, &mut met).await;
    let locked = since.elapsed();
    eprintln!("free after {locked:?}: {met:?}");
    assert!(locked < IDLE_WITHIN, "free after {locked:?}: {met:?}");
}

/// A producer with one message for each device under way, sent again at the other door when it was cut off.
struct Producing {
    tenant: TestTenant,
    ledger: Ledger,
    doors: Vec<SocketAddr>,
    token: String,
    settled: Arc<AtomicU64>,
    stop: watch::Receiver<bool>,
    pace: Interval,
    /// By device: what has no answer, and what is next.
    under_way: BTreeMap<u64, u64>,
    next: BTreeMap<u64, u64>,
    refused: BTreeMap<String, u64>,
    /// Sent again on another socket.
    resent: usize,
}

impl Producing {
    async fn run(mut self) -> Self {
        let (mut first, mut sockets, mut met) = (0, 0, Refusals::new());
        loop {
            let (mut socket, at) = open(&self.doors, first, "producer", &self.token, &mut met).await;
            (first, sockets) = (at + 1, sockets + 1);
            self.resent += self.under_way.len();
            if self.serve(&mut socket, sockets).await {
                return self;
            }
        }
    }

    /// Until the socket breaks; true: everything has its answer, and nothing more is wanted.
    async fn serve(&mut self, socket: &mut Socket, number: u32) -> bool {
        for device in 0..DEVICES {
            if !self.send(socket, number, device).await {
                return false;
            }
        }
        while !self.under_way.is_empty() {
            let Some(answer) = socket.text().await else { return false };
            let (said, reason) =
                answer.split_once('\n').map_or((&*answer, None), |(said, why)| (said, Some(why)));
            let (device, sequence) = said.split_once('-').expect("as it was said");
            let (device, sequence) = (device.parse().unwrap(), sequence.parse().unwrap());
            assert_eq!(self.under_way.get(&device), Some(&sequence), "{answer}");
            if let Some(reason) = reason {
                *self.refused.entry(reason.to_owned()).or_default() += 1;
            } else {
                self.ledger.acked(device, sequence);
                self.under_way.remove(&device);
                self.settled.fetch_add(1, Ordering::Relaxed);
                if *self.stop.borrow() {
                    continue;
                }
            }
            self.pace.tick().await;
            if !self.send(socket, number, device).await {
                return false;
            }
        }
        true
    }

    /// What has no answer, else the next one.
    async fn send(&mut self, socket: &mut Socket, number: u32, device: u64) -> bool {
        let next = self.next.entry(device).or_default();
        let sequence = *self.under_way.entry(device).or_insert_with(|| std::mem::replace(next, *next + 1));
        let stamp = pushing::stamp(&self.tenant, device, sequence, number);
        self.ledger.sent(&stamp);
        socket.produce(&format!("{device}-{sequence}"), &pushing::client(device), stamp.encode(64)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_to_a_producer_arrives() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(2, 2).await;
    let tenant = cluster.tenant("acme").await;
    let (doors, ledger) = (doors(&cluster), Ledger::new());
    let reader = ledger.reader("acme");
    (0..DEVICES).for_each(|device| drop(ledger.publisher(device, "acme")));
    let receivers = Receivers::connect(&cluster.targets(), &tenant, DEVICES, &ledger, reader).await;
    let (settled, stop) = (Arc::<AtomicU64>::default(), watch::Sender::new(false));
    let producing = Producing {
        token: web::token(doors[0], &tenant, "p", pushing::TOPIC).await,
        tenant,
        ledger: ledger.clone(),
        doors,
        settled: Arc::clone(&settled),
        stop: stop.subscribe(),
        pace: interval(PACE),
        under_way: BTreeMap::new(),
        next: BTreeMap::new(),
        refused: BTreeMap::new(),
        resent: 0,
    };
    let producing = tokio::spawn(producing.run());
    let progress = async |messages: u64| {
        let goal = settled.load(Ordering::Relaxed) + messages;
        let reached = || async { (settled.load(Ordering::Relaxed) >= goal).then_some(()) };
        eventually("messages are answered", RECOVERY, reached).await;
    };
    progress(200).await;
    // Its own router twice, then the other one.
    for at in [0, 1, 1] {
        cluster.routers[at].kill().await;
        progress(200).await;
        cluster.routers[at].start().await;
        cluster.linked().await;
        progress(200).await;
    }
    stop.send_replace(true);
    let producing = timeout(RECOVERY, producing).await.expect("the producer ends in time").unwrap();
    let come = eventually("all that was answered has come", RECOVERY, || async {
        ledger.complete(reader).then_some(())
    });
    let come = timeout(RECOVERY / 2, come).await;
    let verdict = ledger.verdict(reader);
    eprintln!("{verdict} sent again: {} refused: {:?}", producing.resent, producing.refused);
    assert_eq!(receivers.broken(), 0, "devices see nothing");
    assert!(come.is_ok() && verdict.balanced() && producing.resent > 0, "{verdict}");
}
