//! Who is there, by two witnesses: a gateway is gone when the registry says so *and* no link of it lives; a router when the
//! registry says so *and* its link port doesn't answer, or another router is registered with that port: then it is a later
//! life of it that answers. A registry that hangs and wakes up forgets everybody at once, and must not empty the cluster.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use penstock_common::{
    net,
    registry::{Member, MemberKind, Members},
    rendezvous,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{fan::ShardId, home::lock, homes::Homes};

/// Between two dials of a router that the registry has lost.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A router that does not accept a connection within this is gone.
const PROBE_LIMIT: Duration = Duration::from_millis(500);

/// Members by two witnesses.
#[derive(Default)]
pub struct Presence {
    alive: Mutex<Alive>,
    changed: Notify,
    /// Who is alive has changed.
    pub news: Notify,
}

#[derive(Default)]
struct Alive {
    members: Arc<Members>,
    shards: Arc<[ShardId]>,
    /// In the registry now.
    registered: Arc<Members>,
    /// First look.
    since: Option<Instant>,
}

impl Presence {
    /// Members that are alive.
    pub fn members(&self) -> Arc<Members> {
        Arc::clone(&lock(&self.alive).members)
    }

    /// Shards of gateways that are alive.
    pub fn shards(&self) -> Arc<[ShardId]> {
        Arc::clone(&lock(&self.alive).shards)
    }

    /// Whether links and registry were followed for so long.
    pub fn has_followed(&self, grace: Duration) -> bool {
        lock(&self.alive).since.is_some_and(|since| since.elapsed() >= grace)
    }

    /// Whether a gateway is gone by both witnesses, which were followed for so long.
    pub fn is_gone(&self, gateway: u64, grace: Duration) -> bool {
        let alive = lock(&self.alive);
        alive.since.is_some_and(|since| since.elapsed() >= grace)
            && !alive.registered.gateways.contains_key(&gateway)
            && !alive.shards.iter().any(|shard| shard.gateway == gateway)
    }

    /// Whether the registry names this member now.
    pub fn is_registered(&self, incarnation: u64) -> bool {
        let alive = lock(&self.alive);
        alive.registered.gateways.contains_key(&incarnation)
            || alive.registered.routers.contains_key(&incarnation)
    }

    /// Members that the registry names now.
    pub fn registered(&self) -> Arc<Members> {
        Arc::clone(&lock(&self.alive).registered)
    }

    /// A link came or went.
    pub fn changed(&self) {
        self.changed.notify_one();
    }
}

/// Follows the registry and the links until the router stops.
pub async fn follow(homes: Arc<Homes>, stop: CancellationToken) {
    let mut registered = homes.registry.members();
    loop {
        let now = registered.borrow_and_update().clone();
        let lost = observe(&homes, now).await;
        let probe =
            async { if lost { tokio::time::sleep(PROBE_EVERY).await } else { std::future::pending().await } };
        tokio::select! {
            changed = registered.changed() => if changed.is_err() { return },
            () = homes.presence.changed.notified() => {}
            () = probe => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Returns whether some router is alive only because it still answers.
async fn observe(homes: &Homes, registered: Arc<Members>) -> bool {
    let before = homes.presence.members();
    let mut routers = without_earlier_lives(&registered, homes.incarnation);
    let mut lost = false;
    for (incarnation, member) in &before.routers {
        if registered.routers.contains_key(incarnation) {
            continue;
        }
        let own = *incarnation == homes.incarnation;
        if own || (!is_followed(&registered, member) && answers(member).await) {
            routers.insert(*incarnation, member.clone());
            lost = true;
        }
    }
    let (gateways, shards) = gateways(homes, &registered, &before);
    for gone in before.routers.keys().filter(|incarnation| !routers.contains_key(*incarnation)) {
        info!(router = format!("{gone:x}"), "a router is gone");
    }
    let members = Members { gateways, routers };
    let differs = *before != members || *homes.presence.shards() != *shards;
    {
        let mut alive = lock(&homes.presence.alive);
        alive.registered = registered;
        alive.members = Arc::new(members);
        alive.shards = shards;
        alive.since.get_or_insert_with(Instant::now);
    }
    if differs {
        homes.wake_fan_outs();
        homes.presence.news.notify_one();
    }
    lost
}

fn gateways(
    homes: &Homes,
    registered: &Members,
    before: &Members,
) -> (BTreeMap<u64, Member>, Arc<[ShardId]>) {
    let mut gateways = registered.gateways.clone();
    let mut shards = Vec::new();
    for (gateway, member) in &registered.gateways {
        if let MemberKind::Gateway { shards: count } = member.kind {
            shards.extend((0..count).map(|shard| ShardId { gateway: *gateway, shard }));
        }
    }
    for link in homes.links.all() {
        if !shards.contains(&link.shard) {
            shards.push(link.shard);
        }
        if let Some(member) = before.gateways.get(&link.shard.gateway) {
            gateways.entry(link.shard.gateway).or_insert_with(|| member.clone());
        }
    }
    (gateways, shards.into())
}

fn link_address(member: &Member) -> Option<&str> {
    match &member.kind {
        MemberKind::Router { link, .. } => Some(link),
        MemberKind::Gateway { .. } => None,
    }
}

/// Registered routers. Others that are registered with this one's own address are its earlier lives, whose leases go on for a
/// while.
fn without_earlier_lives(registered: &Members, own: u64) -> BTreeMap<u64, Member> {
    let mut routers = registered.routers.clone();
    if let Some(address) = registered.routers.get(&own).and_then(link_address) {
        routers.retain(|incarnation, member| *incarnation == own || link_address(member) != Some(address));
    }
    routers
}

/// Whether another router is registered with the address of one that no longer is.
fn is_followed(registered: &Members, gone: &Member) -> bool {
    registered.routers.values().any(|other| link_address(other) == link_address(gone))
}

/// A router that began anew at the same address answers as well: ask only while nobody else is registered there.
async fn answers(member: &Member) -> bool {
    match link_address(member) {
        Some(link) => net::connect(link, PROBE_LIMIT).await.is_ok(),
        None => false,
    }
}

/// The view that a shard must have synced for its absent clients to be absent.
pub fn view(homes: &Homes) -> u64 {
    rendezvous::view(homes.presence.members().routers.keys().copied())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn router(incarnation: u64, link: &str) -> (u64, Member) {
        let kind = MemberKind::Router { link: link.to_owned(), grpc: String::new() };
        (incarnation, Member { incarnation, node_id: String::new(), kind })
    }

    fn members(routers: &[(u64, Member)]) -> Members {
        Members { routers: routers.iter().cloned().collect(), ..Members::default() }
    }

    #[test]
    fn a_router_that_began_anew_at_its_address_ends_its_earlier_life() {
        let (first, second, other) = (router(9, "a:1"), router(2, "a:1"), router(5, "b:1"));
        let both = members(&[first.clone(), second.clone(), other.clone()]);
        let seen = |own| without_earlier_lives(&both, own).into_keys().collect::<Vec<_>>();
        assert_eq!(seen(2), [2, 5], "the address is its own");
        assert_eq!(seen(5), [2, 5, 9], "which of them lives is not known elsewhere before the lease is over");
        let later = members(&[second, other.clone()]);
        assert!(is_followed(&later, &first.1), "who answers there is the later one");
        assert!(!is_followed(&members(&[other]), &first.1));
    }
}
