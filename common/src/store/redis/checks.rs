//! Whether a server can honour what is promised in its name: asked on every new connection and again while it lasts, for
//! a server may come back as another one.

use std::{collections::BTreeMap, str::FromStr};

use redis::{RedisResult, aio::MultiplexedConnection};

use super::config::OpenError;
use crate::store::durability::Durability;

const SETTINGS: [&str; 4] = ["maxmemory-policy", "appendonly", "appendfsync", "no-appendfsync-on-rewrite"];

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

    fn info(&self, name: &str) -> &str {
        self.info.get(name).map_or("", String::as_str)
    }

    /// Ok when everything that `durability` promises can be kept.
    pub(super) fn check(&self, durability: Durability, accept_unreadable: bool) -> Result<(), OpenError> {
        let version = self.info("redis_version");
        let major = version.split('.').next().map(u32::from_str);
        if !matches!(major, Some(Ok(7..))) {
            return Err(OpenError::TooOld(version.into()));
        }
        if self.info("role") != "master" {
            let primary = format!("{}:{}", self.info("master_host"), self.info("master_port"));
            return Err(OpenError::Replica(primary));
        }
        if self.info("cluster_enabled") == "1" {
            return Err(OpenError::ClusterNode);
        }
        match &self.settings {
            Ok(settings) if SETTINGS.iter().all(|name| settings.contains_key(*name)) => {
                check_settings(settings, durability)
            }
            _ if accept_unreadable => Ok(()),
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
    if durability == Durability::Memory {
        return Ok(());
    }
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
            ])),
        }
    }

    fn with_info(name: &str, value: &str) -> Result<(), OpenError> {
        let mut facts = good();
        facts.info.insert(name.into(), value.into());
        facts.check(Durability::Fsynced, false)
    }

    fn with_setting(name: &str, value: &str, durability: Durability) -> Result<(), OpenError> {
        let mut facts = good();
        facts.settings.as_mut().unwrap().insert(name.into(), value.into());
        facts.check(durability, false)
    }

    #[test]
    fn what_can_not_be_honoured_is_refused() {
        assert_eq!(good().check(Durability::Fsynced, false), Ok(()));
        assert_eq!(with_info("redis_version", "8.2.0"), Ok(()));
        assert_eq!(with_info("redis_version", "6.2.14"), Err(OpenError::TooOld("6.2.14".into())));
        assert_eq!(with_info("redis_version", "?"), Err(OpenError::TooOld("?".into())));
        assert!(matches!(with_info("role", "slave"), Err(OpenError::Replica(_))));
        assert_eq!(with_info("cluster_enabled", "1"), Err(OpenError::ClusterNode));
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
        assert_eq!(facts.check(Durability::Memory, true), Ok(()));
        assert!(matches!(facts.check(Durability::Memory, false), Err(OpenError::UnreadableConfig(_))));
        let facts = Facts { settings: Ok(BTreeMap::new()), ..good() };
        assert!(matches!(facts.check(Durability::Memory, false), Err(OpenError::UnreadableConfig(_))));
    }
}
