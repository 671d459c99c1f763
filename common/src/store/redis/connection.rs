//! The way to Redis: one server, or the primaries of a cluster. A command goes to whoever has its first key.
//!
//! Invariants: a command that may have been executed is never sent again by this module. What a node of a cluster refuses
//! because the slot is elsewhere was not executed, nor did a script write that met a key which is elsewhere (see `scripts`):
//! it is sent again for a bounded time, while `cluster` finds out where.
//! Without a connection every call fails at once; callers are told by `healthy` and back off.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use redis::{Arg, Cmd, RedisFuture, ScriptInvocation, Value, aio::ConnectionLike};
use tokio::{
    sync::{Notify, watch},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

pub(super) use super::live::{Failure, Way};
use super::{
    cluster,
    config::{OpenError, RedisConfig},
    live::{Dialer, Live},
    one,
    routes::Routes,
    taken::{Taken, Taking},
    url::Kind,
};

/// How long a command waits for its slot to have a place.
const REDIRECTED_FOR: Duration = Duration::from_secs(2);
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_MOST: Duration = Duration::from_millis(100);

/// Redis as seen from here.
pub(super) struct Server {
    pub(super) dialer: Dialer,
    routes: ArcSwap<Routes>,
    healthy: watch::Sender<bool>,
    /// A node said that things are elsewhere.
    pub(super) stale: Notify,
    pub(super) taken: Taken,
}

/// A command, or a script with the command that it is.
enum Call<'a> {
    Command(&'a Cmd),
    Script(&'a ScriptInvocation<'a>, Cmd),
}

/// How a call is sent.
#[derive(Clone, Copy)]
enum Manner {
    Plain(Way),
    /// A read of one key, which is here or, while its slot is moved, there. What writes waits instead: until the slot is the
    /// other node's, that node may lose it again.
    Following,
    /// Its answer means stored at the durability class.
    Stored,
}

impl Server {
    /// Connects, checks, and keeps doing so in a task of the current runtime until `stop`.
    pub(super) async fn open(config: RedisConfig, stop: CancellationToken) -> Result<Arc<Self>, OpenError> {
        let server = Arc::new(Self {
            dialer: Dialer::new(config)?,
            routes: ArcSwap::from_pointee(Routes::One(None)),
            healthy: watch::Sender::new(false),
            stale: Notify::new(),
            taken: Taken::default(),
        });
        match server.is_cluster() {
            true => cluster::open(&server, stop).await?,
            false => one::open(&server, stop).await?,
        }
        Ok(server)
    }

    pub(super) fn healthy(&self) -> watch::Receiver<bool> {
        self.healthy.subscribe()
    }

    pub(super) fn describe(&self) -> String {
        format!("{} ({})", self.dialer.target.shown, self.dialer.config.durability)
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        self.dialer.counts.register(registry);
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.dialer.target.kind == Kind::Cluster
    }

    /// From now on keys go there.
    pub(super) fn route(&self, routes: Routes, healthy: bool) {
        self.routes.store(Arc::new(routes));
        self.healthy.send_if_modified(|was| std::mem::replace(was, healthy) != healthy);
    }

    /// Where a key is now.
    pub(super) fn find(&self, key: &[u8]) -> Option<Arc<Live>> {
        self.routes.load().find(key).cloned()
    }

    /// Every primary, for walks over all keys.
    pub(super) fn primaries(&self) -> Result<Vec<Arc<Live>>, Failure> {
        let routes = self.routes.load();
        let complete = *self.healthy.borrow() && !routes.all().is_empty();
        if complete { Ok(routes.all().to_vec()) } else { Err(not_connected()) }
    }

    /// Sends a command to whoever has its first key.
    pub(super) async fn send(&self, way: Way, command: &Cmd) -> Result<Value, Failure> {
        if self.is_cluster() {
            let manner = if way == Way::Read { Manner::Following } else { Manner::Plain(way) };
            return self.redirected(&Call::Command(command), manner).await.map(|(value, _)| value);
        }
        self.find(&[]).ok_or_else(not_connected)?.send(way, command).await
    }

    /// The same for one step of a scan, and tells which connection (`Live::number`) answered: a scan that goes on on
    /// another one misses things.
    pub(super) async fn step(&self, command: &Cmd) -> Result<(Value, u64), Failure> {
        self.redirected(&Call::Command(command), Manner::Plain(Way::Read)).await
    }

    /// Runs a script at whoever has its first key.
    pub(super) async fn run(&self, way: Way, script: &ScriptInvocation<'_>) -> Result<Value, Failure> {
        if self.is_cluster() {
            let command = command_of(script).await;
            let call = Call::Script(script, command);
            return self.redirected(&call, Manner::Plain(way)).await.map(|(value, _)| value);
        }
        self.find(&[]).ok_or_else(not_connected)?.run(way, script).await
    }

    /// Runs a script whose answer means stored at the durability class; tells which connection answered.
    pub(super) async fn run_stored(&self, script: &ScriptInvocation<'_>) -> Result<(Value, u64), Failure> {
        let call = Call::Script(script, command_of(script).await);
        self.redirected(&call, Manner::Stored).await
    }

    /// The same on the very connection that a term was taken on.
    pub(super) async fn run_there(
        &self,
        live: &Live,
        script: &ScriptInvocation<'_>,
    ) -> Result<Value, Failure> {
        let command = command_of(script).await;
        match live.store(command.clone()).await {
            Err(Failure::Refused { code, .. }) if code == "NOSCRIPT" => {
                live.load(script).await?;
                live.store(command).await
            }
            answer => answer,
        }
    }

    /// Where the partition's log is, if its term was taken there: otherwise nothing may be appended under it.
    pub(super) fn holds(&self, taking: &Taking) -> Option<Arc<Live>> {
        self.find(taking.log.as_bytes()).filter(|live| live.number == taking.live)
    }

    async fn attempt(&self, live: &Live, call: &Call<'_>, manner: Manner) -> Result<Value, Failure> {
        let (way, follows) = match manner {
            Manner::Stored => return live.store(call.command().clone()).await,
            Manner::Following => (Way::Read, true),
            Manner::Plain(way) => (way, false),
        };
        match live.send(way, call.command()).await {
            Err(Failure::Refused { code, text }) if follows && code == "ASK" => match self.at(&text) {
                Some(target) => {
                    self.dialer.counts.redirected(&code);
                    target.asking(call.command()).await
                }
                None => Err(Failure::Refused { code, text }),
            },
            answer => answer,
        }
    }

    /// Sends until a node has the slot, for a bounded time. Nothing is sent again that may have been executed.
    async fn redirected(&self, call: &Call<'_>, manner: Manner) -> Result<(Value, u64), Failure> {
        let key = first_key(call.command()).to_vec();
        let (end, mut backoff, mut loaded) = (Instant::now() + REDIRECTED_FOR, BACKOFF_FIRST, None);
        loop {
            let live = self.find(&key).ok_or_else(not_connected)?;
            let (code, text) = match (self.attempt(&live, call, manner).await, call) {
                (Ok(value), _) => return Ok((value, live.number)),
                (Err(Failure::Refused { code, .. }), Call::Script(script, _))
                    if code == "NOSCRIPT" && loaded != Some(live.number) =>
                {
                    live.load(script).await?;
                    loaded = Some(live.number);
                    continue;
                }
                (Err(Failure::Refused { code, text }), _) => match redirect(&code, &text) {
                    Some(reason) => (reason, text),
                    None => return Err(Failure::Refused { code, text }),
                },
                (Err(other), _) => return Err(other),
            };
            self.moved(code);
            if Instant::now() >= end {
                return Err(Failure::Away(text));
            }
            time::sleep(backoff.mul_f64(rand::random_range(0.5..1.0))).await;
            backoff = (backoff * 2).min(BACKOFF_MOST);
        }
    }

    /// A node pointed elsewhere: the table may be old.
    pub(super) fn moved(&self, code: &str) {
        self.dialer.counts.redirected(code);
        self.stale.notify_one();
    }

    /// The node that an `ASK <slot> <host>:<port>` names, if it is connected.
    fn at(&self, asked: &str) -> Option<Arc<Live>> {
        let address = format!("redis://{}", asked.rsplit(' ').next()?);
        self.routes.load().all().iter().find(|live| live.address == address).cloned()
    }
}

impl Call<'_> {
    fn command(&self) -> &Cmd {
        match self {
            Self::Command(command) => command,
            Self::Script(_, command) => command,
        }
    }
}

/// Whether an answer means: without effect, for the slot, or a key of it, is elsewhere or has no place now; and which kind.
pub(super) fn redirect(code: &str, text: &str) -> Option<&'static str> {
    match code {
        "MOVED" => Some("MOVED"),
        "ASK" => Some("ASK"),
        "TRYAGAIN" => Some("TRYAGAIN"),
        "CLUSTERDOWN" => Some("CLUSTERDOWN"),
        // From within a script of ours, before its first write: see `scripts`.
        _ if text.contains("attempted to access a non local key") => Some("TRYAGAIN"),
        _ => None,
    }
}

pub(super) fn not_connected() -> Failure {
    Failure::Away("not connected".into())
}

/// The key that a command is about: of `EVALSHA <sha> <keys> <key>…` the first one, otherwise what follows its name.
fn first_key(command: &Cmd) -> &[u8] {
    let mut parts = command.args_iter().map(|part| match part {
        Arg::Simple(bytes) => bytes,
        _ => &[],
    });
    let name = parts.next().unwrap_or_default();
    let skipped = if name == b"EVALSHA" { 2 } else { 0 };
    parts.nth(skipped).unwrap_or_default()
}

/// Takes the command of a script down instead of sending it.
struct Scribe(Cmd);

async fn command_of(script: &ScriptInvocation<'_>) -> Cmd {
    let mut scribe = Scribe(Cmd::new());
    // Nil is what it answers.
    let _: Result<Value, _> = script.invoke_async(&mut scribe).await;
    scribe.0
}

impl ConnectionLike for Scribe {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        self.0 = command.clone();
        Box::pin(async { Ok(Value::Nil) })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a redis::Pipeline,
        _: usize,
        _: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn get_db(&self) -> i64 {
        0
    }
}
