//! Cursors of groups and of the fan-out, and the trimming that they hold back: each one script in the partition's slot.

use redis::Value;

use super::{
    answers,
    connection::{Server, Way},
    keys::{Keys, decode, encode},
    scripts::{COMMIT_SCRIPT, CREATE_CURSOR_SCRIPT, CURSORS_SCRIPT, DELETE_CURSOR_SCRIPT, TRIM_SCRIPT},
};
use crate::{
    name::PartitionKey,
    position::Term,
    store::{
        CommitError, CursorChange, CursorStart, Cursors, GroupCursor, Keep, StoreError, Totals, encoding,
    },
};

pub(super) async fn cursors(server: &Server, partition: &PartitionKey) -> Result<Cursors, StoreError> {
    let keys = Keys::new(partition);
    let mut script = CURSORS_SCRIPT.key(keys.fan());
    script.key(keys.groups()).arg(keys.cursor_prefix());
    let mut values = answers::array(server.run(Way::Read, &script).await?)?.into_iter();
    let fan = match answers::text(values.next().unwrap_or(Value::Nil))?.as_str() {
        "" => None,
        id => Some(id.parse().map_err(|_| answers::corrupt("the fan-out cursor is unreadable"))?),
    };
    let mut cursors = Cursors { fan, ..Cursors::default() };
    while let (Some(group), Some(fields)) = (values.next(), values.next()) {
        let group = decode(&answers::text(group)?).ok_or_else(|| answers::corrupt("a group's name"))?;
        cursors.groups.insert(group, cursor(answers::array(fields)?)?);
    }
    Ok(cursors)
}

fn cursor(fields: Vec<Value>) -> Result<GroupCursor, StoreError> {
    let mut cursor = GroupCursor::default();
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        match answers::text(name)?.as_str() {
            "up" => cursor.done_up_to = answers::id(value)?,
            "n" => cursor.done_records = answers::number(value)?,
            id => {
                let id = id.parse().map_err(|_| answers::corrupt("an open entry's id"))?;
                let open = encoding::open(&answers::bytes(value)?);
                cursor.open.insert(id, open.ok_or_else(|| answers::corrupt("an open entry"))?);
            }
        }
    }
    Ok(cursor)
}

pub(super) async fn create_cursor(
    server: &Server,
    partition: &PartitionKey,
    group: &str,
    start: CursorStart,
) -> Result<(), StoreError> {
    let keys = Keys::new(partition);
    let (kind, time) = match start {
        CursorStart::Latest => ("latest", 0),
        CursorStart::Earliest => ("earliest", 0),
        CursorStart::Time(time) => ("time", time),
    };
    let mut script = CREATE_CURSOR_SCRIPT.key(keys.log());
    script.key(keys.trimmed()).key(keys.groups()).key(keys.cursor(group));
    script.arg(encode(group)).arg(kind).arg(time);
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
    script.key(keys.cursor(group)).arg(encode(group));
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
    script.key(keys.fan()).key(keys.groups()).key(keys.cursor_prefix()).arg(term.0);
    for change in changes {
        match change {
            CursorChange::Fan(up) => {
                script.arg("fan").arg(up.map_or(String::new(), |id| id.to_string()));
            }
            CursorChange::Group { group, done_up_to, done_records, open } => {
                script.arg("group").arg(encode(group)).arg(done_up_to.to_string()).arg(*done_records);
                script.arg(open.len());
                for (id, entry) in open {
                    let mut bytes = Vec::new();
                    encoding::put_open(&mut bytes, entry);
                    script.arg(id.to_string()).arg(bytes);
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
    keep: Keep,
) -> Result<Totals, CommitError> {
    let keys = Keys::new(partition);
    let mut script = TRIM_SCRIPT.key(keys.term());
    script.key(keys.log()).key(keys.trimmed()).key(keys.fan()).key(keys.groups()).key(keys.cursor_prefix());
    script.arg(term.0).arg(keep.entries).arg(keep.groups);
    let [records, bytes] = answers::fixed(server.run(Way::Write, &script).await?)?;
    Ok(Totals { records: answers::number(records)?, bytes: answers::number(bytes)? })
}
