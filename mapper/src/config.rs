//! `[[route]]` of the file of settings: read, checked, compiled. All faults are told, each with its route.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Method;
use penstock_mqtt::topic;
use serde::{Deserialize, de::DeserializeOwned};
use toml::Value;

use crate::{
    input::{PayloadKind, parse_time},
    jq::Program,
    outgoing::{Kind, Target},
    routes::Route,
    sample::{Expected, Sample, plain},
};

/// As the endpoint allows topics to be.
const FILTER_BYTES: usize = 1_024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteText {
    name: Option<String>,
    filter: Option<String>,
    #[serde(default)]
    filters: Vec<String>,
    #[serde(default = "json")]
    payload: String,
    send: Option<String>,
    request: Option<RequestText>,
    jq: Option<String>,
    jq_file: Option<PathBuf>,
    #[serde(default)]
    sample: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestText {
    method: String,
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SampleText {
    name: Option<String>,
    topic: String,
    #[serde(default = "client")]
    client_id: String,
    user: Option<String>,
    received_at: Option<String>,
    payload: Option<String>,
    payload_hex: Option<String>,
    payload_base64: Option<String>,
    payload_file: Option<PathBuf>,
    expect: Option<String>,
    expect_error: Option<String>,
}

fn json() -> String {
    "json".to_owned()
}

fn client() -> String {
    "device-1".to_owned()
}

/// Reads the list. Files that it names are beside `file`.
pub fn read(part: Option<&Value>, file: Option<&Path>) -> Result<Vec<Route>, Vec<String>> {
    let directory = file.and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
    let mut reading = Reading { directory, faults: Vec::new(), route: String::new() };
    let tables = match part {
        None => {
            reading
                .fault("there is no [[route]] in the file of settings (--config): nothing would be mapped");
            return Err(reading.faults);
        }
        Some(Value::Array(tables)) => tables,
        Some(_) => {
            reading.fault("route is a list: write [[route]]");
            return Err(reading.faults);
        }
    };
    let routes: Vec<_> =
        (1..).zip(tables).filter_map(|(number, table)| reading.route(number, table)).collect();
    let mut names = BTreeSet::new();
    for route in routes.iter().filter(|route| !names.insert(route.name.as_str())) {
        reading.faults.push(format!("route {:?}: another one has this name", route.name));
    }
    if reading.faults.is_empty() { Ok(routes) } else { Err(reading.faults) }
}

struct Reading {
    directory: PathBuf,
    faults: Vec<String>,
    /// The one that is being read.
    route: String,
}

impl Reading {
    fn fault(&mut self, fault: impl AsRef<str>) {
        let gap = if self.route.is_empty() { "" } else { ": " };
        self.faults.push(format!("{}{gap}{}", self.route, fault.as_ref()));
    }

    fn table<T: DeserializeOwned>(&mut self, table: &Value) -> Option<T> {
        let read = table.clone().try_into::<T>();
        read.map_err(|error| self.fault(error.message())).ok()
    }

    fn route(&mut self, number: usize, table: &Value) -> Option<Route> {
        let name =
            table.get("name").and_then(Value::as_str).map_or_else(|| format!("{number}"), str::to_owned);
        self.route = format!("route {name:?}");
        let text: RouteText = self.table(table)?;
        let before = self.faults.len();
        let filters = self.filters(&text);
        let payload = PayloadKind::named(&text.payload);
        if payload.is_none() {
            self.fault(format!("payload {:?} is not json, text or bytes", text.payload));
        }
        let target = self.target(text.send.as_deref(), text.request.as_ref());
        let program = self.program(text.jq, text.jq_file);
        let samples =
            (1..).zip(&text.sample).filter_map(|(number, table)| self.sample(number, table)).collect();
        if self.faults.len() > before {
            return None;
        }
        let name = text.name.unwrap_or(name);
        Some(Route { name, filters, payload: payload?, program: program?, target: target?, samples })
    }

    fn filters(&mut self, text: &RouteText) -> Vec<String> {
        let filters: Vec<_> = text.filter.iter().chain(&text.filters).cloned().collect();
        if filters.is_empty() {
            self.fault("filter is missing, such as filter = \"sensors/#\"");
        }
        for filter in &filters {
            if let Err(error) = topic::validate_filter(filter.as_bytes(), FILTER_BYTES) {
                self.fault(format!("filter {filter:?}: {error}"));
            }
        }
        filters
    }

    fn target(&mut self, send: Option<&str>, request: Option<&RequestText>) -> Option<Target> {
        let Some(request) = request else {
            let found = send.and_then(Kind::named).map(Target::of);
            if found.is_none() {
                self.fault(
                    "send is measurement, event or alarm; for anything else give request = { method, path }",
                );
            }
            return found;
        };
        if send.is_some() {
            self.fault("either send or request, not both");
        }
        let method = Method::from_bytes(request.method.as_bytes()).ok();
        let known = method
            .filter(|method| [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(method));
        if known.is_none() {
            self.fault(format!("method {:?} is not POST, PUT, PATCH or DELETE", request.method));
        }
        let visible = |c: char| c.is_ascii_graphic() && !"#\\\"<>^`".contains(c);
        if !request.path.starts_with('/') || !request.path.chars().all(visible) {
            self.fault(format!(
                "path {:?} does not begin with / or has characters that a path can't hold",
                request.path
            ));
        }
        known.map(|method| Target { kind: Kind::Request, method, path: request.path.clone() })
    }

    fn program(&mut self, jq: Option<String>, jq_file: Option<PathBuf>) -> Option<Program> {
        let (code, origin) = match (jq, jq_file) {
            (Some(code), None) => (code, "jq".to_owned()),
            (None, Some(path)) => match fs::read_to_string(self.directory.join(&path)) {
                Ok(code) => (code, format!("jq_file {}", path.display())),
                Err(error) => {
                    self.fault(format!("jq_file {}: {error}", path.display()));
                    return None;
                }
            },
            _ => {
                self.fault("the program is missing: give either jq or jq_file");
                return None;
            }
        };
        let compiled = Program::compile(&code);
        compiled
            .map_err(|mistakes| {
                mistakes.iter().for_each(|mistake| self.fault(format!("{origin}, {mistake}")))
            })
            .ok()
    }

    fn sample(&mut self, number: usize, table: &Value) -> Option<Sample> {
        let text: SampleText = self.table(table)?;
        let name = text.name.unwrap_or_else(|| format!("sample {number}, {}", text.topic));
        let payload = payload(
            &self.directory,
            [text.payload, text.payload_hex, text.payload_base64],
            text.payload_file,
        );
        let payload = payload.map_err(|fault| self.fault(format!("{name}: {fault}"))).ok()?;
        let mut message = plain(&text.topic, &text.client_id, &payload);
        message.user = text.user.unwrap_or(message.user);
        if let Some(at) = &text.received_at {
            match parse_time(at) {
                Some(time) => message.received_at = time,
                None => {
                    self.fault(format!("{name}: received_at {at:?} is no time such as 2026-11-28T12:00:00Z"))
                }
            }
        }
        let expect = match (text.expect, text.expect_error) {
            (Some(_), Some(_)) => {
                self.fault(format!("{name}: either expect or expect_error, not both"));
                None
            }
            (Some(bodies), None) => match serde_json::from_str(&bodies) {
                Ok(bodies) => Some(Expected::Bodies(bodies)),
                Err(error) => {
                    self.fault(format!("{name}: expect is a JSON array of bodies: {error}"));
                    None
                }
            },
            (None, error) => error.map(Expected::Error),
        };
        Some(Sample { name, message, expect })
    }
}

fn payload(directory: &Path, texts: [Option<String>; 3], file: Option<PathBuf>) -> Result<Vec<u8>, String> {
    match (texts, file) {
        ([Some(text), None, None], None) => Ok(text.into_bytes()),
        ([None, Some(hex), None], None) => {
            unhex(&hex).ok_or_else(|| format!("payload_hex {hex:?} is not pairs of hexadecimal digits"))
        }
        ([None, None, Some(text)], None) => {
            STANDARD.decode(text).map_err(|error| format!("payload_base64: {error}"))
        }
        ([None, None, None], Some(path)) => fs::read(directory.join(&path))
            .map_err(|error| format!("payload_file {}: {error}", path.display())),
        _ => Err("give one of payload, payload_hex, payload_base64, payload_file".to_owned()),
    }
}

/// Blanks between bytes are fine.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> =
        text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair.iter().fold(0, |value, digit| value * 16 + digit)).ok())
        .collect()
}

#[cfg(test)]
mod tests;
