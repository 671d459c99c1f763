//! What a run is to do, checked. How it is read from a command line is in `arguments`.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use crate::{
    access::User,
    pace::Pace,
    scenario::{Phase, Scenario},
    slo::Slo,
};

/// Who enters what comes into the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verify {
    Group,
    Subscriber,
    Nobody,
}

impl Verify {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Subscriber => "subscriber",
            Self::Nobody => "none",
        }
    }
}

/// Penstock's gRPC doors.
#[derive(Debug, Clone)]
pub(crate) struct Doors {
    pub(crate) servers: Vec<String>,
    /// One for each tenant.
    pub(crate) users: Vec<User>,
}

/// What is published and pushed, and who verifies.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    pub(crate) qos: u8,
    pub(crate) payload_bytes: usize,
    pub(crate) inflight: usize,
    pub(crate) topic: String,
    pub(crate) messages: Option<u64>,
    pub(crate) verify: Verify,
    /// Of each group.
    pub(crate) consumers: u64,
    /// Groups consume only when all is stored.
    pub(crate) backlog: bool,
    /// Those who push, each with devices of its own.
    pub(crate) pushers: u64,
    pub(crate) doors: Option<Doors>,
    pub(crate) settle: Duration,
    pub(crate) scenario: Scenario,
}

/// What kind of run it is.
#[derive(Debug, Clone)]
pub(crate) enum Job {
    Traffic(Traffic),
    Connect { hold: Duration, rate: Option<f64> },
    Storm { rounds: u32 },
    Takeover,
}

/// A run.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) command: &'static str,
    /// Drawn anew for each run.
    pub(crate) run: String,
    pub(crate) targets: Vec<String>,
    pub(crate) users: Vec<User>,
    pub(crate) clients: u64,
    pub(crate) client_id: String,
    pub(crate) sources: Vec<IpAddr>,
    pub(crate) threads: usize,
    pub(crate) connecting: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) keep_alive: Duration,
    pub(crate) tolerate: Vec<String>,
    pub(crate) slos: Vec<Slo>,
    pub(crate) json: bool,
    pub(crate) html: Option<PathBuf>,
    pub(crate) job: Job,
}

impl Settings {
    /// The tenants of the users, each once.
    pub(crate) fn tenants(&self) -> Vec<String> {
        let mut tenants: Vec<String> = self.users.iter().map(|user| user.tenant().to_owned()).collect();
        if tenants.is_empty() {
            tenants.push(crate::access::NO_TENANT.to_owned());
        }
        tenants.sort();
        tenants.dedup();
        tenants
    }
}

impl Settings {
    /// Sockets that may be open at a time.
    pub(crate) fn files(&self) -> u64 {
        match self.job {
            // Old and new ones.
            Job::Takeover => self.clients * 2,
            Job::Traffic(_) => self.clients + self.tenants().len() as u64,
            Job::Connect { .. } | Job::Storm { .. } => self.clients,
        }
    }

    /// Flags and what they came to; no password.
    pub(crate) fn shown(&self) -> serde_json::Map<String, serde_json::Value> {
        let users: Vec<&str> = self.users.iter().map(|user| user.name.as_str()).collect();
        let mut shown = serde_json::json!({
            "clients": self.clients,
            "threads": self.threads,
            "users": users,
            "client_id": self.client_id,
            "source_addresses": self.sources.len(),
            "keep_alive_seconds": self.keep_alive.as_secs_f64(),
            "connecting": self.connecting,
        });
        let more = match &self.job {
            Job::Traffic(traffic) => traffic.shown(),
            Job::Connect { hold, rate } => {
                serde_json::json!({ "hold_seconds": hold.as_secs_f64(), "rate_per_second": rate })
            }
            Job::Storm { rounds } => serde_json::json!({ "rounds": rounds }),
            Job::Takeover => serde_json::Value::Null,
        };
        let mut all = shown.as_object_mut().map(std::mem::take).unwrap_or_default();
        if let serde_json::Value::Object(more) = more {
            all.extend(more);
        }
        all
    }
}

impl Traffic {
    /// Messages that the rates ask for; None: they don't say.
    pub(crate) fn due(&self) -> Option<u64> {
        let phase = |phase: &Phase| {
            let published = if phase.publishers > 0 { phase.rate.count(phase.length)? } else { 0 };
            Some(published + phase.pushes.map_or(Some(0), |pace| pace.count(phase.length))?)
        };
        let due = self.scenario.phases.iter().map(phase).sum::<Option<u64>>()?;
        Some(self.messages.map_or(due, |messages| messages.min(due)))
    }

    fn shown(&self) -> serde_json::Value {
        let scenario = &self.scenario;
        let rate = scenario.phases.iter().find(|phase| phase.measured).and_then(|phase| {
            match phase.pushes.unwrap_or(phase.rate) {
                Pace::Ramp { from, to } if (from - to).abs() < f64::EPSILON => Some(from),
                _ => None,
            }
        });
        serde_json::json!({
            "scenario": scenario.name,
            "publishers": scenario.publishers(),
            "subscribers": scenario.subscribers,
            "devices": scenario.devices,
            "qos": self.qos,
            "payload_bytes": self.payload_bytes,
            "inflight": self.inflight,
            "topic": self.topic,
            "messages": self.messages,
            "rate_per_second": rate,
            "duration_seconds": scenario.measured().as_secs_f64(),
            "verify": self.verify.name(),
            "consumers": self.consumers,
            "backlog": self.backlog,
            "pushers": self.pushers,
        })
    }
}
