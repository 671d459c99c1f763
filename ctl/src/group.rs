//! `penstockctl group …`, and the group that `consume` needs.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use penstock_client::{
    BacklogPolicy, CallError, Client, Group, GroupChange, GroupSpec, GroupStatus, Mode, Start,
};
use serde::Serialize;

use crate::{
    dead::{self, DeadCommand},
    failure::Failure,
    output::Output,
    quantity::{parse_start, show_start, show_time},
};

#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Create a group
    #[command(
        after_help = "Example:\n  penstockctl --user demo/app group create readings --filter 'sensors/#' --start earliest"
    )]
    Create {
        /// Its name
        name: String,
        /// MQTT filter; may be given several times; without any, every topic
        #[arg(long = "filter", value_name = "FILTER")]
        filters: Vec<String>,
        /// Where it begins: latest, earliest, or a time such as 2026-11-22T18:00:00Z
        #[arg(long, value_parser = parse_start, default_value = "latest", value_name = "START")]
        start: Start,
        /// How consumers share it
        #[arg(long, default_value = "shared", value_name = "MODE")]
        mode: ModeArgument,
        #[command(flatten)]
        options: OptionArguments,
    },
    /// List the groups of the tenant
    #[command(after_help = "Example:\n  penstockctl --user demo/app group list")]
    List,
    /// Show a group and how far it is
    #[command(after_help = "Example:\n  penstockctl --user demo/app group show readings --json")]
    Show {
        /// Its name
        name: String,
    },
    /// Change options of a group
    #[command(after_help = "Example:\n  penstockctl --user demo/app group set readings --ack-timeout 5min")]
    Set {
        /// Its name
        name: String,
        #[command(flatten)]
        options: OptionArguments,
    },
    /// Have a group go on from another place, for all its consumers
    #[command(
        after_help = "Examples:\n  penstockctl --user demo/app group seek readings --to 2026-11-22T18:00:00Z\n  penstockctl --user demo/app group seek readings --to latest"
    )]
    Seek {
        /// Its name
        name: String,
        /// latest, earliest, or a time: the first message received then or later
        #[arg(long, value_parser = parse_start, value_name = "PLACE")]
        to: Start,
    },
    /// List dead letters, and have them handed out again
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Delete a group: what it has not consumed is no longer kept for it
    #[command(after_help = "Example:\n  penstockctl --user demo/app group delete readings")]
    Delete {
        /// Its name
        name: String,
    },
}

/// What can be changed later.
#[derive(Debug, Args)]
pub struct OptionArguments {
    /// Messages of one client may overtake each other and go to several consumers at once
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    unordered: Option<bool>,
    /// After this time an unacknowledged message is handed out again, such as 30s; at first 1min
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ack_timeout: Option<Duration>,
    /// A message that was handed out so often and comes back becomes a dead letter; at first 0: it is handed out for ever
    #[arg(long, value_name = "N")]
    max_deliveries: Option<u32>,
    /// What happens when the group is behind by more than the tenant's backlog limit; at first block
    #[arg(long, value_name = "POLICY")]
    backlog: Option<PolicyArgument>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum PolicyArgument {
    /// Publishes of devices are refused
    Block,
    /// The oldest messages are dropped
    DropOldest,
    /// The group holds nothing back until it is consumed again
    Detach,
}

impl From<PolicyArgument> for BacklogPolicy {
    fn from(policy: PolicyArgument) -> Self {
        match policy {
            PolicyArgument::Block => Self::Block,
            PolicyArgument::DropOldest => Self::DropOldest,
            PolicyArgument::Detach => Self::Detach,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ModeArgument {
    /// All consumers get messages
    Shared,
    /// One consumer; a second one is refused
    Exclusive,
    /// One consumer gets messages, the others wait until it goes
    Failover,
}

impl From<ModeArgument> for Mode {
    fn from(mode: ModeArgument) -> Self {
        match mode {
            ModeArgument::Shared => Self::Shared,
            ModeArgument::Exclusive => Self::Exclusive,
            ModeArgument::Failover => Self::Failover,
        }
    }
}

impl OptionArguments {
    fn of(&self, mut spec: GroupSpec) -> GroupSpec {
        if let Some(timeout) = self.ack_timeout {
            spec = spec.ack_timeout(timeout);
        }
        if let Some(policy) = self.backlog {
            spec = spec.backlog(policy.into());
        }
        let spec = spec.max_deliveries(self.max_deliveries.unwrap_or_default());
        spec.unordered(self.unordered.unwrap_or_default())
    }

    fn change(&self) -> GroupChange {
        let mut change = GroupChange::default();
        if let Some(unordered) = self.unordered {
            change = change.unordered(unordered);
        }
        if let Some(timeout) = self.ack_timeout {
            change = change.ack_timeout(timeout);
        }
        if let Some(times) = self.max_deliveries {
            change = change.max_deliveries(times);
        }
        if let Some(policy) = self.backlog {
            change = change.backlog(policy.into());
        }
        change
    }
}

#[derive(Serialize)]
struct Shown {
    name: String,
    filters: Vec<String>,
    start: String,
    created_at: String,
    mode: String,
    unordered: bool,
    ack_timeout_ms: u64,
    max_deliveries: u32,
    backlog: String,
    #[serde(flatten)]
    status: Option<Status>,
}

#[derive(Serialize)]
struct Status {
    lag: u64,
    oldest_ms: u64,
    consumers: u32,
    appended: u64,
    filtered: u64,
    acked: u64,
    dead: u64,
    dropped: u64,
    dead_letters: u64,
    dead_letters_dropped: u64,
    partitions: Vec<Partition>,
}

#[derive(Serialize)]
struct Partition {
    partition: u32,
    lag: u64,
    open: u64,
    oldest_ms: u64,
    consumers: u32,
    dropped: u64,
    detached: bool,
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Shown {
    fn new(group: Group) -> Self {
        Self {
            name: group.name,
            filters: group.filters,
            start: show_start(group.start),
            created_at: show_time(group.created_at),
            mode: group.mode.to_string(),
            unordered: group.unordered,
            ack_timeout_ms: millis(group.ack_timeout),
            max_deliveries: group.max_deliveries,
            backlog: group.backlog.to_string(),
            status: None,
        }
    }

    fn with_status(status: GroupStatus) -> Self {
        let (lag, oldest_ms) = (status.lag(), millis(status.oldest()));
        let consumers = status.partitions.iter().map(|partition| partition.consumers).max().unwrap_or(0);
        let partitions = status.partitions.iter().map(|partition| Partition {
            partition: partition.partition,
            lag: partition.lag,
            open: partition.open,
            oldest_ms: millis(partition.oldest),
            consumers: partition.consumers,
            dropped: partition.dropped,
            detached: partition.detached,
        });
        let shown = Status {
            lag,
            oldest_ms,
            consumers,
            appended: status.sum(|partition| partition.appended),
            filtered: status.sum(|partition| partition.filtered),
            acked: status.sum(|partition| partition.acked),
            dead: status.sum(|partition| partition.dead),
            dropped: status.sum(|partition| partition.dropped),
            dead_letters: status.sum(|partition| partition.dead_letters),
            dead_letters_dropped: status.sum(|partition| partition.dead_letters_dropped),
            partitions: partitions.collect(),
        };
        Self { status: Some(shown), ..Self::new(status.group) }
    }

    fn row(&self) -> Vec<String> {
        let filters = if self.filters.is_empty() { "#".to_owned() } else { self.filters.join(",") };
        let mut row = vec![self.name.clone(), filters, self.start.clone(), self.created_at.clone()];
        row.push(self.mode.clone());
        if let Some(status) = &self.status {
            row.push(status.lag.to_string());
            row.push(format!("{}ms", status.oldest_ms));
            row.push(status.consumers.to_string());
            row.push(status.dropped.to_string());
            row.push(status.dead_letters.to_string());
        }
        row
    }
}

const HEADER: [&str; 10] =
    ["NAME", "FILTERS", "START", "CREATED", "MODE", "LAG", "OLDEST", "CONSUMERS", "DROPPED", "DEAD"];

/// Runs one of them.
pub async fn run(command: GroupCommand, client: &Client, output: Output) -> Result<(), Failure> {
    let shown = match command {
        GroupCommand::Create { name, filters, start, mode, options } => {
            let spec = GroupSpec::new(name).filters(filters).start(start).mode(mode.into());
            vec![Shown::new(client.create_group(&options.of(spec)).await?)]
        }
        GroupCommand::Set { name, options } => {
            vec![Shown::new(client.set_group(&name, options.change()).await?)]
        }
        GroupCommand::List => client.groups().await?.into_iter().map(Shown::new).collect(),
        GroupCommand::Show { name } => vec![Shown::with_status(client.group(&name).await?)],
        GroupCommand::Seek { name, to } => {
            client.seek_group(&name, to).await?;
            return output.done(&format!("group {name} goes on at {}", show_start(to)));
        }
        GroupCommand::Dead(command) => return dead::run(command, client, output).await,
        GroupCommand::Delete { name } => {
            client.delete_group(&name).await?;
            return output.done(&format!("deleted group {name}"));
        }
    };
    let with_status = shown.iter().any(|group| group.status.is_some());
    let header = if with_status { HEADER.as_slice() } else { HEADER.get(..5).unwrap_or_default() };
    output.many(&shown, header, Shown::row)
}

/// Makes sure that the group is there. What was said about it and differs from what it is, is an error.
pub async fn ensure(
    client: &Client,
    name: &str,
    filters: &[String],
    start: Option<Start>,
) -> Result<(), Failure> {
    match client.group(name).await {
        Ok(status) => agree(&status.group, filters, start),
        Err(CallError::NotFound(_)) => {
            let spec = GroupSpec::new(name).filters(filters).start(start.unwrap_or_default());
            match client.create_group(&spec).await {
                Ok(_) => Ok(()),
                // Another was faster.
                Err(CallError::Exists(_)) => agree(&client.group(name).await?.group, filters, start),
                Err(other) => Err(other.into()),
            }
        }
        Err(other) => Err(other.into()),
    }
}

fn agree(group: &Group, filters: &[String], start: Option<Start>) -> Result<(), Failure> {
    let sorted = |filters: &[String]| {
        let mut filters = filters.to_vec();
        filters.sort_unstable();
        filters.dedup();
        filters
    };
    let name = &group.name;
    if !filters.is_empty() && sorted(filters) != sorted(&group.filters) {
        let has = if group.filters.is_empty() { "no filter".to_owned() } else { group.filters.join(", ") };
        return Err(Failure::Failed(format!(
            "group {name} exists with {has}, not with {}: leave --filter out, or use another group",
            filters.join(", ")
        )));
    }
    match start {
        Some(start) if !start.same(group.start) => Err(Failure::Failed(format!(
            "group {name} exists and began at {}, not at {}: leave --start out, or use another group",
            show_start(group.start),
            show_start(start)
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn group(filters: &[&str]) -> Group {
        Group {
            name: "g".into(),
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            start: Start::Latest,
            created_at: SystemTime::UNIX_EPOCH,
            mode: Mode::Shared,
            unordered: false,
            ack_timeout: Duration::from_secs(60),
            max_deliveries: 0,
            backlog: BacklogPolicy::Block,
        }
    }

    fn agrees(has: &[&str], wanted: &[&str], start: Option<Start>) -> bool {
        agree(&group(has), &group(wanted).filters, start).is_ok()
    }

    #[test]
    fn what_is_not_said_agrees_and_order_does_not_matter() {
        assert!(agrees(&["a", "b"], &[], None));
        assert!(agrees(&["a", "b"], &["b", "a"], Some(Start::Latest)));
    }

    #[test]
    fn a_contradiction_is_an_error() {
        assert!(!agrees(&["a"], &["a", "b"], None));
        assert!(!agrees(&[], &["a"], None));
        assert!(!agrees(&["a"], &[], Some(Start::Earliest)));
    }
}
