//! The table of the filters of a tenant's sessions, and the stream of its changes, in the tenant's slot.

use bytes::Bytes;
use redis::Value;

use super::{
    answers,
    connection::{Server, Way},
    keys,
    session_scripts::{CHANGES_SCRIPT, PUBLISH_SCRIPT, WITHDRAW_SCRIPT},
};
use crate::{
    name::TenantName,
    store::{FilterChanges, FilterTable, SessionFilters, StoreError, encoding, sessions::CHANGES_KEPT},
};

/// Field of the last change. No encoded client.
const LAST: &[u8] = b"#";
/// Sessions read at a time: reading all of them at once would hold up everybody else.
const STEP: usize = 1_000;
/// Attempts to read all of them on one connection.
const SCANS: usize = 3;

pub(super) async fn publish(
    server: &Server,
    tenant: &TenantName,
    client: &[u8],
    filters: &SessionFilters,
) -> Result<u64, StoreError> {
    let mut script = PUBLISH_SCRIPT.key(keys::filters(tenant));
    script.key(keys::filter_log(tenant)).arg(keys::encode_bytes(client));
    script.arg(filters.incarnation).arg(filters.version).arg(encoding::filters(&filters.filters));
    script.arg(CHANGES_KEPT);
    answers::number(server.run(Way::Write, &script).await?)
}

pub(super) async fn withdraw(
    server: &Server,
    tenant: &TenantName,
    client: &[u8],
    incarnation: u64,
) -> Result<u64, StoreError> {
    let mut script = WITHDRAW_SCRIPT.key(keys::filters(tenant));
    script.key(keys::filter_log(tenant)).arg(keys::encode_bytes(client)).arg(incarnation).arg(CHANGES_KEPT);
    answers::number(server.run(Way::Write, &script).await?)
}

/// What changes while this reads may be in it or not: it is among the changes after `up_to`, which replace.
pub(super) async fn table(server: &Server, tenant: &TenantName) -> Result<FilterTable, StoreError> {
    for _ in 0..SCANS {
        if let Some(table) = scan(server, tenant).await? {
            return Ok(table);
        }
    }
    Err(StoreError::Unavailable("the connection changed while filters were read".into()))
}

/// None when the connection changed: a cursor means nothing to another server, or to the same one that was restarted.
async fn scan(server: &Server, tenant: &TenantName) -> Result<Option<FilterTable>, StoreError> {
    let key = keys::filters(tenant);
    let mut last = redis::cmd("HGET");
    last.arg(&key).arg(LAST);
    let up_to = match server.send(Way::Read, &last).await? {
        Value::Nil => return Ok(Some(FilterTable::default())),
        number => answers::number(number)?,
    };
    let (mut table, mut cursor, mut on) = (FilterTable { up_to, sessions: Vec::new() }, 0, None);
    loop {
        let mut scan = redis::cmd("HSCAN");
        scan.arg(&key).arg(cursor).arg("COUNT").arg(STEP);
        let (answer, live) = server.step(&scan).await?;
        if *on.get_or_insert(live) != live {
            return Ok(None);
        }
        let [next, found] = answers::fixed(answer)?;
        let mut found = answers::array(found)?.into_iter();
        while let (Some(field), Some(value)) = (found.next(), found.next()) {
            let field = answers::bytes(field)?;
            if field != LAST {
                let (client, filters) = session(field, value)?;
                table.sessions.extend(filters.map(|filters| (client, filters)));
            }
        }
        cursor = answers::number(next)?;
        if cursor == 0 {
            return Ok(Some(table));
        }
    }
}

type Change = (Bytes, Option<SessionFilters>);

/// A client with its value; none when the value is empty.
fn session(field: Vec<u8>, value: Value) -> Result<Change, StoreError> {
    let unreadable = || answers::corrupt("the filters of a session");
    let field = String::from_utf8(field).map_err(|_| unreadable())?;
    let client = Bytes::from(keys::decode_bytes(&field).ok_or_else(unreadable)?);
    let value = answers::bytes(value)?;
    if value.is_empty() {
        return Ok((client, None));
    }
    let mut parts = value.splitn(3, |byte| *byte == b' ');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
    let (incarnation, version) = (number().ok_or_else(unreadable)?, number().ok_or_else(unreadable)?);
    let filters = parts.next().and_then(encoding::read_filters).ok_or_else(unreadable)?;
    Ok((client, Some(SessionFilters { incarnation, version, filters })))
}

pub(super) async fn changes(
    server: &Server,
    tenant: &TenantName,
    after: u64,
) -> Result<FilterChanges, StoreError> {
    let mut script = CHANGES_SCRIPT.key(keys::filters(tenant));
    script.key(keys::filter_log(tenant)).arg(after);
    let mut values = answers::array(server.run(Way::Read, &script).await?)?.into_iter();
    let up_to = answers::number(values.next().unwrap_or(Value::Nil))?;
    let mut changes = Vec::new();
    while let Some(client) = values.next() {
        let Some(value) = values.next() else { return Ok(FilterChanges::Forgotten) };
        changes.push(session(answers::bytes(client)?, value)?);
    }
    Ok(FilterChanges::Known { up_to, changes })
}
