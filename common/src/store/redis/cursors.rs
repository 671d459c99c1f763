//! Cursors of groups and of the fan-out, dead letters, and the trimming that cursors hold back: each one script in the
//! partition's slot.

use redis::Value;

use super::{
    answers,
    connection::{Server, Way},
    group_scripts::{
        COMMIT_SCRIPT, CREATE_CURSOR_SCRIPT, CURSORS_SCRIPT, DELETE_CURSOR_SCRIPT, DELETE_DEAD_SCRIPT,
        SEEK_SCRIPT, TRIM_SCRIPT,
    },
    keys::{Keys, decode, encode},
};
use crate::{
    name::PartitionKey,
    position::Term,
    registry::BacklogPolicy,
    store::{
        CommitError, Counts, CursorChange, CursorStart, Cursors, DEAD_BYTES, DEAD_LETTERS, DeadLetter,
        DeadLetters, GroupCursor, Keep, KeptLetter, StoreError, Totals, Trimmed, encoding,
    },
};

pub(super) async fn cursors(server: &Server, partition: &PartitionKey) -> Result<Cursors, StoreError> {
    let keys = Keys::new(partition);
    let mut script = CURSORS_SCRIPT.key(keys.fan());
    script.key(keys.groups()).key(keys.trimmed()).arg(keys.cursor_prefix());
    let mut values = answers::array(server.run(Way::Read, &script).await?)?.into_iter();
    let fan = match answers::text(values.next().unwrap_or(Value::Nil))?.as_str() {
        "" => None,
        id => Some(id.parse().map_err(|_| answers::corrupt("the fan-out cursor is unreadable"))?),
    };
    let mut next = || values.next().unwrap_or(Value::Nil);
    let (id, records, bytes) = (next(), next(), next());
    let totals = Totals { records: answers::number(records)?, bytes: answers::number(bytes)? };
    let mut cursors = Cursors { fan, trimmed: (answers::id(id)?, totals), ..Cursors::default() };
    while let (Some(group), Some(fields)) = (values.next(), values.next()) {
        let group = decode(&answers::text(group)?).ok_or_else(|| answers::corrupt("a group's name"))?;
        cursors.groups.insert(group, cursor(answers::array(fields)?)?);
    }
    Ok(cursors)
}

fn cursor(fields: Vec<Value>) -> Result<GroupCursor, StoreError> {
    let (mut cursor, mut counted) = (GroupCursor::default(), None);
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        match answers::text(name)?.as_str() {
            "up" => cursor.done_up_to = answers::id(value)?,
            "n" => cursor.done_records = answers::number(value)?,
            "k" => counted = Some(counts(&answers::text(value)?)?),
            "x" => cursor.detached = true,
            "w" | "y" | "z" => {}
            id => {
                let id = id.parse().map_err(|_| answers::corrupt("an open entry's id"))?;
                let open = encoding::open(&answers::bytes(value)?);
                cursor.open.insert(id, open.ok_or_else(|| answers::corrupt("an open entry"))?);
            }
        }
    }
    cursor.counts = counted.unwrap_or_else(|| Counts::begin(&cursor));
    Ok(cursor)
}

fn counts(text: &str) -> Result<Counts, StoreError> {
    let numbers: Option<Vec<u64>> = text.split(' ').map(|number| number.parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[began, filtered, acked, dead, dropped]) => {
            Ok(Counts { began, filtered, acked, dead, dropped })
        }
        _ => Err(answers::corrupt("the counts of a group")),
    }
}

fn place(start: CursorStart) -> (&'static str, u64) {
    match start {
        CursorStart::Latest => ("latest", 0),
        CursorStart::Earliest => ("earliest", 0),
        CursorStart::Time(time) => ("time", time),
    }
}

pub(super) async fn create_cursor(
    server: &Server,
    partition: &PartitionKey,
    group: &str,
    start: CursorStart,
) -> Result<(), StoreError> {
    let keys = Keys::new(partition);
    let (kind, time) = place(start);
    let mut script = CREATE_CURSOR_SCRIPT.key(keys.log());
    script.key(keys.trimmed()).key(keys.groups()).key(keys.cursor(group));
    script.arg(encode(group)).arg(kind).arg(time);
    server.run(Way::Write, &script).await?;
    Ok(())
}

pub(super) async fn seek(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
    group: &str,
    to: CursorStart,
) -> Result<(), CommitError> {
    let keys = Keys::new(partition);
    let (kind, time) = place(to);
    let mut script = SEEK_SCRIPT.key(keys.term());
    script.key(keys.log()).key(keys.trimmed()).key(keys.groups()).key(keys.cursor(group));
    script.arg(term.0).arg(encode(group)).arg(kind).arg(time);
    server.run(Way::Write, &script).await?;
    Ok(())
}

pub(super) async fn delete_cursor(
    server: &Server,
    partition: &PartitionKey,
    group: &str,
) -> Result<(), StoreError> {
    let keys = Keys::new(partition);
    let mut script = DELETE_CURSOR_SCRIPT.key(keys.groups());
    script.key(keys.cursor(group)).key(keys.dead(group)).arg(encode(group));
    server.run(Way::Write, &script).await?;
    Ok(())
}

pub(super) async fn commit(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
    changes: &[CursorChange],
) -> Result<(), CommitError> {
    let keys = Keys::new(partition);
    let mut script = COMMIT_SCRIPT.key(keys.term());
    script.arg(term.0).arg(DEAD_LETTERS).arg(DEAD_BYTES);
    for change in changes {
        match change {
            CursorChange::Fan(up) => {
                script.key(keys.fan()).arg("fan").arg(up.map_or(String::new(), |id| id.to_string()));
            }
            CursorChange::Group { group, done_up_to, done_records, counts, open, dead } => {
                // No more keys than it needs: one that isn't there makes it wait while its slot is moved.
                script.key(keys.groups()).key(keys.cursor(group));
                if !dead.is_empty() {
                    script.key(keys.dead(group));
                }
                let Counts { began, filtered, acked, dead: buried, dropped } = counts;
                script.arg("group").arg(encode(group)).arg(done_up_to.to_string()).arg(*done_records);
                script.arg(format!("{began} {filtered} {acked} {buried} {dropped}"));
                script.arg(open.len()).arg(dead.len());
                for (id, entry) in open {
                    let mut bytes = Vec::new();
                    encoding::put_open(&mut bytes, entry);
                    script.arg(id.to_string()).arg(bytes);
                }
                for letter in dead {
                    script.arg(letter.entry.to_string()).arg(letter.index).arg(letter.deliveries);
                    script.arg(&letter.record[..]);
                }
            }
        }
    }
    server.run(Way::Write, &script).await?;
    Ok(())
}

pub(super) async fn trim(
    server: &Server,
    partition: &PartitionKey,
    term: Term,
    keep: &Keep,
) -> Result<Trimmed, CommitError> {
    let keys = Keys::new(partition);
    let mut script = TRIM_SCRIPT.key(keys.term());
    script.key(keys.log()).key(keys.trimmed()).key(keys.fan()).key(keys.groups());
    // Lua's numbers are exact up to 2^53, and no log is as large.
    script
        .arg(term.0)
        .arg(keep.entries)
        .arg(keep.groups)
        .arg(keep.bytes.min(1 << 53))
        .arg(keep.received_since)
        .arg(keys.cursor_prefix());
    for (group, policy) in &keep.yielding {
        let policy = match policy {
            BacklogPolicy::Block => continue,
            BacklogPolicy::DropOldest => "drop",
            BacklogPolicy::Detach => "detach",
        };
        script.arg(encode(group)).arg(policy);
    }
    let [records, bytes, held, lost, aged] = answers::fixed(server.run(Way::Write, &script).await?)?;
    let held = match answers::text(held)?.as_str() {
        "" => None,
        held => Some(held.parse().map_err(|_| answers::corrupt("a total"))?),
    };
    let totals = Totals { records: answers::number(records)?, bytes: answers::number(bytes)? };
    Ok(Trimmed { totals, held, lost: answers::number(lost)?, aged: answers::number(aged)? == 1 })
}

pub(super) async fn dead_letters(
    server: &Server,
    partition: &PartitionKey,
    group: &str,
    after: u64,
    max: usize,
) -> Result<DeadLetters, StoreError> {
    let keys = Keys::new(partition);
    let (mut xlen, mut hmget, mut xrange) = (redis::cmd("XLEN"), redis::cmd("HMGET"), redis::cmd("XRANGE"));
    xlen.arg(keys.dead(group));
    hmget.arg(keys.cursor(group)).arg("y").arg("z");
    xrange.arg(keys.dead(group)).arg(format!("({after}-0")).arg("+").arg("COUNT").arg(max);
    let kept = answers::number(server.send(Way::Read, &xlen).await?)?;
    let [dropped, bytes] = answers::fixed(server.send(Way::Read, &hmget).await?)?;
    let number = |value| if value == Value::Nil { Ok(0) } else { answers::number(value) };
    let mut dead =
        DeadLetters { kept, dropped: number(dropped)?, bytes: number(bytes)?, ..DeadLetters::default() };
    if max > 0 {
        let letters = answers::entries(server.send(Way::Read, &xrange).await?)?.into_iter();
        dead.letters = letters.map(|(at, fields)| letter(at.term.0, fields)).collect::<Result<_, _>>()?;
    }
    Ok(dead)
}

fn letter(number: u64, fields: Vec<Value>) -> Result<KeptLetter, StoreError> {
    let (mut entry, mut index, mut deliveries, mut record) = (None, None, None, None);
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        match answers::bytes(name)?.as_slice() {
            b"e" => entry = Some(answers::id(value)?),
            b"i" => index = u32::try_from(answers::number(value)?).ok(),
            b"d" => deliveries = u32::try_from(answers::number(value)?).ok(),
            b"m" => record = Some(answers::bytes(value)?.into()),
            _ => {}
        }
    }
    let letter =
        || Some(DeadLetter { entry: entry?, index: index?, deliveries: deliveries?, record: record? });
    let letter = letter().ok_or_else(|| answers::corrupt("a dead letter"))?;
    Ok(KeptLetter { number, letter })
}

pub(super) async fn delete_dead(
    server: &Server,
    partition: &PartitionKey,
    group: &str,
    numbers: &[u64],
) -> Result<(), StoreError> {
    let keys = Keys::new(partition);
    let mut script = DELETE_DEAD_SCRIPT.key(keys.cursor(group));
    script.key(keys.dead(group));
    for number in numbers {
        script.arg(format!("{number}-0"));
    }
    server.run(Way::Write, &script).await?;
    Ok(())
}
