//! Groups as they are defined: what a group reads, where it begins, and the options that say how.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::clock::UnixMillis;

/// Where a group begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupStart {
    /// After what is stored when the group is created.
    Latest,
    /// At the oldest retained record.
    Earliest,
    /// At the first record received then or later.
    Time(UnixMillis),
}

/// How consumers share a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupMode {
    /// All consumers get records.
    #[default]
    Shared,
    /// One consumer; a second one is refused.
    Exclusive,
    /// One consumer gets records, the others wait until it goes.
    Failover,
}

/// What happens when a group is behind by more than the tenant's backlog limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BacklogPolicy {
    /// Publishes are refused.
    #[default]
    Block,
    /// The oldest records are dropped.
    DropOldest,
    /// The group holds nothing back until it is consumed again.
    Detach,
}

/// How a group is consumed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct GroupOptions {
    /// Fixed at creation, but for groups of the WebSocket door without consumers.
    pub mode: GroupMode,
    /// Records of one client may overtake each other and go to several consumers at once.
    pub unordered: bool,
    /// After this time without an ack a record is handed out again, unless its consumer says otherwise; milliseconds.
    pub ack_timeout_ms: u32,
    /// A record that was handed out so often and comes back is a dead letter; 0: it is handed out for ever.
    pub max_deliveries: u32,
    /// What happens when it is too far behind.
    pub backlog: BacklogPolicy,
}

impl Default for GroupOptions {
    fn default() -> Self {
        Self {
            mode: GroupMode::Shared,
            unordered: false,
            ack_timeout_ms: 60_000,
            max_deliveries: 0,
            backlog: BacklogPolicy::Block,
        }
    }
}

/// What is to become different; None: as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GroupChange {
    /// See [`GroupOptions`].
    pub mode: Option<GroupMode>,
    /// See [`GroupOptions`].
    pub unordered: Option<bool>,
    /// See [`GroupOptions`].
    pub ack_timeout_ms: Option<u32>,
    /// See [`GroupOptions`].
    pub max_deliveries: Option<u32>,
    /// See [`GroupOptions`].
    pub backlog: Option<BacklogPolicy>,
}

impl GroupOptions {
    /// Makes the change.
    pub fn apply(&mut self, change: GroupChange) {
        let GroupChange { mode, unordered, ack_timeout_ms, max_deliveries, backlog } = change;
        self.mode = mode.unwrap_or(self.mode);
        self.unordered = unordered.unwrap_or(self.unordered);
        self.ack_timeout_ms = ack_timeout_ms.unwrap_or(self.ack_timeout_ms);
        self.max_deliveries = max_deliveries.unwrap_or(self.max_deliveries);
        self.backlog = backlog.unwrap_or(self.backlog);
    }
}

/// A named durable reader, as defined.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Group {
    /// Name, unique in its tenant.
    pub name: String,
    /// MQTT filters; empty means every topic.
    pub filters: Vec<String>,
    /// Where it began.
    pub start: GroupStart,
    /// How it is consumed.
    #[serde(default)]
    pub options: GroupOptions,
    /// False until its cursors are on all partitions: it exists from the reply to its creation.
    pub active: bool,
    /// When it was created.
    pub created_at: UnixMillis,
}

impl Group {
    /// What entries that are for it alone are marked with: another group of the same name has another one.
    pub fn number(&self) -> u64 {
        // Half of the range: numbers are added to.
        xxh3_64_with_seed(self.name.as_bytes(), self.created_at) >> 1
    }
}
