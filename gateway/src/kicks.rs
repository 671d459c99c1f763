//! Takeovers: "every connection of this client below this epoch closes", said to the shard that held it before, and
//! repeated until that shard, or a router that knows its gateway to be gone, confirms it.

use std::collections::HashMap;

use penstock_common::{epoch::Epoch, name::ClientKey, registry::Owner};
use penstock_mqtt::session::{CloseReason, Millis};
use penstock_proto::link::{self, control_up};

use crate::{
    connection::table::ConnectionKey,
    link::table::LinkKey,
    shard::{Mail, Shard},
};

/// Kicks that a shard repeats at a time; beyond, the oldest owner is left to the home, which knows the newer epoch.
const KICKS: usize = 16_384;
const AGAIN_MS: Millis = 1_000;
/// After this time a gateway that neither confirms nor is gone is given up; its lease ended long before.
const GIVE_UP_MS: Millis = 300_000;

/// Who waits for the end of older connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KickReply {
    /// A router, under its number.
    Link(LinkKey, u64),
    /// A shard of this gateway, under its number.
    Shard(u32, u64),
}

/// A kick that is not confirmed.
struct Kick {
    client: ClientKey,
    below: Epoch,
    owner: Owner,
    connection: ConnectionKey,
    tries: usize,
    began: Millis,
    next: Millis,
}

/// The kicks of a shard.
#[derive(Default)]
pub(crate) struct Kicks {
    numbers: u64,
    kicks: HashMap<u64, Kick>,
}

impl Shard {
    /// Begins to kick the connection that another shard holds; false: no wait is needed.
    pub(crate) fn kick(
        &mut self,
        client: &ClientKey,
        below: Epoch,
        owner: Owner,
        key: ConnectionKey,
    ) -> bool {
        if self.kicks.kicks.len() >= KICKS {
            tracing::warn!(?client, "too many kicks are under way: an older connection is not told");
            return false;
        }
        self.kicks.numbers += 1;
        let id = self.kicks.numbers;
        let (client, now) = (client.clone(), self.now);
        let kick = Kick { client, below, owner, connection: key, tries: 0, began: now, next: now };
        self.kicks.kicks.insert(id, kick);
        self.send_kick(id);
        true
    }

    fn send_kick(&mut self, id: u64) {
        let Some(kick) = self.kicks.kicks.get_mut(&id) else { return };
        kick.next = self.now + AGAIN_MS;
        kick.tries += 1;
        let (client, below, owner) = (kick.client.clone(), kick.below, kick.owner);
        let tries = kick.tries;
        if owner.gateway == self.shared.incarnation {
            let mail = Mail::Kick { client, below, shard: self.number, id };
            if let Some(mailbox) = self.shared.mailboxes.get(owner.shard as usize) {
                // A full mailbox: it is said again.
                let _ = mailbox.try_send(mail);
            }
            return;
        }
        let Some(partition) = self.partition(&client.tenant, &client.client) else { return };
        let links = self.links.in_order(&partition);
        let Some(turn) = (tries - 1).checked_rem(links.len()) else { return };
        if let Some(link) = links.get(turn).and_then(|key| self.links.get(*key)) {
            link.control(control_up::Kind::Kick(link::Kick {
                id,
                tenant: client.tenant.as_str().to_owned(),
                client: client.client,
                below: below.0,
                gateway: owner.gateway,
                shard: owner.shard,
            }));
        }
    }

    /// Says unconfirmed kicks again.
    pub(crate) fn tick_kicks(&mut self) {
        let now = self.now;
        self.kicks.kicks.retain(|_, kick| {
            let keep = now < kick.began + GIVE_UP_MS;
            if !keep {
                tracing::warn!(client = ?kick.client, gateway = kick.owner.gateway, "a kick was never confirmed");
            }
            keep
        });
        let due: Vec<u64> =
            self.kicks.kicks.iter().filter(|(_, kick)| kick.next <= now).map(|(id, _)| *id).collect();
        due.into_iter().for_each(|id| self.send_kick(id));
    }

    /// The older connection is closed, or its gateway is gone.
    pub(crate) fn kicked(&mut self, id: u64) {
        if let Some(kick) = self.kicks.kicks.remove(&id) {
            let seconds = (self.now - kick.began.min(self.now)) as f64 / 1e3;
            self.shared.metrics.takeover_seconds.observe(seconds);
            self.kicked_for(kick.connection);
        }
    }

    /// Another owner has taken the client over: closes what is older here, now or when its claim is answered.
    pub(crate) fn kick_received(&mut self, client: &ClientKey, below: Epoch, reply: KickReply) {
        self.close_below(client, below, None);
        if let Some(reply) = self.claims.remember(client, below, reply) {
            self.answer_kick(reply);
        }
    }

    pub(crate) fn answer_kick(&self, reply: KickReply) {
        match reply {
            KickReply::Link(key, id) => {
                if let Some(link) = self.links.get(key) {
                    link.control(control_up::Kind::Kicked(link::Kicked { id, gone: false }));
                }
            }
            KickReply::Shard(shard, id) => {
                if let Some(mailbox) = self.shared.mailboxes.get(shard as usize) {
                    // A full mailbox: the kick is repeated and answered again.
                    let _ = mailbox.try_send(Mail::Kicked { id });
                }
            }
        }
    }

    /// Closes this shard's connections of a client below an epoch; true: there is one above it.
    pub(crate) fn close_below(
        &mut self,
        client: &ClientKey,
        below: Epoch,
        except: Option<ConnectionKey>,
    ) -> bool {
        let mut newer = false;
        for (key, epoch) in self.connections.of_client(&client.tenant, &client.client) {
            if Some(key) == except || epoch == Epoch::NONE {
                continue;
            }
            if epoch < below {
                self.shared.metrics.takeovers.inc();
                tracing::info!(?client, %epoch, %below, "a newer connection takes the client over");
                self.close(key, CloseReason::TakenOver);
            } else {
                newer |= epoch > below;
            }
        }
        newer
    }
}
