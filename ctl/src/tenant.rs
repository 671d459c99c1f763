//! `penstockctl tenant …`.

use clap::{Subcommand, ValueEnum};
use penstock_client::{Admin, CallError, Limits, Tenant};
use serde::Serialize;

use crate::{cli::LimitArguments, failure::Failure, output::Output, quantity::show_millis};

/// Who receives what clients publish, beside groups.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Isolation {
    /// All clients of the tenant that are subscribed
    Tenant,
    /// Nobody: clients receive only pushes
    Device,
}

#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Create a tenant
    #[command(
        after_help = "Example:\n  penstockctl --user system/admin tenant create acme --connections 5000"
    )]
    Create {
        /// 1 to 32 of a-z, 0-9 and -
        name: String,
        /// Partitions, 1 to 64, fixed for ever; 4 unless told otherwise
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
        partitions: Option<u32>,
        #[command(flatten)]
        limits: LimitArguments,
        /// Who receives what clients publish, beside groups: all of the tenant that are subscribed, or nobody, so that clients
        /// receive only pushes; fixed for ever
        #[arg(long, value_enum, default_value = "tenant")]
        isolation: Isolation,
        /// Leave a tenant as it is when it is there already
        #[arg(long)]
        if_not_exists: bool,
    },
    /// List all tenants
    #[command(after_help = "Example:\n  penstockctl --user system/admin tenant list --json")]
    List,
    /// Show one tenant
    #[command(after_help = "Example:\n  penstockctl --user system/admin tenant show acme")]
    Show {
        /// Its name
        name: String,
    },
    /// Change a tenant's limits
    #[command(after_help = "Example:\n  penstockctl --user system/admin tenant set acme --backlog 4GiB")]
    Set {
        /// Its name
        name: String,
        #[command(flatten)]
        limits: LimitArguments,
    },
    /// Delete a tenant with its users, groups and all that is stored
    #[command(after_help = "Example:\n  penstockctl --user system/admin tenant delete acme")]
    Delete {
        /// Its name
        name: String,
    },
}

#[derive(Serialize)]
struct Shown {
    name: String,
    partitions: u32,
    connections: u32,
    packet_bytes: u32,
    backlog_bytes: u64,
    backlog_seconds: u32,
    mailbox_messages: u32,
    mailbox_bytes: u64,
    mailbox_seconds: u32,
    session_seconds: u32,
    isolation: String,
    created_at: String,
}

impl Shown {
    fn new(tenant: Tenant) -> Self {
        let limits = tenant.limits.unwrap_or_default();
        Self {
            name: tenant.name,
            partitions: tenant.partitions,
            connections: limits.connections,
            packet_bytes: limits.packet_bytes,
            backlog_bytes: limits.backlog_bytes,
            backlog_seconds: limits.backlog_seconds,
            mailbox_messages: limits.mailbox_messages,
            mailbox_bytes: limits.mailbox_bytes,
            mailbox_seconds: limits.mailbox_seconds,
            session_seconds: limits.session_seconds,
            isolation: tenant.isolation,
            created_at: show_millis(tenant.created_at_ms),
        }
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.partitions.to_string(),
            self.connections.to_string(),
            self.packet_bytes.to_string(),
            self.backlog_bytes.to_string(),
            self.created_at.clone(),
        ]
    }
}

const HEADER: [&str; 6] = ["NAME", "PARTITIONS", "CONNECTIONS", "PACKET", "BACKLOG", "CREATED"];

fn limits(arguments: &LimitArguments) -> Result<Limits, Failure> {
    let packet = arguments.packet.unwrap_or(0);
    let packet_bytes = u32::try_from(packet)
        .ok()
        .filter(|size| *size <= 1_048_576)
        .ok_or_else(|| Failure::Usage("--packet: a packet is at most 1MiB".into()))?;
    Ok(Limits {
        connections: arguments.connections.unwrap_or(0),
        packet_bytes,
        backlog_bytes: arguments.backlog.unwrap_or(0),
        backlog_seconds: arguments.backlog_age.unwrap_or(0),
        mailbox_messages: arguments.mailbox.unwrap_or(0),
        mailbox_bytes: arguments.mailbox_bytes.unwrap_or(0),
        mailbox_seconds: arguments.mailbox_age.unwrap_or(0),
        session_seconds: arguments.session_expiry.unwrap_or(0),
    })
}

/// Runs one of them.
pub async fn run(command: TenantCommand, admin: &Admin, output: Output) -> Result<(), Failure> {
    let tenants = match command {
        TenantCommand::Create { name, partitions, limits: given, isolation, if_not_exists } => {
            let (partitions, limits) = (partitions.unwrap_or(0), limits(&given)?);
            let created = match isolation {
                Isolation::Tenant => admin.create_tenant(&name, partitions, limits).await,
                Isolation::Device => admin.create_isolated_tenant(&name, partitions, limits).await,
            };
            match created {
                Err(CallError::Exists(_)) if if_not_exists => vec![admin.tenant(&name).await?],
                created => vec![created?],
            }
        }
        TenantCommand::List => admin.tenants().await?,
        TenantCommand::Show { name } => vec![admin.tenant(&name).await?],
        TenantCommand::Set { name, limits: given } => {
            let limits = limits(&given)?;
            if limits == Limits::default() {
                return Err(Failure::Usage(
                    "tenant set: what is to change? See penstockctl tenant set --help".into(),
                ));
            }
            vec![admin.set_limits(&name, limits).await?]
        }
        TenantCommand::Delete { name } => {
            admin.delete_tenant(&name).await?;
            return output.done(&format!("deleted tenant {name}"));
        }
    };
    let shown: Vec<Shown> = tenants.into_iter().map(Shown::new).collect();
    output.many(&shown, &HEADER, Shown::row)
}
