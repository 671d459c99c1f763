//! Pushes that wait, and keys of pushes, as the committer keeps them. Pushes are messages of a client's mailbox, see
//! `session`; keys are all in memory, in the order of their age.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::{
    disk::{Disk, corrupt, failed},
    keys,
    machine::Machine,
    mail::Place,
    session::Session,
};
use crate::{
    clock::UnixMillis,
    name::{PartitionKey, TenantName},
    position::Term,
    store::{
        Begun, KEYS_KEPT_MS, KEYS_MOST, NewPush, PushKey, PushRefused, PushStep, Queued, SessionError,
        SteppedMail, StoreError, encoding::Reader,
    },
};

/// Clients whose pushes are removed at a time.
const EXPIRED_CLIENTS: usize = 128;

/// Partition, and the client with the key.
type Name = (PartitionKey, Bytes);

struct Known {
    at: UnixMillis,
    fingerprint: u64,
    outcome: String,
}

/// Keys of pushes that are remembered.
#[derive(Default)]
pub(super) struct PushKeys {
    all: HashMap<Name, Known>,
    /// In the order of their time; a key that was freed may still be in it.
    ages: VecDeque<(UnixMillis, Name)>,
    counts: HashMap<PartitionKey, usize>,
}

fn name(partition: &PartitionKey, client: &[u8], key: &PushKey) -> Name {
    let length = u16::try_from(client.len()).unwrap_or(u16::MAX).to_be_bytes();
    (partition.clone(), Bytes::from([&length, client, key.key.as_bytes()].concat()))
}

impl PushKeys {
    /// Reads what is stored.
    pub(super) fn load(disk: &Disk) -> Result<Self, StoreError> {
        let mut found = Vec::new();
        for item in disk.push_keys.iter() {
            let (key, value) = item.into_inner().map_err(failed)?;
            let unreadable = || corrupt("the key of a push");
            let name = keys::client_of_session(&key).ok_or_else(unreadable)?;
            found.push((name, Known::decode(&value).ok_or_else(unreadable)?));
        }
        found.sort_by_key(|(_, known)| known.at);
        let mut keys = Self::default();
        for (name, known) in found {
            keys.insert(name, known);
        }
        Ok(keys)
    }

    fn insert(&mut self, name: Name, known: Known) {
        self.ages.push_back((known.at, name.clone()));
        let partition = name.0.clone();
        if self.all.insert(name, known).is_none() {
            *self.counts.entry(partition).or_default() += 1;
        }
    }

    fn remove(&mut self, name: &Name) -> bool {
        let removed = self.all.remove(name).is_some();
        if removed && let Some(count) = self.counts.get_mut(&name.0) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&name.0);
            }
        }
        removed
    }

    /// Takes a key whose time is over.
    fn over(&mut self, now: UnixMillis) -> Option<Name> {
        while self.ages.front().is_some_and(|(at, _)| at.saturating_add(KEYS_KEPT_MS) <= now) {
            let (at, name) = self.ages.pop_front()?;
            if self.all.get(&name).is_some_and(|known| known.at == at) && self.remove(&name) {
                return Some(name);
            }
        }
        None
    }

    /// A tenant is gone.
    pub(super) fn forget(&mut self, tenant: &TenantName) {
        self.all.retain(|(key, _), _| key.tenant != *tenant);
        self.ages.retain(|(_, (key, _))| key.tenant != *tenant);
        self.counts.retain(|key, _| key.tenant != *tenant);
    }
}

impl Known {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.outcome.len());
        out.extend_from_slice(&self.at.to_le_bytes());
        out.extend_from_slice(&self.fingerprint.to_le_bytes());
        out.extend_from_slice(self.outcome.as_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let (at, fingerprint) = (reader.u64()?, reader.u64()?);
        Some(Self { at, fingerprint, outcome: String::from_utf8(reader.0.to_vec()).ok()? })
    }
}

impl Machine {
    /// What is known of a key; None: it is new, and there is room for it.
    fn look_up(&mut self, name: &Name, fingerprint: u64, now: UnixMillis) -> Option<Begun> {
        while let Some((partition, rest)) = self.sessions.keys.over(now) {
            self.batch.remove(&self.disk.push_keys, keys::session(&partition, &rest));
        }
        match self.sessions.keys.all.get(name) {
            Some(known) if known.fingerprint == fingerprint => Some(Begun::Repeated(known.outcome.clone())),
            Some(_) => Some(Begun::Refused(PushRefused::KeyUsed)),
            None if self.sessions.keys.counts.get(&name.0).is_some_and(|count| *count >= KEYS_MOST) => {
                Some(Begun::Refused(PushRefused::TooManyKeys))
            }
            None => None,
        }
    }

    fn remember(&mut self, name: Name, fingerprint: u64, outcome: String, at: UnixMillis) {
        let known = Known { at, fingerprint, outcome };
        self.batch.insert(&self.disk.push_keys, keys::session(&name.0, &name.1), known.encode());
        self.sessions.keys.insert(name, known);
    }

    pub(super) fn queue_push(
        &mut self,
        key: PartitionKey,
        term: Term,
        client: Bytes,
        push: &NewPush,
    ) -> Result<Queued, SessionError> {
        self.fenced(&key, term)?;
        let now = self.clock.now_ms();
        let named = push.key.as_ref().map(|it| (name(&key, &client, it), it.fingerprint));
        if let Some((name, fingerprint)) = &named {
            match self.look_up(name, *fingerprint, now) {
                Some(Begun::Repeated(outcome)) => return Ok(Queued::Repeated(outcome)),
                Some(Begun::Refused(refused)) => return Ok(Queued::Refused(refused)),
                Some(Begun::New) | None => {}
            }
        }
        let place = (key, client);
        let bytes = u32::try_from(push.record.len()).unwrap_or(u32::MAX);
        let Some(number) = self.put_push(&place, bytes, push, now) else {
            return Ok(Queued::Refused(PushRefused::MailboxFull));
        };
        let expires_at = now.saturating_add(push.ttl_ms);
        self.batch_bytes += push.record.len();
        self.batch.insert(&self.disk.mail, keys::mail(&place.0, &place.1, number), &push.record[..]);
        self.write_session(&place);
        if let Some((name, fingerprint)) = named {
            self.remember(name, fingerprint, format!("queued {number} {expires_at}"), now);
        }
        Ok(Queued::Stored { number, expires_at })
    }

    /// None: the mailbox is full.
    fn put_push(&mut self, place: &Place, bytes: u32, push: &NewPush, now: UnixMillis) -> Option<u64> {
        let written = self.writes;
        if self.living(place, now).is_none() {
            self.sessions.all.insert(place.clone(), Session::default());
        }
        let session = self.sessions.all.get_mut(place)?;
        let full = |session: &Session| {
            session.mail.len() >= push.limits.messages as usize
                || session.bytes.saturating_add(bytes.into()) > push.limits.bytes
        };
        let over = if full(session) { session.drop_over(now) } else { Vec::new() };
        let number = (!full(session)).then(|| {
            session.appended_in = written;
            session.push(bytes, now.saturating_add(push.ttl_ms), now)
        });
        self.remove_mail(place, over);
        if number.is_none() {
            self.write_session(place);
        }
        number
    }

    pub(super) fn waits(&mut self, key: PartitionKey, client: Bytes, number: u64) -> bool {
        let now = self.clock.now_ms();
        self.living(&(key, client), now).is_some_and(|session| session.mail.contains_key(&number))
    }

    pub(super) fn step_pushes(
        &mut self,
        key: PartitionKey,
        term: Term,
        client: Bytes,
        step: &PushStep,
    ) -> Result<SteppedMail, SessionError> {
        self.fenced(&key, term)?;
        let (now, written) = (self.clock.now_ms(), self.writes);
        let place = (key, client);
        let Some(session) = self.living(&place, now) else { return Ok(SteppedMail::default()) };
        if session.incarnation != 0 {
            return Err(SessionError::Gone);
        }
        let unwritten = session.appended_in == written;
        let stepped = session.step_pushes(step, now);
        self.hand_out(&place, stepped, unwritten)
    }

    pub(super) fn waiting_clients(&self, key: &PartitionKey) -> Vec<(Bytes, UnixMillis)> {
        let own = self.sessions.all.iter().filter(|((partition, _), _)| partition == key);
        own.filter_map(|((_, client), session)| Some((client.clone(), session.last_push()?))).collect()
    }

    pub(super) fn expire_pushes(
        &mut self,
        key: &PartitionKey,
        term: Term,
    ) -> Result<(u64, Vec<Bytes>), SessionError> {
        self.fenced(key, term)?;
        let now = self.clock.now_ms();
        let over = |place: &Place, session: &Session| {
            place.0 == *key && session.last_push().is_some_and(|until| until <= now)
        };
        let places: Vec<Place> = self
            .sessions
            .all
            .iter()
            .filter(|(place, session)| over(place, session))
            .map(|(place, _)| place.clone())
            .take(EXPIRED_CLIENTS)
            .collect();
        let mut expired = 0;
        for place in &places {
            let Some(session) = self.sessions.all.get_mut(place) else { continue };
            let removed = session.forget_pushes();
            expired += removed.len() as u64;
            self.remove_mail(place, removed);
            self.write_session(place);
        }
        Ok((expired, places.into_iter().map(|(_, client)| client).collect()))
    }

    pub(super) fn begin_push(
        &mut self,
        key: PartitionKey,
        term: Term,
        client: &[u8],
        named: &PushKey,
    ) -> Result<Begun, SessionError> {
        self.fenced(&key, term)?;
        let now = self.clock.now_ms();
        let name = name(&key, client, named);
        if let Some(known) = self.look_up(&name, named.fingerprint, now) {
            return Ok(known);
        }
        self.remember(name, named.fingerprint, String::new(), now);
        Ok(Begun::New)
    }

    pub(super) fn end_push(
        &mut self,
        key: PartitionKey,
        term: Term,
        client: &[u8],
        named: &PushKey,
        outcome: Option<String>,
    ) -> Result<(), SessionError> {
        self.fenced(&key, term)?;
        let now = self.clock.now_ms();
        let name = name(&key, client, named);
        match outcome {
            Some(outcome) => self.remember(name, named.fingerprint, outcome, now),
            None => {
                self.sessions.keys.remove(&name);
                self.batch.remove(&self.disk.push_keys, keys::session(&name.0, &name.1));
            }
        }
        Ok(())
    }
}
