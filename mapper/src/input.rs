//! A message as a jq program sees it.

use base64::{Engine, engine::general_purpose::STANDARD};
use penstock_client::{Message, Properties};
use serde_json::{Value, json};
use time::{
    OffsetDateTime, format_description::BorrowedFormatItem, format_description::well_known::Rfc3339,
    macros::format_description,
};

use crate::jq::{Val, from_json};

const MILLIS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// What `.payload` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadKind {
    /// The parsed JSON.
    Json,
    /// UTF-8 text.
    Text,
    /// An array of numbers, 0 to 255.
    Bytes,
}

/// The payload is something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Not JSON, or nested more than 128 deep.
    #[error("the payload is not JSON: {0}")]
    NotJson(String),
    /// Not UTF-8.
    #[error("the payload is not UTF-8 text")]
    NotText,
}

impl PayloadKind {
    /// By its name in the configuration.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "json" => Some(Self::Json),
            "text" => Some(Self::Text),
            "bytes" => Some(Self::Bytes),
            _ => None,
        }
    }

    fn read(self, payload: &[u8]) -> Result<Val, PayloadError> {
        match self {
            Self::Json => match serde_json::from_slice::<Value>(payload) {
                Ok(value) => Ok(from_json(&value)),
                Err(error) => Err(PayloadError::NotJson(error.to_string())),
            },
            Self::Text => std::str::from_utf8(payload)
                .map(|text| Val::from(text.to_owned()))
                .map_err(|_| PayloadError::NotText),
            Self::Bytes => Ok(payload.iter().map(|byte| Val::from(usize::from(*byte))).collect()),
        }
    }
}

/// The input of a program.
pub fn input(message: &Message, payload: PayloadKind) -> Result<Val, PayloadError> {
    let payload = payload.read(&message.payload)?;
    let levels: Vec<&str> = message.topic.split('/').collect();
    let rest = json!({
        "topic": message.topic,
        "levels": levels,
        "client_id": message.client_id,
        "user": message.user,
        "qos": message.qos,
        "received_at": received_at(message),
        "received_ms": received_ms(message),
        "last_will": message.last_will,
        "delivery_count": message.delivery_count,
        "properties": message.properties.as_ref().map(properties),
    });
    let all = [(Val::from("payload".to_owned()), payload)].into_iter();
    let rest = rest.as_object().into_iter().flatten();
    Ok(Val::obj(all.chain(rest.map(|(key, value)| (Val::from(key.clone()), from_json(value)))).collect()))
}

/// What MQTT 5 carries beside the payload.
pub fn properties(properties: &Properties) -> Value {
    let users: Vec<_> = properties
        .user_properties
        .iter()
        .map(|property| json!({"key": property.key, "value": property.value}))
        .collect();
    json!({
        "payload_format": properties.payload_format,
        "content_type": properties.content_type,
        "response_topic": properties.response_topic,
        "correlation_data": properties.correlation_data.as_ref().map(|data| STANDARD.encode(data)),
        "user_properties": users,
    })
}

/// RFC 3339 in UTC with milliseconds.
pub fn received_at(message: &Message) -> String {
    rfc3339(OffsetDateTime::from(message.received_at))
}

/// Milliseconds since 1970 as RFC 3339.
pub fn rfc3339_of_millis(ms: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
    rfc3339(time.unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(MILLIS).unwrap_or_default()
}

/// A time as it is written in a sample.
pub fn parse_time(text: &str) -> Option<std::time::SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(Into::into)
}

fn received_ms(message: &Message) -> u64 {
    let since = message.received_at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{jq::to_json, sample::plain};

    #[test]
    fn a_program_sees_the_message_and_where_it_came_from() {
        let mut message = plain("sensors/1", "device-1", b"{\"t\": 21.5}");
        message.received_at = parse_time("2026-11-28T12:00:00.25Z").unwrap();
        let seen = to_json(&input(&message, PayloadKind::Json).unwrap()).unwrap();
        assert_eq!(
            seen,
            json!({
                "payload": {"t": 21.5}, "topic": "sensors/1", "levels": ["sensors", "1"], "client_id": "device-1",
                "user": "device", "qos": 1, "received_at": "2026-11-28T12:00:00.250Z", "received_ms": 1_795_867_200_250_u64,
                "last_will": false, "delivery_count": 1, "properties": null,
            })
        );
    }

    #[test]
    fn a_payload_is_what_the_route_says_or_an_error() {
        let read =
            |kind: PayloadKind, payload: &[u8]| kind.read(payload).map(|value| to_json(&value).unwrap());
        assert_eq!(read(PayloadKind::Text, b"a;1.5"), Ok(json!("a;1.5")));
        assert_eq!(read(PayloadKind::Bytes, &[0, 255]), Ok(json!([0, 255])));
        assert_eq!(read(PayloadKind::Text, &[0xff]), Err(PayloadError::NotText));
        assert!(matches!(read(PayloadKind::Json, b"{\"a\":"), Err(PayloadError::NotJson(_))));
        assert!(matches!(read(PayloadKind::Json, b""), Err(PayloadError::NotJson(_))));
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(matches!(read(PayloadKind::Json, deep.as_bytes()), Err(PayloadError::NotJson(_))));
    }
}
