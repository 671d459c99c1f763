//! Persistent sessions of this shard's connections, and pushes that wait for clients without one: sessions are opened at the home of the client's partition before CONNACK, filters
//! set there before SUBACK, mail stepped through with one exchange under way a session. What outlives the connection is the
//! home's; here is only what is being asked.
//!
//! Every question is asked again when the lane was opened anew: the one before may be lost, and all can be repeated.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;
use penstock_common::{epoch::Epoch, name::TenantName};
use penstock_mqtt::{
    packet::{QoS, SubscribeFilter},
    session::{CloseReason, Delivery, Millis},
};
use penstock_proto::{
    link::{self, StepResult, control_up, data_up},
    record::Record,
};
use prost::Message;

use crate::{connection::table::ConnectionKey, link::table::LinkKey, shard::Shard};

/// Marks the tokens of deliveries that are mail; the rest of such a token is the number of the message.
pub(crate) const MAIL: u64 = 1 << 63;
/// A mailbox is looked into this often, whatever rings.
const LOOK_EVERY_MS: Millis = 30_000;
/// Pause after the store did not answer.
const LATER_MS: Millis = 250;
/// SUBSCRIBE and UNSUBSCRIBE in one change of filters.
const CHANGES: usize = 64;

/// A packet that waits until its filters are set.
enum Change {
    Subscribe(u16, Vec<SubscribeFilter>),
    Unsubscribe(u16, Vec<Bytes>),
}

/// What a connection asks about its session.
pub(crate) struct Kept {
    /// What is kept is a session. Otherwise the session ends with the connection, and only pushes wait for the client.
    pub(crate) persistent: bool,
    /// Ownership under which the session was opened: it names this connection's opening, also when it is renewed.
    epoch: Epoch,
    opened: bool,
    changes: VecDeque<Change>,
    /// Changes that are being set, with the number of the question and the end of patience.
    setting: Option<(u64, usize, Millis)>,
    /// Step under way.
    pub(crate) step: Option<u64>,
    /// Numbers that the client has acknowledged; the first `telling` are under way.
    pub(crate) acknowledged: Vec<u64>,
    telling: usize,
    /// Highest number that came.
    pub(crate) received: u64,
    /// There may be mail.
    pub(crate) ringing: bool,
    /// Subscribed while a step was under way: what that brings is fetched again, from the beginning.
    pub(crate) again: bool,
    not_before: Millis,
    look_at: Millis,
}

impl Kept {
    pub(crate) fn new(epoch: Epoch, persistent: bool) -> Self {
        Self {
            persistent,
            epoch,
            // There is nothing to be opened for a clean session.
            opened: !persistent,
            changes: VecDeque::new(),
            setting: None,
            step: None,
            acknowledged: Vec::new(),
            telling: 0,
            received: 0,
            ringing: true,
            again: false,
            not_before: 0,
            look_at: 0,
        }
    }

    /// When a step may be due.
    pub(crate) fn deadline(&self, now: Millis) -> Option<Millis> {
        let patience = self.setting.map(|(.., until)| until);
        let step = (self.opened && self.step.is_none()).then_some(if self.ringing && self.not_before > now {
            self.not_before
        } else {
            self.look_at
        });
        [patience, step].into_iter().flatten().min()
    }
}

/// Persistent sessions of a shard.
#[derive(Default)]
pub(crate) struct Mailboxes {
    numbers: u64,
    /// Questions under way.
    questions: HashMap<u64, ConnectionKey>,
    pub(crate) connections: HashSet<ConnectionKey>,
}

impl Mailboxes {
    fn ask(&mut self, key: ConnectionKey) -> u64 {
        self.numbers += 1;
        self.questions.insert(self.numbers, key);
        self.numbers
    }
}

/// The lane of a session as messages name it.
struct Place {
    link: LinkKey,
    lane: u32,
    client: Bytes,
}

impl Shard {
    pub(crate) fn kept(&mut self, key: ConnectionKey) -> Option<&mut Kept> {
        self.connections.get_mut(key)?.kept.as_deref_mut()
    }

    fn place(&self, key: ConnectionKey) -> Option<Place> {
        let identity = self.connections.identity(key)?;
        let lane = self.lanes.get(identity.lane).filter(|lane| lane.is_open())?;
        let (link, lane) = lane.place()?;
        Some(Place { link, lane, client: identity.client.clone() })
    }

    /// Asks the home to open the session of a connection that it has confirmed.
    pub(crate) fn open_session(&mut self, key: ConnectionKey) {
        let Some(epoch) = self.connections.identity(key).map(|identity| identity.attached) else { return };
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.kept = Some(Box::new(Kept::new(epoch, true)));
        self.mailboxes.connections.insert(key);
        self.ask_open(key, epoch);
    }

    fn ask_open(&mut self, key: ConnectionKey, epoch: Epoch) {
        let Some(place) = self.place(key) else { return };
        let id = self.mailboxes.ask(key);
        if let Some(link) = self.links.get(place.link) {
            let (lane, client) = (place.lane, place.client);
            let open = link::OpenSession { id, lane, client, epoch: epoch.0 };
            link.control(control_up::Kind::OpenSession(open));
        }
    }

    /// The home has opened the session.
    pub(crate) fn session_opened(&mut self, opened: link::SessionOpened) {
        let Some(key) = self.mailboxes.questions.remove(&opened.id) else { return };
        let look_at = self.now + LOOK_EVERY_MS;
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(kept) = connection.kept.as_deref_mut().filter(|kept| !kept.opened) else { return };
        (kept.opened, kept.look_at) = (true, look_at);
        let filter = |it: &link::SessionFilter| (it.filter.clone(), QoS::capped(it.qos));
        let filters: Vec<_> = opened.filters.iter().map(filter).collect();
        let sent = opened.unacknowledged.iter();
        let sent = sent.filter_map(|it| Some((u16::try_from(it.packet_id).ok()?, MAIL | it.number)));
        connection.session.resume(filters.iter().cloned(), sent);
        self.accept_session(key, opened.present);
        self.resume_filters(key, &filters);
    }

    /// SUBSCRIBE of a persistent session: its home knows all filters first.
    pub(crate) fn keep_subscribe(
        &mut self,
        key: ConnectionKey,
        packet_id: u16,
        filters: Vec<SubscribeFilter>,
    ) {
        self.change_filters(key, Change::Subscribe(packet_id, filters));
    }

    /// UNSUBSCRIBE of a persistent session.
    pub(crate) fn keep_unsubscribe(&mut self, key: ConnectionKey, packet_id: u16, filters: Vec<Bytes>) {
        self.change_filters(key, Change::Unsubscribe(packet_id, filters));
    }

    fn change_filters(&mut self, key: ConnectionKey, change: Change) {
        let Some(kept) = self.kept(key) else { return };
        kept.changes.push_back(change);
        if kept.setting.is_none() {
            self.set_filters(key);
        }
    }

    /// Tells the home what the session is subscribed to, all changes that wait included.
    fn set_filters(&mut self, key: ConnectionKey) {
        let Some(place) = self.place(key) else { return };
        let id = self.mailboxes.ask(key);
        let until = self.now + self.shared.config.timeouts.store_ms;
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(kept) = connection.kept.as_deref_mut() else { return };
        let count = kept.changes.len().min(CHANGES);
        let until = kept.setting.map_or(until, |(.., until)| until);
        kept.setting = Some((id, count, until));
        let filter = |(filter, qos): (&Bytes, QoS)| link::SessionFilter {
            filter: filter.clone(),
            qos: qos.number().into(),
        };
        let filters = connection.session.wanted_filters().map(filter).collect();
        let (lane, client, epoch) = (place.lane, place.client, kept.epoch.0);
        if let Some(link) = self.links.get(place.link) {
            let set = link::SetFilters { id, lane, client, epoch, filters };
            link.control(control_up::Kind::SetFilters(set));
        }
        self.schedule(key);
    }

    /// Every home knows the filters: the packets that changed them are answered as those of other sessions are.
    pub(crate) fn filters_set(&mut self, set: &link::FiltersSet) {
        let Some(key) = self.mailboxes.questions.remove(&set.id) else { return };
        let Some(kept) = self.kept(key) else { return };
        let Some((_, count, _)) = kept.setting.take_if(|(id, ..)| *id == set.id) else { return };
        if set.gone {
            return self.close(key, CloseReason::SessionLost);
        }
        let changes: Vec<Change> = kept.changes.drain(..count.min(kept.changes.len())).collect();
        let more = !kept.changes.is_empty();
        for change in changes {
            match change {
                Change::Subscribe(packet_id, filters) => self.subscribe(key, packet_id, &filters),
                Change::Unsubscribe(packet_id, filters) => self.unsubscribe(key, packet_id, &filters),
            }
        }
        if more {
            self.set_filters(key);
        }
    }

    /// The client has acknowledged a delivery; false: it was no mail.
    pub(crate) fn acknowledge_mail(&mut self, key: ConnectionKey, token: u64) -> bool {
        if token & MAIL == 0 {
            return false;
        }
        if let Some(kept) = self.kept(key) {
            kept.acknowledged.push(token & !MAIL);
            self.touch(key);
        }
        true
    }

    /// Takes a step if there is a reason for one and room for what it may bring.
    pub(crate) fn step_mail(&mut self, key: ConnectionKey) {
        let (now, limit) = (self.now, self.shared.session_limits.outbound_bytes as usize);
        let Some(connection) = self.connections.get(key) else { return };
        let Some(kept) = connection.kept.as_deref() else { return };
        let idle = kept.opened && connection.admitted && kept.step.is_none() && now >= kept.not_before;
        let wanted = kept.ringing || !kept.acknowledged.is_empty() || now >= kept.look_at;
        let waiting = connection.session.firm_bytes();
        if !idle || !wanted || !connection.session.is_open() {
            return;
        }
        let place = self.place(key).filter(|_| waiting <= limit / 2);
        let Some(place) = place else {
            if let Some(kept) = self.kept(key) {
                (kept.ringing, kept.look_at) = (true, now + LATER_MS);
            }
            return;
        };
        let id = self.mailboxes.ask(key);
        let attached = self.connections.identity(key).map_or(Epoch::NONE, |identity| identity.attached);
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(kept) = connection.kept.as_deref_mut() else { return };
        let (mut packet_ids, mut most) = (Vec::new(), 0);
        if kept.persistent {
            packet_ids = connection.session.reserve().iter().map(|id| u32::from(*id)).collect();
        } else {
            most = u32::try_from(connection.session.room()).unwrap_or(u32::MAX);
        }
        // Nothing to say and no room; the look once in a while makes the session live on.
        if packet_ids.is_empty()
            && most == 0
            && kept.acknowledged.is_empty()
            && kept.received > 0
            && now < kept.look_at
        {
            self.mailboxes.questions.remove(&id);
            return;
        }
        (kept.step, kept.telling) = (Some(id), kept.acknowledged.len());
        // Without a session nothing has to be kept alive: the home rings.
        let look_at = if kept.persistent { now + LOOK_EVERY_MS } else { Millis::MAX };
        (kept.ringing, kept.look_at) = (false, look_at);
        let step = link::Step {
            id,
            lane: place.lane,
            client: place.client,
            epoch: if kept.persistent { kept.epoch } else { attached }.0,
            acknowledged: kept.acknowledged.clone(),
            received: kept.received,
            packet_ids,
            max_bytes: (limit - waiting) as u64,
            clean: !kept.persistent,
            most,
        };
        if let Some(link) = self.links.get(place.link) {
            link.data(data_up::Kind::Step(step));
        }
    }

    /// The home has answered a step.
    pub(crate) fn mail(&mut self, mail: link::Mail) {
        let Some(key) = self.mailboxes.questions.remove(&mail.id) else { return };
        let later = self.now + LATER_MS;
        let Some(kept) = self.kept(key) else { return };
        if kept.step.take_if(|id| *id == mail.id).is_none() {
            return;
        }
        match mail.result() {
            StepResult::Done => {
                kept.acknowledged.drain(..kept.telling.min(kept.acknowledged.len()));
                kept.telling = 0;
                kept.ringing |= mail.more;
                if std::mem::take(&mut kept.again) {
                    // What was passed over before these may be for the session now, and comes first.
                    kept.ringing = true;
                } else {
                    self.deliver_letters(key, &mail.letters);
                }
            }
            StepResult::Gone => return self.close(key, CloseReason::SessionLost),
            StepResult::Later | StepResult::Unspecified => {
                (kept.ringing, kept.not_before) = (true, later);
                self.schedule(key);
            }
        }
        self.touch(key);
    }

    fn deliver_letters(&mut self, key: ConnectionKey, letters: &[link::Letter]) {
        if self.kept(key).is_some_and(|kept| !kept.persistent) {
            return letters.iter().for_each(|letter| self.deliver_waiting(key, letter));
        }
        for letter in letters {
            let Some(connection) = self.connections.get_mut(key) else { return };
            let delivered = match (Record::decode(letter.record.clone()), u16::try_from(letter.packet_id)) {
                (Ok(record), Ok(id)) => {
                    let (topic, payload) = (&record.topic[..], &record.payload[..]);
                    let token = MAIL | letter.number;
                    let delivery = Delivery { topic, payload, qos: QoS::AtLeastOnce, token };
                    connection.session.deliver_mail(id, letter.again, &delivery)
                }
                _ => false,
            };
            if !delivered {
                tracing::warn!(client = self.name_of(key), number = letter.number, "mail can't be delivered");
                return self.close(key, CloseReason::SessionLost);
            }
            let displaced = connection.session.take_displaced();
            self.shared.metrics.deliveries.count(penstock_mqtt::session::Delivered::Sent);
            self.shared.metrics.deliveries.displaced(displaced);
            if let Some(kept) = self.kept(key) {
                kept.received = kept.received.max(letter.number);
            }
        }
        if let Some(connection) = self.connections.get_mut(key) {
            connection.session.release();
        }
    }

    /// There may be mail for a session, or a push for a client.
    pub(crate) fn ring(&mut self, key: ConnectionKey) {
        self.expect_pushes(key);
        if let Some(kept) = self.kept(key) {
            kept.ringing = true;
            self.touch(key);
        }
    }

    /// Mail was appended for clients.
    pub(crate) fn doorbell(&mut self, bell: &link::Doorbell) {
        let Ok(tenant) = TenantName::new(&bell.tenant) else { return };
        for client in &bell.clients {
            for (key, _) in self.connections.of_client(&tenant, client) {
                self.ring(key);
            }
        }
    }

    /// A router matches with this shard's filters now: what it appended before did not ring.
    pub(crate) fn ring_all(&mut self) {
        let keys: Vec<_> = self.mailboxes.connections.iter().copied().collect();
        keys.into_iter().for_each(|key| self.ring(key));
    }

    /// A lane is open at a home: what was asked of another one is asked again.
    pub(crate) fn ask_again(&mut self, index: usize) {
        let in_lane = |key: &ConnectionKey| {
            let identity = self.connections.identity(*key);
            identity.is_some_and(|identity| identity.lane == index)
        };
        let keys: Vec<_> = self.mailboxes.connections.iter().copied().filter(in_lane).collect();
        let asked: HashSet<ConnectionKey> = keys.iter().copied().collect();
        self.mailboxes.questions.retain(|_, key| !asked.contains(key));
        for key in keys {
            let Some(kept) = self.kept(key) else { continue };
            (kept.step, kept.ringing, kept.telling) = (None, true, 0);
            kept.received = if kept.persistent { kept.received } else { 0 };
            let (opened, epoch, setting) = (kept.opened, kept.epoch, !kept.changes.is_empty());
            if !opened {
                self.ask_open(key, epoch);
            } else if setting {
                self.set_filters(key);
            }
            self.touch(key);
        }
    }

    /// Looks after a session whose time has come.
    pub(crate) fn tick_mail(&mut self, key: ConnectionKey) {
        let now = self.now;
        let Some(kept) = self.kept(key) else { return };
        if kept.setting.is_some_and(|(.., until)| until <= now) {
            return self.close(key, CloseReason::LinkLost);
        }
        self.touch(key);
    }

    /// The connection ends: the home is told what was acknowledged, and asked for nothing.
    pub(crate) fn leave_mailbox(&mut self, key: ConnectionKey, reason: CloseReason) {
        if !self.mailboxes.connections.remove(&key) {
            return;
        }
        self.mailboxes.questions.retain(|_, asked| *asked != key);
        let Some(place) = self.place(key) else { return };
        let Some(kept) = self.kept(key) else { return };
        if kept.acknowledged.is_empty() || reason == CloseReason::Paused {
            return;
        }
        let step = link::Step {
            id: 0,
            lane: place.lane,
            client: place.client,
            epoch: kept.epoch.0,
            acknowledged: std::mem::take(&mut kept.acknowledged),
            received: u64::MAX,
            packet_ids: Vec::new(),
            max_bytes: 0,
            clean: !kept.persistent,
            most: 0,
        };
        if let Some(link) = self.links.get(place.link) {
            link.data(data_up::Kind::Step(step));
        }
    }
}
