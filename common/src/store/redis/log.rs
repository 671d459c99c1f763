//! Terms and entries: take, append, read. An append is one XADD and no script; the term in its id is the fence.

use std::sync::Arc;

use redis::{Cmd, Value};

use super::{
    answers,
    connection::{Failure, Server, Way, redirect},
    keys::Keys,
    live::Live,
    scripts::TAKE_SCRIPT,
    taken::Taking,
};
use crate::{
    name::PartitionKey,
    position::{EntryId, Term},
    store::{AppendError, Entry, ReadBack, StoreError, StoredEntry, Took, Totals, encoding},
};

/// Entries asked for before anything is known of their size: at 1 MiB each, what a page may be too large by.
const FIRST_PAGE: usize = 16;
/// Entries asked for at a time.
const LARGEST_PAGE: usize = 1_024;
/// Bytes of an append beside records, segments and keys.
const APPEND_FRAME: usize = 192;

pub(super) async fn take(server: &Server, partition: &PartitionKey, holder: u64) -> Result<Took, StoreError> {
    let keys = Keys::new(partition);
    let mut script = TAKE_SCRIPT.key(keys.term());
    script.key(keys.log()).key(keys.trimmed()).arg(holder);
    // Confirmed by replicas where that is promised: then so is everything before it in the log.
    let (answer, live) = server.run_stored(&script).await?;
    let [term, previous, last, records, bytes, trimmed_records, trimmed_bytes] = answers::fixed(answer)?;
    let previous = answers::text(previous)?;
    let previous_holder = match previous.as_str() {
        "" => None,
        holder => Some(holder.parse().map_err(|_| answers::corrupt("a holder is no number"))?),
    };
    let term = Term(answers::number(term)?);
    server.taken.set(partition, Taking::new(partition, term, live));
    Ok(Took {
        term,
        previous_holder,
        last: answers::id(last)?,
        totals: Totals { records: answers::number(records)?, bytes: answers::number(bytes)? },
        trimmed: Totals {
            records: answers::number(trimmed_records)?,
            bytes: answers::number(trimmed_bytes)?,
        },
    })
}

pub(super) async fn holder(
    server: &Server,
    partition: &PartitionKey,
) -> Result<Option<(Term, u64)>, StoreError> {
    let mut get = redis::cmd("GET");
    get.arg(Keys::new(partition).term());
    let answer = server.send(Way::Write, &get).await?;
    if answer == Value::Nil {
        return Ok(None);
    }
    let text = answers::text(answer)?;
    let parts =
        text.split_once(' ').and_then(|(term, holder)| Some((term.parse().ok()?, holder.parse().ok()?)));
    let (term, holder) = parts.ok_or_else(|| answers::corrupt("a term is unreadable"))?;
    Ok(Some((Term(term), holder)))
}

/// The term, and the connection that it was taken on.
pub(super) fn held(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
) -> Result<(Arc<Taking>, Arc<Live>), AppendError> {
    let taking = match server.taken.get(partition).filter(|taking| taking.term == term) {
        Some(taking) => taking,
        // Not taken here, or taken again since: the server refuses it.
        None => server.taken.stray(partition, term, |log| server.find(log).map(|live| live.number)),
    };
    let live = server.holds(&taking).ok_or(AppendError::Retake)?;
    Ok((taking, live))
}

pub(super) async fn append(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
    entry: &Entry,
) -> Result<EntryId, AppendError> {
    let (taking, live) = held(server, partition, term)?;
    let mut segments = Vec::new();
    encoding::put_segments(&mut segments, &entry.segments);
    let mut xadd =
        Cmd::with_capacity(17, APPEND_FRAME + taking.log.len() + segments.len() + entry.records.len());
    // NOMKSTREAM: a log that is gone (its tenant was deleted, the server lost its data) is not begun again under an old
    // term, for nothing would fence that.
    xadd.arg("XADD").arg(&taking.log).arg("NOMKSTREAM").arg(&taking.next_id);
    xadd.arg("b").arg(&entry.records[..]).arg("s").arg(&segments[..]).arg("n").arg(entry.count);
    xadd.arg("t").arg(entry.first_received_at);
    xadd.arg("r").arg(entry.totals.records).arg("o").arg(entry.totals.bytes);
    match live.store(xadd).await {
        Ok(Value::Nil) => Err(AppendError::Fenced),
        Ok(answer) => answers::id(answer).map_err(|error| AppendError::Lost(error.to_string())),
        Err(Failure::Refused { code, text }) => Err(not_appended(server, &code, text)),
        Err(failure) => Err(failure.into()),
    }
}

/// The server answered with an error: nothing was written.
pub(super) fn not_appended(server: &Server, code: &str, text: String) -> AppendError {
    match code {
        "MOVED" => {
            server.moved(code);
            AppendError::Retake
        }
        "READONLY" | "MASTERDOWN" | "LOADING" => AppendError::Retake,
        _ => match redirect(code, &text) {
            Some(reason) => {
                server.moved(reason);
                AppendError::Refused(text)
            }
            None => Failure::Refused { code: code.into(), text }.into(),
        },
    }
}

/// How many entries to ask for next, from what the ones so far took.
fn page(entries: usize, bytes: usize, max_bytes: usize) -> usize {
    if entries == 0 {
        return FIRST_PAGE;
    }
    let average = (bytes / entries).max(1);
    (max_bytes.saturating_sub(bytes) / average + 1).min(LARGEST_PAGE)
}

pub(super) async fn read(
    server: &Server,
    partition: &PartitionKey,
    after: EntryId,
    max_entries: usize,
    max_bytes: usize,
) -> Result<Vec<StoredEntry>, StoreError> {
    let key = Keys::new(partition).log();
    let (mut found, mut bytes): (Vec<StoredEntry>, usize) = (Vec::new(), 0);
    while found.len() < max_entries {
        let wanted = page(found.len(), bytes, max_bytes).min(max_entries - found.len());
        let from = found.last().map_or(after, |entry| entry.id);
        let mut xrange = redis::cmd("XRANGE");
        xrange.arg(&key).arg(format!("({from}")).arg("+").arg("COUNT").arg(wanted);
        let entries = answers::entries(server.send(Way::Read, &xrange).await?)?;
        let end = entries.len() < wanted;
        for (at, fields) in entries {
            let entry = answers::stored(at, fields)?;
            bytes = bytes.saturating_add(entry.entry.records.len());
            found.push(entry);
            if bytes >= max_bytes {
                return Ok(found);
            }
        }
        if end {
            break;
        }
    }
    Ok(found)
}

pub(super) async fn read_back(
    server: &Server,
    partition: &PartitionKey,
    max_bytes: usize,
) -> Result<ReadBack, StoreError> {
    let key = Keys::new(partition).log();
    let (mut back, mut bytes) = (ReadBack::default(), 0);
    while bytes < max_bytes {
        let wanted = page(back.entries.len(), bytes, max_bytes);
        let from = back.entries.last().map_or("+".into(), |(id, _)| format!("({id}"));
        let mut xrevrange = redis::cmd("XREVRANGE");
        xrevrange.arg(&key).arg(from).arg("-").arg("COUNT").arg(wanted);
        let entries = answers::entries(server.send(Way::Read, &xrevrange).await?)?;
        back.complete = entries.len() < wanted;
        for (at, fields) in entries {
            let (segments, len) = answers::tail(at, fields)?;
            bytes = bytes.saturating_add(len);
            back.entries.push((at, segments));
        }
        if back.complete {
            break;
        }
    }
    Ok(back)
}
