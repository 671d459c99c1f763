//! The thread of a shard: its runtime and the tasks that feed it: accept, mailbox, clock, snapshots, end of turn.

use std::{cell::RefCell, io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use penstock_common::net::{self, TcpListener};
use socket2::SockRef;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::MissedTickBehavior,
};

use crate::{
    config::transports::TransportKind,
    connection::listener,
    kicks::KickReply,
    shard::{Mail, Shard, ShardCell, Shared},
};

/// How precise deadlines are.
const TICK: Duration = Duration::from_millis(100);
/// Every how many ticks the slower things are looked at.
const SLOW: u32 = 5;
/// Mails taken at a time.
const MAILS: usize = 256;

/// A shard can't listen, or can't even run.
pub(crate) enum Unbound {
    Listener { kind: TransportKind, address: SocketAddr, source: io::Error },
    Runtime(io::Error),
}

/// Runs a shard on this thread until it is told to stop. `started` hears the addresses, or why there are none.
pub(crate) fn run(
    shared: Arc<Shared>,
    number: u32,
    addresses: Vec<(TransportKind, SocketAddr)>,
    mailbox: mpsc::Receiver<Mail>,
    started: oneshot::Sender<Result<Vec<(TransportKind, SocketAddr)>, Unbound>>,
) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let options = tokio::runtime::LocalOptions::default();
    match builder.enable_all().build_local(options) {
        Ok(runtime) => runtime.block_on(serve(shared, number, addresses, mailbox, started)),
        Err(error) => drop(started.send(Err(Unbound::Runtime(error)))),
    }
}

async fn serve(
    shared: Arc<Shared>,
    number: u32,
    addresses: Vec<(TransportKind, SocketAddr)>,
    mailbox: mpsc::Receiver<Mail>,
    started: oneshot::Sender<Result<Vec<(TransportKind, SocketAddr)>, Unbound>>,
) {
    let socket_bytes = shared.config.limits.socket_bytes;
    let bound: Result<Vec<_>, _> = addresses.into_iter().map(|it| bind(it, socket_bytes)).collect();
    let listeners = match bound {
        Ok(listeners) => listeners,
        Err(error) => return drop(started.send(Err(error))),
    };
    let turn_ends = Rc::new(Notify::new());
    let shard = Shard::new(Arc::clone(&shared), number, Rc::clone(&turn_ends));
    tokio::task::spawn_local(end_turns(Rc::clone(&shard), turn_ends));
    tokio::task::spawn_local(tick(Rc::clone(&shard)));
    tokio::task::spawn_local(watch_members(Rc::clone(&shard)));
    tokio::task::spawn_local(watch_definitions(Rc::clone(&shard)));
    let mut addresses = Vec::with_capacity(listeners.len());
    for (kind, address, listener) in listeners {
        let accepting = tokio::task::spawn_local(listener::accept(Rc::clone(&shard), kind, listener));
        shard.borrow_mut().accepting.push(accepting.abort_handle());
        addresses.push((kind, address));
    }
    let _ = started.send(Ok(addresses));
    read_mailbox(shard, mailbox).await;
}

fn bind(
    (kind, address): (TransportKind, SocketAddr),
    socket_bytes: usize,
) -> Result<(TransportKind, SocketAddr, TcpListener), Unbound> {
    let bound = net::listen(address, true).and_then(|listener| {
        if socket_bytes > 0 {
            // What is accepted has them from the beginning.
            SockRef::from(&listener).set_recv_buffer_size(socket_bytes)?;
            SockRef::from(&listener).set_send_buffer_size(socket_bytes)?;
        }
        Ok((listener.local_addr()?, listener))
    });
    let (address, listener) = bound.map_err(|source| Unbound::Listener { kind, address, source })?;
    Ok((kind, address, listener))
}

async fn end_turns(shard: ShardCell, turn_ends: Rc<Notify>) {
    loop {
        turn_ends.notified().await;
        shard.borrow_mut().end_turn();
    }
}

async fn tick(shard: ShardCell) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticks: u32 = 0;
    loop {
        interval.tick().await;
        ticks = ticks.wrapping_add(1);
        let mut shard = shard.borrow_mut();
        shard.turn();
        shard.tick_connections();
        shard.tick_subscribes();
        shard.tick_drain();
        if ticks.is_multiple_of(SLOW) {
            shard.tick_slow();
        }
    }
}

async fn watch_members(shard: ShardCell) {
    let mut members = shard.borrow().shared.registry.members();
    loop {
        let snapshot = members.borrow_and_update().clone();
        {
            let mut shard = shard.borrow_mut();
            shard.turn();
            shard.members = snapshot;
            shard.dial_all();
            shard.steer_all();
        }
        if members.changed().await.is_err() {
            return;
        }
    }
}

async fn watch_definitions(shard: ShardCell) {
    let mut definitions = shard.borrow().shared.registry.definitions();
    loop {
        let snapshot = definitions.borrow_and_update().clone();
        {
            let mut shard = shard.borrow_mut();
            shard.turn();
            shard.define(snapshot);
        }
        if definitions.changed().await.is_err() {
            return;
        }
    }
}

async fn read_mailbox(shard: Rc<RefCell<Shard>>, mut mailbox: mpsc::Receiver<Mail>) {
    let mut mails = Vec::with_capacity(MAILS);
    while mailbox.recv_many(&mut mails, MAILS).await > 0 {
        let mut shard = shard.borrow_mut();
        shard.turn();
        for mail in mails.drain(..) {
            match mail {
                Mail::Claimed { id, result } => shard.claimed(id, result),
                Mail::Ownership(event) => shard.ownership(event),
                Mail::Kick { client, below, shard: from, id } => {
                    shard.kick_received(&client, below, KickReply::Shard(from, id));
                }
                Mail::Kicked { id } => shard.kicked(id),
                Mail::Drain { within, done } => shard.begin_drain(within, done),
                Mail::Stop => return,
            }
        }
    }
}

impl Shard {
    fn tick_slow(&mut self) {
        self.tick_kicks();
        self.tick_pushes();
        self.tick_interest();
        self.tick_leaving();
        self.sweep_claims();
        self.close_overdue();
        self.show_credit();
        let now = self.now;
        self.verdicts.sweep(now);
        self.links.told.sink();
    }
}
