//! `penstockctl user …`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use penstock_client::{Admin, CallError, User};
use serde::Serialize;

use crate::{credentials, failure::Failure, output::Output};

/// What a user may do.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Role {
    /// MQTT
    Device,
    /// The doors of its tenant
    Service,
    /// The users of its tenant, too
    TenantAdmin,
    /// Everything; tenant system only
    Admin,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Service => "service",
            Self::TenantAdmin => "tenant-admin",
            Self::Admin => "admin",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Add a user
    #[command(
        after_help = "Example:\n  penstockctl --user system/admin user add acme/sensors --role device --new-password-file sensors.password"
    )]
    Add {
        /// The new user
        #[arg(value_name = "TENANT/USER")]
        name: String,
        /// What it may do
        #[arg(long)]
        role: Role,
        /// File with its password
        #[arg(long, value_name = "FILE")]
        new_password_file: PathBuf,
        /// Leave a user of this role as it is, password included, when it is there already
        #[arg(long)]
        if_not_exists: bool,
    },
    /// List a tenant's users
    #[command(after_help = "Example:\n  penstockctl --user system/admin user list acme")]
    List {
        /// The tenant
        tenant: String,
    },
    /// Delete a user
    #[command(after_help = "Example:\n  penstockctl --user system/admin user delete acme/sensors")]
    Delete {
        /// Which
        #[arg(value_name = "TENANT/USER")]
        name: String,
    },
    /// Give a user a new password
    #[command(
        after_help = "Example:\n  penstockctl --user system/admin user set-password acme/sensors --new-password-file sensors.password"
    )]
    SetPassword {
        /// Which
        #[arg(value_name = "TENANT/USER")]
        name: String,
        /// File with the new password
        #[arg(long, value_name = "FILE")]
        new_password_file: PathBuf,
    },
}

#[derive(Serialize)]
struct Shown {
    tenant: String,
    user: String,
    role: String,
}

impl Shown {
    fn new(user: User) -> Self {
        Self { tenant: user.tenant, user: user.name, role: user.role }
    }

    fn row(&self) -> Vec<String> {
        vec![format!("{}/{}", self.tenant, self.user), self.role.clone()]
    }
}

fn split(name: &str) -> Result<(&str, &str), Failure> {
    let parts = name.split_once('/').filter(|(tenant, user)| !tenant.is_empty() && !user.is_empty());
    parts.ok_or_else(|| Failure::Usage(format!("a user is named as tenant/user, not as {name:?}")))
}

/// A user that is there already, if its role is this one.
async fn present(admin: &Admin, tenant: &str, name: &str, role: Role) -> Result<User, Failure> {
    let found = admin.users(tenant).await?.into_iter().find(|user| user.name == name);
    let gone = || Failure::Failed(format!("{tenant}/{name} is being deleted: try again"));
    let found = found.ok_or_else(gone)?;
    if found.role == role.name() {
        return Ok(found);
    }
    Err(Failure::Failed(format!("{tenant}/{name} exists already, with role {}", found.role)))
}

/// Runs one of them.
pub async fn run(command: UserCommand, admin: &Admin, output: Output) -> Result<(), Failure> {
    let users = match command {
        UserCommand::Add { name, role, new_password_file, if_not_exists } => {
            let (tenant, user) = split(&name)?;
            let password = credentials::read(&new_password_file, "--new-password-file")?;
            match admin.add_user(tenant, user, role.name(), &password).await {
                Err(CallError::Exists(_)) if if_not_exists => vec![present(admin, tenant, user, role).await?],
                added => vec![added?],
            }
        }
        UserCommand::List { tenant } => admin.users(&tenant).await?,
        UserCommand::SetPassword { name, new_password_file } => {
            let (tenant, user) = split(&name)?;
            let password = credentials::read(&new_password_file, "--new-password-file")?;
            vec![admin.set_password(tenant, user, &password).await?]
        }
        UserCommand::Delete { name } => {
            let (tenant, user) = split(&name)?;
            admin.delete_user(tenant, user).await?;
            return output.done(&format!("deleted user {name}"));
        }
    };
    let shown: Vec<Shown> = users.into_iter().map(Shown::new).collect();
    output.many(&shown, &["USER", "ROLE"], Shown::row)
}
