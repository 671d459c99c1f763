//! The platform's REST API as a real HTTP server that keeps state: devices, their external identifiers, measurements, events,
//! alarms. It refuses what the platform refuses, and fails as it is told.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::wait::lasting;

/// Who may call: `t0123/mapper` with password `api-password`.
const AUTHORIZATION: &str = "Basic dDAxMjMvbWFwcGVyOmFwaS1wYXNzd29yZA==";
/// User and password of the same.
pub const USER: (&str, &str) = ("t0123/mapper", "api-password");

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// As it should.
    #[default]
    Well,
    /// Every request with this status, nothing is done.
    Status(u16),
    /// Never, and nothing is done.
    Silent,
}

/// What it holds.
#[derive(Debug, Default)]
pub struct Held {
    /// By identifier.
    pub devices: BTreeMap<String, Value>,
    /// (type, external identifier) to identifier.
    pub externals: HashMap<(String, String), String>,
    /// In the order of their arrival.
    pub measurements: Vec<Value>,
    /// In the order of their arrival.
    pub events: Vec<Value>,
    /// Bodies of updates, with the identifier of the device.
    pub updates: Vec<(String, Value)>,
    /// Devices that were ever made.
    pub made: usize,
    /// Most measurements in one request.
    pub together: usize,
    /// Requests that were answered with an error.
    pub errors: usize,
    mode: Mode,
    delay: Duration,
}

type Shared = Arc<Mutex<Held>>;

/// Serves until it is dropped.
pub struct Platform {
    /// Where.
    pub address: SocketAddr,
    held: Shared,
    server: JoinHandle<()>,
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Platform {
    /// On a port that it picks.
    pub async fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// On this address.
    pub async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("the platform listens");
        let address = listener.local_addr().expect("an address");
        let held = Shared::default();
        let routes = Router::new()
            .route("/identity/externalIds/{kind}/{id}", get(look_up))
            .route("/identity/globalIds/{id}/externalIds", post(register))
            .route("/inventory/managedObjects", post(make))
            .route("/inventory/managedObjects/{id}", put(update).delete(delete))
            .route("/measurement/measurements", post(measure))
            .route("/event/events", post(report))
            .layer(middleware::from_fn_with_state(Arc::clone(&held), behave))
            .with_state(Arc::clone(&held));
        let server = tokio::spawn(async move { axum::serve(listener, routes).await.expect("it serves") });
        Self { address, held, server }
    }

    /// For `--api-url`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on.
    pub fn behaves(&self, mode: Mode) {
        self.held().mode = mode;
    }

    /// Before every answer from now on.
    pub fn takes(&self, delay: Duration) {
        self.held().delay = delay;
    }

    /// What it holds now.
    pub fn held(&self) -> MutexGuard<'_, Held> {
        locked(&self.held)
    }

    /// The series `r.n` of a device's measurements, in the order of their arrival.
    pub fn numbers(&self, external: &str) -> Vec<u64> {
        let held = self.held();
        let Some(id) = held.externals.get(&("c8y_Serial".into(), external.into())) else { return Vec::new() };
        let own = held.measurements.iter().filter(|measurement| measurement["source"]["id"] == **id);
        own.filter_map(|measurement| measurement["r"]["n"]["value"].as_u64()).collect()
    }
}

fn locked(held: &Shared) -> MutexGuard<'_, Held> {
    held.lock().expect("not poisoned")
}

async fn behave(State(held): State<Shared>, request: Request, next: Next) -> Response {
    let (mode, delay) = {
        let held = locked(&held);
        (held.mode, held.delay)
    };
    let authorization = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if authorization != Some(AUTHORIZATION) {
        return no(StatusCode::UNAUTHORIZED, "who are you?");
    }
    let response = match mode {
        Mode::Well => next.run(request).await,
        Mode::Status(status) => no(StatusCode::from_u16(status).expect("a status"), "as told"),
        Mode::Silent => std::future::pending().await,
    };
    lasting(delay).await;
    if !response.status().is_success() {
        locked(&held).errors += 1;
    }
    response
}

fn no(status: StatusCode, message: &str) -> Response {
    (status, json!({"error": "refused", "message": message}).to_string()).into_response()
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (status, [("content-type", "application/json")], body.to_string()).into_response()
}

/// The body of a request, or the refusal of one that is no JSON.
fn object(body: &Bytes) -> Result<Value, Box<Response>> {
    serde_json::from_slice(body).map_err(|_| Box::new(no(StatusCode::BAD_REQUEST, "no JSON")))
}

async fn look_up(State(held): State<Shared>, Path(key): Path<(String, String)>) -> Response {
    match locked(&held).externals.get(&key) {
        Some(id) => {
            answer(StatusCode::OK, &json!({"externalId": key.1, "type": key.0, "managedObject": {"id": id}}))
        }
        None => no(StatusCode::NOT_FOUND, "External id not found"),
    }
}

async fn register(State(held): State<Shared>, Path(id): Path<String>, body: Bytes) -> Response {
    let body = match object(&body) {
        Ok(body) => body,
        Err(refusal) => return *refusal,
    };
    let (Some(kind), Some(external)) = (body["type"].as_str(), body["externalId"].as_str()) else {
        return no(StatusCode::UNPROCESSABLE_ENTITY, "type and externalId are needed");
    };
    let mut held = locked(&held);
    if !held.devices.contains_key(&id) {
        return no(StatusCode::NOT_FOUND, "no such device");
    }
    let key = (kind.to_owned(), external.to_owned());
    if held.externals.contains_key(&key) {
        return no(StatusCode::CONFLICT, "Duplicate entry");
    }
    held.externals.insert(key, id);
    answer(StatusCode::CREATED, &body)
}

async fn make(State(held): State<Shared>, body: Bytes) -> Response {
    let mut body = match object(&body) {
        Ok(body) if body.get("c8y_IsDevice").is_some() => body,
        Ok(_) => return no(StatusCode::UNPROCESSABLE_ENTITY, "not a device"),
        Err(refusal) => return *refusal,
    };
    let mut held = locked(&held);
    held.made += 1;
    let id = (held.made + 1_000).to_string();
    body["id"] = json!(id);
    held.devices.insert(id, body.clone());
    answer(StatusCode::CREATED, &body)
}

async fn update(State(held): State<Shared>, Path(id): Path<String>, body: Bytes) -> Response {
    match object(&body) {
        Ok(body) if locked(&held).devices.contains_key(&id) => {
            locked(&held).updates.push((id, body.clone()));
            answer(StatusCode::OK, &body)
        }
        Ok(_) => no(StatusCode::NOT_FOUND, "no such device"),
        Err(refusal) => *refusal,
    }
}

async fn delete(State(held): State<Shared>, Path(id): Path<String>) -> Response {
    let mut held = locked(&held);
    held.externals.retain(|_, device| *device != id);
    match held.devices.remove(&id) {
        Some(_) => StatusCode::NO_CONTENT.into_response(),
        None => no(StatusCode::NOT_FOUND, "no such device"),
    }
}

/// One measurement, or several: all of them, or none when one is wrong.
async fn measure(State(held): State<Shared>, body: Bytes) -> Response {
    let body = match object(&body) {
        Ok(body) => body,
        Err(refusal) => return *refusal,
    };
    let all = body["measurements"].as_array().cloned().unwrap_or_else(|| vec![body.clone()]);
    let mut held = locked(&held);
    if let Some(fault) = all.iter().find_map(|measurement| fault(&held, measurement)) {
        let status = if fault == "fatal" {
            StatusCode::INTERNAL_SERVER_ERROR
        } else {
            StatusCode::UNPROCESSABLE_ENTITY
        };
        return no(status, fault);
    }
    held.together = held.together.max(all.len());
    held.measurements.extend(all);
    answer(StatusCode::CREATED, &body)
}

async fn report(State(held): State<Shared>, body: Bytes) -> Response {
    let body = match object(&body) {
        Ok(body) => body,
        Err(refusal) => return *refusal,
    };
    let mut held = locked(&held);
    if let Some(fault) = fault(&held, &body) {
        return no(StatusCode::UNPROCESSABLE_ENTITY, fault);
    }
    held.events.push(body.clone());
    answer(StatusCode::CREATED, &body)
}

/// What is wrong with a measurement or event; `poison` and `fatal` in it are for tests.
fn fault(held: &Held, body: &Value) -> Option<&'static str> {
    let source = body["source"]["id"].as_str();
    if !source.is_some_and(|id| held.devices.contains_key(id)) {
        return Some("Source not found");
    }
    if !body["type"].is_string() || !body["time"].is_string() {
        return Some("type and time are needed");
    }
    ["poison", "fatal"].into_iter().find(|what| body.get(*what).is_some_and(|on| *on == true))
}
