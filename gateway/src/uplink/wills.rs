//! Wills of this shard's connections: told to the home with the ownership, before CONNACK, and ended there when the
//! connection has ended and what it published before is settled. Whether a will fires is the home's and the store's to
//! decide, so that this gateway's death at any moment neither loses nor doubles it.
//!
//! A CONNECT without a will takes no part in this. What has ended is told again to each new home until one has confirmed it.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use penstock_common::epoch::Epoch;
use penstock_mqtt::session::CloseReason;
use penstock_proto::link::{self, EndedWill, WillEnd, control_up};

use super::{lane::Route, owners::OWNERS, record::NewRecord};
use crate::{
    connection::table::{Connection, ConnectionKey, Identity},
    link::table::LinkKey,
    shard::Shard,
};

/// Ended wills of a lane that are not confirmed: beyond, its clients can't connect with a will.
pub(crate) const ENDINGS: usize = 16_384;

/// Wills of a lane whose connections have ended.
#[derive(Default)]
pub(crate) struct Endings {
    /// Each waits until all records before this number are settled; ascending.
    later: VecDeque<(u64, EndedWill)>,
    due: VecDeque<EndedWill>,
    /// Told to the present home, by the number of the message.
    told: VecDeque<(u64, Vec<EndedWill>)>,
}

impl Endings {
    pub(crate) fn len(&self) -> usize {
        self.later.len() + self.due.len() + self.told.iter().map(|(_, ended)| ended.len()).sum::<usize>()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.later.is_empty() && self.due.is_empty() && self.told.is_empty()
    }

    fn add(&mut self, number: u64, ended: EndedWill) {
        match ended.end() {
            // Nothing of it is to follow the records: the sooner it is told, the surer it is heard before anything else.
            WillEnd::Drop | WillEnd::Unspecified => self.due.push_back(ended),
            WillEnd::Fire | WillEnd::TakenOver => self.later.push_back((number, ended)),
        }
    }

    /// Clients of all that is not confirmed.
    pub(super) fn clients(&self) -> HashSet<Bytes> {
        let told = self.told.iter().flat_map(|(_, ended)| ended);
        let waiting = self.later.iter().map(|(_, ended)| ended).chain(&self.due);
        told.chain(waiting).map(|ended| ended.client.clone()).collect()
    }

    /// All records below this number are settled.
    pub(super) fn settled(&mut self, below: u64) {
        while let Some((_, ended)) = self.later.pop_front_if(|(number, _)| *number <= below) {
            self.due.push_back(ended);
        }
    }

    /// Whether an older connection of the client has ended, with records under way.
    pub(crate) fn waits_for(&self, client: &Bytes) -> bool {
        self.later.iter().any(|(_, ended)| ended.client == *client)
    }

    /// The home that was told is none any more.
    pub(crate) fn tell_again(&mut self) {
        for (_, ended) in self.told.drain(..).rev() {
            ended.into_iter().rev().for_each(|ended| self.due.push_front(ended));
        }
    }

    /// Nothing is under way any more.
    pub(crate) fn all_due(&mut self) {
        self.settled(u64::MAX);
    }

    fn confirmed(&mut self, seq: u64) {
        self.told.retain(|(own, _)| *own != seq);
    }
}

/// How the will of a connection ends.
fn end(admitted: bool, reason: CloseReason) -> WillEnd {
    match reason {
        _ if !admitted => WillEnd::Drop,
        CloseReason::Disconnect => WillEnd::Drop,
        CloseReason::TakenOver | CloseReason::Superseded => WillEnd::TakenOver,
        // After a pause, too: nothing stale is published, for a newer connection has ended this will already.
        _ => WillEnd::Fire,
    }
}

/// Bytes of a connection's will.
pub(crate) fn will_bytes(connection: &Connection) -> usize {
    connection.session.will().map_or(0, |will| will.topic.len() + will.payload.len())
}

/// The will of a connection that has no CONNACK yet, as its home keeps it.
pub(super) fn testament(connection: &Connection) -> Option<Bytes> {
    let will = connection.session.will().filter(|_| !connection.admitted)?;
    let identity = connection.identity.as_deref()?;
    let record = NewRecord {
        client: &identity.client,
        epoch: identity.attached.0,
        topic: &will.topic,
        payload: &will.payload,
        qos: will.qos.number(),
        user: &identity.user,
        // The home adds when it is published.
        received_at: 0,
        last_will: true,
    };
    let mut body = Vec::new();
    record.measured().encode_body(&mut body);
    Some(body.into())
}

impl Shard {
    /// A connection has ended: its will, if a home was told one, ends too.
    pub(crate) fn end_will(&mut self, identity: &Identity, admitted: bool, reason: CloseReason) {
        if identity.will == Epoch::NONE {
            return;
        }
        let Some(lane) = self.lanes.get_mut(identity.lane) else { return };
        let (client, epoch) = (identity.client.clone(), identity.will.0);
        let number = lane.next_number();
        lane.endings.add(number, EndedWill { client, epoch, end: end(admitted, reason).into() });
        self.lanes.mark(identity.lane);
        self.want_end();
    }

    /// Tells the home of an open lane what has ended.
    pub(super) fn tell_endings(&mut self, index: usize) {
        let Some(lane) = self.lanes.lanes.get_mut(index).filter(|lane| !lane.endings.is_empty()) else {
            return;
        };
        let Route::Open { link: place, number: lane_number, .. } = lane.route else { return };
        let Some(link) = self.links.get_mut(place) else { return };
        lane.endings.settled(lane.settled_below());
        while !lane.endings.due.is_empty() {
            let most = lane.endings.due.len().min(OWNERS);
            let ended: Vec<EndedWill> = lane.endings.due.drain(..most).collect();
            let seq = link.number();
            lane.endings.told.push_back((seq, ended.clone()));
            link.control(control_up::Kind::EndWills(link::EndWills { seq, lane: lane_number, ended }));
        }
    }

    /// It is done.
    pub(crate) fn wills_ended(&mut self, link: LinkKey, done: &link::WillsEnded) {
        let Some(index) = self.lanes.find(link, done.lane) else { return };
        if let Some(lane) = self.lanes.get_mut(index) {
            lane.endings.confirmed(done.seq);
        }
        // Nobody may want the lane any more.
        self.lanes.mark(index);
        self.want_end();
    }

    /// The home knows an ownership, or can't keep the will that came with it.
    pub(crate) fn attached_or_refused(&mut self, key: ConnectionKey, refused: bool) {
        if !refused {
            return self.attached(key);
        }
        if let Some(identity) = self.connections.identity_mut(key) {
            identity.will = Epoch::NONE;
        }
        if self.connections.get(key).is_some_and(|connection| !connection.admitted) {
            self.refuse(key, penstock_mqtt::packet::ConnectCode::Unavailable, "will");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(client: &'static str) -> EndedWill {
        EndedWill { client: client.into(), epoch: 1, end: WillEnd::Fire.into() }
    }

    #[test]
    fn what_has_ended_waits_for_its_records_and_is_told_until_confirmed() {
        let mut endings = Endings::default();
        endings.add(5, ended("a"));
        endings.add(9, ended("b"));
        endings.settled(8);
        assert!(endings.waits_for(&"b".into()) && !endings.waits_for(&"a".into()));
        assert_eq!(endings.due, [ended("a")]);
        let told = endings.due.drain(..).collect();
        endings.told.push_back((1, told));
        endings.all_due();
        let told = endings.due.drain(..).collect();
        endings.told.push_back((2, told));
        endings.tell_again();
        assert_eq!(endings.due, [ended("a"), ended("b")]);
        let told = endings.due.drain(..).collect();
        endings.told.push_back((3, told));
        endings.confirmed(2);
        assert_eq!(endings.len(), 2, "of another home");
        endings.confirmed(3);
        assert!(endings.is_empty());
    }

    #[test]
    fn only_a_disconnect_and_a_connect_that_failed_forget_the_will() {
        assert_eq!(end(true, CloseReason::Disconnect), WillEnd::Drop);
        assert_eq!(end(false, CloseReason::PeerClosed), WillEnd::Drop);
        assert_eq!(end(true, CloseReason::KeepAlive), WillEnd::Fire);
        assert_eq!(end(true, CloseReason::Paused), WillEnd::Fire);
        assert_eq!(end(true, CloseReason::TakenOver), WillEnd::TakenOver);
    }
}
