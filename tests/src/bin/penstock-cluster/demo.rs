//! Tenant `demo`, its users, and the passwords of all: drawn at the first start of a directory, kept in its file
//! `credentials`.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use penstock_client::{CallError, Client, Limits};
use penstock_common::clock::Seams;
use penstock_router::hashing::generate_secret;

const ADMIN: &str = "system/admin";
const INSIDE: &str = "cluster/secret";
/// Users of tenant `demo` with their roles.
const USERS: [(&str, &str); 2] = [("device", "device"), ("app", "service")];

/// Passwords by user.
pub struct Passwords(BTreeMap<String, String>);

impl Passwords {
    /// As in the file of the directory, or new ones, written there.
    pub fn of(dir: &Path) -> Result<Self> {
        let file = dir.join("credentials");
        let wrong = || format!("cannot use {}", file.display());
        match fs::read_to_string(&file) {
            Ok(text) => {
                let pairs = text.lines().filter_map(|line| line.split_once(' '));
                Ok(Self(pairs.map(|(user, password)| (user.to_owned(), password.to_owned())).collect()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let users = [ADMIN, "demo/device", "demo/app", INSIDE];
                let drawn = users.map(|user| (user.to_owned(), generate_secret(&Seams::real())));
                let text: String =
                    drawn.iter().map(|(user, password)| format!("{user} {password}\n")).collect();
                write(&file, &text).with_context(wrong)?;
                Ok(Self(drawn.into_iter().collect()))
            }
            Err(error) => Err(error).with_context(wrong),
        }
    }

    /// Of `demo/device`, `demo/app` and so on.
    pub fn password(&self, user: &str) -> &str {
        self.0.get(user).map_or("", String::as_str)
    }

    /// Of `system/admin`.
    pub fn admin(&self) -> &str {
        self.password(ADMIN)
    }

    /// A file with the password of `demo/app`, for programs that are told where it is.
    pub fn app_file(&self, dir: &Path) -> Result<PathBuf> {
        let file = dir.join("app.password");
        write(&file, self.password("demo/app"))
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// The file from which gateways and routers read what they show each other.
    pub fn cluster_secret(&self, dir: &Path) -> Result<PathBuf> {
        let file = dir.join("cluster-secret");
        write(&file, self.password(INSIDE)).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }
}

/// For its owner only.
fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    out.write_all(text.as_bytes())
}

/// Makes the tenant and its users, unless they are there from an earlier start.
pub async fn create(servers: &[String], passwords: &Passwords) -> Result<()> {
    let builder = servers.iter().fold(Client::builder(), |builder, server| builder.server(server.clone()));
    let admin = builder.credentials(ADMIN, passwords.admin()).connect_lazy()?.admin();
    let limits = Limits { connections: 50_000, ..Limits::default() };
    match admin.create_tenant("demo", 4, limits).await {
        Ok(_) | Err(CallError::Exists(_)) => {}
        Err(error) => return Err(error).context("cannot make tenant demo"),
    }
    for (user, role) in USERS {
        let password = passwords.password(&format!("demo/{user}"));
        match admin.add_user("demo", user, role, password).await {
            Ok(_) | Err(CallError::Exists(_)) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot make user demo/{user}")),
        }
    }
    Ok(())
}
