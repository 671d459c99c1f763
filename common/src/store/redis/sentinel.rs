//! Where the primary is, as sentinels tell it. They may disagree while they fail over or are cut off from each other: of
//! their answers the one with the highest configuration epoch counts, as it does among themselves. That a primary answers
//! as one is checked by whoever connects to it.

use std::{collections::HashMap, time::Duration};

use futures::future::join_all;
use redis::{ConnectionInfo, RedisConnectionInfo, RedisError};
use tokio::time;

use super::{
    config::OpenError,
    live::{Dialer, is_login, refused, shown},
};

/// Between two questions to all sentinels.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What one sentinel said.
struct Told {
    host: String,
    port: u16,
    epoch: u64,
}

/// The present primary.
pub(super) async fn primary(dialer: &Dialer, name: &str) -> Result<ConnectionInfo, OpenError> {
    let answers = join_all(dialer.target.hosts.iter().map(|sentinel| ask(dialer, sentinel, name))).await;
    let (mut best, mut unknown, mut failed) = (None::<Told>, false, None);
    for answer in answers {
        match answer {
            Ok(Some(told)) if best.as_ref().is_none_or(|best| best.epoch < told.epoch) => best = Some(told),
            Ok(Some(_)) => {}
            Ok(None) => unknown = true,
            Err(error) => failed = Some(error),
        }
    }
    if let Some(host) = best.and_then(|best| dialer.target.host(&best.host, best.port)) {
        return Ok(host);
    }
    let address = dialer.target.shown.clone();
    match failed {
        Some(error) if !unknown => Err(error),
        _ => Err(OpenError::UnknownPrimary { address, name: name.into() }),
    }
}

/// Returns when sentinels name another primary than the one at `address`.
pub(super) async fn elsewhere(dialer: &Dialer, name: &str, address: &str) {
    loop {
        time::sleep(ASK_EVERY).await;
        if let Ok(host) = primary(dialer, name).await
            && shown(&host) != address
        {
            return;
        }
    }
}

/// None: it does not know the name.
async fn ask(dialer: &Dialer, sentinel: &ConnectionInfo, name: &str) -> Result<Option<Told>, OpenError> {
    let attempt = async {
        let open = sentinel.clone().set_redis_settings(RedisConnectionInfo::default());
        match ask_as(dialer, &open, name).await {
            // It wants a login: the primary's, for the URL has no other.
            Err(OpenError::Login { .. }) => {
                let login = sentinel.redis_settings().clone().set_db(0);
                ask_as(dialer, &sentinel.clone().set_redis_settings(login), name).await
            }
            other => other,
        }
    };
    let within = dialer.config.connect_timeout;
    let late = |_| OpenError::Unreachable {
        address: shown(sentinel),
        reason: format!("no answer within {within:?}"),
    };
    time::timeout(within, attempt).await.map_err(late)?
}

async fn ask_as(dialer: &Dialer, sentinel: &ConnectionInfo, name: &str) -> Result<Option<Told>, OpenError> {
    let mut connection = dialer.raw(sentinel).await?;
    let answer: Result<HashMap<String, String>, RedisError> =
        redis::cmd("SENTINEL").arg("MASTER").arg(name).query_async(&mut connection).await;
    let facts = match answer {
        Ok(facts) => facts,
        Err(error) if error.is_io_error() || is_login(&error) => return Err(refused(sentinel, &error)),
        // "No such master with that name".
        Err(_) => return Ok(None),
    };
    let fact = |name: &str| facts.get(name).map_or("", String::as_str);
    let (host, epoch) = (fact("ip").to_owned(), fact("config-epoch").parse().unwrap_or_default());
    Ok(fact("port").parse().ok().map(|port| Told { host, port, epoch }))
}
