//! What a shard asks on its control stream, one verb a function. Nothing here waits on the stream's account: what needs the
//! store runs beside it, so that a stalled Redis node holds up nobody else.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use penstock_common::name::{PartitionKey, TenantName};
use penstock_proto::link::{
    Attached, Authenticate, ClaimProvisional, Interest, InterestConfirmed, Kick, Kicked, LaneLost,
    LaneOpened, OpenLane, ProvisionalEpoch, Verdict, WillsEnded, control_down as down, control_up as up,
    data_down,
};
use tokio::time::Instant;
use tracing::warn;

use crate::{fan::ShardId, home::Home, homes::Homes, link::Link, pace::Backoff};

/// A lane that can't be opened within this is given back to the shard.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// Tells whether a device may connect.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// Verifies a password; the id of the answer is set by the caller.
    async fn authenticate(&self, ask: Authenticate) -> Verdict;
}

/// Handles one message; false when the shard breaks the contract and its link must close.
pub fn handle(
    homes: &Arc<Homes>,
    authenticator: &Arc<dyn Authenticator>,
    link: &Arc<Link>,
    kind: up::Kind,
) -> bool {
    match kind {
        up::Kind::Hello(_) => return false,
        up::Kind::Heartbeat(_) => {}
        up::Kind::OpenLane(open) => return open_lane(homes, link, open),
        up::Kind::Interest(interest) => apply_interest(homes, link, interest),
        up::Kind::Kick(kick) => pass_kick(homes, link, kick),
        up::Kind::Kicked(kicked) => link.kicked(kicked.id),
        up::Kind::Inspected(answer) => link.inspected(answer),
        up::Kind::Synced(synced) => link.synced.store(synced.view, Ordering::Release),
        up::Kind::Authenticate(ask) => authenticate(authenticator, link, ask),
        up::Kind::CloseLane(close) => in_lane(link, close.lane, up::Kind::CloseLane(close)),
        up::Kind::Attach(attach) => in_lane(link, attach.lane, up::Kind::Attach(attach)),
        up::Kind::Detach(detach) => in_lane(link, detach.lane, up::Kind::Detach(detach)),
        up::Kind::OpenSession(open) => in_lane(link, open.lane, up::Kind::OpenSession(open)),
        up::Kind::SetFilters(set) => in_lane(link, set.lane, up::Kind::SetFilters(set)),
        up::Kind::EndWills(ends) => in_lane(link, ends.lane, up::Kind::EndWills(ends)),
        up::Kind::ClaimProvisional(claim) => {
            if link.lane(claim.lane).is_none() && !link.is_opening(claim.lane) {
                refuse_provisional(link, &claim);
            } else {
                in_lane(link, claim.lane, up::Kind::ClaimProvisional(claim));
            }
        }
    }
    true
}

fn in_lane(link: &Arc<Link>, lane: u32, kind: up::Kind) {
    if let Some((home, kind)) = link.route(lane, kind) {
        lane_message(&home, link, kind);
    }
}

fn lane_message(home: &Arc<Home>, link: &Arc<Link>, kind: up::Kind) {
    match kind {
        up::Kind::CloseLane(close) => {
            link.close_lane(close.lane);
            home.closed(link, close.lane);
        }
        up::Kind::Attach(attach) => {
            let (bequests, seq) = (home.attach(link, &attach.owners), attach.seq);
            if bequests.is_empty() && !home.wipes(&attach.owners) {
                let refused = bequests.refused();
                link.tell(down::Kind::Attached(Attached { seq, refused }));
                return home.ring_waiting(link, &attach.owners);
            }
            let (home, link) = (Arc::clone(home), Arc::clone(link));
            tokio::spawn(async move {
                home.wipe_all(&link, &attach.owners).await;
                if let Some(refused) = home.bequests_are_done(&link, bequests).await {
                    link.tell(down::Kind::Attached(Attached { seq, refused }));
                    home.ring_waiting(&link, &attach.owners);
                }
            });
        }
        up::Kind::Detach(detach) => {
            home.detach(&detach.owners);
            home.ended(link, detach.ended);
        }
        up::Kind::ClaimProvisional(claim) => {
            let (epoch, superseded) = home.grant(&claim.client);
            let answer = ProvisionalEpoch { id: claim.id, epoch: epoch.0, superseded: superseded.0 };
            link.tell(down::Kind::ProvisionalEpoch(answer));
        }
        up::Kind::OpenSession(open) => {
            tokio::spawn(Arc::clone(home).open_session(Arc::clone(link), open));
        }
        up::Kind::SetFilters(set) => {
            tokio::spawn(Arc::clone(home).set_filters(Arc::clone(link), set));
        }
        up::Kind::EndWills(ends) => {
            // In the order of the link; only the store is waited for beside it.
            let ticket = home.end_wills(&ends);
            let done = WillsEnded { seq: ends.seq, lane: ends.lane };
            tokio::spawn(Arc::clone(home).confirm_ends(Arc::clone(link), done, ticket));
        }
        _ => {}
    }
}

fn refuse_provisional(link: &Link, claim: &ClaimProvisional) {
    link.tell(down::Kind::ProvisionalEpoch(ProvisionalEpoch { id: claim.id, epoch: 0, superseded: 0 }));
}

fn open_lane(homes: &Arc<Homes>, link: &Arc<Link>, open: OpenLane) -> bool {
    if !link.opening(open.lane) {
        return false;
    }
    let (homes, link) = (Arc::clone(homes), Arc::clone(link));
    tokio::spawn(async move {
        let lane = open.lane;
        if let Err(reason) = open_for(&homes, &link, open).await {
            warn!(gateway = %link.node_id, reason, "a lane could not be opened");
            link.close_lane(lane);
            // A closed link needs no word.
            let _ = link.data.send(data_down::Kind::LaneLost(LaneLost { lane, reason }));
        }
    });
    true
}

async fn open_for(homes: &Arc<Homes>, link: &Arc<Link>, open: OpenLane) -> Result<(), String> {
    let tenant = TenantName::new(&open.tenant).map_err(|error| error.to_string())?;
    let defined = homes.tenant(&tenant).ok_or("the tenant does not exist")?;
    if open.partition >= defined.tenant.partitions {
        return Err("the partition does not exist".to_owned());
    }
    let key = PartitionKey { tenant, partition: open.partition };
    let home = open_home(homes, link, &key).await?;
    let lost = || "the partition was lost while it was opened".to_owned();
    let bequests = home.opened(link, open.lane, &open.owners).ok_or_else(lost)?;
    if home.wipes(&open.owners) {
        home.wipe_all(link, &open.owners).await;
    }
    home.bequests_are_done(link, bequests).await;
    for kind in link.opened(open.lane, &home) {
        lane_message(&home, link, kind);
    }
    if home.lost().is_cancelled() {
        return Err(lost());
    }
    if link.closed.is_cancelled() {
        home.link_closed(link);
    }
    let opened = LaneOpened { lane: open.lane, term: home.term().0, credit: homes.credit() };
    link.tell(down::Kind::LaneOpened(opened));
    home.ring_waiting(link, &open.owners);
    Ok(())
}

async fn open_home(homes: &Arc<Homes>, link: &Link, key: &PartitionKey) -> Result<Arc<Home>, String> {
    let deadline = Instant::now() + OPEN_WITHIN;
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    loop {
        match homes.open(key).await {
            Ok(home) => return Ok(home),
            Err(error) if Instant::now() >= deadline || link.closed.is_cancelled() => {
                return Err(error.to_string());
            }
            Err(_) => backoff.pause(&homes.seams).await,
        }
    }
}

fn apply_interest(homes: &Arc<Homes>, link: &Arc<Link>, interest: Interest) {
    let touched = homes.interest.apply(link.number, interest.changes);
    let affected: Vec<Arc<Home>> = touched
        .iter()
        .filter(|tenant| homes.any_filter(tenant))
        .flat_map(|tenant| homes.all(Some(tenant)))
        .filter(|home| !home.fan_is_stored())
        .collect();
    let (homes, link) = (Arc::clone(homes), Arc::clone(link));
    let (seq, end) = (interest.seq, interest.snapshot_end);
    if affected.is_empty() {
        return confirm_interest(&homes, &link, seq, end);
    }
    tokio::spawn(async move {
        for home in affected {
            let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
            while !home.lost().is_cancelled()
                && !link.closed.is_cancelled()
                && home.begin_fan_out().await.is_err()
            {
                backoff.pause(&homes.seams).await;
            }
        }
        confirm_interest(&homes, &link, seq, end);
    });
}

fn confirm_interest(homes: &Homes, link: &Link, seq: u64, snapshot_end: bool) {
    if snapshot_end {
        link.snapshot.store(true, Ordering::Release);
        homes.wake_fan_outs();
    }
    link.tell(down::Kind::InterestConfirmed(InterestConfirmed { seq }));
}

fn pass_kick(homes: &Homes, link: &Arc<Link>, kick: Kick) {
    let target = ShardId { gateway: kick.gateway, shard: kick.shard };
    match homes.links.shard(&target) {
        Some(owner) => owner.kick(kick, Some(link)),
        None if !homes.presence.is_registered(kick.gateway) => {
            link.tell(down::Kind::Kicked(Kicked { id: kick.id, gone: true }));
        }
        // Registered and not linked here: the shard asks again, another router may be linked to it.
        None => {}
    }
}

fn authenticate(authenticator: &Arc<dyn Authenticator>, link: &Arc<Link>, ask: Authenticate) {
    let (authenticator, link) = (Arc::clone(authenticator), Arc::clone(link));
    tokio::spawn(async move {
        let id = ask.id;
        let verdict = Verdict { id, ..authenticator.authenticate(ask).await };
        link.tell(down::Kind::Verdict(verdict));
    });
}
