//! Groups: the named durable readers of a tenant.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use penstock_proto::messaging as wire;

use crate::{client::Client, error::CallError};

/// Where a group begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// After what is stored when the group is created.
    #[default]
    Latest,
    /// At the oldest record that is retained.
    Earliest,
    /// At the first record received then or later.
    Time(SystemTime),
}

impl Start {
    fn to_wire(self) -> wire::Start {
        let at = match self {
            Self::Latest => wire::start::At::Latest(true),
            Self::Earliest => wire::start::At::Earliest(true),
            Self::Time(time) => wire::start::At::TimeMs(unix_millis(time)),
        };
        wire::Start { at: Some(at) }
    }

    fn from_wire(start: Option<wire::Start>) -> Self {
        match start.and_then(|start| start.at) {
            Some(wire::start::At::Earliest(_)) => Self::Earliest,
            Some(wire::start::At::TimeMs(ms)) => Self::Time(from_unix_millis(ms)),
            Some(wire::start::At::Latest(_)) | None => Self::Latest,
        }
    }

    /// Equal as the server keeps it, in milliseconds.
    pub fn same(self, other: Self) -> bool {
        self.to_wire() == other.to_wire()
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Earliest => f.write_str("earliest"),
            Self::Time(time) => write!(f, "{} ms since 1970", unix_millis(*time)),
        }
    }
}

pub(crate) fn unix_millis(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Clamped to what the clock can hold.
pub(crate) fn from_unix_millis(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}

/// How consumers share a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// All consumers get messages.
    #[default]
    Shared,
    /// One consumer; a second one ends with [`crate::ConsumeError::Occupied`].
    Exclusive,
    /// One consumer gets messages, the others wait until it goes.
    Failover,
}

impl Mode {
    fn to_wire(self) -> wire::GroupMode {
        match self {
            Self::Shared => wire::GroupMode::Shared,
            Self::Exclusive => wire::GroupMode::Exclusive,
            Self::Failover => wire::GroupMode::Failover,
        }
    }
}

impl From<wire::GroupMode> for Mode {
    fn from(mode: wire::GroupMode) -> Self {
        match mode {
            wire::GroupMode::Shared => Self::Shared,
            wire::GroupMode::Exclusive => Self::Exclusive,
            wire::GroupMode::Failover => Self::Failover,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Exclusive => "exclusive",
            Self::Failover => "failover",
        })
    }
}

/// What happens when a group is behind by more than the tenant's backlog limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BacklogPolicy {
    /// Publishes of devices are refused.
    #[default]
    Block,
    /// The oldest messages are dropped.
    DropOldest,
    /// The group holds nothing back until it is consumed again.
    Detach,
}

impl BacklogPolicy {
    fn to_wire(self) -> wire::BacklogPolicy {
        match self {
            Self::Block => wire::BacklogPolicy::Block,
            Self::DropOldest => wire::BacklogPolicy::DropOldest,
            Self::Detach => wire::BacklogPolicy::Detach,
        }
    }
}

impl From<wire::BacklogPolicy> for BacklogPolicy {
    fn from(policy: wire::BacklogPolicy) -> Self {
        match policy {
            wire::BacklogPolicy::Block => Self::Block,
            wire::BacklogPolicy::DropOldest => Self::DropOldest,
            wire::BacklogPolicy::Detach => Self::Detach,
        }
    }
}

impl fmt::Display for BacklogPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Block => "block",
            Self::DropOldest => "drop_oldest",
            Self::Detach => "detach",
        })
    }
}

/// What a group is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSpec {
    name: String,
    filters: Vec<String>,
    start: Start,
    mode: Mode,
    unordered: bool,
    ack_timeout: Option<Duration>,
    max_deliveries: u32,
    backlog: BacklogPolicy,
}

/// What is to become different about a group; what is not said stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupChange {
    unordered: Option<bool>,
    ack_timeout: Option<Duration>,
    max_deliveries: Option<u32>,
    backlog: Option<BacklogPolicy>,
}

impl GroupChange {
    /// See [`GroupSpec::max_deliveries`].
    pub fn max_deliveries(mut self, times: u32) -> Self {
        self.max_deliveries = Some(times);
        self
    }

    /// See [`GroupSpec::backlog`].
    pub fn backlog(mut self, policy: BacklogPolicy) -> Self {
        self.backlog = Some(policy);
        self
    }

    /// See [`GroupSpec::unordered`].
    pub fn unordered(mut self, unordered: bool) -> Self {
        self.unordered = Some(unordered);
        self
    }

    /// See [`GroupSpec::ack_timeout`]. For consumers that begin afterwards.
    pub fn ack_timeout(mut self, timeout: Duration) -> Self {
        self.ack_timeout = Some(timeout);
        self
    }
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1)
}

impl GroupSpec {
    /// Every topic, from now on.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            filters: Vec::new(),
            start: Start::Latest,
            mode: Mode::Shared,
            unordered: false,
            ack_timeout: None,
            max_deliveries: 0,
            backlog: BacklogPolicy::Block,
        }
    }

    /// One more MQTT filter; without any, every topic.
    pub fn filter(mut self, filter: impl Into<String>) -> Self {
        self.filters.push(filter.into());
        self
    }

    /// More filters.
    pub fn filters<T: Into<String>>(mut self, filters: impl IntoIterator<Item = T>) -> Self {
        self.filters.extend(filters.into_iter().map(Into::into));
        self
    }

    /// Where it begins.
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// How consumers share it. Fixed at creation, like filters and start.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Messages of one client may overtake each other and go to several consumers at once.
    pub fn unordered(mut self, unordered: bool) -> Self {
        self.unordered = unordered;
        self
    }

    /// A message that was handed out so often and comes back becomes a dead letter; 0, as at first: it is handed out for
    /// ever.
    pub fn max_deliveries(mut self, times: u32) -> Self {
        self.max_deliveries = times;
        self
    }

    /// What happens when the group is too far behind.
    pub fn backlog(mut self, policy: BacklogPolicy) -> Self {
        self.backlog = policy;
        self
    }

    /// After this time an unacknowledged message is handed out again, unless its consumer says otherwise; one minute
    /// unless told otherwise, at least 100 ms.
    pub fn ack_timeout(mut self, timeout: Duration) -> Self {
        self.ack_timeout = Some(timeout);
        self
    }
}

/// A group, as defined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Unique in its tenant.
    pub name: String,
    /// MQTT filters; empty: every topic.
    pub filters: Vec<String>,
    /// Where it began.
    pub start: Start,
    /// When it was created.
    pub created_at: SystemTime,
    /// How consumers share it.
    pub mode: Mode,
    /// The order of clients is not kept.
    pub unordered: bool,
    /// After this time an unacknowledged message is handed out again.
    pub ack_timeout: Duration,
    /// A message that was handed out so often and comes back becomes a dead letter; 0: never.
    pub max_deliveries: u32,
    /// What happens when it is too far behind.
    pub backlog: BacklogPolicy,
}

impl Group {
    fn from_wire(group: wire::Group) -> Self {
        Self {
            mode: group.mode().into(),
            backlog: group.backlog().into(),
            max_deliveries: group.max_deliveries,
            name: group.name,
            filters: group.filters,
            start: Start::from_wire(group.start),
            created_at: from_unix_millis(group.created_at_ms),
            unordered: group.unordered,
            ack_timeout: Duration::from_millis(group.ack_timeout_ms.into()),
        }
    }
}

/// A group in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionStatus {
    /// Which.
    pub partition: u32,
    /// Records stored and not yet done.
    pub lag: u64,
    /// Records handed out and not yet acknowledged.
    pub open: u64,
    /// Age of the oldest record that is not done; zero without lag.
    pub oldest: Duration,
    /// Consumers connected.
    pub consumers: u32,
    /// Records stored since the group was created or last sought: filtered, acked, dead, dropped or lagging, each.
    pub appended: u64,
    /// Matched by no filter.
    pub filtered: u64,
    /// Acknowledged.
    pub acked: u64,
    /// Became dead letters.
    pub dead: u64,
    /// Removed before the group was done with them.
    pub dropped: u64,
    /// The group holds nothing back until it is consumed again.
    pub detached: bool,
    /// Dead letters that are kept.
    pub dead_letters: u64,
    /// Dead letters that were dropped because there were too many.
    pub dead_letters_dropped: u64,
}

/// How far a group is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: Group,
    /// Each partition of the tenant.
    pub partitions: Vec<PartitionStatus>,
}

impl GroupStatus {
    /// Records not yet done, over all partitions.
    pub fn lag(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.lag).sum()
    }

    /// The sum of something over all partitions.
    pub fn sum(&self, of: impl Fn(&PartitionStatus) -> u64) -> u64 {
        self.partitions.iter().map(of).sum()
    }

    /// Age of the oldest record that is not done, over all partitions.
    pub fn oldest(&self) -> Duration {
        self.partitions.iter().map(|partition| partition.oldest).max().unwrap_or_default()
    }
}

impl Client {
    /// Creates a group; it exists from the reply on. Creating it again is fine; `Exists` with another filter, start or mode.
    /// Other options of a group that is there stay as they are.
    pub async fn create_group(&self, spec: &GroupSpec) -> Result<Group, CallError> {
        let group = wire::Group {
            name: spec.name.clone(),
            filters: spec.filters.clone(),
            start: Some(spec.start.to_wire()),
            created_at_ms: 0,
            mode: spec.mode.to_wire().into(),
            unordered: spec.unordered,
            ack_timeout_ms: spec.ack_timeout.map_or(0, millis),
            max_deliveries: spec.max_deliveries,
            backlog: spec.backlog.to_wire().into(),
        };
        let request = wire::CreateGroupRequest { group: Some(group) };
        let answer = self.ask(|client, number| {
            let request = request.clone();
            async move { client.messaging(number)?.create_group(request).await }
        });
        answer.await.map(Group::from_wire)
    }

    /// All groups of the tenant.
    pub async fn groups(&self) -> Result<Vec<Group>, CallError> {
        let answer = self.ask(|client, number| async move {
            client.messaging(number)?.list_groups(wire::ListGroupsRequest {}).await
        });
        Ok(answer.await?.groups.into_iter().map(Group::from_wire).collect())
    }

    /// A group and how far it is; `NotFound` when there is none.
    pub async fn group(&self, name: &str) -> Result<GroupStatus, CallError> {
        let answer = self.ask(|client, number| {
            let request = wire::ShowGroupRequest { name: name.to_owned() };
            async move { client.messaging(number)?.show_group(request).await }
        });
        let status = answer.await?;
        let group = status.group.ok_or_else(|| CallError::Failed("the answer holds no group".into()))?;
        let partitions = status.partitions.into_iter().map(|partition| PartitionStatus {
            partition: partition.partition,
            lag: partition.lag_records,
            open: partition.open_records,
            oldest: Duration::from_millis(partition.oldest_ms),
            consumers: partition.consumers,
            appended: partition.appended_records,
            filtered: partition.filtered_records,
            acked: partition.acked_records,
            dead: partition.dead_records,
            dropped: partition.dropped_records,
            detached: partition.detached,
            dead_letters: partition.dead_letters,
            dead_letters_dropped: partition.dead_letters_dropped,
        });
        Ok(GroupStatus { group: Group::from_wire(group), partitions: partitions.collect() })
    }

    /// Changes options of a group. Returns it as it is then.
    pub async fn set_group(&self, name: &str, change: GroupChange) -> Result<Group, CallError> {
        let answer = self.ask(|client, number| {
            let request = wire::SetGroupRequest {
                name: name.to_owned(),
                unordered: change.unordered,
                ack_timeout_ms: change.ack_timeout.map(millis),
                max_deliveries: change.max_deliveries,
                backlog: change.backlog.map(|policy| policy.to_wire().into()),
            };
            async move { client.messaging(number)?.set_group(request).await }
        });
        answer.await.map(Group::from_wire)
    }

    /// Has a group go on from another place, for all its consumers: earlier messages come again, or later ones are passed.
    /// After an error some partitions may be there already: repeat it.
    pub async fn seek_group(&self, name: &str, to: Start) -> Result<(), CallError> {
        let answer = self.ask(|client, number| {
            let request = wire::SeekGroupRequest { name: name.to_owned(), to: Some(to.to_wire()) };
            async move { client.messaging(number)?.seek_group(request).await }
        });
        answer.await.map(|_| ())
    }

    /// Deletes a group: what it had not yet consumed may be trimmed from then on.
    pub async fn delete_group(&self, name: &str) -> Result<(), CallError> {
        let answer = self.ask(|client, number| {
            let request = wire::DeleteGroupRequest { name: name.to_owned() };
            async move { client.messaging(number)?.delete_group(request).await }
        });
        answer.await.map(|_| ())
    }
}
