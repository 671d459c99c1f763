//! What can be written on the command line, with its help. No behaviour.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use penstock_client::Start;

use crate::{
    client::ClientCommand,
    group::GroupCommand,
    quantity::{parse_bytes, parse_start},
    tenant::TenantCommand,
    user::UserCommand,
};

const EXAMPLES: &str = "Examples:
  export PENSTOCK_PASSWORD=…
  penstockctl --user demo/app consume --group readings --filter 'sensors/#'
  penstockctl --user demo/app push --topic commands/reboot --client sensor-1 --qos 1 --payload now --wait
  penstockctl --user system/admin tenant create acme
  penstockctl --user system/admin cluster

Exit codes: 0 fine, 1 failed, 2 wrong usage.";

/// The operator's and developer's command line of Penstock.
#[derive(Debug, Parser)]
#[command(name = "penstockctl", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Common {
    /// A router's gRPC door; several, separated by commas, are asked in turn when one does not answer
    #[arg(
        long,
        global = true,
        value_name = "URL",
        value_delimiter = ',',
        env = "PENSTOCK_SERVER",
        default_value = "http://127.0.0.1:7070"
    )]
    pub server: Vec<String>,
    /// Who calls, as tenant/user
    #[arg(long, global = true, value_name = "TENANT/USER", env = "PENSTOCK_USER")]
    pub user: Option<String>,
    /// File with the password; without it the environment variable PENSTOCK_PASSWORD is read
    #[arg(long, global = true, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Print one JSON object a line
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, list, show, change and delete tenants
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Add, list and delete users, and set passwords
    #[command(subcommand)]
    User(UserCommand),
    /// Create, list, show, change and delete groups
    #[command(subcommand)]
    Group(GroupCommand),
    /// List, show and disconnect the clients of a tenant
    #[command(subcommand)]
    Client(ClientCommand),
    /// Print a group's messages as they come, and acknowledge them
    #[command(after_help = CONSUME_EXAMPLES)]
    Consume(ConsumeArguments),
    /// Send a message to devices
    #[command(after_help = PUSH_EXAMPLES)]
    Push(PushArguments),
    /// Gateways, routers, links, health
    #[command(after_help = "Example:\n  penstockctl --user system/admin cluster --json")]
    Cluster,
    /// Ask a gateway, router or penstock whether it is ready; needs no user
    #[command(after_help = "Examples:\n  penstockctl ready\n  penstockctl ready router-0:9091 --timeout 1s")]
    Ready {
        /// Its admin listener
        #[arg(value_name = "HOST:PORT", default_value = "127.0.0.1:9090")]
        address: String,
        /// How long to wait for the answer
        #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
}

const CONSUME_EXAMPLES: &str = "Examples:
  penstockctl --user demo/app consume --group readings --filter 'sensors/+/temperature'
  penstockctl --user demo/app consume --group audit --start earliest --json --count 100 --timeout 5s

The group is created when it isn't there, with this filter and start. A group stays when its consumers go, and goes on
where they stopped.";

#[derive(Debug, Args)]
pub struct ConsumeArguments {
    /// The group to consume
    #[arg(long)]
    pub group: String,
    /// MQTT filter of the group; may be given several times; without any, every topic
    #[arg(long = "filter", value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Where a new group begins: latest (default), earliest, or a time such as 2026-11-22T18:00:00Z
    #[arg(long, value_parser = parse_start, value_name = "START")]
    pub start: Option<Start>,
    /// End after this many messages; exit code 1 if the end comes before
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End when no message has come for this long, such as 5s or 2min
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
    /// Acknowledge nothing: the messages come again to the next consumer
    #[arg(long)]
    pub no_ack: bool,
    /// A name that operators see
    #[arg(long, value_name = "NAME", default_value = "penstockctl")]
    pub consumer: String,
}

const PUSH_EXAMPLES: &str = "Examples:
  penstockctl --user demo/app push --topic commands/reboot --client sensor-1 --qos 1 --payload now --wait
  penstockctl --user demo/app push --topic news --payload-file news.json
  penstockctl --user demo/app push --topic commands/update --client sensor-1 --qos 1 --payload v2 --ttl 12h --idempotency-key update-7";

#[derive(Debug, Args)]
pub struct PushArguments {
    /// MQTT topic
    #[arg(long)]
    pub topic: String,
    /// Client identifier of the one device that gets it; without it, every client with a matching subscription
    #[arg(long)]
    pub client: Option<String>,
    /// QoS
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    pub qos: u8,
    #[command(flatten)]
    pub payload: Payload,
    /// Wait for the device's acknowledgement and print the receipt (QoS 1, one client)
    #[arg(long, requires = "client")]
    pub wait: bool,
    /// How long to wait for it
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub wait_timeout: Duration,
    /// How long it may wait for a device that is away or not subscribed yet, such as 1h (QoS 1, one client)
    #[arg(long, value_name = "TIME", requires = "client", value_parser = humantime::parse_duration)]
    pub ttl: Option<Duration>,
    /// Names this push: sent again with the same key within 10 minutes, it is not done again
    #[arg(long, value_name = "KEY", requires = "client")]
    pub idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Payload {
    /// The payload as text
    #[arg(long = "payload", value_name = "TEXT")]
    pub text: Option<String>,
    /// File with the payload; - for standard input
    #[arg(long = "payload-file", value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct LimitArguments {
    /// Connections at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: Option<u32>,
    /// Largest MQTT packet with all headers, such as 64KiB
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub packet: Option<u64>,
    /// What is kept for groups, such as 2GiB; beyond it their policies count
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub backlog: Option<u64>,
    /// How long a message is kept at most, whoever has not consumed it, seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub backlog_age: Option<u32>,
    /// Messages that may wait for a client with a persistent session; further ones are dropped
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub mailbox: Option<u32>,
    /// What may wait for such a client, such as 16MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub mailbox_bytes: Option<u64>,
    /// How long a message waits for such a client, seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub mailbox_age: Option<u32>,
    /// How long such a session lives after its last connection, seconds; at least 120
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(120..))]
    pub session_expiry: Option<u32>,
}
