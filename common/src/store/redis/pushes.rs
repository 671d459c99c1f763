//! Pushes that wait, and keys of pushes: each call one script in the client's slot.

use bytes::Bytes;
use redis::{Cmd, Value};

use super::{
    answers,
    connection::{Server, Way},
    keys::{self, Keys},
    push_scripts::{BEGIN_SCRIPT, END_SCRIPT, EXPIRE_SCRIPT, QUEUE_SCRIPT, STEP_SCRIPT},
    sessions::{list, stepped},
};
use crate::{
    clock::UnixMillis,
    name::PartitionKey,
    position::Term,
    store::{
        Begun, KEYS_MOST, NewPush, PushKey, PushRefused, PushStep, Queued, SessionError, SteppedMail,
        StoreError,
    },
};

/// The field of a client's key. Encoded clients hold no colon.
fn field(client: &[u8], key: &PushKey) -> String {
    format!("{}:{}", keys::encode_bytes(client), key.key)
}

fn print(key: &PushKey) -> String {
    format!("{:x}", key.fingerprint)
}

fn refused(word: &str) -> Option<PushRefused> {
    match word {
        "full" => Some(PushRefused::MailboxFull),
        "used" => Some(PushRefused::KeyUsed),
        "keys" => Some(PushRefused::TooManyKeys),
        _ => None,
    }
}

pub(super) async fn queue(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
    client: &[u8],
    push: &NewPush,
) -> Result<Queued, SessionError> {
    let keys = Keys::new(partition);
    let mut script = QUEUE_SCRIPT.key(keys.term());
    script.key(keys.session(client)).key(keys.mailbox(client)).key(keys.waiting());
    script.arg(term.0).arg(keys::encode_bytes(client)).arg(&push.record[..]).arg(push.ttl_ms);
    script.arg(push.limits.messages).arg(push.limits.bytes).arg(keys.push_keys());
    match &push.key {
        Some(key) => script.arg(field(client, key)).arg(print(key)),
        None => script.arg("").arg(""),
    };
    script.arg(KEYS_MOST);
    let (answer, _) = server.run_stored(&script).await?;
    let [word, rest] = answers::fixed(answer)?;
    let (word, rest) = (answers::text(word)?, answers::text(rest)?);
    if let Some(refused) = refused(&word) {
        return Ok(Queued::Refused(refused));
    }
    if word == "again" {
        return Ok(Queued::Repeated(rest));
    }
    let numbers = rest.split_once(' ').and_then(|(n, at)| Some((n.parse().ok()?, at.parse().ok()?)));
    let (number, expires_at) = numbers.ok_or_else(|| answers::corrupt("a push's number"))?;
    Ok(Queued::Stored { number, expires_at })
}

pub(super) async fn waits(
    server: &Server,
    partition: &PartitionKey,
    client: &[u8],
    number: u64,
) -> Result<bool, StoreError> {
    let (key, id) = (Keys::new(partition).mailbox(client), format!("{number}-0"));
    let mut command = Cmd::new();
    command.arg("XRANGE").arg(key).arg(&id).arg(&id);
    Ok(!answers::array(server.send(Way::Read, &command).await?)?.is_empty())
}

pub(super) async fn step(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
    client: &[u8],
    step: &PushStep,
) -> Result<SteppedMail, SessionError> {
    let keys = Keys::new(partition);
    let mut script = STEP_SCRIPT.key(keys.term());
    script.key(keys.session(client)).key(keys.mailbox(client));
    script.arg(term.0).arg(step.received).arg(step.max_bytes).arg(step.most).arg(list(&step.acknowledged));
    Ok(stepped(server.run(Way::Write, &script).await?)?)
}

fn client(value: Value) -> Result<Bytes, StoreError> {
    let client = keys::decode_bytes(&answers::text(value)?);
    client.map(Bytes::from).ok_or_else(|| answers::corrupt("a client for which pushes wait"))
}

pub(super) async fn waiting(
    server: &Server,
    partition: &PartitionKey,
) -> Result<Vec<(Bytes, UnixMillis)>, StoreError> {
    let mut command = Cmd::new();
    command.arg("ZRANGE").arg(Keys::new(partition).waiting()).arg(0).arg(-1).arg("WITHSCORES");
    let mut values = answers::array(server.send(Way::Read, &command).await?)?.into_iter();
    let mut found = Vec::new();
    while let (Some(name), Some(score)) = (values.next(), values.next()) {
        found.push((client(name)?, answers::number(score)?));
    }
    Ok(found)
}

pub(super) async fn expire(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
) -> Result<(u64, Vec<Bytes>), SessionError> {
    let keys = Keys::new(partition);
    let mut script = EXPIRE_SCRIPT.key(keys.term());
    script.key(keys.waiting()).arg(term.0).arg(keys.session(b"")).arg(keys.mailbox(b""));
    let [expired, gone] = answers::fixed(server.run(Way::Write, &script).await?)?;
    let gone = answers::array(gone)?.into_iter().map(client).collect::<Result<_, _>>()?;
    Ok((answers::number(expired)?, gone))
}

pub(super) async fn begin(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
    client: &[u8],
    key: &PushKey,
) -> Result<Begun, SessionError> {
    let keys = Keys::new(partition);
    let mut script = BEGIN_SCRIPT.key(keys.term());
    script.arg(term.0).arg(keys.push_keys()).arg(field(client, key)).arg(print(key)).arg(KEYS_MOST);
    let [word, outcome] = answers::fixed(server.run(Way::Write, &script).await?)?;
    let word = answers::text(word)?;
    match refused(&word) {
        Some(refused) => Ok(Begun::Refused(refused)),
        None if word == "again" => Ok(Begun::Repeated(answers::text(outcome)?)),
        None => Ok(Begun::New),
    }
}

pub(super) async fn end(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
    client: &[u8],
    key: &PushKey,
    outcome: Option<&str>,
) -> Result<(), SessionError> {
    let keys = Keys::new(partition);
    let mut script = END_SCRIPT.key(keys.term());
    script.arg(term.0).arg(keys.push_keys()).arg(field(client, key)).arg(print(key));
    script.arg(u8::from(outcome.is_some())).arg(outcome.unwrap_or(""));
    server.run(Way::Write, &script).await?;
    Ok(())
}
