//! What a URL names: one server, nodes of a cluster, or sentinels that know a primary. No user and no password of a URL is
//! in anything that is shown.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use super::config::OpenError;

const SENTINEL_PORT: u16 = 26_379;

/// What is behind a URL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// One server, the primary.
    Server,
    /// A cluster, some nodes of which are named.
    Cluster,
    /// Sentinels, and the name of what they watch.
    Sentinel(String),
}

/// A parsed URL.
pub(super) struct Target {
    pub(super) kind: Kind,
    /// The hosts that the URL names, each with the login and the database. Never empty.
    pub(super) hosts: Vec<ConnectionInfo>,
    /// Without user and password.
    pub(super) shown: String,
}

impl Target {
    /// Connects nowhere.
    pub(super) fn parse(url: &str) -> Result<Self, OpenError> {
        let shown = address(url);
        let (scheme, rest) = url.split_once("://").unwrap_or(("", ""));
        let (kind, hosts) = match scheme {
            "redis" | "unix" | "redis+unix" => (Kind::Server, vec![one(url, &shown)?]),
            "redis+cluster" => (Kind::Cluster, cluster(rest, &shown)?),
            "redis+sentinel" => sentinel(rest, &shown)?,
            "rediss" | "rediss+cluster" | "rediss+sentinel" => {
                let reason = "TLS is not in this version: use redis://host:port";
                return Err(OpenError::BadUrl(reason.into()));
            }
            _ => return Err(OpenError::BadUrl(format!("{shown} is not redis://host:port"))),
        };
        Ok(Self { kind, hosts, shown })
    }

    /// Another host with the same login and database.
    pub(super) fn host(&self, host: &str, port: u16) -> Option<ConnectionInfo> {
        let first = self.hosts.first()?.clone();
        Some(first.set_addr(ConnectionAddr::Tcp(host.into(), port)))
    }
}

/// Where a URL points, without user and password.
pub(super) fn address(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { host.into() } else { format!("{scheme}://{host}") }
}

fn unreadable(shown: &str) -> OpenError {
    OpenError::BadUrl(format!("{shown} can't be read"))
}

fn one(url: &str, shown: &str) -> Result<ConnectionInfo, OpenError> {
    // What the parser says may quote the URL with its password.
    url.into_connection_info().map_err(|_| unreadable(shown))
}

/// `[login@]host[:port],…` and what follows the first `/`, if anything does.
fn hosts(
    rest: &str,
    port: Option<u16>,
    database: &str,
    shown: &str,
) -> Result<Vec<ConnectionInfo>, OpenError> {
    let (login, hosts) = rest.rsplit_once('@').map_or(("", rest), |(login, hosts)| (login, hosts));
    let login = if login.is_empty() { String::new() } else { format!("{login}@") };
    let each = |host: &str| {
        let bare = !host.rsplit_once(']').map_or(host, |(_, port)| port).contains(':');
        let port = port.filter(|_| bare).map_or(String::new(), |port| format!(":{port}"));
        if host.is_empty() {
            return Err(unreadable(shown));
        }
        one(&format!("redis://{login}{host}{port}{database}"), shown)
    };
    hosts.split(',').map(each).collect()
}

fn cluster(rest: &str, shown: &str) -> Result<Vec<ConnectionInfo>, OpenError> {
    let (at, hosts_end) = (rest.rfind('@').unwrap_or(0), rest.len());
    let end = rest.get(at..).and_then(|hosts| hosts.find('/')).map_or(hosts_end, |slash| at + slash);
    let (named, database) = rest.split_at(end);
    if !matches!(database, "" | "/" | "/0") {
        return Err(OpenError::BadUrl(format!("{shown} names a database, but a cluster has only 0")));
    }
    hosts(named, None, "", shown)
}

fn sentinel(rest: &str, shown: &str) -> Result<(Kind, Vec<ConnectionInfo>), OpenError> {
    let nameless = || {
        let form = "redis+sentinel://host:port,host:port/name-of-the-primary";
        OpenError::BadUrl(format!("{shown} names no primary: use {form}"))
    };
    let at = rest.rfind('@').unwrap_or(0);
    let slash = rest.get(at..).and_then(|hosts| hosts.find('/')).ok_or_else(nameless)? + at;
    let (named, name) = rest.split_at(slash);
    let (name, database) =
        name.get(1..).unwrap_or("").split_once('/').unwrap_or((name.get(1..).unwrap_or(""), ""));
    if name.is_empty() {
        return Err(nameless());
    }
    let database = if database.is_empty() { String::new() } else { format!("/{database}") };
    let hosts = hosts(named, Some(SENTINEL_PORT), &database, shown)?;
    Ok((Kind::Sentinel(name.into()), hosts))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn told(url: &str) -> (Kind, Vec<String>) {
        let target = Target::parse(url).unwrap();
        (target.kind, target.hosts.iter().map(|host| host.addr().to_string()).collect())
    }

    #[test]
    fn a_url_names_hosts_and_what_they_are() {
        assert_eq!(told("redis://user:secret@h:6380/2"), (Kind::Server, vec!["h:6380".into()]));
        let (kind, hosts) = told("redis+cluster://u:p@a:1,b,[::1]:3/");
        assert_eq!((kind, hosts), (Kind::Cluster, vec!["a:1".into(), "b:6379".into(), "::1:3".into()]));
        let (kind, hosts) = told("redis+sentinel://u:p%2F@a,b:1/main/2");
        assert_eq!((kind, hosts), (Kind::Sentinel("main".into()), vec!["a:26379".into(), "b:1".into()]));
        let target = Target::parse("redis+sentinel://u:p%2F@a/main/2").unwrap();
        let other = target.host("c", 9).unwrap();
        assert_eq!(other.addr().to_string(), "c:9");
        let login = other.redis_settings();
        assert_eq!((login.username(), login.password(), login.db()), (Some("u"), Some("p/"), 2));
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        for (url, word) in [
            ("rediss://h", "TLS"),
            ("http://h", "redis://host:port"),
            ("h:6379", "redis://host:port"),
            ("", "redis://host:port"),
            ("redis+cluster://h/3", "database"),
            ("redis+cluster://h,,g", "can't be read"),
            ("redis+sentinel://h:1", "names no primary"),
            ("redis+sentinel://h:1/", "names no primary"),
        ] {
            let refused = Target::parse(url).err().map(|refused| refused.to_string()).unwrap();
            assert!(refused.contains(word), "{url}: {refused}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        for url in [
            "redis://u:secret@h:1",
            "redis://:secret@h:1",
            "redis://u:secret@h:x",
            "rediss://u:secret@h",
            "redis+cluster://u:secret@h:x,g",
            "redis+cluster://u:secret@h:1,g:2",
            "redis+sentinel://u:secret@h:1",
            "redis+sentinel://u:secret@h:1/name",
        ] {
            let shown = match Target::parse(url) {
                Ok(target) => target.shown,
                Err(refused) => refused.to_string(),
            };
            assert!(!shown.contains("secret"), "{url}");
        }
    }
}
