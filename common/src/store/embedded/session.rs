//! One client's session as it is in memory and on disk, but for the records of its mail. No I/O.
//!
//! What a wiped session leaves behind (versions, numbers, sources) has incarnation 0.

use std::collections::{BTreeMap, HashSet};

use crate::{
    epoch::Epoch,
    position::EntryId,
    store::{
        MailStep, OpenedSession, SessionFilter, SessionFilters, SessionState,
        encoding::{self, Reader},
        mail_time,
        sessions::PER_MILLI,
    },
};

/// Mail that is dropped for its age in one step.
const EXPIRED_MOST: usize = 256;

/// See the module.
#[derive(Default, Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// 0: there is no session.
    pub(super) incarnation: u64,
    pub(super) epoch: Epoch,
    pub(super) version: u64,
    pub(super) filters: Vec<SessionFilter>,
    /// Last number of mail.
    last: u64,
    /// Everything up to here was handed out.
    up_to: u64,
    /// Handed out and not acknowledged, ascending.
    sent: Vec<(u64, u16)>,
    /// Last entry of each partition that was looked at.
    sources: BTreeMap<u32, EntryId>,
    pub(super) expires_at: u64,
    /// Number and bytes of each message. Not written: they are those of the mail.
    pub(super) mail: BTreeMap<u64, u32>,
    pub(super) bytes: u64,
    /// Write of the committer in which mail was appended last.
    pub(super) appended_in: u64,
}

/// What a step does to the mailbox.
#[derive(Default, Debug, PartialEq, Eq)]
pub(super) struct Stepped {
    /// Numbers that are removed.
    pub(super) removed: Vec<u64>,
    /// Number, packet identifier, and whether it was handed out before.
    pub(super) given: Vec<(u64, u16, bool)>,
    pub(super) more: bool,
    pub(super) expired: u32,
}

/// The number after a last one, holding the time.
pub(super) fn number_after(last: u64, now_ms: u64) -> u64 {
    last.saturating_add(1).max(now_ms.saturating_mul(PER_MILLI))
}

impl Session {
    /// Opens or creates it.
    pub(super) fn open(&mut self, epoch: Epoch, expires_at: u64, now_ms: u64) -> OpenedSession {
        // Made by this very connection: its question has come again.
        let present = self.incarnation != 0 && self.incarnation != epoch.0;
        if self.incarnation == 0 {
            self.incarnation = epoch.0;
            self.version = number_after(self.version, now_ms);
        }
        self.epoch = epoch;
        self.expires_at = expires_at;
        OpenedSession { present, filters: self.wanted(), unacknowledged: self.sent.clone() }
    }

    /// Ends it; the mail's numbers are returned.
    pub(super) fn wipe(&mut self, expires_at: u64) -> Vec<u64> {
        let left = Self {
            version: self.version,
            last: self.last,
            sources: std::mem::take(&mut self.sources),
            expires_at,
            ..Self::default()
        };
        std::mem::replace(self, left).mail.into_keys().collect()
    }

    pub(super) fn wanted(&self) -> SessionFilters {
        SessionFilters { incarnation: self.incarnation, version: self.version, filters: self.filters.clone() }
    }

    /// What there is of it.
    pub(super) fn state(&self, now_ms: u64) -> SessionState {
        SessionState {
            filters: self.wanted(),
            mail: self.mail.len() as u64,
            mail_bytes: self.bytes,
            in_flight: u32::try_from(self.sent.len()).unwrap_or(u32::MAX),
            oldest: self.mail.keys().next().map(|number| mail_time(*number)),
            expires_in_ms: self.expires_at.saturating_sub(now_ms),
        }
    }

    /// Whether mail of this entry was looked at before.
    pub(super) fn has_seen(&self, source: u32, entry: EntryId) -> bool {
        self.sources.get(&source).is_some_and(|seen| entry <= *seen)
    }

    /// All mail up to this entry was looked at.
    pub(super) fn saw(&mut self, source: u32, entry: EntryId) {
        let seen = self.sources.entry(source).or_default();
        *seen = entry.max(*seen);
    }

    /// Gives a message its number.
    pub(super) fn append(&mut self, bytes: u32, now_ms: u64) -> u64 {
        self.last = number_after(self.last, now_ms);
        self.mail.insert(self.last, bytes);
        self.bytes += u64::from(bytes);
        self.last
    }

    fn remove(&mut self, number: u64, stepped: &mut Stepped) {
        if let Some(bytes) = self.mail.remove(&number) {
            self.bytes = self.bytes.saturating_sub(bytes.into());
            stepped.removed.push(number);
        }
    }

    /// Removes what is acknowledged and hands out what is next.
    pub(super) fn step(&mut self, step: &MailStep, now_ms: u64) -> Stepped {
        let mut stepped = Stepped::default();
        let acknowledged: HashSet<u64> = step.acknowledged.iter().copied().collect();
        let sent = std::mem::take(&mut self.sent);
        for (number, _) in sent.iter().filter(|(number, _)| acknowledged.contains(number)) {
            self.remove(*number, &mut stepped);
        }
        self.sent = sent.into_iter().filter(|(number, _)| self.mail.contains_key(number)).collect();
        let mut room = Room { left: step.max_bytes, any: false };
        for (number, id) in self.sent.iter().filter(|(number, _)| *number > step.received) {
            if !room.take(self.mail.get(number)) {
                stepped.more = true;
                return stepped;
            }
            stepped.given.push((*number, *id, true));
        }
        self.hand_out(step, now_ms, room, &mut stepped);
        stepped
    }

    fn hand_out(&mut self, step: &MailStep, now_ms: u64, mut room: Room, stepped: &mut Stepped) {
        let used: HashSet<u16> = self.sent.iter().map(|(_, id)| *id).collect();
        let mut ids = step.ids.iter().copied().filter(|id| !used.contains(id)).peekable();
        let oldest = now_ms.saturating_sub(step.age_ms).saturating_mul(PER_MILLI);
        let (mut given, mut expired) = (Vec::new(), Vec::new());
        for (number, bytes) in self.mail.range(self.up_to + 1..) {
            if *number < oldest && expired.len() < EXPIRED_MOST {
                expired.push(*number);
            } else if *number < oldest || ids.peek().is_none() || !room.take(Some(bytes)) {
                stepped.more = true;
                break;
            } else if let Some(id) = ids.next() {
                given.push((*number, id));
            }
            self.up_to = *number;
        }
        stepped.expired = u32::try_from(expired.len()).unwrap_or(u32::MAX);
        expired.into_iter().for_each(|number| self.remove(number, stepped));
        stepped.given.extend(given.iter().map(|(number, id)| (*number, *id, false)));
        self.sent.extend(given);
    }

    /// Bytes of all but the mail.
    pub(super) fn encode(&self) -> Vec<u8> {
        let numbers = [self.incarnation, self.epoch.0, self.version, self.last, self.up_to, self.expires_at];
        let mut out: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
        let mut prefixed = |bytes: Vec<u8>| {
            out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend(bytes);
        };
        prefixed(encoding::filters(&self.filters));
        let sent = self.sent.iter().flat_map(|(number, id)| [*number, u64::from(*id)]);
        prefixed(sent.flat_map(u64::to_le_bytes).collect());
        let sources = self
            .sources
            .iter()
            .flat_map(|(partition, entry)| [u64::from(*partition), entry.term.0, entry.sequence]);
        prefixed(sources.flat_map(u64::to_le_bytes).collect());
        out
    }

    /// Reads what `encode` wrote; None: unreadable.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let mut session = Self {
            incarnation: reader.u64()?,
            epoch: Epoch(reader.u64()?),
            version: reader.u64()?,
            last: reader.u64()?,
            up_to: reader.u64()?,
            expires_at: reader.u64()?,
            ..Self::default()
        };
        session.filters = encoding::read_filters(reader.prefixed()?)?;
        let mut sent = Reader(reader.prefixed()?);
        while !sent.0.is_empty() {
            session.sent.push((sent.u64()?, u16::try_from(sent.u64()?).ok()?));
        }
        let mut sources = Reader(reader.prefixed()?);
        while !sources.0.is_empty() {
            let partition = u32::try_from(sources.u64()?).ok()?;
            session.sources.insert(partition, EntryId::new(sources.u64()?, sources.u64()?));
        }
        Some(session)
    }
}

/// Bytes that may still be handed out; the first message always may.
struct Room {
    left: u64,
    any: bool,
}

impl Room {
    fn take(&mut self, bytes: Option<&u32>) -> bool {
        let bytes = bytes.copied().unwrap_or_default().into();
        if self.any && bytes > self.left {
            return false;
        }
        (self.left, self.any) = (self.left.saturating_sub(bytes), true);
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;

    #[test]
    fn what_is_written_comes_back() {
        let mut session = Session::default();
        session.open(Epoch(7), 99, 5);
        session.filters = vec![SessionFilter { filter: Bytes::from_static(b"a/#"), qos: 1 }];
        session.saw(3, EntryId::new(1, 2));
        let number = session.append(10, 5);
        let step = MailStep { ids: vec![4], max_bytes: 100, ..MailStep::default() };
        assert_eq!(session.step(&step, 5).given, [(number, 4, false)]);
        let mut read = Session::decode(&session.encode()).unwrap();
        (read.mail, read.bytes) = (session.mail.clone(), session.bytes);
        assert_eq!(read, session);
        assert_eq!(Session::decode(&session.encode()[..40]), None);
    }
}
