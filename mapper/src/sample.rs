//! `penstock-mapper test`: the sample messages of the routes, run and compared. Connects to nothing.

use std::{fmt::Write, time::SystemTime};

use penstock_client::{AuthType, Message, Position};
use serde_json::Value;

use crate::{input::parse_time, outgoing::Outgoing, routes::Route};

/// When a sample was received, unless it says so.
const RECEIVED: &str = "2026-01-01T00:00:00.000Z";

/// A message, and what is to become of it.
#[derive(Debug)]
pub struct Sample {
    /// For people.
    pub name: String,
    /// What a device publishes.
    pub message: Message,
    /// None: it is only shown.
    pub expect: Option<Expected>,
}

/// What is to become of a sample.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// These bodies, in this order.
    Bodies(Vec<Value>),
    /// An error that holds this text.
    Error(String),
}

/// A message of a device, as if it had just been received.
pub fn plain(topic: &str, client_id: &str, payload: &[u8]) -> Message {
    Message {
        topic: topic.to_owned(),
        client_id: client_id.to_owned(),
        user: "device".to_owned(),
        auth_type: AuthType::Password,
        qos: 1,
        payload: payload.to_vec().into(),
        received_at: parse_time(RECEIVED).unwrap_or(SystemTime::UNIX_EPOCH),
        position: Position { partition: 0, term: 0, sequence: 0, index: 0 },
        delivery_count: 1,
        last_will: false,
        properties: None,
    }
}

/// What came of all samples.
#[derive(Debug, Default)]
pub struct Report {
    /// For people.
    pub text: String,
    /// Samples that became what they were to become.
    pub passed: usize,
    /// Samples that became something else.
    pub failed: usize,
    /// Samples that say nothing about what they are to become.
    pub shown: usize,
}

/// Runs all samples.
pub fn run(routes: &[Route]) -> Report {
    let mut report = Report::default();
    for route in routes {
        for sample in &route.samples {
            report.sample(route, sample);
        }
    }
    report
}

impl Report {
    fn sample(&mut self, route: &Route, sample: &Sample) {
        let became = if route.takes(&sample.message.topic) {
            route.map(&sample.message).map_err(|unmappable| unmappable.why.to_string())
        } else {
            Err(format!("no filter of the route takes the topic {}", sample.message.topic))
        };
        let word = match &sample.expect {
            None => {
                self.shown += 1;
                "shown"
            }
            Some(expected) if holds(expected, &became) => {
                self.passed += 1;
                "ok"
            }
            Some(_) => {
                self.failed += 1;
                "FAILED"
            }
        };
        let _ = writeln!(self.text, "{word:<7}{}: {}", route.name, sample.name);
        if word != "ok" {
            self.tell(sample.expect.as_ref(), &became);
        }
    }

    fn tell(&mut self, expected: Option<&Expected>, became: &Result<Vec<Outgoing>, String>) {
        let mut lines = match expected {
            Some(Expected::Bodies(bodies)) => bodies.iter().map(|body| format!("expected {body}")).collect(),
            Some(Expected::Error(text)) => vec![format!("expected an error with {text:?}")],
            None => Vec::new(),
        };
        match became {
            Ok(requests) if requests.is_empty() => lines.push("no request".to_owned()),
            Ok(requests) => lines.extend(requests.iter().map(|request| {
                format!("{} {} {}", request.target.method, request.target.path, request.body)
            })),
            Err(error) => lines.push(format!("error: {error}")),
        }
        for line in lines {
            let _ = writeln!(self.text, "  {line}");
        }
    }
}

fn holds(expected: &Expected, became: &Result<Vec<Outgoing>, String>) -> bool {
    match (expected, became) {
        (Expected::Bodies(bodies), Ok(requests)) => {
            bodies.len() == requests.len()
                && bodies.iter().zip(requests).all(|(body, request)| same(body, &request.body))
        }
        (Expected::Error(text), Err(error)) => error.contains(text.as_str()),
        _ => false,
    }
}

/// Equal as JSON, where 1 and 1.0 are one number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}
