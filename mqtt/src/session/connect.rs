//! CONNECT: what the session refuses by itself, and the verdict on the rest. Credentials are the driver's.

use bytes::Bytes;

use super::{Admission, CloseReason, Event, Millis, Session, State};
use crate::{
    codec::{
        decode::{ConnectBody, WillBody},
        encode,
    },
    packet::{Connect, ConnectCode, Version},
};

impl Session {
    /// A well-formed CONNECT.
    pub(super) fn connect(&mut self, connect: &ConnectBody<'_>) {
        let username = match self.objection(connect) {
            Ok(username) => username,
            Err((code, reason)) => return self.refuse(code, reason),
        };
        self.client = Bytes::copy_from_slice(connect.client);
        self.keep_alive.set(connect.keep_alive);
        if let Some(will) = &connect.will {
            self.keep_will(will);
        }
        self.state = State::Judged;
        self.events.push_back(Event::Connect(Box::new(Connect {
            version: Version::V3,
            client: self.client.clone(),
            username: Bytes::copy_from_slice(username),
            password: connect.password.map(Bytes::copy_from_slice),
            keep_alive: connect.keep_alive,
            clean_session: connect.clean_session,
            will: connect.will.is_some(),
        })));
    }

    /// The user name, unless the endpoint does not take this CONNECT whoever sends it.
    fn objection<'a>(&self, connect: &ConnectBody<'a>) -> Result<&'a [u8], (ConnectCode, CloseReason)> {
        if connect.client.is_empty() || connect.client.len() > self.limits.client_bytes.into() {
            return Err((ConnectCode::Identifier, CloseReason::ClientIdentifier));
        }
        if !connect.clean_session && !self.limits.persistent {
            return Err((ConnectCode::Unavailable, CloseReason::PersistentSession));
        }
        if let Some(will) = &connect.will {
            self.will_objection(will)?;
        }
        connect.username.ok_or((ConnectCode::NotAuthorized, CloseReason::NoUsername))
    }

    fn will_objection(&self, will: &WillBody<'_>) -> Result<(), (ConnectCode, CloseReason)> {
        if will.topic.first() == Some(&b'$') || self.reserved.contains(will.topic) {
            return Err((ConnectCode::NotAuthorized, CloseReason::WillTopic));
        }
        Ok(())
    }

    /// CONNACK with a code, then the end [MQTT-3.2.2-5].
    pub(super) fn refuse(&mut self, code: ConnectCode, reason: CloseReason) {
        encode::refuse(&mut self.transmit, code);
        self.close(reason);
    }

    /// The verdict on the CONNECT. Ignored at any other time. Keep alive counts from `now`.
    pub fn admit(&mut self, admission: Admission, now: Millis) {
        if self.state != State::Judged {
            return;
        }
        match admission {
            Admission::Accepted { session_present } => {
                self.state = State::Open;
                self.keep_alive.hear(now);
                encode::accept(&mut self.transmit, session_present);
            }
            Admission::Refused(code) => self.refuse(code, CloseReason::ConnectRefused(code)),
        }
    }
}
