//! One client's session as it is in memory and on disk, but for the records of its mail. No I/O.
//!
//! What a wiped session leaves behind (versions, numbers, sources) has incarnation 0.

use std::collections::{BTreeMap, HashSet};

use crate::{
    epoch::Epoch,
    position::EntryId,
    store::{
        MailStep, OpenedSession, PushStep, SessionFilter, SessionFilters, SessionState,
        encoding::{self, Reader},
        mail_time,
        pushes::GRACE_MS,
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
    /// Those messages that are pushes, and when their time is over.
    pub(super) pushes: BTreeMap<u64, u64>,
    /// When the time of the last push ever is over.
    pushes_until: u64,
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
        self.lives_until(expires_at);
        OpenedSession { present, filters: self.wanted(), unacknowledged: self.sent.clone() }
    }

    /// Ends it; the mail's numbers are returned. Pushes whose time is not over stay: they wait for the client.
    pub(super) fn wipe(&mut self, expires_at: u64, now_ms: u64) -> Vec<u64> {
        let before = std::mem::take(self);
        let stays = |number: &u64| before.pushes.get(number).is_some_and(|expires| *expires > now_ms);
        let (kept, gone): (BTreeMap<u64, u32>, BTreeMap<u64, u32>) = before
            .mail
            .iter()
            .map(|(number, bytes)| (*number, *bytes))
            .partition(|(number, _)| stays(number));
        *self = Self {
            version: before.version,
            last: before.last,
            sources: before.sources,
            bytes: kept.values().map(|bytes| u64::from(*bytes)).sum(),
            pushes: before.pushes.into_iter().filter(|(number, _)| kept.contains_key(number)).collect(),
            mail: kept,
            pushes_until: before.pushes_until,
            ..Self::default()
        };
        self.lives_until(expires_at);
        gone.into_keys().collect()
    }

    /// Sets its life, not shorter than that of the pushes that wait.
    pub(super) fn lives_until(&mut self, expires_at: u64) {
        let pushes = self.pushes_until.saturating_add(GRACE_MS);
        self.expires_at = if self.pushes_until > 0 { expires_at.max(pushes) } else { expires_at };
    }

    /// Gives a push its number.
    pub(super) fn push(&mut self, bytes: u32, expires_at: u64, now_ms: u64) -> u64 {
        let number = self.append(bytes, now_ms);
        self.pushes.insert(number, expires_at);
        self.pushes_until = self.pushes_until.max(expires_at);
        self.lives_until(self.expires_at);
        number
    }

    /// When the time of the last push is over; None: there was none, or it was looked at since.
    pub(super) fn last_push(&self) -> Option<u64> {
        (self.pushes_until > 0).then_some(self.pushes_until)
    }

    /// The time of all pushes is over: those that no session has are removed; their numbers.
    pub(super) fn forget_pushes(&mut self) -> Vec<u64> {
        self.pushes_until = 0;
        let mut stepped = Stepped::default();
        if self.incarnation == 0 {
            let numbers: Vec<u64> = self.pushes.keys().copied().collect();
            numbers.into_iter().for_each(|number| self.remove(number, &mut stepped));
        }
        stepped.removed
    }

    /// Pushes at the front whose time is over make room; their numbers.
    pub(super) fn drop_over(&mut self, now_ms: u64) -> Vec<u64> {
        let mut stepped = Stepped::default();
        let front: Vec<u64> = self.mail.range(self.up_to + 1..).map(|(number, _)| *number).take(32).collect();
        for number in front {
            if self.pushes.get(&number).is_some_and(|expires| *expires <= now_ms) {
                self.remove(number, &mut stepped);
            }
        }
        stepped.removed
    }

    /// The step of a client without a session: nothing is remembered of what is handed out.
    pub(super) fn step_pushes(&mut self, step: &PushStep, now_ms: u64) -> Stepped {
        let mut stepped = Stepped::default();
        step.acknowledged.iter().for_each(|number| self.remove(*number, &mut stepped));
        if step.most == 0 {
            return stepped;
        }
        let mut room = Room { left: step.max_bytes, any: false };
        let mut over = Vec::new();
        for (number, bytes) in self.mail.range(step.received.saturating_add(1)..) {
            let is_over = self.pushes.get(number).is_none_or(|expires| *expires <= now_ms);
            if is_over && over.len() < EXPIRED_MOST {
                over.push(*number);
            } else if is_over || stepped.given.len() >= step.most as usize || !room.take(Some(bytes)) {
                stepped.more = true;
                break;
            } else {
                stepped.given.push((*number, 0, false));
            }
        }
        stepped.expired = u32::try_from(over.len()).unwrap_or(u32::MAX);
        over.into_iter().for_each(|number| self.remove(number, &mut stepped));
        stepped
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
            self.pushes.remove(&number);
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
            let over = match self.pushes.get(number) {
                Some(expires) => *expires <= now_ms,
                None => *number < oldest,
            };
            if over && expired.len() < EXPIRED_MOST {
                expired.push(*number);
            } else if over || ids.peek().is_none() || !room.take(Some(bytes)) {
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
        let pushes = self.pushes.iter().flat_map(|(number, expires)| [*number, *expires]);
        let pushes = std::iter::once(self.pushes_until).chain(pushes);
        prefixed(pushes.flat_map(u64::to_le_bytes).collect());
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
        // What an earlier version wrote ends here.
        if !reader.0.is_empty() {
            let mut pushes = Reader(reader.prefixed()?);
            session.pushes_until = pushes.u64()?;
            while !pushes.0.is_empty() {
                session.pushes.insert(pushes.u64()?, pushes.u64()?);
            }
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
        session.push(3, 77, 5);
        let step = MailStep { ids: vec![4], max_bytes: 100, ..MailStep::default() };
        assert_eq!(session.step(&step, 5).given, [(number, 4, false)]);
        let mut read = Session::decode(&session.encode()).unwrap();
        (read.mail, read.bytes) = (session.mail.clone(), session.bytes);
        assert_eq!(read, session);
        assert_eq!(Session::decode(&session.encode()[..40]), None);
    }
}
