//! The cluster secret: what the inside asks of whoever calls it. Compared in constant time, never printed.

use penstock_common::secret::Secret;
use tonic::{Status, metadata::MetadataMap};

/// Metadata key.
pub const KEY: &str = "penstock-secret";

/// Refuses a call without the secret; without one configured (loopback only) everybody may call.
pub fn check(secret: Option<&Secret>, metadata: &MetadataMap) -> Result<(), Status> {
    let Some(secret) = secret else { return Ok(()) };
    let given = metadata.get(KEY).map(|value| value.as_bytes()).unwrap_or_default();
    if secret.matches(given) {
        Ok(())
    } else {
        Err(Status::unauthenticated("the cluster secret is missing or wrong"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_wrong_or_missing_secret_is_refused() {
        let secret = Secret::new("s3cret");
        let mut metadata = MetadataMap::new();
        assert!(check(None, &metadata).is_ok());
        assert!(check(Some(&secret), &metadata).is_err());
        metadata.insert(KEY, "s3creT".parse().unwrap());
        assert!(check(Some(&secret), &metadata).is_err());
        metadata.insert(KEY, "s3cret".parse().unwrap());
        assert!(check(Some(&secret), &metadata).is_ok());
    }
}
