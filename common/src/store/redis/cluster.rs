//! Keeps the connections to the primaries of a cluster, and the table of who has which slot.
//!
//! It asks all of them: when one points elsewhere, when a connection is gone, and every second, for an old primary that is cut
//! off from the others goes on answering. A node that the others have replaced is given up at once, with all that is in
//! flight there. Nodes without slots are connected too: slots may be on their way there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use redis::{ConnectionAddr, ConnectionInfo};
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    config::OpenError,
    connection::Server,
    live::{Live, Way, refused, shown},
    routes::{Routes, Table},
    view::{Address, View},
};

/// Between two looks at a cluster that is whole.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same while slots have no connection.
const LOOK_SOON: Duration = Duration::from_millis(100);
/// Least time between two looks, however many answers point elsewhere.
const LOOK_GAP: Duration = Duration::from_millis(20);
/// For a node's answer to a look.
const ANSWER: Duration = Duration::from_secs(1);

/// Connects to all primaries, and from then on a task follows them.
pub(super) async fn open(server: &Arc<Server>, stop: CancellationToken) -> Result<(), OpenError> {
    let view = first_look(server).await?;
    let owners = view.owners();
    let hosts = owners.keys().filter_map(|(host, port)| server.dialer.target.host(host, *port));
    let hosts: Vec<_> = hosts.collect();
    let mut lives = BTreeMap::new();
    for (address, live) in
        owners.keys().zip(join_all(hosts.iter().map(|host| server.dialer.connect(host))).await)
    {
        lives.insert(address.clone(), live?);
    }
    let mut keeper = Keeper {
        server: Arc::clone(server),
        lives: BTreeMap::new(),
        owners,
        dials: JoinSet::new(),
        dialing: BTreeSet::new(),
        watches: JoinSet::new(),
        told: BTreeMap::new(),
        whole: false,
    };
    lives.into_iter().for_each(|(address, live)| keeper.connected(address, live));
    let uncovered = keeper.publish();
    if uncovered > 0 {
        keeper.give_up();
        return Err(OpenError::Uncovered { address: server.dialer.target.shown.clone(), uncovered });
    }
    tokio::spawn(keeper.keep(stop));
    Ok(())
}

struct Keeper {
    server: Arc<Server>,
    lives: BTreeMap<Address, Arc<Live>>,
    owners: BTreeMap<Address, Vec<u16>>,
    dials: JoinSet<(Address, Result<Arc<Live>, OpenError>)>,
    dialing: BTreeSet<Address>,
    watches: JoinSet<(Address, u64)>,
    /// What was logged of failed attempts, once each.
    told: BTreeMap<Address, OpenError>,
    whole: bool,
}

impl Keeper {
    async fn keep(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(self.turn()).await.is_some() {
            self.publish();
        }
        self.give_up();
    }

    async fn turn(&mut self) {
        let begun = Instant::now();
        let server = Arc::clone(&self.server);
        tokio::select! {
            Some(Ok((address, outcome))) = self.dials.join_next() => self.dialed(address, outcome),
            Some(Ok((address, number))) = self.watches.join_next() => self.lost(&address, number),
            () = server.stale.notified() => {
                time::sleep_until(begun + LOOK_GAP).await;
                self.look().await;
            }
            () = time::sleep(if self.whole { LOOK_EVERY } else { LOOK_SOON }) => self.look().await,
        }
    }

    async fn look(&mut self) {
        let mut view = View::default();
        let asked = self.lives.iter().map(|(address, live)| async move { (address, nodes(live).await) });
        let answers: Vec<_> = join_all(asked).await;
        let mut answered = false;
        for (address, text) in &answers {
            if let Some(text) = text {
                view.add(text, address);
                answered = true;
            }
        }
        drop(answers);
        if !answered {
            match first_look(&self.server).await {
                Ok(seen) => view = seen,
                // What is known stays: its connections tell whether it is true.
                Err(_) => return,
            }
        }
        self.follow(&view);
    }

    fn follow(&mut self, view: &View) {
        let primaries: BTreeSet<&Address> = view.primaries().iter().collect();
        self.lives.retain(|address, live| {
            let stays = primaries.contains(address);
            if !stays {
                tracing::warn!(redis = live.address, "is no primary of the cluster any more");
                live.cut.cancel();
            }
            stays
        });
        self.owners = view.owners();
        for address in primaries {
            if self.lives.contains_key(address) || !self.dialing.insert(address.clone()) {
                continue;
            }
            let (server, address) = (Arc::clone(&self.server), address.clone());
            self.dials.spawn(async move {
                let unknown = || OpenError::BadUrl(format!("{} names no host", server.dialer.target.shown));
                let outcome = match server.dialer.target.host(&address.0, address.1) {
                    Some(host) => server.dialer.connect(&host).await,
                    None => Err(unknown()),
                };
                (address, outcome)
            });
        }
    }

    fn dialed(&mut self, address: Address, outcome: Result<Arc<Live>, OpenError>) {
        self.dialing.remove(&address);
        match outcome {
            Ok(live) => {
                tracing::info!(redis = live.address, "connected to a primary of the cluster");
                self.told.remove(&address);
                self.connected(address, live);
            }
            Err(error) => {
                if self.told.get(&address) != Some(&error) {
                    tracing::warn!(%error, "can't connect to a primary of the cluster, trying on");
                    self.told.insert(address, error);
                }
            }
        }
    }

    fn connected(&mut self, address: Address, live: Arc<Live>) {
        let (server, watched, at) = (Arc::clone(&self.server), Arc::clone(&live), address.clone());
        self.watches.spawn(async move {
            server.dialer.watch(&watched).await;
            watched.cut.cancel();
            (at, watched.number)
        });
        self.lives.insert(address, live);
    }

    fn lost(&mut self, address: &Address, number: u64) {
        self.server.dialer.counts.lost.inc();
        if self.lives.get(address).is_some_and(|live| live.number == number)
            && let Some(live) = self.lives.remove(address)
        {
            tracing::warn!(redis = live.address, "lost the connection to a primary of the cluster");
        }
    }

    /// Makes the table that commands are sent by; tells how many slots have no connection.
    fn publish(&mut self) -> usize {
        let mut table = Table::new();
        for (address, live) in &self.lives {
            table.add(live, self.owners.get(address).into_iter().flatten().copied());
        }
        let uncovered = table.uncovered();
        self.whole = uncovered == 0;
        self.server.route(Routes::Cluster(table), self.whole);
        uncovered
    }

    fn give_up(&mut self) {
        self.lives.values().for_each(|live| live.cut.cancel());
        self.server.route(Routes::Cluster(Table::new()), false);
    }
}

async fn nodes(live: &Live) -> Option<String> {
    let mut connection = live.connection(Way::Read);
    let mut command = redis::cmd("CLUSTER");
    command.arg("NODES");
    let answer = time::timeout(ANSWER, command.query_async::<String>(&mut connection)).await;
    answer.ok()?.ok()
}

/// Asks those that the URL names.
async fn first_look(server: &Server) -> Result<View, OpenError> {
    let dialer = &server.dialer;
    let ask = async |host: &ConnectionInfo| {
        let mut connection = dialer.raw(host).await?;
        let mut command = redis::cmd("CLUSTER");
        command.arg("NODES");
        match command.query_async::<String>(&mut connection).await {
            Ok(text) => Ok(text),
            Err(error) if error.to_string().contains("cluster support disabled") => {
                Err(OpenError::NoCluster(shown(host)))
            }
            Err(error) => Err(refused(host, &error)),
        }
    };
    let within = dialer.config.connect_timeout;
    let asked = dialer.target.hosts.iter().map(|host| async move {
        let late = |_| OpenError::Unreachable {
            address: shown(host),
            reason: format!("no answer within {within:?}"),
        };
        let answer = time::timeout(within, ask(host)).await.map_err(late).and_then(|answer| answer);
        (host, answer)
    });
    let (mut view, mut failed) = (View::default(), None);
    for (host, answer) in join_all(asked).await {
        match (answer, host.addr()) {
            (Ok(text), ConnectionAddr::Tcp(name, port)) => view.add(&text, &(name.clone(), *port)),
            (Ok(_), _) => {}
            (Err(error), _) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if view.primaries().is_empty() => Err(error),
        _ => Ok(view),
    }
}
