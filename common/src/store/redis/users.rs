//! Users, a key each, so that they may be as many as devices; and the end of a tenant. What names no key (all users,
//! everything of a tenant) walks the whole keyspace in steps: for operators, not for the data path.

use std::collections::BTreeMap;

use redis::Value;

use super::{
    answers,
    connection::{Server, Way},
    keys,
    live::Live,
    slots::slot,
};
use crate::{
    name::TenantName,
    store::{StoreError, User},
};

/// Keys that the server looks at in one step of a walk.
const STEP: usize = 1_000;
/// Walks over a cluster until one finds nothing: keys that are moved meanwhile escape one.
const WALKS: usize = 8;

pub(super) async fn put(
    server: &Server,
    tenant: &TenantName,
    user: &User,
    create: bool,
) -> Result<bool, StoreError> {
    let json = serde_json::to_vec(user).map_err(|_| answers::corrupt("a user can't be written"))?;
    let mut set = redis::cmd("SET");
    set.arg(keys::user(tenant, &user.name)).arg(json);
    if create {
        set.arg("NX");
    }
    Ok(server.send(Way::Write, &set).await? != Value::Nil)
}

pub(super) async fn get(
    server: &Server,
    tenant: &TenantName,
    name: &str,
) -> Result<Option<User>, StoreError> {
    let mut get = redis::cmd("GET");
    get.arg(keys::user(tenant, name));
    parse(server.send(Way::Read, &get).await?)
}

fn parse(answer: Value) -> Result<Option<User>, StoreError> {
    match answer {
        Value::Nil => Ok(None),
        // What the parser says may quote the verifier.
        json => serde_json::from_slice(&answers::bytes(json)?)
            .map(Some)
            .map_err(|_| answers::corrupt("a user is unreadable")),
    }
}

/// Users whose slot is moved to another node meanwhile may be missing.
pub(super) async fn all(server: &Server, tenant: &TenantName) -> Result<Vec<User>, StoreError> {
    let pattern = keys::users_pattern(tenant);
    let mut users = BTreeMap::new();
    for primary in server.primaries()? {
        let mut cursor = 0;
        loop {
            let (next, found) = step(&primary, cursor, &pattern).await?;
            for together in by_slot(found).into_values() {
                let mut mget = redis::cmd("MGET");
                mget.arg(together);
                for answer in answers::array(server.send(Way::Read, &mget).await?)? {
                    if let Some(user) = parse(answer)? {
                        users.insert(user.name.clone(), user);
                    }
                }
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    Ok(users.into_values().collect())
}

/// Keys that one command may name.
fn by_slot(keys: Vec<Vec<u8>>) -> BTreeMap<u16, Vec<Vec<u8>>> {
    let mut together: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
    for key in keys {
        together.entry(slot(&key)).or_default().push(key);
    }
    together
}

async fn step(primary: &Live, cursor: u64, pattern: &str) -> Result<(u64, Vec<Vec<u8>>), StoreError> {
    let mut scan = redis::cmd("SCAN");
    scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(STEP);
    let [next, found] = answers::fixed(primary.send(Way::Read, &scan).await?)?;
    let found = answers::array(found)?.into_iter().map(answers::bytes).collect::<Result<_, _>>()?;
    Ok((answers::number(next)?, found))
}

pub(super) async fn delete(server: &Server, tenant: &TenantName, name: &str) -> Result<bool, StoreError> {
    let mut del = redis::cmd("DEL");
    del.arg(keys::user(tenant, name));
    Ok(answers::number(server.send(Way::Write, &del).await?)? > 0)
}

/// Terms and logs first: from then on no home writes for the tenant, and the walk finds what is left.
pub(super) async fn delete_tenant(
    server: &Server,
    tenant: &TenantName,
    partitions: u32,
) -> Result<(), StoreError> {
    for partition in 0..partitions {
        let keys = keys::Keys::new(&crate::name::PartitionKey { tenant: tenant.clone(), partition });
        let mut unlink = redis::cmd("UNLINK");
        unlink.arg(keys.term()).arg(keys.log());
        server.send(Way::Write, &unlink).await?;
    }
    server.taken.forget(tenant);
    for _ in 0..WALKS {
        let found = unlink_all(server, tenant).await?;
        // On one server nothing hides from a walk.
        if found == 0 || !server.is_cluster() {
            return Ok(());
        }
    }
    Err(StoreError::Unavailable("keys of the tenant are moved between nodes: try again".into()))
}

/// Walks over everything once; how many keys there were.
async fn unlink_all(server: &Server, tenant: &TenantName) -> Result<usize, StoreError> {
    let mut unlinked = 0;
    for primary in server.primaries()? {
        for pattern in keys::tenant_patterns(tenant) {
            let mut cursor = 0;
            loop {
                let (next, found) = step(&primary, cursor, &pattern).await?;
                unlinked += found.len();
                for key in found {
                    server.send(Way::Write, redis::cmd("UNLINK").arg(key)).await?;
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
    }
    Ok(unlinked)
}
