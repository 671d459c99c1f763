//! The way to Redis: two pipelined connections (what writes under a term is not held up by long reads), checked before
//! they are used, watched, and made anew when either fails.
//!
//! Invariants: a command is sent at most once (only a script that the server doesn't know yet is sent again). A failure of
//! one command of a connection fails every other in flight on both: `Failure::Lost`. Without a connection every call
//! fails at once; callers are told by `healthy` and back off.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, ScriptInvocation, ServerErrorKind, Value,
    aio::MultiplexedConnection,
};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;

use super::{
    checks::{Facts, said},
    config::{OpenError, RedisConfig, address, client},
};

/// Between looks at an idle connection.
const PING_EVERY: Duration = Duration::from_secs(1);
/// Looks until the server is asked again whether it can honour the durability.
const PINGS_PER_CHECK: u32 = 10;
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MOST: Duration = Duration::from_secs(1);
/// Commands that wait to be written to the socket; further callers wait.
const QUEUE: usize = 1_024;
/// Bytes gathered for one write to the socket.
const WRITE_BYTES: usize = 256 * 1024;

/// Why a command gave no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// Whether it was executed is unknown.
    Lost(String),
    /// The server answered with an error: it was not executed.
    Refused {
        /// First word of the error.
        code: String,
        /// All of it.
        text: String,
    },
    /// The answer makes no sense.
    Unreadable(String),
}

/// Which of the connections.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// Appends and what is small.
    Write,
    /// What may be long.
    Read,
}

struct Live {
    write: MultiplexedConnection,
    read: MultiplexedConnection,
    /// Ends everything that is in flight.
    cut: CancellationToken,
}

/// Redis as seen from here: the present connections, if any.
pub(super) struct Server {
    config: RedisConfig,
    client: Client,
    live: ArcSwapOption<Live>,
    healthy: watch::Sender<bool>,
}

impl Server {
    /// Connects, checks, and keeps doing so in a task of the current runtime until `stop`.
    pub(super) async fn open(config: RedisConfig, stop: CancellationToken) -> Result<Arc<Self>, OpenError> {
        let client = client(&config.url)?;
        let server =
            Self { config, client, live: ArcSwapOption::empty(), healthy: watch::Sender::new(false) };
        let live = server.connect().await?;
        let server = Arc::new(server);
        server.present(&live);
        tokio::spawn(Arc::clone(&server).keep(live, stop));
        Ok(server)
    }

    pub(super) fn healthy(&self) -> watch::Receiver<bool> {
        self.healthy.subscribe()
    }

    pub(super) fn describe(&self) -> String {
        format!("{} ({})", address(&self.config.url), self.config.durability)
    }

    /// Sends a command once.
    pub(super) async fn send(&self, way: Way, command: &Cmd) -> Result<Value, Failure> {
        let live = self.current()?;
        let mut connection = live.connection(way);
        let answer = live.cut.run_until_cancelled(command.query_async(&mut connection)).await;
        settle(&live, answer)
    }

    /// Runs a script.
    pub(super) async fn run(&self, way: Way, script: &ScriptInvocation<'_>) -> Result<Value, Failure> {
        let live = self.current()?;
        let mut connection = live.connection(way);
        let answer = live.cut.run_until_cancelled(script.invoke_async(&mut connection)).await;
        settle(&live, answer)
    }

    fn current(&self) -> Result<Arc<Live>, Failure> {
        self.live.load_full().ok_or_else(|| Failure::Lost("not connected".into()))
    }

    fn present(&self, live: &Arc<Live>) {
        self.live.store(Some(Arc::clone(live)));
        self.healthy.send_replace(true);
    }

    async fn keep(self: Arc<Self>, mut live: Arc<Live>, stop: CancellationToken) {
        loop {
            let stopped = stop.run_until_cancelled(self.watch(&live)).await.is_none();
            self.live.store(None);
            self.healthy.send_replace(false);
            live.cut.cancel();
            if stopped {
                return;
            }
            tracing::warn!(redis = address(&self.config.url), "lost the connection to Redis");
            let Some(next) = stop.run_until_cancelled(self.reconnect()).await else { return };
            live = next;
            self.present(&live);
            tracing::info!(redis = address(&self.config.url), "connected to Redis again");
        }
    }

    /// Returns when the connections must be given up.
    async fn watch(&self, live: &Live) {
        let look = async {
            for pings in 1u32.. {
                time::sleep(PING_EVERY).await;
                for way in [Way::Write, Way::Read] {
                    let ping: Result<String, _> =
                        redis::cmd("PING").query_async(&mut live.connection(way)).await;
                    if ping.is_err() {
                        return;
                    }
                }
                if pings % PINGS_PER_CHECK == 0
                    && let Err(error) = self.check(&mut live.connection(Way::Read)).await
                {
                    tracing::error!(%error, "Redis is not usable any more");
                    return;
                }
            }
        };
        live.cut.run_until_cancelled(look).await;
    }

    async fn reconnect(&self) -> Arc<Live> {
        let mut backoff = BACKOFF_FIRST;
        let mut told = None;
        loop {
            match self.connect().await {
                Ok(live) => return live,
                Err(error) if told.as_ref() == Some(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "can't connect to Redis, trying on");
                    told = Some(error);
                }
            }
            // Jitter: routers that lost one server together must not return together.
            time::sleep(backoff.mul_f64(rand::random_range(0.5..1.0))).await;
            backoff = (backoff * 2).min(BACKOFF_MOST);
        }
    }

    async fn connect(&self) -> Result<Arc<Live>, OpenError> {
        let attempt = async {
            let mut write = self.one_connection().await?;
            self.check(&mut write).await?;
            let read = self.one_connection().await?;
            Ok(Arc::new(Live { write, read, cut: CancellationToken::new() }))
        };
        let late = |_| self.unreachable(format!("no answer within {:?}", self.config.connect_timeout));
        time::timeout(self.config.connect_timeout, attempt).await.map_err(late)?
    }

    async fn one_connection(&self) -> Result<MultiplexedConnection, OpenError> {
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.config.connect_timeout))
            .set_response_timeout(Some(self.config.response_timeout))
            .set_pipeline_buffer_size(QUEUE)
            .set_write_backpressure_boundary(WRITE_BYTES);
        let connection = self.client.get_multiplexed_async_connection_with_config(&settings).await;
        connection.map_err(|error| self.refused(&error))
    }

    async fn check(&self, connection: &mut MultiplexedConnection) -> Result<(), OpenError> {
        let facts = Facts::ask(connection).await.map_err(|error| self.refused(&error))?;
        facts.check(self.config.durability, self.config.accept_unreadable_config)
    }

    fn refused(&self, error: &RedisError) -> OpenError {
        let login = error.kind() == ErrorKind::AuthenticationFailed
            || matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"));
        if login {
            OpenError::Login { address: address(&self.config.url), reason: said(error) }
        } else {
            self.unreachable(said(error))
        }
    }

    fn unreachable(&self, reason: String) -> OpenError {
        OpenError::Unreachable { address: address(&self.config.url), reason }
    }
}

impl Live {
    fn connection(&self, way: Way) -> MultiplexedConnection {
        match way {
            Way::Write => self.write.clone(),
            Way::Read => self.read.clone(),
        }
    }
}

fn settle(live: &Live, answer: Option<Result<Value, RedisError>>) -> Result<Value, Failure> {
    let error = match answer {
        Some(Ok(value)) => return Ok(value),
        Some(Err(error)) => error,
        None => return Err(Failure::Lost("the connection was given up".into())),
    };
    let failure = classify(&error);
    let elsewhere = matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading
        )
    );
    // A server that is no primary any more is to be checked again.
    if elsewhere || !matches!(failure, Failure::Refused { .. }) {
        live.cut.cancel();
    }
    Err(failure)
}

fn classify(error: &RedisError) -> Failure {
    match (error.kind(), error.code()) {
        (ErrorKind::Server(_) | ErrorKind::Extension, Some(code)) => {
            Failure::Refused { code: code.into(), text: said(error) }
        }
        (ErrorKind::Parse | ErrorKind::UnexpectedReturnType, _) => Failure::Unreadable(error.to_string()),
        _ => Failure::Lost(error.to_string()),
    }
}
