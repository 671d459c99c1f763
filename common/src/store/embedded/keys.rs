//! Keys on disk. Numbers are big endian, so that keys sort as ids do; a tenant's name ends with a zero byte, which no name
//! holds, so that no tenant's keys are within another's. These bytes are in people's stores.

use bytes::Bytes;

use crate::{
    name::{PartitionKey, TenantName},
    position::{EntryId, Term},
};

const SETTINGS: u8 = b'p';
const GROUP: u8 = b'g';
const COUNTS: u8 = b'n';
const ID_BYTES: usize = 16;

/// What all keys of a tenant begin with.
pub(super) fn tenant(tenant: &TenantName) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    key.extend_from_slice(tenant.as_str().as_bytes());
    key.push(0);
    key
}

fn partition(partition: &PartitionKey) -> Vec<u8> {
    let mut key = tenant(&partition.tenant);
    key.extend_from_slice(&partition.partition.to_be_bytes());
    key
}

/// An entry, in the log.
pub(super) fn entry(key: &PartitionKey, id: EntryId) -> Vec<u8> {
    let mut key = partition(key);
    key.extend_from_slice(&id.term.0.to_be_bytes());
    key.extend_from_slice(&id.sequence.to_be_bytes());
    key
}

/// The id in the key of an entry.
pub(super) fn entry_id(key: &[u8]) -> Option<EntryId> {
    let (_, id) = key.split_at_checked(key.len().checked_sub(ID_BYTES)?)?;
    let (term, sequence) = id.split_first_chunk()?;
    let sequence = u64::from_be_bytes(sequence.try_into().ok()?);
    Some(EntryId { term: Term(u64::from_be_bytes(*term)), sequence })
}

/// A partition's own state.
pub(super) fn settings(key: &PartitionKey) -> Vec<u8> {
    let mut key = partition(key);
    key.push(SETTINGS);
    key
}

/// A group's cursor.
pub(super) fn group(key: &PartitionKey, group: &str) -> Vec<u8> {
    let mut key = partition(key);
    key.push(GROUP);
    key.extend_from_slice(group.as_bytes());
    key
}

/// A group's counts, and what becomes of its dead letters.
pub(super) fn counts(key: &PartitionKey, group: &str) -> Vec<u8> {
    let mut key = partition(key);
    key.push(COUNTS);
    key.extend_from_slice(group.as_bytes());
    key
}

/// A session.
pub(super) fn session(key: &PartitionKey, client: &[u8]) -> Vec<u8> {
    let mut key = partition(key);
    key.extend_from_slice(client);
    key
}

/// Partition and client in the key of a session.
pub(super) fn client_of_session(key: &[u8]) -> Option<(PartitionKey, Bytes)> {
    let (partition, client) = apart(key)?;
    Some((partition, Bytes::copy_from_slice(client)))
}

/// A message of a session. The client's length before it keeps one's mail out of another's.
pub(super) fn mail(key: &PartitionKey, client: &[u8], number: u64) -> Vec<u8> {
    let mut key = partition(key);
    key.extend_from_slice(&u16::try_from(client.len()).unwrap_or(u16::MAX).to_be_bytes());
    key.extend_from_slice(client);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// Partition, client and number in the key of a message.
pub(super) fn number_of_mail(key: &[u8]) -> Option<((PartitionKey, Bytes), u64)> {
    let (partition, rest) = apart(key)?;
    let (_, rest) = rest.split_at_checked(2)?;
    let (client, number) = rest.split_last_chunk()?;
    Some(((partition, Bytes::copy_from_slice(client)), u64::from_be_bytes(*number)))
}

/// Filters of a session.
pub(super) fn filters(of: &TenantName, client: &[u8]) -> Vec<u8> {
    let mut key = tenant(of);
    key.extend_from_slice(client);
    key
}

/// Tenant and client in the key of filters.
pub(super) fn client_of_filters(key: &[u8]) -> Option<(TenantName, Bytes)> {
    let end = key.iter().position(|byte| *byte == 0)?;
    let (name, rest) = key.split_at_checked(end)?;
    let tenant = TenantName::new(std::str::from_utf8(name).ok()?).ok()?;
    Some((tenant, Bytes::copy_from_slice(rest.get(1..)?)))
}

/// The partition that a key begins with, and the rest.
fn apart(key: &[u8]) -> Option<(PartitionKey, &[u8])> {
    let end = key.iter().position(|byte| *byte == 0)?;
    let (name, rest) = key.split_at_checked(end)?;
    let (_, rest) = rest.split_first()?;
    let (partition, rest) = rest.split_first_chunk()?;
    let tenant = TenantName::new(std::str::from_utf8(name).ok()?).ok()?;
    Some((PartitionKey { tenant, partition: u32::from_be_bytes(*partition) }, rest))
}

/// A user.
pub(super) fn user(of: &TenantName, name: &str) -> Vec<u8> {
    let mut key = tenant(of);
    key.extend_from_slice(name.as_bytes());
    key
}

/// What a key of partitions' state says.
pub(super) enum StateKey {
    /// A partition's own state.
    Settings,
    /// A group's cursor.
    Group(String),
    /// A group's counts.
    Counts(String),
}

/// Takes a key of partitions' state apart.
pub(super) fn state(key: &[u8]) -> Option<(PartitionKey, StateKey)> {
    let (key, rest) = apart(key)?;
    let (kind, group) = rest.split_first()?;
    match *kind {
        SETTINGS => Some((key, StateKey::Settings)),
        GROUP => Some((key, StateKey::Group(String::from_utf8(group.to_vec()).ok()?))),
        COUNTS => Some((key, StateKey::Counts(String::from_utf8(group.to_vec()).ok()?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn acme(partition: u32) -> PartitionKey {
        PartitionKey { tenant: TenantName::new("acme").unwrap(), partition }
    }

    #[test]
    fn keys_sort_as_ids_do() {
        let ids = [(0, 0), (1, 255), (1, 256), (255, 1), (256, 0), (u64::MAX, u64::MAX)];
        let keys: Vec<_> = ids.iter().map(|(t, s)| entry(&acme(1), EntryId::new(*t, *s))).collect();
        assert!(keys.is_sorted());
        assert!(keys.last().unwrap() < &entry(&acme(2), EntryId::ZERO));
        for (key, (term, sequence)) in keys.iter().zip(ids) {
            assert_eq!(entry_id(key), Some(EntryId::new(term, sequence)));
        }
        assert_eq!(entry_id(b"short"), None);
    }

    #[test]
    fn keys_of_sessions_and_mail_come_apart() {
        for client in [&b"c"[..], b"a\0b", b"\0\0\0\0\0\0\0\0\0"] {
            let place = (acme(7), Bytes::copy_from_slice(client));
            assert_eq!(client_of_session(&session(&acme(7), client)), Some(place.clone()));
            assert_eq!(number_of_mail(&mail(&acme(7), client, 9)), Some((place, 9)));
            let (tenant, found) = client_of_filters(&filters(&acme(7).tenant, client)).unwrap();
            assert_eq!((tenant, &found[..]), (acme(7).tenant, client));
        }
        assert_eq!(number_of_mail(b"acme\0\0\0\0\0"), None);
    }

    #[test]
    fn state_keys_come_apart() {
        let (key, StateKey::Settings) = state(&settings(&acme(7))).unwrap() else { panic!("settings") };
        assert_eq!(key, acme(7));
        let (key, StateKey::Group(name)) = state(&group(&acme(0), "a\0b")).unwrap() else { panic!("group") };
        assert_eq!((key, name.as_str()), (acme(0), "a\0b"));
        assert!(state(b"acme").is_none());
        assert!(state(b"acme\0\0\0\0\0x").is_none());
    }
}
