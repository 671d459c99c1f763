//! The handle that everything begins with: servers, credentials, and the unary calls' common path. Connections are made
//! when first needed and again when they break.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use penstock_proto::{admin::admin_client::AdminClient, messaging::messaging_client::MessagingClient};
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::error::{BuildError, CallError, never_sent};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// A server that is silent this long is left for the next one.
const KEEP_ALIVE: Duration = Duration::from_secs(4);
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Most that the router puts into one frame: each costs it a system call.
const FRAME_BYTES: u32 = 256 << 10;
/// An entry is a few MiB at most; more is a broken server.
const DECODE_LIMIT: usize = 64 << 20;

/// Collects what a [`Client`] needs.
#[derive(Default)]
pub struct Builder {
    servers: Vec<String>,
    credentials: Option<(String, String)>,
}

impl Builder {
    /// A router's gRPC door, `http://host:port`. May be called several times: when one does not answer, the next is asked.
    pub fn server(mut self, url: impl Into<String>) -> Self {
        self.servers.push(url.into());
        self
    }

    /// The user as `tenant/user`, and its password.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Some((user.into(), password.into()));
        self
    }

    /// Makes the client; connects when first used. Needs a tokio runtime around it.
    pub fn connect_lazy(self) -> Result<Client, BuildError> {
        let (user, password) = self.credentials.ok_or(BuildError::NoCredentials)?;
        let (tenant, name) = user.split_once('/').ok_or_else(|| BuildError::BadUser(user.clone()))?;
        if tenant.is_empty() || name.is_empty() {
            return Err(BuildError::BadUser(user.clone()));
        }
        let tenant = tenant.to_owned();
        let doors = self.servers.into_iter().map(Door::new).collect::<Result<Vec<_>, _>>()?;
        if doors.is_empty() {
            return Err(BuildError::NoServer);
        }
        let credentials = Credentials::basic(&user, &password)?;
        Ok(Client { inner: Arc::new(Inner { doors, present: AtomicUsize::new(0), tenant, credentials }) })
    }
}

/// One router's gRPC door.
pub(crate) struct Door {
    /// As given.
    pub(crate) url: String,
    channel: Channel,
}

impl Door {
    fn new(url: String) -> Result<Self, BuildError> {
        let bad = |reason: &str| BuildError::BadServer { server: url.clone(), reason: reason.into() };
        if url.starts_with("https://") {
            return Err(bad("this version has no TLS towards the door"));
        }
        if !url.starts_with("http://") {
            return Err(bad("it begins with http://"));
        }
        let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| bad(&error.to_string()))?;
        if endpoint.uri().port().is_none() {
            return Err(bad("the port is missing"));
        }
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_BYTES)
            .connect_lazy();
        Ok(Self { url, channel })
    }
}

/// Puts `authorization` on every call. Prints nothing of it.
#[derive(Clone)]
pub(crate) struct Credentials {
    basic: MetadataValue<Ascii>,
}

impl Credentials {
    fn basic(user: &str, password: &str) -> Result<Self, BuildError> {
        let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        let mut basic: MetadataValue<Ascii> =
            text.parse().map_err(|_| BuildError::BadUser(user.to_owned()))?;
        basic.set_sensitive(true);
        Ok(Self { basic })
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.basic.clone());
        Ok(request)
    }
}

pub(crate) type Authorized = InterceptedService<Channel, Credentials>;

struct Inner {
    doors: Vec<Door>,
    /// Index of the door that is asked first. Grows without bound; taken modulo the doors.
    present: AtomicUsize,
    tenant: String,
    credentials: Credentials,
}

/// A tenant's user at a cluster. Cheap to clone; all clones share connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("server", &self.server()).field("tenant", &self.inner.tenant).finish()
    }
}

impl Client {
    /// Begins a client.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The tenant of the credentials.
    pub fn tenant(&self) -> &str {
        &self.inner.tenant
    }

    /// The server that is asked first at the moment.
    pub fn server(&self) -> &str {
        self.door(self.present()).map_or("", |door| door.url.as_str())
    }

    /// Number of the door that is asked first, for `leave`.
    pub(crate) fn present(&self) -> usize {
        self.inner.present.load(Ordering::Relaxed)
    }

    /// The door of that number did not answer: the next is asked from now on, unless that has happened already.
    pub(crate) fn leave(&self, number: usize) {
        let next = number.wrapping_add(1);
        // A failed exchange means that another caller has moved on.
        let _ = self.inner.present.compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(crate) fn doors(&self) -> usize {
        self.inner.doors.len()
    }

    fn door(&self, number: usize) -> Option<&Door> {
        self.inner.doors.get(number % self.inner.doors.len().max(1))
    }

    pub(crate) fn messaging(&self, number: usize) -> Result<MessagingClient<Authorized>, Status> {
        let door = self.door(number).ok_or_else(|| Status::unavailable("no server was given"))?;
        let client = MessagingClient::with_interceptor(door.channel.clone(), self.inner.credentials.clone());
        Ok(client.max_decoding_message_size(DECODE_LIMIT))
    }

    pub(crate) fn administration(&self, number: usize) -> Result<AdminClient<Authorized>, Status> {
        let door = self.door(number).ok_or_else(|| Status::unavailable("no server was given"))?;
        Ok(AdminClient::with_interceptor(door.channel.clone(), self.inner.credentials.clone()))
    }

    /// Makes one call with a deadline; asks the next server when the request never left this process.
    pub(crate) async fn ask<T, F>(&self, call: impl Fn(Self, usize) -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut tries = 1;
        loop {
            let number = self.present();
            let answer = tokio::time::timeout(CALL_TIMEOUT, call(self.clone(), number)).await;
            let server = self.door(number).map_or("", |door| door.url.as_str());
            let status = match answer {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("no answer within {CALL_TIMEOUT:?}")),
            };
            let error = CallError::from_status(&status, server);
            if matches!(error, CallError::Unreachable { .. } | CallError::Unavailable { .. }) {
                self.leave(number);
            }
            if !never_sent(&status) || tries >= self.doors() {
                return Err(error);
            }
            tries += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn build(server: &str, user: &str) -> Result<Client, BuildError> {
        Client::builder().server(server).credentials(user, "secret-pw").connect_lazy()
    }

    #[tokio::test]
    async fn wrong_settings_are_told_apart() {
        assert_eq!(Client::builder().connect_lazy().err(), Some(BuildError::NoCredentials));
        let none = Client::builder().credentials("a/b", "c").connect_lazy();
        assert_eq!(none.err(), Some(BuildError::NoServer));
        for user in ["app", "/app", "demo/"] {
            assert_eq!(build("http://h:1", user).err(), Some(BuildError::BadUser(user.into())));
        }
        for server in ["127.0.0.1:7070", "https://h:1", "http://h", "http://", "http://a b:1"] {
            assert!(matches!(build(server, "demo/app"), Err(BuildError::BadServer { .. })), "{server}");
        }
    }

    #[tokio::test]
    async fn nothing_prints_the_password() {
        let client = build("http://127.0.0.1:1", "demo/app").unwrap();
        let shown = format!("{client:?} {:?}", client.inner.credentials.basic);
        assert!(!shown.contains("secret-pw") && !shown.contains(&STANDARD.encode("demo/app:secret-pw")));
    }

    #[tokio::test]
    async fn an_unreachable_server_is_named() {
        // Bound and dropped: nobody listens there.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{address}");
        let error = build(&url, "demo/app").unwrap().groups().await.unwrap_err();
        assert!(matches!(&error, CallError::Unreachable { server, .. } if *server == url), "{error}");
    }

    #[tokio::test]
    async fn a_server_is_left_once_however_many_saw_it_fail() {
        let client = Client::builder()
            .server("http://a:1")
            .server("http://b:1")
            .credentials("demo/app", "x")
            .connect_lazy()
            .unwrap();
        let number = client.present();
        client.leave(number);
        client.leave(number);
        assert_eq!(client.server(), "http://b:1");
    }
}
