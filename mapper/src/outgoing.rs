//! A request as it goes to the REST API: made of one output of a program. Pure. What the platform needs and a program
//! seldom says is filled in here: `source`, `time`, `status`.

use hyper::Method;
use penstock_client::Message;
use serde_json::{Map, Value, json};

use crate::input::received_at;

/// What is sent; measurements can be sent together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `POST /measurement/measurements`
    Measurement,
    /// `POST /event/events`
    Event,
    /// `POST /alarm/alarms`
    Alarm,
    /// What the route says.
    Request,
}

/// Stands for the platform's id of the device in a path.
pub const ID: &str = "{id}";

/// What a route sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Which of them.
    pub kind: Kind,
    /// HTTP method.
    pub method: Method,
    /// Below the URL of the API; may hold [`ID`].
    pub path: String,
}

/// One request. Its device is still the external one.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// Name of the route that made it.
    pub route: String,
    /// Where it goes.
    pub target: Target,
    /// JSON; null: no body.
    pub body: Value,
    /// External identifier of the device, when the request needs the platform's.
    pub device: Option<String>,
}

/// An output that can't be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// Of a measurement, event or alarm.
    #[error("an output of the jq program is no object")]
    NoObject,
    /// It names the device in no known way.
    #[error("source is {{\"externalId\": TEXT}} or {{\"id\": TEXT}}, or left out: then it is the client")]
    Source,
}

impl Kind {
    /// By its name in the configuration.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "measurement" => Some(Self::Measurement),
            "event" => Some(Self::Event),
            "alarm" => Some(Self::Alarm),
            _ => None,
        }
    }

    /// In metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Measurement => "measurement",
            Self::Event => "event",
            Self::Alarm => "alarm",
            Self::Request => "request",
        }
    }

    /// Where these go; for [`Kind::Request`] the route says it.
    pub fn path(self) -> &'static str {
        match self {
            Self::Measurement => "/measurement/measurements",
            Self::Event => "/event/events",
            Self::Alarm => "/alarm/alarms",
            Self::Request => "/",
        }
    }
}

impl Target {
    /// Of a kind with a path of its own.
    pub fn of(kind: Kind) -> Self {
        Self { kind, method: Method::POST, path: kind.path().to_owned() }
    }
}

impl Outgoing {
    /// Makes a request of an output.
    pub fn new(route: &str, target: &Target, output: Value, message: &Message) -> Result<Self, OutputError> {
        let (body, device) = match (target.kind, output) {
            (Kind::Request, output) => {
                let named = output.get("source").map(external).transpose().ok().flatten().flatten();
                let needed = target.path.contains(ID);
                (output, named.or_else(|| needed.then(|| message.client_id.clone())))
            }
            (kind, Value::Object(fields)) => completed(kind, fields, message)?,
            _ => return Err(OutputError::NoObject),
        };
        Ok(Self { route: route.to_owned(), target: target.clone(), body, device })
    }

    /// Path and body when the device has this identifier on the platform.
    pub fn resolved(&self, id: Option<&str>) -> (String, Value) {
        let mut body = self.body.clone();
        let Some(id) = id else { return (self.target.path.clone(), body) };
        if let Some(source) = body.get_mut("source") {
            *source = json!({"id": id});
        }
        (self.target.path.replace(ID, &segment(id)), body)
    }
}

/// External identifier of a source; None: it has the platform's own.
fn external(source: &Value) -> Result<Option<String>, OutputError> {
    let text = |key: &str| source.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    match (text("externalId"), text("id")) {
        (Some(external), None) => Ok(Some(external.to_owned())),
        (None, Some(_)) => Ok(None),
        _ => Err(OutputError::Source),
    }
}

fn completed(
    kind: Kind,
    mut fields: Map<String, Value>,
    message: &Message,
) -> Result<(Value, Option<String>), OutputError> {
    let client = || json!({"externalId": message.client_id});
    let device = external(fields.entry("source").or_insert_with(client))?;
    fields.entry("time").or_insert_with(|| received_at(message).into());
    if kind == Kind::Alarm {
        fields.entry("status").or_insert_with(|| "ACTIVE".into());
    }
    Ok((fields.into(), device))
}

/// Text as one segment of a path.
pub fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    // Would be taken for a step of the path.
    if out.bytes().all(|byte| byte == b'.') { out.replace('.', "%2E") } else { out }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::sample::plain;

    fn make(target: &Target, output: Value) -> Result<Outgoing, OutputError> {
        Outgoing::new("r", target, output, &plain("t", "client/1", b""))
    }

    #[test]
    fn what_a_program_leaves_out_is_filled_in() {
        let alarm = make(&Target::of(Kind::Alarm), json!({"type": "x"})).unwrap();
        assert_eq!(alarm.device.as_deref(), Some("client/1"));
        let (path, body) = alarm.resolved(Some("42"));
        assert_eq!(path, "/alarm/alarms");
        assert_eq!(
            body,
            json!({"type": "x", "source": {"id": "42"}, "status": "ACTIVE", "time": "2026-01-01T00:00:00.000Z"})
        );
        let other =
            make(&Target::of(Kind::Event), json!({"source": {"externalId": "e"}, "time": "T"})).unwrap();
        assert_eq!((other.device.as_deref(), &other.body["time"]), (Some("e"), &json!("T")));
        let own = make(&Target::of(Kind::Event), json!({"source": {"id": "7"}})).unwrap();
        assert_eq!((own.device.clone(), own.resolved(None).1["source"].clone()), (None, json!({"id": "7"})));
    }

    #[test]
    fn outputs_that_cannot_be_sent_are_errors() {
        let measurement = Target::of(Kind::Measurement);
        assert_eq!(make(&measurement, json!([1])), Err(OutputError::NoObject));
        for source in [
            json!({}),
            json!("x"),
            json!({"id": ""}),
            json!({"externalId": 1}),
            json!({"id": "1", "externalId": "2"}),
        ] {
            assert_eq!(make(&measurement, json!({"source": source})), Err(OutputError::Source));
        }
    }

    #[test]
    fn a_request_has_the_path_of_its_route() {
        let target = Target {
            kind: Kind::Request,
            method: Method::PUT,
            path: "/inventory/managedObjects/{id}".into(),
        };
        let request = make(&target, json!({"a": 1})).unwrap();
        assert_eq!(request.device.as_deref(), Some("client/1"));
        assert_eq!(
            request.resolved(Some("4/2")),
            ("/inventory/managedObjects/4%2F2".into(), json!({"a": 1}))
        );
        let plain = Target { path: "/x".into(), ..target };
        assert_eq!(make(&plain, json!([1])).unwrap().device, None);
    }

    #[test]
    fn a_segment_stays_one() {
        assert_eq!(segment("a b/ü%?"), "a%20b%2F%C3%BC%25%3F");
        assert_eq!((segment(".."), segment("a.b")), ("%2E%2E".into(), "a.b".into()));
    }
}
