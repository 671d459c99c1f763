//! The HTTP door: tokens, and the WebSockets of microservices that speak `/notification2/…` and Avro. Groups, homes and
//! pushes are the same as behind the gRPC door; here is what is different: [`token`]s instead of passwords, [`frame`]s
//! and [`avro`] instead of protobuf.

pub mod avro;
mod consume;
pub mod frame;
mod keys;
mod metrics;
mod produce;
mod refusal;
mod seats;
pub mod serve;
mod socket;
mod subscription;
mod token;
mod unread;
mod upgrade;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use penstock_mqtt::topic::{TOPIC_MAX, validate_name};
use percent_encoding::percent_decode_str;
use prometheus_client::registry::Registry;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use self::{
    consume::Consuming,
    keys::KeyRing,
    metrics::{Counted, WebMetrics},
    produce::Producing,
    refusal::Refusal,
    seats::{Seat, Seats},
    serve::Ends,
    socket::Socket,
    token::{Grant, TokenRequest},
    upgrade::Upgrade,
};
use super::{Inside, auth::Auth};

/// Largest request for a token, bytes.
const TOKEN_REQUEST: usize = 16 << 10;
/// For the body of a request.
const BODY: Duration = Duration::from_secs(10);
/// What a consumer says at most, bytes.
const CONSUMER_FRAME: usize = 4 << 10;
/// What a producer says at most, bytes: the largest packet as Avro and base64, and some metadata.
const PRODUCER_FRAME: usize = 2 << 20;
/// Longest name of a consumer, bytes.
const CONSUMER_MAX: usize = 128;

/// Settings of the door.
#[derive(Debug, Clone, Copy)]
pub struct WebConfig {
    /// Which Avro schema is written.
    pub generation: avro::Generation,
    /// After this time without an ack a record is sent again.
    pub ack_timeout: Duration,
    /// A consumer waits so long for the one before it to be gone, before it is refused.
    pub patience: Duration,
    /// WebSockets that a tenant may have at this router.
    pub sockets: usize,
}

impl Default for WebConfig {
    fn default() -> Self {
        Self {
            generation: avro::Generation::default(),
            ack_timeout: Duration::from_secs(60),
            patience: Duration::from_secs(2),
            sockets: 1_000,
        }
    }
}

/// See the module.
pub struct Door {
    inside: Inside,
    auth: Auth,
    keys: KeyRing,
    config: WebConfig,
    metrics: WebMetrics,
    seats: Seats,
    draining: CancellationToken,
    open: TaskTracker,
}

impl Door {
    /// The door, on what is inside. WebSockets end when it drains.
    pub fn new(inside: Inside, auth: Auth, config: WebConfig, draining: CancellationToken) -> Arc<Self> {
        let keys = KeyRing::new(Arc::clone(&inside.registry), inside.seams.clone());
        let seats = Seats::new(config.sockets);
        let (metrics, open) = (WebMetrics::default(), TaskTracker::new());
        Arc::new(Self { inside, auth, keys, config, metrics, seats, draining, open })
    }

    /// Registers the door's figures.
    pub fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Deletes volatile groups that were left behind, for ever.
    pub async fn sweep(self: Arc<Self>) {
        subscription::sweep(self.inside.clone()).await;
    }

    /// Waits until all WebSockets are closed. None is opened any more once it drains.
    pub async fn closed(&self) {
        self.open.close();
        self.open.wait().await;
    }

    /// Its paths, each also with a `/` at its end, and with two at its beginning: clients put a base address, with or without
    /// a `/`, before them.
    pub fn routes(self: &Arc<Self>) -> Router {
        let paths = [
            ("token", post(create_token).get(verify_token)),
            ("unsubscribe", post(unsubscribe)),
            ("consumer", get(consumer)),
            ("producer", get(producer)),
        ];
        let mut routes = Router::new();
        for (name, methods) in paths {
            for (start, end) in [("/", ""), ("/", "/"), ("//", ""), ("//", "/")] {
                routes = routes.route(&format!("{start}notification2/{name}{end}"), methods.clone());
            }
        }
        routes.fallback(no_path).method_not_allowed_fallback(wrong_method).with_state(Arc::clone(self))
    }

    async fn grant(&self, uri: &Uri) -> Result<Grant, Refusal> {
        let token = parameter(uri, "token").ok_or_else(Refusal::bad_token)?;
        let (registry, now) = (&*self.inside.registry, self.inside.seams.now_ms());
        token::verify(&self.keys, registry, now, &token).await.ok_or_else(Refusal::bad_token)
    }

    /// What a WebSocket needs before it is opened: a token, a request that is one, a place.
    async fn open(&self, request: Request) -> Result<(Upgrade, Grant, Seat), Refusal> {
        let uri = request.uri().clone();
        let grant = self.grant(&uri).await?;
        let upgrade = Upgrade::of(request)?;
        if self.draining.is_cancelled() {
            return Err(Refusal::unavailable("the router drains: try another"));
        }
        let name = parameter(&uri, "consumer").unwrap_or_default();
        if name.len() > CONSUMER_MAX {
            return Err(Refusal::bad_request(format!("consumer: longer than {CONSUMER_MAX} bytes")));
        }
        let seat = self.seats.take(&grant.tenant).ok_or_else(|| Refusal::sockets(self.seats.most()))?;
        Ok((upgrade, grant, seat))
    }

    fn answer(&self, result: Result<Response, Refusal>) -> Response {
        result.unwrap_or_else(|refusal| {
            self.metrics.refuse(refusal.reason);
            refusal.into_response()
        })
    }
}

/// The first parameter of this name in the query, decoded. `+` stays: tokens have none, and names may.
fn parameter(uri: &Uri, name: &str) -> Option<String> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    let found = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()?;
    percent_decode_str(found).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

fn json(body: String) -> Response {
    // What holds a token is not for caches.
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (StatusCode::OK, headers, body).into_response()
}

async fn no_path(State(door): State<Arc<Door>>) -> Response {
    door.answer(Err(Refusal::no_path()))
}

async fn wrong_method(State(door): State<Arc<Door>>) -> Response {
    door.answer(Err(Refusal::wrong_method()))
}

async fn create_token(
    State(door): State<Arc<Door>>,
    Extension(ends): Extension<Ends>,
    request: Request,
) -> Response {
    let created = created(&door, ends, request).await;
    door.answer(created)
}

async fn created(door: &Door, ends: Ends, request: Request) -> Result<Response, Refusal> {
    let authorization = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let caller = door.auth.messaging_over_http(authorization, ends.own, ends.peer).await?;
    let asked: TokenRequest = serde_json::from_slice(&body(request.into_body()).await?).map_err(|error| {
        Refusal::bad_request(format!("the body is not the JSON of a token request: {error}"))
    })?;
    let mut jti = [0; 16];
    door.inside.seams.fill(&mut jti);
    let claims =
        asked.claims(&caller.tenant, door.inside.seams.now_ms(), jti).map_err(Refusal::bad_request)?;
    let token = token::sign(&door.keys, &claims).await.map_err(|error| {
        warn!(%error, "a token can't be made");
        Refusal::unavailable("tokens can't be made now: try again")
    })?;
    door.metrics.tokens.inc();
    Ok(json(serde_json::json!({"token": token}).to_string()))
}

async fn body(body: Body) -> Result<axum::body::Bytes, Refusal> {
    let read = timeout(BODY, to_bytes(body, TOKEN_REQUEST)).await;
    read.ok().and_then(Result::ok).ok_or_else(|| {
        Refusal::bad_request(format!("the body did not come, or is larger than {TOKEN_REQUEST} bytes"))
    })
}

async fn verify_token(State(door): State<Arc<Door>>, request: Request) -> Response {
    let shown = match door.grant(request.uri()).await {
        Ok(grant) => serde_json::to_string(&grant.claims)
            .map(json)
            .map_err(|_| Refusal::unavailable("the claims can't be shown")),
        Err(refusal) => Err(refusal),
    };
    door.answer(shown)
}

async fn unsubscribe(State(door): State<Arc<Door>>, request: Request) -> Response {
    let deleted = match door.grant(request.uri()).await {
        Ok(grant) => subscription::delete(&door.inside, &grant).await.map_err(Refusal::from),
        Err(refusal) => Err(refusal),
    };
    door.answer(deleted.map(|()| json(r#"{"result":"DONE"}"#.to_owned())))
}

async fn consumer(State(door): State<Arc<Door>>, request: Request) -> Response {
    let opened = match door.open(request).await {
        Ok((upgrade, grant, seat)) => Consuming::join(&door, grant).await.map(|consuming| {
            let counted = Counted::new(&door.metrics.consumers);
            upgrade.accept(&door.open, CONSUMER_FRAME, |web| async move {
                let ping = consuming.ping();
                consuming.run(Socket::new(web, ping)).await;
                drop((seat, counted));
            })
        }),
        Err(refusal) => Err(refusal),
    };
    door.answer(opened)
}

async fn producer(State(door): State<Arc<Door>>, request: Request) -> Response {
    let opened = door.open(request).await.and_then(|(upgrade, grant, seat)| {
        validate_name(grant.topic.as_bytes(), TOPIC_MAX).map_err(|error| {
            Refusal::bad_request(format!("a producer needs a token of one topic: {error}"))
        })?;
        let producing = Producing::new(&door, grant);
        let counted = Counted::new(&door.metrics.producers);
        Ok(upgrade.accept(&door.open, PRODUCER_FRAME, |web| async move {
            producing.run(Socket::new(web, socket::PING)).await;
            drop((seat, counted));
        }))
    });
    door.answer(opened)
}
