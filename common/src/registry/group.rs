//! Groups as they are defined: what a group reads, where it begins, and the options that say how.

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
}

impl Default for GroupOptions {
    fn default() -> Self {
        Self { mode: GroupMode::Shared, unordered: false, ack_timeout_ms: 60_000 }
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
}

impl GroupOptions {
    /// Makes the change.
    pub fn apply(&mut self, change: GroupChange) {
        let GroupChange { mode, unordered, ack_timeout_ms } = change;
        self.mode = mode.unwrap_or(self.mode);
        self.unordered = unordered.unwrap_or(self.unordered);
        self.ack_timeout_ms = ack_timeout_ms.unwrap_or(self.ack_timeout_ms);
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
