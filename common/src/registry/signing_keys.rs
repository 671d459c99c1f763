//! Keys that sign the tokens of doors: shared by all routers, few, replaced as one list. When a key is made, used and
//! forgotten is the business of who signs.

use crate::{clock::UnixMillis, secret::Secret};

/// One key.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigningKey {
    /// Named in what it signs.
    pub id: String,
    /// Made from.
    #[serde(with = "as_text")]
    pub secret: Secret,
    /// When it was made.
    pub created_at: UnixMillis,
}

impl PartialEq for SigningKey {
    fn eq(&self, other: &Self) -> bool {
        let same = self.secret.matches(other.secret.expose().as_bytes());
        self.id == other.id && self.created_at == other.created_at && same
    }
}

impl Eq for SigningKey {}

/// All that are known, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SigningKeys {
    /// Oldest first.
    pub keys: Vec<SigningKey>,
}

mod as_text {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::secret::Secret;

    pub(super) fn serialize<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(secret.expose())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read_and_never_shown() {
        let key = SigningKey { id: "k1".into(), secret: Secret::new("hidden"), created_at: 7 };
        let keys = SigningKeys { keys: vec![key] };
        let text = serde_json::to_string(&keys).unwrap();
        assert_eq!(text, r#"[{"id":"k1","secret":"hidden","created_at":7}]"#);
        assert_eq!(serde_json::from_str::<SigningKeys>(&text).unwrap(), keys);
        assert!(!format!("{keys:?}").contains("hidden"));
    }
}
