//! Ownerships: claimed at the registry (or, while it does not answer, at the partition's home), renewed, lost, released.
//! Calls of the registry run on the control runtime; their answers come back through the shard's mailbox.
//!
//! Invariant: a kick that comes while a claim of the client is pending is remembered until the claim is answered
//! (otherwise a late answer would admit the connection that was to be closed).

use std::{collections::HashMap, sync::Arc};

use penstock_common::{
    epoch::Epoch,
    name::ClientKey,
    registry::{Claim, ClaimError, Owner, OwnershipEvent},
};
use penstock_mqtt::{packet::ConnectCode, session::CloseReason};
use penstock_proto::link::{self, control_up};
use tokio::time::Instant;

use crate::{
    connection::table::{ConnectionKey, Identity},
    kicks::KickReply,
    link::table::LinkKey,
    questions::Questions,
    shard::{Mail, Shard},
};

/// A claim that is not answered.
struct Pending {
    connection: ConnectionKey,
    client: ClientKey,
    /// Kicks that came meanwhile.
    kicks: Vec<(Epoch, KickReply)>,
    provisional: Option<Provisional>,
}

/// The registry does not answer: the home is asked.
struct Provisional {
    lane: usize,
    /// Where the question is.
    asked: Option<(LinkKey, u32)>,
}

/// Claims and other questions of admissions that are under way. Bounded by the admissions.
#[derive(Default)]
pub(crate) struct Claims {
    numbers: u64,
    pending: HashMap<u64, Pending>,
    by_client: HashMap<ClientKey, Vec<u64>>,
    /// Credentials that are being judged.
    pub(crate) questions: Questions,
}

impl Claims {
    /// A number that this shard has not used.
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Remembers a kick for a pending claim of the client; gives it back when there is none.
    pub(crate) fn remember(
        &mut self,
        client: &ClientKey,
        below: Epoch,
        reply: KickReply,
    ) -> Option<KickReply> {
        let id = self.by_client.get(client).and_then(|ids| ids.first());
        let Some(pending) = id.and_then(|id| self.pending.get_mut(id)) else { return Some(reply) };
        // A kick is repeated each second until it is answered.
        if !pending.kicks.iter().any(|(_, known)| *known == reply) {
            pending.kicks.push((below, reply));
        }
        None
    }

    /// Highest kick of a client that is remembered.
    fn below(&self, client: &ClientKey) -> Epoch {
        let pending = self.by_client.get(client).into_iter().flatten().filter_map(|id| self.pending.get(id));
        pending.flat_map(|it| &it.kicks).map(|(below, _)| *below).max().unwrap_or(Epoch::NONE)
    }

    fn remove(&mut self, id: u64) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        if let Some(ids) = self.by_client.get_mut(&pending.client) {
            ids.retain(|it| *it != id);
            if ids.is_empty() {
                self.by_client.remove(&pending.client);
            } else if let Some(next) = ids.first().and_then(|next| self.pending.get_mut(next)) {
                // Claims of one client that are answered later are bound by the same kicks.
                next.kicks.extend(pending.kicks.iter().copied());
            }
        }
        Some(pending)
    }
}

impl Shard {
    /// Asks the registry for the client.
    pub(crate) fn claim(&mut self, connection: ConnectionKey, client: ClientKey) {
        let id = self.claims.number();
        self.claims.by_client.entry(client.clone()).or_default().push(id);
        let pending = Pending { connection, client: client.clone(), kicks: Vec::new(), provisional: None };
        self.claims.pending.insert(id, pending);
        let (shared, owner, number) = (Arc::clone(&self.shared), self.owner(), self.number);
        self.shared.control.spawn(async move {
            let began = Instant::now();
            let result = shared.registry.claim(client, owner).await;
            shared.metrics.claim_seconds.observe(began.elapsed().as_secs_f64());
            if let Some(mailbox) = shared.mailboxes.get(number as usize) {
                let _ = mailbox.send(Mail::Claimed { id, result }).await;
            }
        });
    }

    fn owner(&self) -> Owner {
        Owner { gateway: self.shared.incarnation, shard: self.number, routers: self.links.two() }
    }

    /// The registry has answered a claim, or has not.
    pub(crate) fn claimed(&mut self, id: u64, result: Result<Claim, ClaimError>) {
        match result {
            Ok(claim) => self.granted(id, claim.epoch, claim.previous),
            Err(ClaimError::Busy) => {
                if let Some(pending) = self.claims.remove(id) {
                    self.refuse(pending.connection, ConnectCode::Unavailable, "claim_busy");
                    self.answer_kicks(&pending);
                }
            }
            Err(ClaimError::Unavailable(reason)) => self.claim_provisional(id, &reason),
        }
    }

    fn granted(&mut self, id: u64, epoch: Epoch, previous: Option<(Owner, Epoch)>) {
        let below = self.claims.pending.get(&id).map(|it| self.claims.below(&it.client));
        let (Some(below), Some(pending)) = (below, self.claims.remove(id)) else { return };
        let key = pending.connection;
        let alive = self.connections.identity(key).is_some();
        let newer = self.close_below(&pending.client, epoch, Some(key)) || below > epoch;
        let previous = previous
            .filter(|(owner, _)| owner.gateway != self.shared.incarnation || owner.shard != self.number);
        // The claim has voided the older ownership, even if the connection that asked for it is gone.
        let kicking = previous.is_some_and(|(owner, _)| self.kick(&pending.client, epoch, owner, key));
        if newer {
            self.close(key, CloseReason::TakenOver);
        } else if alive {
            self.owned(key, epoch, kicking);
        }
        if newer || !alive {
            self.shared.registry.release(pending.client.clone(), epoch);
        }
        self.answer_kicks(&pending);
    }

    fn answer_kicks(&mut self, pending: &Pending) {
        if !self.claims.by_client.contains_key(&pending.client) {
            for (_, reply) in &pending.kicks {
                self.answer_kick(*reply);
            }
        }
    }

    fn claim_provisional(&mut self, id: u64, reason: &str) {
        let Some(pending) = self.claims.pending.get_mut(&id) else { return };
        let Some(lane) = self.connections.identity(pending.connection).map(|it| it.lane) else {
            if let Some(pending) = self.claims.remove(id) {
                self.answer_kicks(&pending);
            }
            return;
        };
        tracing::debug!(client = ?pending.client, reason, "connecting provisionally");
        pending.provisional = Some(Provisional { lane, asked: None });
        let connection = pending.connection;
        if let Some(lane) = self.lanes.get_mut(lane) {
            // Wanted, so that it opens; the ownership is told when there is an epoch.
            lane.visitors += 1;
        }
        let deadline = self.now + self.shared.config.timeouts.admission_ms;
        self.extend_admission(connection, deadline);
        self.lanes.mark(lane);
        self.ask_provisional(id);
        self.want_end();
    }

    /// Asks the home of an open lane for the epochs that are missing.
    pub(crate) fn provision(&mut self, index: usize) {
        if self.lanes.get(index).is_none_or(|lane| lane.visitors == 0) {
            return;
        }
        let here = |pending: &Pending| pending.provisional.as_ref().is_some_and(|it| it.lane == index);
        let ids: Vec<u64> =
            self.claims.pending.iter().filter(|(_, it)| here(it)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.ask_provisional(id));
    }

    fn ask_provisional(&mut self, id: u64) {
        let Some(pending) = self.claims.pending.get_mut(&id) else { return };
        let Some(provisional) = &mut pending.provisional else { return };
        let lane = self.lanes.get(provisional.lane).filter(|lane| lane.is_open());
        let Some(place) = lane.and_then(|lane| lane.place()) else { return };
        let Some(link) = self.links.get(place.0).filter(|_| provisional.asked != Some(place)) else { return };
        provisional.asked = Some(place);
        link.control(control_up::Kind::ClaimProvisional(link::ClaimProvisional {
            id,
            lane: place.1,
            client: pending.client.client.clone(),
        }));
    }

    /// The home has answered.
    pub(crate) fn provisional_epoch(&mut self, answer: &link::ProvisionalEpoch) {
        if answer.epoch == 0 {
            // The lane is not open there: asked again when it is.
            if let Some(provisional) =
                self.claims.pending.get_mut(&answer.id).and_then(|pending| pending.provisional.as_mut())
            {
                provisional.asked = None;
            }
            return;
        }
        let Some(pending) = self.claims.pending.get(&answer.id) else { return };
        let (client, connection, epoch) = (pending.client.clone(), pending.connection, Epoch(answer.epoch));
        let superseded = (answer.superseded != 0).then_some(Epoch(answer.superseded));
        self.leave_lane(answer.id);
        if let Some(superseded) = superseded {
            // Here by number, because a real epoch that is superseded is above the provisional one.
            self.close_below(&client, Epoch(superseded.0.saturating_add(1)), Some(connection));
        }
        self.granted(answer.id, epoch, None);
        let owns = self.connections.identity(connection).is_some_and(|identity| identity.epoch == epoch);
        if owns {
            self.shared.registry.adopt(client, self.owner(), epoch, superseded);
        }
    }

    fn leave_lane(&mut self, id: u64) {
        let provisional = self.claims.pending.get_mut(&id).and_then(|pending| pending.provisional.take());
        if let Some(lane) = provisional.and_then(|it| self.lanes.get_mut(it.lane)) {
            lane.visitors = lane.visitors.saturating_sub(1);
        }
    }

    /// Forgets provisional claims whose connection has gone.
    pub(crate) fn sweep_claims(&mut self) {
        let gone: Vec<u64> = self
            .claims
            .pending
            .iter()
            .filter(|(_, it)| it.provisional.is_some() && self.connections.get(it.connection).is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.leave_lane(id);
            if let Some(pending) = self.claims.remove(id) {
                self.answer_kicks(&pending);
            }
        }
    }

    /// The registry has registered an ownership again, or found a newer one.
    pub(crate) fn ownership(&mut self, event: OwnershipEvent) {
        match event {
            OwnershipEvent::Renewed { client, old, new, .. } => self.renew(&client, old, new),
            OwnershipEvent::Superseded { client, old, .. } => {
                let found = self.connections.of_client(&client.tenant, &client.client);
                for (key, _) in found.into_iter().filter(|(_, epoch)| *epoch == old) {
                    self.shared.metrics.stale_epochs.inc();
                    tracing::info!(?client, epoch = %old, "an ownership is another's now");
                    self.close(key, CloseReason::Superseded);
                }
            }
        }
    }

    /// Gives the ownership of a closed connection up, unless another has it already.
    pub(crate) fn disown(&self, identity: &Identity, reason: CloseReason) {
        if identity.epoch != Epoch::NONE && !matches!(reason, CloseReason::Superseded) {
            let client = ClientKey { tenant: identity.tenant.clone(), client: identity.client.clone() };
            self.shared.registry.release(client, identity.epoch);
        }
    }
}
