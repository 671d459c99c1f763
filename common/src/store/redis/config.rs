//! What an operator sets for Redis, and why opening it was refused: each refusal is one line that says what to do. The
//! password of the URL is in no message.

use std::{fmt, time::Duration};

use redis::IntoConnectionInfo;

use crate::store::durability::Durability;

/// How to reach Redis and what to ask of it.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://[[user]:password@]host[:port][/db]` or `unix://path`.
    pub url: String,
    /// What an answered append means; the server must be able to honour it.
    pub durability: Durability,
    /// For a connection attempt with its checks.
    pub connect_timeout: Duration,
    /// For any answer; when it passes, the connection is given up and everything in flight is lost.
    pub response_timeout: Duration,
    /// Work with a server whose CONFIG can't be read (managed services): the operator vouches for it.
    pub accept_unreadable_config: bool,
}

impl RedisConfig {
    /// Defaults: connect within 2 s, answers within 5 s, a readable CONFIG.
    pub fn new(url: impl Into<String>, durability: Durability) -> Self {
        Self {
            url: url.into(),
            durability,
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(5),
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
    /// Partitions are in many nodes.
    #[error("this Redis is a cluster node: Redis Cluster is not in this version")]
    ClusterNode,
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

/// Where a URL points, without user and password.
pub(super) fn address(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { host.into() } else { format!("{scheme}://{host}") }
}

/// Checks a URL and makes a client of it; connects nowhere.
pub(super) fn client(url: &str) -> Result<redis::Client, OpenError> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    let planned = match scheme {
        Some("redis" | "unix" | "redis+unix") => None,
        Some("rediss") => Some("TLS"),
        Some(cluster) if cluster.starts_with("redis+cluster") => Some("Redis Cluster"),
        Some(sentinel) if sentinel.starts_with("redis+sentinel") => Some("Sentinel"),
        _ => return Err(OpenError::BadUrl(format!("{} is not redis://host:port", address(url)))),
    };
    if let Some(planned) = planned {
        return Err(OpenError::BadUrl(format!("{planned} is not in this version: use redis://host:port")));
    }
    // What the parser says may quote the URL with its password.
    let unreadable = |_| OpenError::BadUrl(format!("{} can't be read", address(url)));
    redis::Client::open(url.into_connection_info().map_err(unreadable)?).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn kinds_of_url_that_are_not_served_are_refused_by_name() {
        for (url, word) in [
            ("rediss://h", "TLS"),
            ("redis+cluster://h", "Cluster"),
            ("redis+sentinel://h", "Sentinel"),
            ("http://h", "redis://"),
            ("h:6379", "redis://"),
            ("", "redis://"),
        ] {
            let refused = client(url).unwrap_err().to_string();
            assert!(refused.contains(word) && refused.contains("redis://host:port"), "{url}: {refused}");
        }
        assert!(client("redis://user:secret@h:6379/2").is_ok());
    }

    #[test]
    fn a_password_is_never_printed() {
        for url in
            ["redis://u:secret@h:1", "redis://:secret@h:1", "redis://u:secret@h:x", "rediss://u:secret@h"]
        {
            let config = RedisConfig::new(url, Durability::Memory);
            let refused = client(url).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(!format!("{config:?} {refused}").contains("secret"), "{url}");
        }
    }
}
