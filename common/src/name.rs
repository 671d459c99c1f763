//! Names that make up keys: tenants, partitions, clients. Validated where they enter, so that no key can be forged.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

/// Longest tenant name, bytes.
pub const TENANT_MAX: usize = 32;
/// Longest client identifier, bytes.
pub const CLIENT_MAX: usize = 128;
/// Most partitions a tenant may have.
pub const PARTITIONS_MAX: u32 = 64;
/// The tenant of the operators; it has no devices.
pub const SYSTEM_TENANT: &str = "system";

/// A tenant's name: `[a-z0-9][a-z0-9-]{0,31}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantName(Arc<str>);

/// The name is not `[a-z0-9][a-z0-9-]{0,31}`.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error("a tenant name is 1 to 32 of a-z, 0-9 and '-', and does not begin with '-'")]
pub struct BadTenantName;

impl TenantName {
    /// Checks and takes a name.
    pub fn new(name: &str) -> Result<Self, BadTenantName> {
        let bytes = name.as_bytes();
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let fits = (1..=TENANT_MAX).contains(&bytes.len());
        if fits && bytes.first().is_some_and(plain) && bytes.iter().all(|b| plain(b) || *b == b'-') {
            Ok(Self(name.into()))
        } else {
            Err(BadTenantName)
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One partition of one tenant: the unit that has a home, a log and a term.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PartitionKey {
    /// The tenant.
    pub tenant: TenantName,
    /// 0 .. the tenant's partitions - 1.
    pub partition: u32,
}

impl fmt::Display for PartitionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.partition)
    }
}

/// One client of one tenant: the unit that has an owner.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey {
    /// The tenant.
    pub tenant: TenantName,
    /// Client identifier, opaque, 1..128 bytes.
    pub client: Bytes,
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, String::from_utf8_lossy(&self.client))
    }
}

/// The partition of a client: the same on every machine and in every version.
pub fn partition_of(client: &[u8], partitions: u32) -> u32 {
    let wide = u128::from(xxh3_64(client)) * u128::from(partitions.max(1));
    // The high word of a 64 × 32 bit product is below `partitions`.
    (wide >> 64) as u32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tenant_names_that_could_forge_keys_are_refused() {
        for bad in ["", "-a", "A", "a/b", "a}b", "a:b", "ä", "a b", &"a".repeat(33)] {
            assert_eq!(TenantName::new(bad), Err(BadTenantName), "{bad}");
        }
        for good in ["a", "0", "a-", "acme-2", &"a".repeat(32)] {
            assert_eq!(TenantName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn partitions_are_stable_and_in_range() {
        // These values are in people's stores: they can't change.
        assert_eq!(partition_of(b"sensor-1", 4), 2);
        assert_eq!(partition_of(b"sensor-3", 4), 3);
        let mut seen = [0u32; 4];
        for n in 0..4_000 {
            seen[partition_of(format!("client-{n}").as_bytes(), 4) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (850..1_150).contains(n)), "{seen:?}");
    }
}
