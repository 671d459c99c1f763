//! The keys of the registry in etcd, and back. Parts that people choose are percent-encoded, so that no name can forge a
//! border; tenant names are safe as they are.

use std::fmt::Write as _;

use crate::name::{ClientKey, TenantName};

/// Makes keys below one prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    /// `prefix` ends with a slash, or gets one.
    pub fn new(prefix: &str) -> Self {
        let slash = if prefix.ends_with('/') { "" } else { "/" };
        Self { prefix: format!("{prefix}{slash}") }
    }

    /// A key nobody writes: reading it asks whether etcd has a quorum.
    pub fn probe(&self) -> String {
        format!("{}probe", self.prefix)
    }

    pub fn members(&self) -> String {
        format!("{}members/", self.prefix)
    }

    pub fn member(&self, kind: &str, incarnation: u64) -> String {
        format!("{}members/{kind}/{incarnation}", self.prefix)
    }

    pub fn owner(&self, client: &ClientKey) -> String {
        let mut key = format!("{}owners/{}/", self.prefix, client.tenant);
        encode(&client.client, &mut key);
        key
    }

    pub fn signing_keys(&self) -> String {
        format!("{}signing-keys", self.prefix)
    }

    pub fn tenants(&self) -> String {
        format!("{}tenants/", self.prefix)
    }

    pub fn tenant(&self, name: &TenantName) -> String {
        format!("{}tenants/{name}", self.prefix)
    }

    pub fn groups(&self) -> String {
        format!("{}groups/", self.prefix)
    }

    pub fn groups_of(&self, tenant: &TenantName) -> String {
        format!("{}groups/{tenant}/", self.prefix)
    }

    pub fn group(&self, tenant: &TenantName, name: &str) -> String {
        let mut key = self.groups_of(tenant);
        encode(name.as_bytes(), &mut key);
        key
    }

    /// The tenant that a key of `tenants()` names.
    pub fn tenant_of(&self, key: &str) -> Option<TenantName> {
        TenantName::new(key.strip_prefix(&self.tenants())?).ok()
    }

    /// The tenant and the (still encoded) group name that a key of `groups()` names.
    pub fn group_of<'a>(&self, key: &'a str) -> Option<(TenantName, &'a str)> {
        let (tenant, name) = key.strip_prefix(&self.groups())?.split_once('/')?;
        Some((TenantName::new(tenant).ok()?, name))
    }
}

/// Letters, digits, `-`, `_` and `.` stay, every other byte becomes `%XX`.
fn encode(part: &[u8], into: &mut String) {
    for byte in part {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            into.push(char::from(*byte));
        } else {
            // Writing to a String can't fail.
            let _ = write!(into, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;

    fn client(tenant: &str, client: &'static [u8]) -> ClientKey {
        ClientKey { tenant: TenantName::new(tenant).unwrap(), client: Bytes::from_static(client) }
    }

    #[test]
    fn no_client_identifier_forges_a_border() {
        let keys = Keys::new("/penstock");
        assert_eq!(keys.owner(&client("a", b"s-1.x_Y")), "/penstock/owners/a/s-1.x_Y");
        assert_eq!(keys.owner(&client("a", b"../b/c")), "/penstock/owners/a/..%2Fb%2Fc");
        assert_ne!(keys.owner(&client("a", b"%2F")), keys.owner(&client("a", b"/")));
        assert_eq!(keys.owner(&client("a", b"\0\xff")), "/penstock/owners/a/%00%FF");
    }

    #[test]
    fn keys_of_definitions_lead_back() {
        let keys = Keys::new("/x/");
        let tenant = TenantName::new("demo").unwrap();
        assert_eq!(keys.tenant_of(&keys.tenant(&tenant)), Some(tenant.clone()));
        assert_eq!(keys.group_of(&keys.group(&tenant, "a b")), Some((tenant, "a%20b")));
        assert_eq!(keys.tenant_of("/x/groups/demo/a"), None);
    }
}
