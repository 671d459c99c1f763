//! Names of keys. Everything of a partition has the hash tag `{<tenant>/<p>}` and so lives in one slot. Parts that users
//! choose are percent-encoded, so that no name can forge a key or a pattern. These names are in people's stores.

use std::fmt::Write;

use xxhash_rust::xxh3::xxh3_64;

use crate::name::{PartitionKey, TenantName};

/// Slots that the users of a tenant are spread over.
const USER_SLOTS: u64 = 16;

/// Keys of one partition.
pub(super) struct Keys {
    slot: String,
}

impl Keys {
    pub(super) fn new(partition: &PartitionKey) -> Self {
        Self { slot: format!("ps:{{{partition}}}:") }
    }

    fn key(&self, name: &str) -> String {
        [&self.slot, name].concat()
    }

    /// String: `<term> <holder>`.
    pub(super) fn term(&self) -> String {
        self.key("term")
    }

    /// Stream: the entries.
    pub(super) fn log(&self) -> String {
        self.key("log")
    }

    /// Hash: id and totals (`id`, `r`, `o`) of the last entry that was trimmed.
    pub(super) fn trimmed(&self) -> String {
        self.key("trimmed")
    }

    /// Hash: the fan-out cursor (`up`).
    pub(super) fn fan(&self) -> String {
        self.key("fan")
    }

    /// Set: encoded names of the groups that have a cursor here.
    pub(super) fn groups(&self) -> String {
        self.key("groups")
    }

    /// Hash: a group's cursor (`up`, `n`, and a field per open entry).
    pub(super) fn cursor(&self, group: &str) -> String {
        [&self.slot, "c:", &encode(group)].concat()
    }

    /// Hash: a session (see `session_scripts`).
    pub(super) fn session(&self, client: &[u8]) -> String {
        [&self.slot, "s:", &encode_bytes(client)].concat()
    }

    /// Stream: mail of a session and pushes; an entry `<number>-0` has the record in `m`, and that of a push in `x` when its
    /// time is over.
    pub(super) fn mailbox(&self, client: &[u8]) -> String {
        [&self.slot, "mb:", &encode_bytes(client)].concat()
    }

    /// Sorted set: encoded clients for which pushes may wait, by the time when the last one's is over.
    pub(super) fn waiting(&self) -> String {
        self.key("waiting")
    }

    /// What comes before the number of a stretch of time in the keys of the hashes that remember keys of pushes.
    pub(super) fn push_keys(&self) -> String {
        self.key("idem:")
    }

    /// Hash: wills by client, `<epoch> <gateway> <record>`.
    pub(super) fn wills(&self) -> String {
        self.key("wills")
    }

    /// What comes before an encoded group in the key of its cursor.
    pub(super) fn cursor_prefix(&self) -> String {
        self.key("c:")
    }

    /// Stream: dead letters of a group (see `group_scripts`).
    pub(super) fn dead(&self, group: &str) -> String {
        [&self.slot, "dead:", &encode(group)].concat()
    }
}

/// Key of a user.
pub(super) fn user(tenant: &TenantName, name: &str) -> String {
    format!("ps:{{{tenant}/{}}}:u:{}", xxh3_64(name.as_bytes()) % USER_SLOTS, encode(name))
}

/// Hash: filters of a tenant's sessions by client, and in `#` the number of the last change.
pub(super) fn filters(tenant: &TenantName) -> String {
    format!("ps:{{{tenant}}}:filters")
}

/// Stream: changes of them; an entry `<number>-0` has the number before it in `p`, client in `c`, filters in `w`.
pub(super) fn filter_log(tenant: &TenantName) -> String {
    format!("ps:{{{tenant}}}:filters:log")
}

/// Pattern of all users of a tenant; its name holds no character that a pattern reads.
pub(super) fn users_pattern(tenant: &TenantName) -> String {
    format!("ps:{{{tenant}/*}}:u:*")
}

/// Patterns of everything of a tenant.
pub(super) fn tenant_patterns(tenant: &TenantName) -> [String; 2] {
    [format!("ps:{{{tenant}/*}}:*"), format!("ps:{{{tenant}}}:*")]
}

/// Percent-encodes everything outside `[A-Za-z0-9._-]`.
pub(super) fn encode(name: &str) -> String {
    encode_bytes(name.as_bytes())
}

/// The same for bytes.
pub(super) fn encode_bytes(name: &[u8]) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.iter().copied() {
        if byte.is_ascii_alphanumeric() || b"._-".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// The name that was encoded; None when this never was one.
pub(super) fn decode(encoded: &str) -> Option<String> {
    String::from_utf8(decode_bytes(encoded)?).ok()
}

/// The same for bytes.
pub(super) fn decode_bytes(encoded: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let (digits, after) = tail.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_that_could_forge_keys_come_back_unharmed() {
        for name in ["plain", "a}b{c", "a:b/c*?[x]", "%41", "ä\0€", ""] {
            let encoded = encode(name);
            assert!(encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-%".contains(&b)), "{encoded}");
            assert_eq!(decode(&encoded).unwrap(), name);
        }
        assert_eq!(decode("%4"), None);
        assert_eq!(decode("%zz"), None);
        assert_eq!(decode("%FF"), None);
    }

    #[test]
    fn keys_of_a_partition_share_a_slot() {
        let partition = PartitionKey { tenant: TenantName::new("acme").unwrap(), partition: 3 };
        let keys = Keys::new(&partition);
        assert_eq!(keys.log(), "ps:{acme/3}:log");
        assert_eq!(keys.cursor("a:b"), "ps:{acme/3}:c:a%3Ab");
        assert_eq!(keys.cursor_prefix(), "ps:{acme/3}:c:");
    }
}
