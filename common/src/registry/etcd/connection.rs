//! Calls to etcd: one client an endpoint, deadlines, retry and fail-over, and whether etcd answers at all. It repeats a
//! call whose outcome is unknown and says so, so callers send only what can be repeated. It keeps no leases and no watches.
//!
//! A call that gets no answer in time gets its endpoint a fresh client: the connection may be half open. HTTP/2 pings would
//! find that as well, but etcd closes connections that ping more often than every 5 s.

use std::{
    future::Future,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{Client, ConnectOptions, Error};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::Code;

/// Longest that a call may take with all its repetitions.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// An endpoint gets at least this long before the next one is asked.
const ATTEMPT_MIN: Duration = Duration::from_millis(650);
const PAUSE_MIN: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_millis(400);
/// A watch of everything that is defined may bring more than tonic's 4 MiB in one message.
const MESSAGE_MAX: usize = 64 << 20;

/// A call that failed.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub(super) enum CallError {
    /// No endpoint answered in time; the call may have been carried out.
    #[error("{0}")]
    Unavailable(String),
    /// The lease is gone; nothing was carried out.
    #[error("the lease is gone")]
    LeaseGone,
    /// Etcd refused; nothing was carried out, and repeating won't help.
    #[error("{0}")]
    Refused(String),
}

impl CallError {
    /// Whether the same in smaller parts may be accepted.
    pub fn is_size(&self) -> bool {
        matches!(self, Self::Refused(reason) if reason.contains("too many operations") || reason.contains("too large"))
    }
}

/// What a call brought.
pub(super) struct Answer<T> {
    pub value: T,
    /// An earlier attempt of this call had an unknown outcome: it may have been carried out before.
    pub doubted: bool,
}

struct Slot {
    endpoint: String,
    client: Mutex<(u64, Client)>,
}

/// Clients of all endpoints, the preferred one first.
pub(super) struct Connection {
    slots: Vec<Slot>,
    preferred: AtomicUsize,
    renewals: AtomicU64,
    healthy: watch::Sender<bool>,
}

/// A client with what is needed to complain about it.
pub(super) struct Lent {
    slot: usize,
    generation: u64,
    pub client: Client,
}

impl Connection {
    /// Makes the clients; nothing is sent yet.
    pub async fn new(endpoints: &[String]) -> Result<Self, Error> {
        let mut slots = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let client = Mutex::new((0, dial(endpoint).await?));
            slots.push(Slot { endpoint: endpoint.clone(), client });
        }
        if slots.is_empty() {
            return Err(Error::InvalidArgs("no endpoint".to_owned()));
        }
        Ok(Self {
            slots,
            preferred: AtomicUsize::new(0),
            renewals: AtomicU64::new(0),
            healthy: watch::Sender::new(true),
        })
    }

    /// Whether the last calls were answered.
    pub fn healthy(&self) -> watch::Receiver<bool> {
        self.healthy.subscribe()
    }

    /// The client that calls should use now.
    pub fn lend(&self) -> Option<Lent> {
        let slot = self.preferred.load(Ordering::Relaxed) % self.slots.len();
        let held = self.slots.get(slot)?.client.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Lent { slot, generation: held.0, client: held.1.clone() })
    }

    /// Says that a client did not answer (`silent`) or failed: the next endpoint is preferred from now on.
    pub async fn complain(&self, lent: &Lent, silent: bool) {
        let next = (lent.slot + 1) % self.slots.len();
        // Only the first who complains turns; others saw the same failure.
        let _ = self.preferred.compare_exchange(lent.slot, next, Ordering::Relaxed, Ordering::Relaxed);
        if !silent {
            return;
        }
        let Some(slot) = self.slots.get(lent.slot) else { return };
        let Ok(fresh) = dial(&slot.endpoint).await else { return };
        let mut held = slot.client.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 == lent.generation {
            *held = (self.renewals.fetch_add(1, Ordering::Relaxed) + 1, fresh);
        }
    }

    /// Calls, within [`CALL_DEADLINE`], until an endpoint answers.
    pub async fn call<T, F, R>(&self, request: F) -> Result<Answer<T>, CallError>
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, Error>>,
    {
        let end = Instant::now() + CALL_DEADLINE;
        let outcome = self.attempt_until(end, request).await;
        let answered = !matches!(outcome, Err(CallError::Unavailable(_)));
        self.healthy.send_if_modified(|healthy| std::mem::replace(healthy, answered) != answered);
        outcome
    }

    async fn attempt_until<T, F, R>(&self, end: Instant, request: F) -> Result<Answer<T>, CallError>
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, Error>>,
    {
        let share = CALL_DEADLINE / u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        let (mut doubted, mut pause) = (false, PAUSE_MIN);
        loop {
            let Some(lent) = self.lend() else { return Err(CallError::Refused("no endpoint".to_owned())) };
            let left = end.saturating_duration_since(Instant::now()).min(share.max(ATTEMPT_MIN));
            let (failure, silent) = match timeout(left, request(lent.client.clone())).await {
                Ok(Ok(value)) => return Ok(Answer { value, doubted }),
                Ok(Err(error)) => match judge(&error) {
                    Verdict::Final(error) => return Err(error),
                    Verdict::Again { unsent } => {
                        doubted |= !unsent;
                        (reason(&error), false)
                    }
                },
                Err(_) => {
                    doubted = true;
                    ("no answer in time".to_owned(), true)
                }
            };
            self.complain(&lent, silent).await;
            if Instant::now() + pause >= end {
                let endpoint = self.slots.get(lent.slot).map_or("", |slot| slot.endpoint.as_str());
                return Err(CallError::Unavailable(format!("{endpoint}: {failure}")));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

async fn dial(endpoint: &str) -> Result<Client, Error> {
    let options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_tcp_keepalive(Duration::from_secs(5))
        .with_keep_alive_while_idle(false)
        .with_require_leader(true);
    Client::connect([endpoint], Some(options)).await
}

/// The watch client, with room for large messages.
pub(super) fn watch_client(client: &Client) -> etcd_client::WatchClient {
    client.watch_client().max_decoding_message_size(MESSAGE_MAX)
}

/// The client for reads and transactions, with room for large answers.
pub(super) fn kv_client(client: &Client) -> etcd_client::KvClient {
    client.kv_client().max_decoding_message_size(MESSAGE_MAX)
}

enum Verdict {
    Final(CallError),
    Again { unsent: bool },
}

fn judge(error: &Error) -> Verdict {
    match error {
        Error::GRpcStatus(status) => match status.code() {
            Code::NotFound if status.message().contains("lease") => Verdict::Final(CallError::LeaseGone),
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::OutOfRange
            | Code::FailedPrecondition
            | Code::Unimplemented => Verdict::Final(CallError::Refused(status.message().to_owned())),
            // Too many requests, or no space left: refused for now.
            Code::ResourceExhausted => Verdict::Again { unsent: true },
            _ => Verdict::Again { unsent: never_sent(status) },
        },
        Error::LeaseKeepAliveError(text) if text.contains("not found") => {
            Verdict::Final(CallError::LeaseGone)
        }
        Error::InvalidArgs(text) => Verdict::Final(CallError::Refused(text.clone())),
        _ => Verdict::Again { unsent: false },
    }
}

/// A connection that was never made carried nothing.
fn never_sent(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        cause = error.source();
    }
    false
}

fn reason(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => {
            let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status);
            let mut text = status.message().to_owned();
            while let Some(error) = cause {
                text = error.to_string();
                cause = error.source();
            }
            text
        }
        other => other.to_string(),
    }
}
