//! Pushes that waited for a client whose session is clean: fetched in steps from its home as mail is (see `mailbox`), given to
//! the session as far as it is subscribed to them. Nothing of it is remembered beyond the connection: what is not
//! acknowledged waits on at the home.

use bytes::Bytes;
use penstock_mqtt::{packet::QoS, topic};
use penstock_proto::{link, record::Record};
use prost::Message;

use crate::{
    connection::table::ConnectionKey,
    mailbox::{Kept, MAIL},
    shard::Shard,
};

impl Shard {
    /// Pushes may wait for the client of a connection; nothing happens when it has a session.
    pub(crate) fn expect_pushes(&mut self, key: ConnectionKey) {
        if let Some(identity) = self.connections.identity(key).filter(|identity| identity.clean) {
            let epoch = identity.attached;
            let Some(connection) = self.connections.get_mut(key) else { return };
            connection.kept.get_or_insert_with(|| Box::new(Kept::new(epoch, false)));
            self.mailboxes.connections.insert(key);
        }
    }

    /// Gives a clean session a push that waited for its client, unless it is not subscribed to it: then the push waits on.
    pub(crate) fn deliver_waiting(&mut self, key: ConnectionKey, letter: &link::Letter) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(kept) = connection.kept.as_deref_mut() else { return };
        kept.received = kept.received.max(letter.number);
        let token = MAIL | letter.number;
        let told = kept.acknowledged.contains(&letter.number);
        if told || connection.session.unacknowledged().any(|sent| sent == token) {
            return;
        }
        let record = match Record::decode(letter.record.clone()) {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(client = self.name_of(key), number = letter.number, %error, "a push can't be read");
                return;
            }
        };
        let granted = {
            let matching = |(filter, _): &(&Bytes, QoS)| topic::matches(filter, &record.topic);
            connection.session.granted().filter(matching).map(|(_, qos)| qos).max()
        };
        let Some(qos) = granted else { return };
        if qos == QoS::AtMostOnce {
            // Nothing will acknowledge it.
            kept.acknowledged.push(letter.number);
        }
        let token = if qos == QoS::AtMostOnce { 0 } else { token };
        self.deliver_one(key, &record.topic, &record.payload, qos, token);
    }

    /// A clean session has subscribed: pushes that waited may be for it.
    pub(crate) fn look_for_pushes(&mut self, key: ConnectionKey) {
        if let Some(kept) = self.kept(key).filter(|kept| !kept.persistent) {
            (kept.received, kept.ringing, kept.again) = (0, true, kept.step.is_some());
        }
    }
}
