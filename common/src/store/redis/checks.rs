//! Whether a server can honour what is promised in its name: asked on every new connection and again while it lasts, for
//! a server may come back as another one.

use std::{collections::BTreeMap, str::FromStr};

use redis::{RedisResult, aio::MultiplexedConnection};

use super::config::OpenError;
use crate::store::durability::Durability;

const SETTINGS: [&str; 5] =
    ["maxmemory-policy", "appendonly", "appendfsync", "no-appendfsync-on-rewrite", "min-replicas-to-write"];

/// What is expected of a server.
#[derive(Clone, Copy)]
pub(super) struct Promise {
    pub(super) durability: Durability,
    /// A node of a cluster.
    pub(super) cluster: bool,
    /// The operator vouches for a CONFIG that can't be read.
    pub(super) accept_unreadable: bool,
}

/// What a server says of itself.
pub(super) struct Facts {
    info: BTreeMap<String, String>,
    settings: Result<BTreeMap<String, String>, String>,
}

impl Facts {
    pub(super) async fn ask(connection: &mut MultiplexedConnection) -> RedisResult<Self> {
        let text: String = redis::cmd("INFO").query_async(connection).await?;
        let info = text.lines().filter_map(|line| line.trim_end().split_once(':'));
        let info = info.map(|(name, value)| (name.into(), value.into())).collect();
        let settings = redis::cmd("CONFIG").arg("GET").arg(&SETTINGS[..]).query_async(connection).await;
        let settings = match settings {
            Err(error) if error.is_io_error() => return Err(error),
            other => other.map_err(|error: redis::RedisError| said(&error)),
        };
        Ok(Self { info, settings })
    }

    /// Name of the history of its data: another one means that it may hold less than it did.
    pub(super) fn history(&self) -> &str {
        self.info("master_replid")
    }

    /// Replicas that follow it now.
    fn replicas(&self) -> usize {
        let replica = |name: &str| name.strip_prefix("slave").is_some_and(|n| n.parse::<u32>().is_ok());
        self.info.iter().filter(|(name, of)| replica(name) && of.contains("state=online")).count()
    }

    /// Ok when so many replicas are there to confirm as were promised. Asked on a new connection only: while one lasts,
    /// each confirmation tells.
    pub(super) fn check_replicas(&self, durability: Durability) -> Result<(), OpenError> {
        let online = self.replicas();
        match durability {
            Durability::Replicated(wanted) if online < wanted as usize => Err(OpenError::NotReplicated {
                replicas: wanted,
                needs: format!("{wanted} connected replicas"),
                has: format!("{online}: start more, or choose another --durability"),
            }),
            _ => Ok(()),
        }
    }

    fn info(&self, name: &str) -> &str {
        self.info.get(name).map_or("", String::as_str)
    }

    /// Ok when everything that `durability` promises can be kept.
    pub(super) fn check(&self, promise: Promise) -> Result<(), OpenError> {
        let version = self.info("redis_version");
        let major = version.split('.').next().map(u32::from_str);
        if !matches!(major, Some(Ok(7..))) {
            return Err(OpenError::TooOld(version.into()));
        }
        if self.info("role") != "master" {
            let primary = format!("{}:{}", self.info("master_host"), self.info("master_port"));
            return Err(OpenError::Replica(primary));
        }
        match (self.info("cluster_enabled") == "1", promise.cluster) {
            (true, false) => return Err(OpenError::ClusterNode),
            (false, true) => return Err(OpenError::NoCluster(format!("port {}", self.info("tcp_port")))),
            _ => {}
        }
        match &self.settings {
            Ok(settings) if SETTINGS.iter().all(|name| settings.contains_key(*name)) => {
                check_settings(settings, promise.durability)
            }
            _ if promise.accept_unreadable => Ok(()),
            Ok(_) => Err(OpenError::UnreadableConfig("settings are missing in its answer".into())),
            Err(reason) => Err(OpenError::UnreadableConfig(reason.clone())),
        }
    }
}

fn check_settings(settings: &BTreeMap<String, String>, durability: Durability) -> Result<(), OpenError> {
    let set = |name: &str| settings.get(name).map_or("", String::as_str);
    let policy = set("maxmemory-policy");
    if policy != "noeviction" {
        return Err(OpenError::Evicts(policy.into()));
    }
    match durability {
        Durability::Memory => Ok(()),
        Durability::Fsynced => check_fsynced(&set),
        Durability::Replicated(replicas) => check_replicated(&set, replicas),
    }
}

fn check_fsynced<'a>(set: &impl Fn(&str) -> &'a str) -> Result<(), OpenError> {
    for (name, value, needs) in [
        ("appendonly", "yes", "appendonly yes"),
        ("appendfsync", "always", "appendfsync always"),
        // With yes the server answers without a sync while it rewrites its file.
        ("no-appendfsync-on-rewrite", "no", "no-appendfsync-on-rewrite no"),
    ] {
        if set(name) != value {
            return Err(OpenError::NotFsynced { needs, has: format!("it has {name} {}", set(name)) });
        }
    }
    Ok(())
}

/// A primary that restarts empty would empty its replicas, so it keeps a file; and it must refuse writes that nobody is
/// there to copy, or an old one that is cut off would go on taking them.
fn check_replicated<'a>(set: &impl Fn(&str) -> &'a str, replicas: u32) -> Result<(), OpenError> {
    let missing = |needs: String, has: String| {
        let has = format!("{has}: set it, or choose another --durability");
        Err(OpenError::NotReplicated { replicas, needs, has })
    };
    if set("appendonly") != "yes" {
        return missing("appendonly yes".into(), format!("appendonly {}", set("appendonly")));
    }
    let least = set("min-replicas-to-write");
    if least.parse::<u32>().is_ok_and(|least| least >= replicas) {
        return Ok(());
    }
    missing(format!("min-replicas-to-write {replicas}"), format!("min-replicas-to-write {least}"))
}

/// What the server said, in a line.
pub(super) fn said(error: &redis::RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    fn good() -> Facts {
        Facts {
            info: map(&[("redis_version", "7.0.15"), ("role", "master"), ("cluster_enabled", "0")]),
            settings: Ok(map(&[
                ("maxmemory-policy", "noeviction"),
                ("appendonly", "yes"),
                ("appendfsync", "always"),
                ("no-appendfsync-on-rewrite", "no"),
                ("min-replicas-to-write", "1"),
            ])),
        }
    }

    fn promise(durability: Durability) -> Promise {
        Promise { durability, cluster: false, accept_unreadable: false }
    }

    fn with_info(name: &str, value: &str) -> Result<(), OpenError> {
        let mut facts = good();
        facts.info.insert(name.into(), value.into());
        facts.check(promise(Durability::Fsynced))
    }

    fn with_setting(name: &str, value: &str, durability: Durability) -> Result<(), OpenError> {
        let mut facts = good();
        facts.settings.as_mut().unwrap().insert(name.into(), value.into());
        facts.check(promise(durability))
    }

    #[test]
    fn what_can_not_be_honoured_is_refused() {
        assert_eq!(good().check(promise(Durability::Fsynced)), Ok(()));
        assert_eq!(with_info("redis_version", "8.2.0"), Ok(()));
        assert_eq!(with_info("redis_version", "6.2.14"), Err(OpenError::TooOld("6.2.14".into())));
        assert_eq!(with_info("redis_version", "?"), Err(OpenError::TooOld("?".into())));
        assert!(matches!(with_info("role", "slave"), Err(OpenError::Replica(_))));
        assert_eq!(with_info("cluster_enabled", "1"), Err(OpenError::ClusterNode));
        let in_cluster = Promise { cluster: true, ..promise(Durability::Memory) };
        assert!(matches!(good().check(in_cluster), Err(OpenError::NoCluster(_))));
        let evicts = with_setting("maxmemory-policy", "allkeys-lru", Durability::Memory);
        assert_eq!(evicts, Err(OpenError::Evicts("allkeys-lru".into())));
        for (name, value) in
            [("appendonly", "no"), ("appendfsync", "everysec"), ("no-appendfsync-on-rewrite", "yes")]
        {
            assert_eq!(with_setting(name, value, Durability::Memory), Ok(()));
            let refused = with_setting(name, value, Durability::Fsynced);
            assert!(matches!(refused, Err(OpenError::NotFsynced { .. })), "{name}");
        }
    }

    #[test]
    fn an_unreadable_config_needs_the_operators_word() {
        let facts = Facts { settings: Err("NOPERM".into()), ..good() };
        let strict = promise(Durability::Memory);
        assert_eq!(facts.check(Promise { accept_unreadable: true, ..strict }), Ok(()));
        assert!(matches!(facts.check(strict), Err(OpenError::UnreadableConfig(_))));
        let facts = Facts { settings: Ok(BTreeMap::new()), ..good() };
        assert!(matches!(facts.check(strict), Err(OpenError::UnreadableConfig(_))));
    }

    #[test]
    fn replicas_must_be_there_and_must_be_needed() {
        assert_eq!(good().check(promise(Durability::Replicated(1))), Ok(()));
        let refused = good().check(promise(Durability::Replicated(2)));
        let told = refused.err().map(|refused| refused.to_string()).unwrap_or_default();
        assert!(told.contains("replicated:2 needs min-replicas-to-write 2"), "{told}");
        let refused = with_setting("appendonly", "no", Durability::Replicated(1));
        assert!(matches!(refused, Err(OpenError::NotReplicated { .. })));
        let mut facts = good();
        facts.info.insert("slave0".into(), "ip=::1,port=1,state=online,offset=3,lag=0".into());
        facts.info.insert("slave1".into(), "ip=::1,port=2,state=wait_bgsave,offset=0,lag=0".into());
        facts.info.insert("slave_read_only".into(), "state=online".into());
        assert_eq!(facts.check_replicas(Durability::Replicated(1)), Ok(()));
        assert!(facts.check_replicas(Durability::Replicated(2)).is_err());
        assert_eq!(facts.check_replicas(Durability::Memory), Ok(()));
    }
}
