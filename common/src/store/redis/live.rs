//! Connections to one Redis that was found fit: two pipelined ones (what writes under a term is not held up by long reads)
//! and, for `replicated:N`, those of `confirm`. Checked before they are used, watched, given up together.
//!
//! Invariants: a command is sent at most once (only a script that the server doesn't know yet is sent again). A failure of
//! one command of a connection fails every other in flight on all of them: `Failure::Lost`.

use std::{
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, RedisError, ScriptInvocation,
    ServerErrorKind, Value, aio::MultiplexedConnection,
};
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::{
    checks::{Facts, Promise, said},
    config::{OpenError, RedisConfig},
    confirm::Confirmer,
    counts::Counts,
    url::{Kind, Target},
};
use crate::store::durability::Durability;

/// Between looks at an idle connection.
const PING_EVERY: Duration = Duration::from_secs(1);
/// Looks until the server is asked again whether it can honour the durability.
const PINGS_PER_CHECK: u32 = 10;
/// Commands that wait to be written to the socket; further callers wait.
const QUEUE: usize = 1_024;
/// Bytes gathered for one write to the socket.
const WRITE_BYTES: usize = 256 * 1024;

/// Why a command gave no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// Whether it was executed is unknown.
    Lost(String),
    /// It was not executed, for now: try again.
    Away(String),
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
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Appends and what is small.
    Write,
    /// What may be long.
    Read,
}

/// Makes connections, all with the same settings.
pub(super) struct Dialer {
    pub(super) config: RedisConfig,
    pub(super) target: Target,
    pub(super) counts: Counts,
    numbers: AtomicU64,
}

impl Dialer {
    pub(super) fn new(config: RedisConfig) -> Result<Self, OpenError> {
        let target = Target::parse(&config.url)?;
        Ok(Self { config, target, counts: Counts::default(), numbers: AtomicU64::new(1) })
    }

    /// Connects to a primary and checks it, within the time for that.
    pub(super) async fn connect(&self, host: &ConnectionInfo) -> Result<Arc<Live>, OpenError> {
        let attempt = async {
            let mut write = self.raw(host).await?;
            let facts = Facts::ask(&mut write).await.map_err(|error| refused(host, &error))?;
            facts.check(self.promise())?;
            facts.check_replicas(self.config.durability)?;
            let read = self.raw(host).await?;
            let cut = CancellationToken::new();
            let confirmer = match self.config.durability {
                Durability::Replicated(replicas) => {
                    let connections = [self.raw(host).await?, self.raw(host).await?];
                    let within = self.config.replica_timeout;
                    Some(Confirmer::start(connections, replicas, within, &cut, &self.counts))
                }
                Durability::Memory | Durability::Fsynced => None,
            };
            let (number, address) = (self.numbers.fetch_add(1, Ordering::Relaxed), shown(host));
            let history = facts.history().to_owned();
            Ok(Arc::new(Live { number, address, history, write, read, confirmer, cut }))
        };
        let late = |_| {
            let reason = format!("no answer within {:?}", self.config.connect_timeout);
            OpenError::Unreachable { address: shown(host), reason }
        };
        time::timeout(self.config.connect_timeout, attempt).await.map_err(late)?
    }

    /// A connection that nobody else uses and nobody has checked.
    pub(super) async fn raw(&self, host: &ConnectionInfo) -> Result<MultiplexedConnection, OpenError> {
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.config.connect_timeout))
            .set_response_timeout(Some(self.config.response_timeout))
            .set_pipeline_buffer_size(QUEUE)
            .set_write_backpressure_boundary(WRITE_BYTES);
        let client = Client::open(host.clone()).map_err(|error| refused(host, &error))?;
        let connection = client.get_multiplexed_async_connection_with_config(&settings).await;
        connection.map_err(|error| refused(host, &error))
    }

    fn promise(&self) -> Promise {
        Promise {
            durability: self.config.durability,
            cluster: self.target.kind == Kind::Cluster,
            accept_unreadable: self.config.accept_unreadable_config,
        }
    }

    /// Returns when the connections must be given up.
    pub(super) async fn watch(&self, live: &Live) {
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
                if pings % PINGS_PER_CHECK == 0 && !self.holds(live).await {
                    return;
                }
            }
        };
        live.cut.run_until_cancelled(look).await;
    }

    async fn holds(&self, live: &Live) -> bool {
        let facts = match Facts::ask(&mut live.connection(Way::Read)).await {
            Ok(facts) => facts,
            Err(_) => return false,
        };
        if let Err(error) = facts.check(self.promise()) {
            tracing::error!(redis = live.address, %error, "Redis is not usable any more");
            return false;
        }
        if facts.history() != live.history {
            tracing::warn!(
                redis = live.address,
                "Redis has begun another history (its replication id has changed)"
            );
            return false;
        }
        true
    }
}

/// How a host is shown: without user and password.
pub(super) fn shown(host: &ConnectionInfo) -> String {
    format!("redis://{}", host.addr())
}

/// What a failed attempt to connect means.
pub(super) fn refused(host: &ConnectionInfo, error: &RedisError) -> OpenError {
    let (address, reason) = (shown(host), said(error));
    if is_login(error) {
        OpenError::Login { address, reason }
    } else {
        OpenError::Unreachable { address, reason }
    }
}

pub(super) fn is_login(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"))
}

/// See the module.
pub(super) struct Live {
    /// No other of this process has it.
    pub(super) number: u64,
    pub(super) address: String,
    history: String,
    write: MultiplexedConnection,
    read: MultiplexedConnection,
    confirmer: Option<Confirmer>,
    /// Ends everything that is in flight.
    pub(super) cut: CancellationToken,
}

impl Live {
    pub(super) fn connection(&self, way: Way) -> MultiplexedConnection {
        match way {
            Way::Write => self.write.clone(),
            Way::Read => self.read.clone(),
        }
    }

    /// Sends a command once.
    pub(super) async fn send(&self, way: Way, command: &Cmd) -> Result<Value, Failure> {
        let mut connection = self.connection(way);
        let answer = self.cut.run_until_cancelled(connection.send_packed_command(command)).await;
        self.settle(answer.map(|answer| answer.and_then(Value::extract_error)))
    }

    /// The same, and its answer means stored at the durability class.
    pub(super) async fn store(&self, command: Cmd) -> Result<Value, Failure> {
        match &self.confirmer {
            None => self.send(Way::Write, &command).await,
            Some(confirmer) => {
                let answer = confirmer.store(command).await?;
                self.settle(Some(answer.extract_error()))
            }
        }
    }

    /// Runs a script.
    pub(super) async fn run(&self, way: Way, script: &ScriptInvocation<'_>) -> Result<Value, Failure> {
        let mut connection = self.connection(way);
        let answer = self.cut.run_until_cancelled(script.invoke_async(&mut connection)).await;
        self.settle(answer)
    }

    /// Makes a script known.
    pub(super) async fn load(&self, script: &ScriptInvocation<'_>) -> Result<(), Failure> {
        let mut connection = self.connection(Way::Write);
        let answer = self.cut.run_until_cancelled(script.load_async(&mut connection)).await;
        self.settle(answer.map(|answer| answer.map(|_| Value::Okay))).map(|_| ())
    }

    /// Reads a key whose slot is being moved to this node and is not its own yet.
    pub(super) async fn asking(&self, command: &Cmd) -> Result<Value, Failure> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("ASKING").add_command(command.clone());
        let mut connection = self.connection(Way::Read);
        let answer = self.cut.run_until_cancelled(connection.send_packed_commands(&pipeline, 0, 2)).await;
        let last = |mut answers: Vec<Value>| answers.pop().unwrap_or(Value::Nil).extract_error();
        self.settle(answer.map(|answer| answer.and_then(last)))
    }

    fn settle(&self, answer: Option<Result<Value, RedisError>>) -> Result<Value, Failure> {
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
            self.cut.cancel();
        }
        Err(failure)
    }
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
