//! What comes over a link, handed to the verb that it is for; and what begins and ends with a link.

use penstock_common::{
    epoch::Epoch,
    name::{ClientKey, TenantName},
};
use penstock_proto::link::{self, control_down, data_down};

use crate::{
    kicks::KickReply,
    link::table::{Link, LinkKey},
    shard::Shard,
};

impl Shard {
    /// A link is up: it gets this shard's filters first, then the lanes that belong there.
    pub(crate) fn link_up(&mut self, link: Link) -> LinkKey {
        let key = self.links.insert(link);
        self.shared.metrics.links.inc();
        self.show_links();
        self.tell_snapshot(key);
        self.steer_all();
        self.ask_verdicts();
        key
    }

    /// A link is gone: what was unsettled on it is in doubt.
    pub(crate) fn link_down(&mut self, key: LinkKey) {
        let Some(link) = self.links.remove(key) else { return };
        link.close();
        self.shared.metrics.links.dec();
        self.show_links();
        self.lanes_lost(key);
        self.steer_all();
        self.known();
        self.ask_verdicts();
    }

    fn show_links(&self) {
        let (count, number) = (self.links.iter().count(), self.number as usize);
        self.shared.linked.send_modify(|linked| {
            if let Some(mine) = linked.get_mut(number) {
                *mine = count;
            }
        });
    }

    /// A control message from a router.
    pub(crate) fn control_down(&mut self, key: LinkKey, kind: control_down::Kind) {
        use control_down::Kind;
        match kind {
            Kind::Welcome(_) | Kind::Heartbeat(_) => {}
            Kind::LaneOpened(opened) => self.lane_opened(key, &opened),
            Kind::Attached(attached) => {
                let link = self.links.get_mut(key);
                let keys = link.and_then(|link| link.attaches.remove(&attached.seq)).unwrap_or_default();
                for (index, connection) in (0u32..).zip(keys) {
                    self.attached_or_refused(connection, attached.refused.contains(&index));
                }
            }
            Kind::InterestConfirmed(confirmed) => self.interest_confirmed(key, confirmed.seq),
            Kind::Kick(kick) => self.kick_from(key, kick),
            Kind::Kicked(kicked) => self.kicked(kicked.id),
            Kind::ProvisionalEpoch(answer) => self.provisional_epoch(&answer),
            Kind::Verdict(verdict) => self.verdict(&verdict),
            Kind::Leaving(_) => self.leaving(key),
            Kind::SessionOpened(opened) => self.session_opened(opened),
            Kind::FiltersSet(set) => self.filters_set(&set),
            Kind::Inspect(asked) => self.inspect(key, &asked),
            Kind::WillsEnded(done) => self.wills_ended(key, &done),
        }
    }

    /// A data message from a router.
    pub(crate) fn data_down(&mut self, key: LinkKey, kind: data_down::Kind) {
        use data_down::Kind;
        match kind {
            Kind::Settles(settles) => settles.settles.iter().for_each(|settle| self.settle(key, settle)),
            Kind::LaneLost(lost) => {
                if let Some(index) = self.lanes.find(key, lost.lane) {
                    self.lane_lost(index, &lost.reason);
                }
            }
            Kind::Deliver(deliver) => self.deliver(key, &deliver),
            Kind::Push(push) => self.push(key, &push),
            Kind::Overrun(overrun) => self.overrun(&overrun),
            Kind::Mail(mail) => self.mail(mail),
            Kind::Doorbell(bell) => self.doorbell(&bell),
        }
    }

    fn kick_from(&mut self, key: LinkKey, kick: link::Kick) {
        let mine = kick.gateway == self.shared.incarnation && kick.shard == self.number;
        let Some(tenant) = TenantName::new(&kick.tenant).ok().filter(|_| mine) else { return };
        let client = ClientKey { tenant, client: kick.client };
        self.kick_received(&client, Epoch(kick.below), KickReply::Link(key, kick.id));
    }

    fn leaving(&mut self, key: LinkKey) {
        if let Some(router) = self.links.leave(key) {
            tracing::info!(router, "a router leaves");
            self.dialled.left(router);
            self.steer_all();
        }
    }

    /// Closes links of leaving routers that nothing needs any more.
    pub(crate) fn tick_leaving(&mut self) {
        let needed = |key: LinkKey| self.lanes.iter().any(|lane| lane.place().is_some_and(|it| it.0 == key));
        let left: Vec<_> = self
            .links
            .iter()
            .filter(|(key, link)| link.leaving && !needed(*key))
            .map(|(key, _)| key)
            .collect();
        left.into_iter().for_each(|key| self.link_down(key));
    }
}
