//! Sessions, mail and the table of filters, as the committer keeps them: what each verb changes. Sessions are all in memory
//! but for the records of their mail, which are read from disk when they are handed out.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::{
    disk::{Disk, corrupt, failed},
    keys,
    machine::Machine,
    pushes::PushKeys,
    session::{Session, Stepped, number_after},
};
use crate::{
    epoch::Epoch,
    name::{PartitionKey, TenantName},
    position::Term,
    store::{
        Appended, FilterChanges, FilterTable, Mail, MailLimits, MailStep, NewMail, OpenedSession,
        SOURCES_KEPT_MS, SessionError, SessionFilter, SessionFilters, SessionState, SteppedMail, StoreError,
        encoding, encoding::Reader, sessions::CHANGES_KEPT,
    },
};

/// Between two looks for sessions whose life is over, milliseconds.
const SWEEP_EVERY_MS: u64 = 60_000;

pub(super) type Place = (PartitionKey, Bytes);

/// Filters of a tenant, with what changed since the process began.
#[derive(Default)]
struct Table {
    last: u64,
    sessions: HashMap<Bytes, SessionFilters>,
    /// Number before, number, client, filters.
    log: VecDeque<(u64, u64, Bytes, Option<SessionFilters>)>,
}

/// All sessions of the store.
#[derive(Default)]
pub(super) struct Sessions {
    pub(super) all: HashMap<Place, Session>,
    /// Keys of pushes.
    pub(super) keys: PushKeys,
    tables: HashMap<TenantName, Table>,
    swept_at: u64,
}

impl Sessions {
    /// Reads what is stored.
    pub(super) fn load(disk: &Disk) -> Result<Self, StoreError> {
        let mut sessions = Self::default();
        for item in disk.sessions.iter() {
            let (key, value) = item.into_inner().map_err(failed)?;
            let place = keys::client_of_session(&key).ok_or_else(|| corrupt("a key of a session"))?;
            let session = Session::decode(&value).ok_or_else(|| corrupt("a session"))?;
            sessions.all.insert(place, session);
        }
        for item in disk.mail.iter() {
            let (key, value) = item.into_inner().map_err(failed)?;
            let (place, number) = keys::number_of_mail(&key).ok_or_else(|| corrupt("a key of mail"))?;
            if let Some(session) = sessions.all.get_mut(&place) {
                let bytes = u32::try_from(value.len()).unwrap_or(u32::MAX);
                session.mail.insert(number, bytes);
                session.bytes += u64::from(bytes);
            }
        }
        sessions.keys = PushKeys::load(disk)?;
        for item in disk.filters.iter() {
            let (key, value) = item.into_inner().map_err(failed)?;
            let unreadable = || corrupt("filters of a session");
            let (tenant, client) = keys::client_of_filters(&key).ok_or_else(unreadable)?;
            let filters = decode_filters(&value).ok_or_else(unreadable)?;
            let table = sessions.tables.entry(tenant).or_default();
            table.last = table.last.max(1);
            table.sessions.insert(client, filters);
        }
        Ok(sessions)
    }

    /// A tenant is gone.
    pub(super) fn forget(&mut self, tenant: &TenantName) {
        self.all.retain(|(key, _), _| key.tenant != *tenant);
        self.tables.remove(tenant);
        self.keys.forget(tenant);
    }
}

fn encode_filters(filters: &SessionFilters) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&filters.incarnation.to_le_bytes());
    out.extend_from_slice(&filters.version.to_le_bytes());
    out.extend(encoding::filters(&filters.filters));
    out
}

fn decode_filters(bytes: &[u8]) -> Option<SessionFilters> {
    let mut reader = Reader(bytes);
    let (incarnation, version) = (reader.u64()?, reader.u64()?);
    Some(SessionFilters { incarnation, version, filters: encoding::read_filters(reader.0)? })
}

impl Machine {
    pub(super) fn fenced(&mut self, key: &PartitionKey, term: Term) -> Result<(), SessionError> {
        self.held(key, term).map(drop).ok_or(SessionError::Fenced)
    }

    /// The session, if its life is not over.
    pub(super) fn living(&mut self, place: &Place, now: u64) -> Option<&mut Session> {
        if self.sessions.all.get(place).is_some_and(|session| session.expires_at <= now) {
            self.end_session(place);
        }
        self.sessions.all.get_mut(place)
    }

    fn end_session(&mut self, place: &Place) {
        let Some(session) = self.sessions.all.remove(place) else { return };
        self.remove_mail(place, session.mail.into_keys());
        let key = keys::session(&place.0, &place.1);
        self.batch.remove(&self.disk.sessions, key);
    }

    pub(super) fn remove_mail(&mut self, place: &Place, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            self.batch.remove(&self.disk.mail, keys::mail(&place.0, &place.1, number));
        }
    }

    pub(super) fn write_session(&mut self, place: &Place) {
        if let Some(session) = self.sessions.all.get(place) {
            let bytes = session.encode();
            self.batch_bytes += bytes.len();
            self.batch.insert(&self.disk.sessions, keys::session(&place.0, &place.1), bytes);
        }
    }

    /// Ends sessions whose life is over, once in a while.
    fn sweep_sessions(&mut self, now: u64) {
        if now < self.sessions.swept_at.saturating_add(SWEEP_EVERY_MS) {
            return;
        }
        self.sessions.swept_at = now;
        let over = |(place, session): (&Place, &Session)| (session.expires_at <= now).then(|| place.clone());
        let ended: Vec<Place> = self.sessions.all.iter().filter_map(over).collect();
        ended.iter().for_each(|place| self.end_session(place));
    }

    pub(super) fn open_session(
        &mut self,
        key: PartitionKey,
        term: Term,
        client: Bytes,
        epoch: Epoch,
        expiry_ms: u64,
    ) -> Result<OpenedSession, SessionError> {
        self.fenced(&key, term)?;
        let now = self.clock.now_ms();
        self.sweep_sessions(now);
        let place = (key, client);
        if self.living(&place, now).is_none() {
            self.sessions.all.insert(place.clone(), Session::default());
        }
        let expires_at = now.saturating_add(expiry_ms);
        let opened = self.sessions.all.get_mut(&place).map(|session| session.open(epoch, expires_at, now));
        self.write_session(&place);
        opened.ok_or(SessionError::Gone)
    }

    pub(super) fn wipe_session(
        &mut self,
        key: PartitionKey,
        term: Term,
        client: Bytes,
    ) -> Result<Option<u64>, SessionError> {
        self.fenced(&key, term)?;
        let now = self.clock.now_ms();
        let place = (key, client);
        let Some(session) = self.living(&place, now).filter(|session| session.incarnation != 0) else {
            return Ok(None);
        };
        let incarnation = session.incarnation;
        let numbers = session.wipe(now.saturating_add(SOURCES_KEPT_MS), now);
        self.remove_mail(&place, numbers);
        self.write_session(&place);
        Ok(Some(incarnation))
    }

    pub(super) fn set_filters(
        &mut self,
        key: PartitionKey,
        term: Term,
        client: Bytes,
        epoch: Epoch,
        filters: Vec<SessionFilter>,
    ) -> Result<SessionFilters, SessionError> {
        self.fenced(&key, term)?;
        let now = self.clock.now_ms();
        let place = (key, client);
        let session = self.opened_by(&place, epoch, now)?;
        session.version = number_after(session.version, now);
        session.filters = filters;
        let wanted = session.wanted();
        self.write_session(&place);
        Ok(wanted)
    }

    fn opened_by(&mut self, place: &Place, epoch: Epoch, now: u64) -> Result<&mut Session, SessionError> {
        let session = self.living(place, now).filter(|it| it.incarnation != 0 && it.epoch == epoch);
        session.ok_or(SessionError::Gone)
    }

    pub(super) fn append_mail(
        &mut self,
        key: PartitionKey,
        client: Bytes,
        incarnation: u64,
        source: u32,
        mail: &[NewMail],
        limits: MailLimits,
    ) -> Appended {
        let (now, written) = (self.clock.now_ms(), self.writes);
        let place = (key, client);
        let Some(session) = self.living(&place, now).filter(|session| session.incarnation == incarnation)
        else {
            return Appended::Gone;
        };
        let (mut stored, mut dropped, mut latest) = (Vec::new(), 0, None);
        for one in mail.iter().filter(|one| !session.has_seen(source, one.entry)).collect::<Vec<_>>() {
            let bytes = u32::try_from(one.record.len()).unwrap_or(u32::MAX);
            latest = latest.max(Some(one.entry));
            let full = session.mail.len() >= limits.messages as usize
                || session.bytes.saturating_add(bytes.into()) > limits.bytes;
            if full {
                dropped += 1;
            } else {
                stored.push((session.append(bytes, now), one.record.clone()));
            }
        }
        let Some(latest) = latest else { return Appended::Kept { appended: 0, dropped: 0 } };
        session.saw(source, latest);
        session.appended_in = written;
        let appended = u32::try_from(stored.len()).unwrap_or(u32::MAX);
        for (number, record) in stored {
            self.batch_bytes += record.len();
            self.batch.insert(&self.disk.mail, keys::mail(&place.0, &place.1, number), &record[..]);
        }
        self.write_session(&place);
        Appended::Kept { appended, dropped }
    }

    pub(super) fn step_mail(
        &mut self,
        key: PartitionKey,
        term: Term,
        client: Bytes,
        epoch: Epoch,
        step: &MailStep,
    ) -> Result<SteppedMail, SessionError> {
        self.fenced(&key, term)?;
        let now = self.clock.now_ms();
        let written = self.writes;
        let place = (key, client);
        let session = self.opened_by(&place, epoch, now)?;
        session.lives_until(now.saturating_add(step.expiry_ms));
        let unwritten = session.appended_in == written;
        let stepped = session.step(step, now);
        self.hand_out(&place, stepped, unwritten)
    }

    /// Does to the disk what a step did to a mailbox, and reads what it hands out.
    pub(super) fn hand_out(
        &mut self,
        place: &Place,
        stepped: Stepped,
        unwritten: bool,
    ) -> Result<SteppedMail, SessionError> {
        self.remove_mail(place, stepped.removed);
        self.write_session(place);
        if unwritten && !stepped.given.is_empty() {
            self.settle()?;
        }
        let mut mail = Vec::with_capacity(stepped.given.len());
        for (number, packet_id, again) in stepped.given {
            let found = self.disk.mail.get(keys::mail(&place.0, &place.1, number)).map_err(failed)?;
            let record = found.ok_or_else(|| corrupt("mail"))?;
            mail.push(Mail { number, packet_id, again, record: Bytes::copy_from_slice(&record) });
        }
        Ok(SteppedMail { mail, more: stepped.more, expired: stepped.expired })
    }

    pub(super) fn session_state(&mut self, key: PartitionKey, client: Bytes) -> Option<SessionState> {
        let now = self.clock.now_ms();
        let session = self.living(&(key, client), now).filter(|session| session.incarnation != 0)?;
        Some(session.state(now))
    }

    pub(super) fn publish_filters(
        &mut self,
        tenant: TenantName,
        client: Bytes,
        filters: SessionFilters,
    ) -> u64 {
        let table = self.sessions.tables.entry(tenant.clone()).or_default();
        if table.sessions.get(&client).is_some_and(|old| *old == filters || old.version > filters.version) {
            return table.last;
        }
        table.sessions.insert(client.clone(), filters.clone());
        let key = keys::filters(&tenant, &client);
        self.batch.insert(&self.disk.filters, key, encode_filters(&filters));
        self.log_filters(tenant, client, Some(filters))
    }

    pub(super) fn withdraw_filters(&mut self, tenant: TenantName, client: Bytes, incarnation: u64) -> u64 {
        let table = self.sessions.tables.entry(tenant.clone()).or_default();
        if table.sessions.get(&client).is_none_or(|old| old.incarnation != incarnation) {
            return table.last;
        }
        table.sessions.remove(&client);
        self.batch.remove(&self.disk.filters, keys::filters(&tenant, &client));
        self.log_filters(tenant, client, None)
    }

    fn log_filters(&mut self, tenant: TenantName, client: Bytes, filters: Option<SessionFilters>) -> u64 {
        let now = self.clock.now_ms();
        let table = self.sessions.tables.entry(tenant).or_default();
        let before = table.last;
        table.last = number_after(before, now);
        table.log.push_back((before, table.last, client, filters));
        if table.log.len() > CHANGES_KEPT {
            table.log.pop_front();
        }
        table.last
    }

    pub(super) fn filter_table(&self, tenant: &TenantName) -> FilterTable {
        let Some(table) = self.sessions.tables.get(tenant) else { return FilterTable::default() };
        let sessions = table.sessions.iter().map(|(client, filters)| (client.clone(), filters.clone()));
        FilterTable { up_to: table.last, sessions: sessions.collect() }
    }

    pub(super) fn filter_changes(&self, tenant: &TenantName, after: u64) -> FilterChanges {
        let last = self.sessions.tables.get(tenant).map_or(0, |table| table.last);
        let none = VecDeque::new();
        let log = self.sessions.tables.get(tenant).map_or(&none, |table| &table.log);
        let from = log.partition_point(|(_, number, ..)| *number <= after);
        let before = log.get(from).map_or(last, |(before, ..)| *before);
        if before != after {
            return FilterChanges::Forgotten;
        }
        let changes = log.iter().skip(from).map(|(_, _, client, it)| (client.clone(), it.clone()));
        FilterChanges::Known { up_to: last, changes: changes.collect() }
    }
}
