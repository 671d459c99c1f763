//! Sessions and mailboxes, each call one script in the client's slot.

use std::fmt::Write;

use redis::Value;

use super::{
    answers,
    connection::{Failure, Way},
    keys::Keys,
    scripts::FENCED,
    session_scripts::{
        APPEND_SCRIPT, GONE, OPEN_SCRIPT, SET_FILTERS_SCRIPT, STATE_SCRIPT, STEP_SCRIPT, WIPE_SCRIPT,
    },
};
use crate::{
    epoch::Epoch,
    name::PartitionKey,
    position::Term,
    store::{
        Appended, Mail, MailLimits, MailStep, NewMail, OpenedSession, SOURCES_KEPT_MS, SessionError,
        SessionFilter, SessionFilters, SessionState, SteppedMail, StoreError, encoding, mail_time,
        redis::connection::Server,
    },
};

impl From<Failure> for SessionError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused { code, .. } if code == FENCED => Self::Fenced,
            Failure::Refused { code, .. } if code == GONE => Self::Gone,
            other => Self::Store(other.into()),
        }
    }
}

pub(super) fn filters(value: Value) -> Result<Vec<SessionFilter>, StoreError> {
    encoding::read_filters(&answers::bytes(value)?).ok_or_else(|| answers::corrupt("a session's filters"))
}

pub(super) async fn open(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
    client: &[u8],
    epoch: Epoch,
    expiry_ms: u64,
) -> Result<OpenedSession, SessionError> {
    let keys = Keys::new(partition);
    let mut script = OPEN_SCRIPT.key(keys.term());
    script.key(keys.session(client)).key(keys.mailbox(client)).arg(term.0).arg(epoch.0).arg(expiry_ms);
    let answer = server.run(Way::Write, &script).await?;
    let [present, incarnation, version, wanted, sent] = answers::fixed(answer)?;
    let filters = SessionFilters {
        incarnation: answers::number(incarnation)?,
        version: answers::number(version)?,
        filters: filters(wanted)?,
    };
    Ok(OpenedSession { present: answers::number(present)? == 1, filters, unacknowledged: handed_out(sent)? })
}

/// Numbers and packet identifiers of what was handed out.
fn handed_out(value: Value) -> Result<Vec<(u64, u16)>, StoreError> {
    let pair = |text: &str| {
        let (number, id) = text.split_once(':')?;
        Some((number.parse().ok()?, id.parse().ok()?))
    };
    let sent = answers::text(value)?;
    let pairs = sent.split_whitespace().map(pair).collect::<Option<_>>();
    pairs.ok_or_else(|| answers::corrupt("what a session was handed"))
}

pub(super) async fn state(
    server: &Server,
    partition: &PartitionKey,
    client: &[u8],
) -> Result<Option<SessionState>, StoreError> {
    let keys = Keys::new(partition);
    let mut script = STATE_SCRIPT.key(keys.session(client));
    let answer = server.run(Way::Read, script.key(keys.mailbox(client))).await?;
    let answer = answers::array(answer)?;
    if answer.is_empty() {
        return Ok(None);
    }
    let [incarnation, version, wanted, sent, bytes, mail, oldest, expires] =
        answers::fixed(Value::Array(answer))?;
    let oldest = answers::number(oldest)?;
    Ok(Some(SessionState {
        filters: SessionFilters {
            incarnation: answers::number(incarnation)?,
            version: answers::number(version)?,
            filters: filters(wanted)?,
        },
        mail: answers::number(mail)?,
        mail_bytes: answers::number(bytes)?,
        in_flight: u32::try_from(handed_out(sent)?.len()).unwrap_or(u32::MAX),
        oldest: (oldest > 0).then(|| mail_time(oldest)),
        expires_in_ms: answers::number(expires)?,
    }))
}

pub(super) async fn wipe(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
    client: &[u8],
) -> Result<Option<u64>, SessionError> {
    let keys = Keys::new(partition);
    let mut script = WIPE_SCRIPT.key(keys.term());
    script.key(keys.session(client)).key(keys.mailbox(client)).arg(term.0).arg(SOURCES_KEPT_MS);
    let incarnation = answers::text(server.run(Way::Write, &script).await?)?;
    if incarnation.is_empty() {
        return Ok(None);
    }
    Ok(Some(incarnation.parse().map_err(|_| answers::corrupt("an incarnation"))?))
}

pub(super) async fn set_filters(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
    client: &[u8],
    epoch: Epoch,
    filters: &[SessionFilter],
) -> Result<SessionFilters, SessionError> {
    let keys = Keys::new(partition);
    let mut script = SET_FILTERS_SCRIPT.key(keys.term());
    script.key(keys.session(client)).arg(term.0).arg(epoch.0).arg(encoding::filters(filters));
    let [incarnation, version] = answers::fixed(server.run(Way::Write, &script).await?)?;
    let (incarnation, version) = (answers::number(incarnation)?, answers::number(version)?);
    Ok(SessionFilters { incarnation, version, filters: filters.to_vec() })
}

pub(super) async fn append(
    server: &Server,
    partition: &PartitionKey,
    client: &[u8],
    incarnation: u64,
    source: u32,
    mail: &[NewMail],
    limits: MailLimits,
) -> Result<Appended, StoreError> {
    let keys = Keys::new(partition);
    let mut script = APPEND_SCRIPT.key(keys.session(client));
    script.key(keys.mailbox(client)).arg(incarnation).arg(source).arg(limits.messages).arg(limits.bytes);
    for one in mail {
        script.arg(one.entry.to_string()).arg(&one.record[..]);
    }
    let [outcome, appended, dropped] = answers::fixed(server.run(Way::Write, &script).await?)?;
    let count = |value| {
        u32::try_from(answers::number(value)?).map_err(|_| answers::corrupt("a count is out of range"))
    };
    match answers::text(outcome)?.as_str() {
        "gone" => Ok(Appended::Gone),
        _ => Ok(Appended::Kept { appended: count(appended)?, dropped: count(dropped)? }),
    }
}

/// Numbers with blanks between.
pub(super) fn list<T: std::fmt::Display>(numbers: &[T]) -> String {
    let mut text = String::with_capacity(numbers.len() * 17);
    for number in numbers {
        // Writing to a String does not fail.
        let _ = write!(text, "{number} ");
    }
    text
}

pub(super) async fn step(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
    client: &[u8],
    epoch: Epoch,
    step: &MailStep,
) -> Result<SteppedMail, SessionError> {
    let keys = Keys::new(partition);
    let mut script = STEP_SCRIPT.key(keys.term());
    script.key(keys.session(client)).key(keys.mailbox(client));
    script.arg(term.0).arg(epoch.0).arg(step.expiry_ms).arg(step.age_ms).arg(step.received);
    script.arg(step.max_bytes).arg(list(&step.acknowledged)).arg(list(&step.ids));
    Ok(stepped(server.run(Way::Write, &script).await?)?)
}

/// What a step hands out.
pub(super) fn stepped(answer: Value) -> Result<SteppedMail, StoreError> {
    let [more, expired, out] = answers::fixed(answer)?;
    let mail = answers::array(out)?.into_iter().map(mail).collect::<Result<_, _>>()?;
    let expired = u32::try_from(answers::number(expired)?).unwrap_or(u32::MAX);
    Ok(SteppedMail { mail, more: answers::number(more)? == 1, expired })
}

fn mail(value: Value) -> Result<Mail, StoreError> {
    let [number, packet_id, again, record] = answers::fixed(value)?;
    let packet_id =
        u16::try_from(answers::number(packet_id)?).map_err(|_| answers::corrupt("a packet id"))?;
    Ok(Mail {
        number: answers::number(number)?,
        packet_id,
        again: answers::number(again)? == 1,
        record: answers::bytes(record)?.into(),
    })
}
