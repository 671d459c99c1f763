//! How clients of a fleet get in: which target, from which address, under which names. No connection is kept here.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::Instant};

use crate::{
    connection::{Broken, Connection, Dial},
    tally::{Counters, Presence, Tally},
};

/// Tenant in the stamps of clients without a user name.
pub const NO_TENANT: &str = "anonymous";

/// One of the names that clients use in turn; `{i}` in them is the client's number.
#[derive(Clone)]
pub struct User {
    /// `tenant/user`.
    pub name: String,
    /// Its password.
    pub password: String,
}

/// Prints no password.
impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

impl User {
    /// What stands before the first `/`; all of it if there is none.
    pub fn tenant(&self) -> &str {
        self.name.split_once('/').map_or(self.name.as_str(), |(tenant, _)| tenant)
    }
}

/// Of all clients of a fleet.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    /// `host:port`.
    pub(crate) targets: Vec<String>,
    /// Addresses that clients bind to in turn; empty: the system chooses.
    pub(crate) sources: Vec<IpAddr>,
    /// Empty: no user name.
    pub(crate) users: Vec<User>,
    /// `{i}` is the client's number.
    pub(crate) client_id: String,
    pub(crate) keep_alive: Duration,
    /// For one connection.
    pub(crate) limit: Duration,
    /// Connections that may be under way at a time.
    pub(crate) connecting: Arc<Semaphore>,
}

/// A template with the client's number.
pub(crate) fn numbered(template: &str, number: u64) -> String {
    template.replace("{i}", &number.to_string())
}

fn in_turn<T>(all: &[T], number: u64) -> Option<&T> {
    let at = number.checked_rem(all.len() as u64)?;
    all.get(usize::try_from(at).ok()?)
}

impl Access {
    fn user(&self, number: u64) -> Option<&User> {
        in_turn(&self.users, number)
    }

    /// The tenant of a client, as its user name says.
    pub(crate) fn tenant(&self, number: u64) -> &str {
        self.user(number).map_or(NO_TENANT, User::tenant)
    }

    /// Connects a client; `turn` is added to its number to choose the target.
    pub(crate) async fn open(
        &self,
        number: u64,
        turn: u64,
        tally: &Arc<Tally>,
    ) -> Result<Connection, Broken> {
        self.open_since(None, number, turn, tally).await
    }

    /// As `open`; it was due at an instant, and is timed from then.
    pub(crate) async fn open_since(
        &self,
        due: Option<Instant>,
        number: u64,
        turn: u64,
        tally: &Arc<Tally>,
    ) -> Result<Connection, Broken> {
        let _permit = self.connecting.acquire().await;
        let begun = due.unwrap_or_else(Instant::now);
        match self.dial(number, turn).await {
            Ok(mut connection) => {
                connection.presence = Some(Presence::new(tally));
                Counters::add(&tally.counters.connects);
                tally.timings().connect.record_since(begun, Instant::now());
                Ok(connection)
            }
            Err(error) => {
                Counters::add(&tally.counters.refused);
                tally.timings().error(error.kind());
                Err(error)
            }
        }
    }

    async fn dial(&self, number: u64, turn: u64) -> Result<Connection, Broken> {
        let client_id = numbered(&self.client_id, number);
        let user = self.user(number).map(|user| (numbered(&user.name, number), user.password.as_str()));
        let dial = Dial {
            target: in_turn(&self.targets, number.wrapping_add(turn)).ok_or(Broken::Closed)?,
            source: in_turn(&self.sources, number).copied(),
            client_id: &client_id,
            login: user.as_ref().map(|(name, password)| (name.as_str(), *password)),
            keep_alive: self.keep_alive,
            limit: self.limit,
        };
        Box::pin(dial.open()).await
    }

    /// An open connection broke.
    pub(crate) fn ended(tally: &Tally, broken: &Broken) {
        Counters::add(&tally.counters.broken);
        tally.timings().error(broken.kind());
    }
}
