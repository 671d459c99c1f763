//! What can be written on the command line, with its help. No behaviour: values are read by `settings`, which reports all
//! faults at once.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

const EXAMPLES: &str = "Examples:
  penstock-loadtest ingest --target mqtt://127.0.0.1:1883 --clients 100 --duration 10s
  penstock-loadtest ingest --user-template demo/device --password-file pw --messaging http://127.0.0.1:7070 \\
      --rate 1000/s --slo 'puback_p99<10ms,lost=0' --html report.html
  penstock-loadtest connect --clients 10000 --hold 30s
  penstock-loadtest run loadtest/scenarios/ramp.toml --json

Exit codes: 0 the ledger balances and the SLOs hold, 1 they don't, 2 wrong usage.";

/// Load on an MQTT endpoint, and the ledger's verdict: what was lost, duplicated, reordered or leaked.
#[derive(Debug, Parser)]
#[command(name = "penstock-loadtest", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Publish, as fast as PUBACKs come or at a rate
    #[command(after_help = INGEST)]
    Ingest {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        common: Common,
    },
    /// Push messages to devices through the messaging door; latency of receipts
    #[command(after_help = PUSH)]
    Push {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        common: Common,
    },
    /// Few publish, each of many subscribers gets everything
    #[command(after_help = FANOUT)]
    Fanout {
        /// Publishers; --clients are the subscribers
        #[arg(long, value_name = "N", default_value_t = 1)]
        publishers: u64,
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        common: Common,
    },
    /// Connect clients, some at a time or at a rate, and hold them idle
    #[command(after_help = CONNECT)]
    Connect {
        /// How long the connections are held, such as 30s
        #[arg(long, value_name = "TIME", default_value = "0s")]
        hold: String,
        /// Connections a second; without it, as fast as --connecting allows
        #[arg(long, value_name = "N/s")]
        rate: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// All clients connect at once; until all have their CONNACK
    #[command(after_help = STORM)]
    Storm {
        /// After a round all connections are cut, and come again at once
        #[arg(long, value_name = "N", default_value_t = 1)]
        rounds: u32,
        #[command(flatten)]
        common: Common,
    },
    /// Clients connect, and their identifiers again on the next target; until all old connections are closed
    #[command(after_help = TAKEOVER)]
    Takeover {
        #[command(flatten)]
        common: Common,
    },
    /// A scenario: phases with ramps, publishers, subscribers, pushes
    #[command(after_help = RUN)]
    Run {
        /// The scenario; see loadtest/scenarios for examples
        #[arg(value_name = "SCENARIO.toml")]
        scenario: PathBuf,
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        common: Common,
    },
}

const INGEST: &str = "Examples:
  penstock-loadtest ingest --clients 100 --inflight 16 --payload 64B --verify none --duration 8s --json
  penstock-loadtest ingest --rate 1000/s --slo 'puback_p99<5ms,lost=0'
  penstock-loadtest ingest --user-template demo/device --password-file pw --messaging http://127.0.0.1:7070
  penstock-loadtest ingest --user-template demo/device --password-file pw --messaging http://127.0.0.1:7070 \\
      --messages 500000 --duration 60s --backlog --consumers 8

Without --rate each publisher keeps --inflight messages without a PUBACK. With --rate, latencies count from the time at
which a message was due. A group (with --messaging) or a subscriber verifies every message.";
const PUSH: &str = "Examples:
  penstock-loadtest push --user-template demo/device --password-file pw --messaging http://127.0.0.1:7070 \\
      --clients 500 --rate 1000/s --slo 'receipt_p99<5ms'
  penstock-loadtest push --user-template demo/device --password-file pw --pushers 4 --inflight 256 \\
      --messaging http://127.0.0.1:7070,http://127.0.0.1:7071 --clients 500";
const FANOUT: &str = "Example:
  penstock-loadtest fanout --publishers 1 --clients 1000 --rate 100/s --slo 'one_way_p99<50ms,lost=0'";
const CONNECT: &str = "Example:
  penstock-loadtest connect --clients 50000 --source-ips 127.0.0.2-127.0.0.20 --hold 1m --json";
const STORM: &str = "Example:
  penstock-loadtest storm --clients 10000 --rounds 2 --slo 'seconds<5s,refused=0'";
const TAKEOVER: &str = "Example:
  penstock-loadtest takeover --clients 5000 --target mqtt://127.0.0.1:1883,mqtt://127.0.0.1:1884";
const RUN: &str = "Example:
  penstock-loadtest run loadtest/scenarios/ramp.toml --html report.html

A scenario:
  name = \"up and down\"        # payload, qos, inflight, topic, slo: as the flags, which win
  subscribers = 10             # each gets everything that is published
  devices = 50                 # pushes go to them in turn
  [[phases]]
  name = \"up\"
  duration = \"30s\"
  publishers = 100
  rate = \"0/s..5k/s\"           # or \"1000/s\", or \"max\"
  pushes = \"10/s\"
  measured = true";

/// Of those that send messages.
#[derive(Debug, Default, Args)]
pub(crate) struct Load {
    /// Messages a second, in total, such as 1000/s or 50k/s; without it, as fast as it goes
    #[arg(long, value_name = "N/s")]
    pub(crate) rate: Option<String>,
    /// 0 or 1 [default: 1]
    #[arg(long, value_name = "QOS")]
    pub(crate) qos: Option<String>,
    /// Size of a payload [default: 64B]
    #[arg(long, value_name = "SIZE")]
    pub(crate) payload: Option<String>,
    /// Messages of a publisher without a PUBACK; pushes of a pusher without a receipt [default: 16]
    #[arg(long, value_name = "N")]
    pub(crate) inflight: Option<String>,
    /// Topic; {i} is the publisher's number, {run} the run's [default: load/{run}/{i}]
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) topic: Option<String>,
    /// How long it is measured [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub(crate) duration: Option<String>,
    /// Load before that, which is not measured [default: 0s]
    #[arg(long, value_name = "TIME")]
    pub(crate) warmup: Option<String>,
    /// End after so many messages in total, or after --duration
    #[arg(long, value_name = "N")]
    pub(crate) messages: Option<String>,
    /// Who verifies: group, subscriber or none [default: group with --messaging, else subscriber]
    #[arg(long, value_name = "WHO")]
    pub(crate) verify: Option<String>,
    /// Consumers of the group that verifies, 1 to 256 [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) consumers: Option<String>,
    /// The group consumes only when all is stored: its throughput, in records/s, is told as "backlog"
    #[arg(long)]
    pub(crate) backlog: bool,
    /// Those who push, 1 to 1024, each with devices and a connection of its own, spread over --messaging [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) pushers: Option<String>,
    /// Penstock's gRPC doors: for the group that verifies, and for pushes
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub(crate) messaging: Vec<String>,
    /// User of the doors [default: <tenant>/app]
    #[arg(long, value_name = "TENANT/USER", value_delimiter = ',')]
    pub(crate) messaging_user: Vec<String>,
    /// File with its password [default: as --password-file]
    #[arg(long, value_name = "FILE")]
    pub(crate) messaging_password_file: Option<PathBuf>,
    /// At the end: wait so long for PUBACKs and readers [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub(crate) settle: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Brokers; clients are spread over them
    #[arg(
        long = "target",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "mqtt://127.0.0.1:1883"
    )]
    pub(crate) targets: Vec<String>,
    /// MQTT user name; {i} is the client's number; what is before / is the tenant; several are used in turn
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) user_template: Vec<String>,
    /// File with the users' password; without it the environment variable PENSTOCK_PASSWORD is read
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Clients [default: 100; connect, storm, takeover: 1000]
    #[arg(long, value_name = "N")]
    pub(crate) clients: Option<String>,
    /// Client identifiers; {i} is the client's number, {run} the run's
    #[arg(long, value_name = "TEMPLATE", default_value = "load-{run}-{i}")]
    pub(crate) client_id: String,
    /// Addresses that clients bind to in turn, such as 127.0.0.2-127.0.0.20
    #[arg(long, value_name = "A-B")]
    pub(crate) source_ips: Option<String>,
    /// Threads that carry clients [default: half of the cores]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<String>,
    /// Connections that are made at a time
    #[arg(long, value_name = "N", default_value = "200")]
    pub(crate) connecting: String,
    /// For one connection, and for all clients at the beginning
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub(crate) connect_timeout: String,
    /// MQTT keep-alive
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub(crate) keep_alive: String,
    /// Faults that are told and don't fail the run, such as duplicated
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub(crate) tolerate: Vec<String>,
    /// What must hold, such as 'puback_p99<10ms,lost=0,acked_rate>=50k/s'
    #[arg(long, value_name = "LIST")]
    pub(crate) slo: Option<String>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a report with plots that opens without network
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}
