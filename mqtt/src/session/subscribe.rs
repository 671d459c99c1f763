//! SUBSCRIBE and UNSUBSCRIBE: the session's list of filters, its own refusals, and the answers. Making a subscription work
//! is the driver's.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Event, QoS, Session, State};
use crate::{
    codec::{decode::Filters, encode},
    packet::{SUBACK_FAILURE, SubscribeFilter},
};

/// Filters that share deliveries among clients have no meaning in 3.1.1: a grant would be a promise of nothing.
const SHARED: &[u8] = b"$share/";

/// The filters of a session, and the packets without an answer.
#[derive(Default)]
pub(super) struct Subscriptions {
    filters: Vec<Subscription>,
    unanswered: VecDeque<Unanswered>,
}

struct Subscription {
    filter: Bytes,
    /// None until a SUBACK granted it.
    granted: Option<QoS>,
    /// As asked last.
    asked: QoS,
}

/// A SUBSCRIBE with its filters (and whether the session refused each), or an UNSUBSCRIBE.
struct Unanswered {
    packet_id: u16,
    asked: Option<Vec<(Bytes, bool)>>,
}

impl Subscriptions {
    fn find(&mut self, filter: &[u8]) -> Option<&mut Subscription> {
        self.filters.iter_mut().find(|known| known.filter == filter)
    }

    fn forget(&mut self, filter: &[u8]) {
        if let Some(place) = self.filters.iter().position(|known| known.filter == filter) {
            self.filters.swap_remove(place);
        }
    }

    /// Notes the wish for a filter; false: there are `most` already.
    fn ask(&mut self, filter: &Bytes, qos: QoS, most: usize) -> bool {
        if let Some(known) = self.find(filter) {
            known.asked = qos;
            return true;
        }
        if self.filters.len() >= most {
            return false;
        }
        self.filters.push(Subscription { filter: filter.clone(), granted: None, asked: qos });
        true
    }

    /// Notes the answer for one filter. A refused one stays when it was granted before, or when another SUBSCRIBE for it
    /// is unanswered.
    fn answer(&mut self, filter: &Bytes, granted: Option<QoS>) {
        let Some(known) = self.find(filter) else { return };
        if granted.is_some() || known.granted.is_some() {
            known.granted = granted.or(known.granted);
            return;
        }
        let mut open = self.unanswered.iter().filter_map(|packet| packet.asked.as_ref()).flatten();
        if !open.any(|(other, _)| other == filter) {
            self.forget(filter);
        }
    }

    /// Takes the first packet without an answer that has this identifier and kind.
    fn take(&mut self, packet_id: u16, subscribe: bool) -> Option<Unanswered> {
        let is_it =
            |packet: &Unanswered| packet.packet_id == packet_id && packet.asked.is_some() == subscribe;
        let place = self.unanswered.iter().position(is_it)?;
        self.unanswered.remove(place)
    }
}

impl Session {
    pub(super) fn subscribe(&mut self, packet_id: u16, filters: Filters<'_>) {
        let (topic_max, most) = (self.limits.topic_bytes.into(), self.limits.subscriptions as usize);
        let subscriptions = self.subscriptions.get_or_insert_default();
        let judge = |(filter, qos): (&[u8], u8)| {
            let no = filter.len() > topic_max || filter.starts_with(SHARED) || self.reserved.contains(filter);
            // A refused one may be 64 KiB long, and would be kept until the answer.
            let filter = if no { Bytes::new() } else { Bytes::copy_from_slice(filter) };
            let qos = QoS::capped(qos.into());
            let no = no || !subscriptions.ask(&filter, qos, most);
            SubscribeFilter { filter, qos, refused: no.then_some(SUBACK_FAILURE) }
        };
        let filters: Vec<_> = filters.map(judge).collect();
        self.pace.spend(filters.len());
        let asked = filters.iter().map(|f| (f.filter.clone(), f.refused.is_some())).collect();
        subscriptions.unanswered.push_back(Unanswered { packet_id, asked: Some(asked) });
        self.events.push_back(Event::Subscribe { packet_id, filters });
    }

    pub(super) fn unsubscribe(&mut self, packet_id: u16, filters: Filters<'_>) {
        let subscriptions = self.subscriptions.get_or_insert_default();
        // A longer one can't be subscribed.
        let named = filters.clone().count();
        let filters = filters.filter(|(filter, _)| filter.len() <= self.limits.topic_bytes.into());
        let filters: Vec<_> = filters.map(|(filter, _)| Bytes::copy_from_slice(filter)).collect();
        filters.iter().for_each(|filter| subscriptions.forget(filter));
        self.pace.spend(named);
        subscriptions.unanswered.push_back(Unanswered { packet_id, asked: None });
        self.events.push_back(Event::Unsubscribe { packet_id, filters });
    }

    /// Takes up filters of an earlier connection.
    pub(super) fn resume_subscriptions(&mut self, filters: impl IntoIterator<Item = (Bytes, QoS)>) {
        let known = |(filter, qos)| Subscription { filter, granted: Some(qos), asked: qos };
        let filters: Vec<_> = filters.into_iter().map(known).collect();
        if !filters.is_empty() {
            self.subscriptions.get_or_insert_default().filters = filters;
        }
    }

    /// SUBSCRIBE and UNSUBSCRIBE without an answer.
    pub(super) fn unanswered(&self) -> usize {
        self.subscriptions.as_ref().map_or(0, |s| s.unanswered.len())
    }

    /// The answer to a Subscribe: SUBACK with one code a filter (0, 1, or 0x80 for "no"); missing and other ones count as
    /// "no", and the session's own refusals stay. Unknown packet or closed: ignored.
    pub fn subscribed(&mut self, packet_id: u16, codes: &[u8]) {
        let Some(subscriptions) = self.subscriptions.as_mut().filter(|_| self.state == State::Open) else {
            return;
        };
        let Some(Unanswered { asked: Some(asked), .. }) = subscriptions.take(packet_id, true) else { return };
        let granted = |place: usize, refused: bool| match codes.get(place) {
            Some(0) if !refused => Some(QoS::AtMostOnce),
            Some(1) if !refused => Some(QoS::AtLeastOnce),
            _ => None,
        };
        let answers: Vec<_> =
            asked.iter().enumerate().map(|(n, (_, refused))| granted(n, *refused)).collect();
        for ((filter, refused), answer) in asked.iter().zip(&answers) {
            if !refused {
                subscriptions.answer(filter, *answer);
            }
        }
        let codes = answers.iter().map(|answer| answer.map_or(SUBACK_FAILURE, QoS::number));
        self.answer(|out| encode::suback(out, packet_id, codes));
        self.drop_empty_subscriptions();
    }

    /// The answer to an Unsubscribe: UNSUBACK. Unknown packet or closed: ignored.
    pub fn unsubscribed(&mut self, packet_id: u16) {
        let Some(subscriptions) = self.subscriptions.as_mut().filter(|_| self.state == State::Open) else {
            return;
        };
        if subscriptions.take(packet_id, false).is_some() {
            self.answer(|out| encode::unsuback(out, packet_id));
            self.drop_empty_subscriptions();
        }
    }

    /// Filters that were subscribed or are being subscribed, with the granted (or asked) QoS; also after close, so that
    /// the driver can undo them.
    pub fn subscriptions(&self) -> impl Iterator<Item = (&Bytes, QoS)> + '_ {
        let filters = self.subscriptions.iter().flat_map(|s| &s.filters);
        filters.map(|known| (&known.filter, known.granted.unwrap_or(known.asked)))
    }

    /// Filters whose SUBACK was given, with the granted QoS.
    pub fn granted(&self) -> impl Iterator<Item = (&Bytes, QoS)> + '_ {
        let filters = self.subscriptions.iter().flat_map(|s| &s.filters);
        filters.filter_map(|known| Some((&known.filter, known.granted?)))
    }

    /// All filters with the QoS that was asked for last.
    pub fn wanted_filters(&self) -> impl Iterator<Item = (&Bytes, QoS)> + '_ {
        let filters = self.subscriptions.iter().flat_map(|s| &s.filters);
        filters.map(|known| (&known.filter, known.asked))
    }

    fn drop_empty_subscriptions(&mut self) {
        if self.subscriptions.as_ref().is_some_and(|s| s.filters.is_empty() && s.unanswered.is_empty()) {
            self.subscriptions = None;
        }
    }
}
