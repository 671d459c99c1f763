//! What an operator sets for Redis, and why opening it was refused: each refusal is one line that says what to do. The
//! password of the URL is in no message.

use std::{fmt, time::Duration};

use super::url::address;
use crate::store::durability::Durability;

/// How to reach Redis and what to ask of it.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://[[user]:password@]host[:port][/db]`, `unix://path`, `redis+cluster://[login@]host[:port],…` (some nodes of
    /// the cluster) or `redis+sentinel://[login@]host[:port],…/name-of-the-primary[/db]`.
    pub url: String,
    /// What an answered append means; the server must be able to honour it.
    pub durability: Durability,
    /// For a connection attempt with its checks.
    pub connect_timeout: Duration,
    /// For any answer; when it passes, the connection is given up and everything in flight is lost.
    pub response_timeout: Duration,
    /// How long replicas have to confirm what was appended (`replicated:N`); less than `response_timeout`. What they did not
    /// confirm by then is in doubt.
    pub replica_timeout: Duration,
    /// Work with a server whose CONFIG can't be read (managed services): the operator vouches for it.
    pub accept_unreadable_config: bool,
}

impl RedisConfig {
    /// Defaults: connect within 2 s, answers within 5 s, replicas within 2 s, a readable CONFIG.
    pub fn new(url: impl Into<String>, durability: Durability) -> Self {
        Self {
            url: url.into(),
            durability,
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(5),
            replica_timeout: Duration::from_secs(2),
            accept_unreadable_config: false,
        }
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisConfig({}, {})", address(&self.url), self.durability)
    }
}

/// The store can't be used as configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No URL, or of a kind that is not served.
    #[error("bad Redis URL: {0}")]
    BadUrl(String),
    /// No connection, or no answer in time.
    #[error("no Redis at {address}: {reason}; start it or correct --redis")]
    Unreachable {
        /// Without the password.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// It wants a password, or another one.
    #[error("Redis at {address} refuses the login: {reason}; correct user and password in --redis")]
    Login {
        /// Without the password.
        address: String,
        /// What it said.
        reason: String,
    },
    /// `XADD <term>-*` came with 7.0.
    #[error("Redis {0} is too old: 7.0 or later is needed")]
    TooOld(String),
    /// Writes belong on the primary.
    #[error("this Redis is a replica of {0}: connect to the primary")]
    Replica(String),
    /// It has only some of the slots.
    #[error("this Redis is a node of a cluster: use redis+cluster://host:port,host:port")]
    ClusterNode,
    /// It is no cluster.
    #[error("Redis at {0} is no node of a cluster (cluster-enabled no): use redis://host:port")]
    NoCluster(String),
    /// Some partitions would have no place.
    #[error(
        "{uncovered} of 16384 slots of the cluster at {address} have no primary that answers: look at redis-cli --cluster check"
    )]
    Uncovered {
        /// Without the password.
        address: String,
        /// Slots.
        uncovered: usize,
    },
    /// Sentinels answer, and none knows the primary.
    #[error("no sentinel of {address} knows a primary of the name {name}: correct --redis")]
    UnknownPrimary {
        /// Without the password.
        address: String,
        /// The name that was asked for.
        name: String,
    },
    /// An answer would not mean what was promised.
    #[error("durability replicated:{replicas} needs {needs} in Redis, but it has {has}")]
    NotReplicated {
        /// How many were promised.
        replicas: u32,
        /// What must be set.
        needs: String,
        /// What is.
        has: String,
    },
    /// It would evict acknowledged entries.
    #[error(
        "Redis has maxmemory-policy {0}, which evicts acknowledged data: set maxmemory-policy noeviction"
    )]
    Evicts(String),
    /// It would answer before the entry is on disk.
    #[error("durability fsynced needs {needs} in Redis, but {has}: set it, or choose --durability memory")]
    NotFsynced {
        /// What must be set.
        needs: &'static str,
        /// What is set.
        has: String,
    },
    /// Nothing can be promised.
    #[error(
        "Redis does not show its CONFIG ({0}): allow CONFIG GET for this user, or accept an unreadable one"
    )]
    UnreadableConfig(String),
}
