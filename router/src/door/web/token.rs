//! Tokens: what one is asked for with, what it says, and which group it opens. Tokens are credentials: neither they nor the
//! query that holds them are ever logged.

use std::{str::FromStr, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use penstock_common::{
    clock::UnixMillis,
    name::TenantName,
    registry::{Registry, RegistryError, SigningKey},
};
use penstock_mqtt::topic::{TOPIC_MAX, validate_filter};
use percent_encoding::percent_decode_str;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error},
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::keys::KeyRing;
use crate::door::groups::NAME_MAX;

/// A token lives at most so long.
pub const LIFE_MOST: Duration = Duration::from_secs(MINUTES_MOST * 60);
const MINUTES_MOST: u64 = 366 * 24 * 60;
const MINUTES: u64 = 1_440;
/// The one type of subscription that there is.
const TYPE: &str = "mqtt";
/// Longest name of a subscriber, bytes.
const SUBSCRIBER_MAX: usize = 256;
/// Longest token that is looked at, bytes: a topic and a subscriber of the longest, encoded twice, are less.
const TOKEN_MAX: usize = 12 * 1_024;

/// What a token is asked for with. Unknown fields are ignored; numbers and truths may be in quotes, which most servers of JSON
/// take.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRequest {
    subscriber: Option<String>,
    subscription: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default, deserialize_with = "quoted_or_not")]
    signed: Option<bool>,
    #[serde(default, deserialize_with = "quoted_or_not")]
    expires_in_minutes: Option<i64>,
    #[serde(default, deserialize_with = "quoted_or_not")]
    shared: Option<bool>,
    #[serde(default, deserialize_with = "quoted_or_not")]
    non_persistent: Option<bool>,
}

fn quoted_or_not<'de, D, T>(input: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr + DeserializeOwned,
{
    match Value::deserialize(input)? {
        Value::Null => Ok(None),
        Value::String(text) => text.trim().parse().map(Some).map_err(|_| {
            D::Error::custom("the quoted text is neither a whole number nor true or false, as the field is")
        }),
        value => serde_json::from_value(value).map(Some).map_err(D::Error::custom),
    }
}

/// What a token says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Subscriber.
    pub sub: String,
    /// `<tenant>/<type>/<subscription>`, the subscription as it was given.
    pub topic: String,
    /// Unique.
    pub jti: String,
    /// Issued at, seconds since 1970.
    pub iat: u64,
    /// Ends at, seconds since 1970.
    pub exp: u64,
    /// Several consumers at a time.
    pub shared: bool,
    /// The group goes with its last consumer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub volatile: bool,
}

/// What a valid token opens.
#[derive(Clone)]
pub struct Grant {
    /// Whose.
    pub tenant: TenantName,
    /// MQTT topic or filter.
    pub topic: String,
    /// Subscriber and more.
    pub claims: Claims,
}

impl TokenRequest {
    /// The claims of the token that is asked for. The error says what is wrong with which field.
    pub fn claims(self, tenant: &TenantName, now: UnixMillis, jti: [u8; 16]) -> Result<Claims, String> {
        let subscriber = self.subscriber.unwrap_or_default();
        if !(1..=SUBSCRIBER_MAX).contains(&subscriber.len()) || subscriber.chars().any(char::is_control) {
            return Err(format!("subscriber: 1 to {SUBSCRIBER_MAX} bytes of printable characters"));
        }
        let kind = self.kind.as_deref().unwrap_or(TYPE);
        if kind != TYPE {
            return Err(format!("type: {TYPE}, there is no other"));
        }
        if self.signed == Some(false) {
            return Err("signed: true, there are no unsigned tokens".to_owned());
        }
        let minutes = match self.expires_in_minutes {
            None | Some(0) => MINUTES,
            Some(minutes) => u64::try_from(minutes)
                .ok()
                .filter(|minutes| *minutes <= MINUTES_MOST)
                .ok_or_else(|| format!("expiresInMinutes: 1 to {MINUTES_MOST}, 0 for {MINUTES}"))?,
        };
        let subscription = self.subscription.unwrap_or_default();
        decoded(&subscription).map_err(|error| format!("subscription: {error}"))?;
        let iat = now / 1_000;
        Ok(Claims {
            sub: subscriber,
            topic: format!("{tenant}/{TYPE}/{subscription}"),
            jti: URL_SAFE_NO_PAD.encode(jti),
            iat,
            exp: iat + minutes * 60,
            shared: self.shared.unwrap_or(false),
            volatile: self.non_persistent.unwrap_or(false),
        })
    }
}

/// The MQTT topic or filter that a subscription names, URL-encoded or not. What looks like an escape is one.
fn decoded(subscription: &str) -> Result<String, String> {
    let topic = percent_decode_str(subscription).decode_utf8().map_err(|_| "no UTF-8".to_owned())?;
    validate_filter(topic.as_bytes(), TOPIC_MAX).map_err(|error| error.to_string())?;
    Ok(topic.into_owned())
}

/// A token was not made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// There is no key.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The key is no key.
    #[error("the key does not sign")]
    Key,
}

/// Signs claims.
pub async fn sign(keys: &KeyRing, claims: &Claims) -> Result<String, SignError> {
    let key = keys.signer().await?;
    let bytes = URL_SAFE_NO_PAD.decode(key.secret.expose()).map_err(|_| SignError::Key)?;
    let header = Header { kid: Some(key.id), ..Header::new(Algorithm::HS256) };
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(&bytes)).map_err(|_| SignError::Key)
}

/// What a token opens; None: nothing, for whatever reason.
pub async fn verify(keys: &KeyRing, registry: &dyn Registry, now: UnixMillis, token: &str) -> Option<Grant> {
    if token.len() > TOKEN_MAX {
        return None;
    }
    let header = jsonwebtoken::decode_header(token).ok().filter(|header| header.alg == Algorithm::HS256)?;
    let claims = checked(&keys.verifier(&header.kid?).await?, token)?;
    if claims.exp <= now / 1_000 {
        return None;
    }
    let mut parts = claims.topic.splitn(3, '/');
    let (tenant, kind, subscription) = (parts.next()?, parts.next()?, parts.next()?);
    let tenant = TenantName::new(tenant).ok().filter(|_| kind == TYPE)?;
    let topic = decoded(subscription).ok()?;
    // A tenant that was made anew under an old name does not inherit its tokens.
    let since = registry.definitions().borrow().tenants.get(&tenant)?.tenant.created_at;
    (since / 1_000 <= claims.iat).then_some(Grant { tenant, topic, claims })
}

fn checked(key: &SigningKey, token: &str) -> Option<Claims> {
    let bytes = URL_SAFE_NO_PAD.decode(key.secret.expose()).ok()?;
    let mut validation = Validation::new(Algorithm::HS256);
    // The time is the router's, not the library's.
    validation.validate_exp = false;
    validation.validate_aud = false;
    let decoded = jsonwebtoken::decode::<Claims>(token, &DecodingKey::from_secret(&bytes), &validation);
    decoded.ok().map(|data| data.claims)
}

impl Grant {
    /// The name of the group that (subscriber, topic) is. Two of them never have one name; it says what it is for as far as
    /// a name may be long.
    pub fn group(&self) -> String {
        let kind = if self.claims.volatile { VOLATILE } else { DURABLE };
        let mut subscriber = String::new();
        for part in self.claims.sub.chars() {
            match part {
                '%' => subscriber.push_str("%25"),
                '/' => subscriber.push_str("%2F"),
                part => subscriber.push(part),
            }
        }
        let name = format!("{kind}{subscriber}/{}", self.topic);
        if name.len() <= NAME_MAX && !name.chars().any(char::is_control) {
            return name;
        }
        let mut hash = Sha256::new();
        hash.update(name.as_bytes());
        let hash = URL_SAFE_NO_PAD.encode(hash.finalize());
        let room = NAME_MAX - kind.len() - hash.len() - 2;
        let shown = subscriber.char_indices().take_while(|(at, part)| at + part.len_utf8() <= room);
        let shown: String = shown.map(|(_, part)| part).collect();
        // No topic begins with # and goes on.
        format!("{kind}{shown}/#{hash}")
    }
}

const DURABLE: &str = "notification2/";
const VOLATILE: &str = "notification2-volatile/";

/// Whether a group goes with its last consumer.
pub fn is_volatile(group: &str) -> bool {
    group.starts_with(VOLATILE)
}

#[cfg(test)]
mod tests;
