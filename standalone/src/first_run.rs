//! The first start on a data directory: tenant `demo` with its two users, and the administrator.
//!
//! Order: passwords are written and synced, then everything is created, then the mark that the first run is over. A crash in
//! between is healed by the next start, which does all of it again with the passwords that are in the file. After the mark
//! nothing is ever created again: what an operator deletes stays deleted.

use std::{io, path::Path};

use penstock_common::{
    clock::Seams,
    name::{SYSTEM_TENANT, TenantName},
    registry::{Isolation, Limits, Registry, RegistryError, Tenant},
    secret::Secret,
    store::{Role, Store, StoreError, User},
};
use penstock_router::{
    bootstrap::{BootstrapError, bootstrap_admin},
    hashing::{HashError, hash_password},
};

use crate::credentials::{self, Credentials, CredentialsError};

/// The tenant for trying things out.
pub const DEMO: &str = "demo";
/// Its device.
pub const DEVICE: &str = "demo/device";
/// Its microservice.
pub const APP: &str = "demo/app";
/// The administrator.
pub const ADMIN: &str = "system/admin";
/// Partitions of tenant `demo`.
const PARTITIONS: u32 = 4;

/// What the first run is told.
pub struct Wishes {
    /// Create tenant `demo`.
    pub demo: bool,
    /// Password of both its users, instead of random ones.
    pub demo_password: Option<Secret>,
    /// Password of the administrator, instead of a random one.
    pub admin_password: Option<Secret>,
}

/// The first run could not be completed; the next start tries again.
#[derive(Debug, thiserror::Error)]
pub enum FirstRunError {
    /// The file of passwords.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The mark.
    #[error("cannot write to the data directory: {0}")]
    Mark(#[from] io::Error),
    /// A name is no name.
    #[error(transparent)]
    Name(#[from] penstock_common::name::BadTenantName),
    /// The tenant.
    #[error("cannot create tenant demo: {0}")]
    Tenant(#[from] RegistryError),
    /// A user.
    #[error("cannot create a user: {0}")]
    User(#[from] StoreError),
    /// The administrator.
    #[error(transparent)]
    Admin(#[from] BootstrapError),
    /// A password can't be used.
    #[error("a given password can't be used: {0}")]
    Password(#[from] HashError),
}

/// What the start found or made.
pub struct FirstRun {
    /// This was it.
    pub now: bool,
    /// As in the file; empty when someone has taken the file away.
    pub credentials: Credentials,
}

/// Completes the first run unless it is over.
pub async fn complete(
    dir: &Path,
    wishes: &Wishes,
    registry: &dyn Registry,
    store: &dyn Store,
    seams: &Seams,
) -> Result<FirstRun, FirstRunError> {
    let found = Credentials::read(dir)?;
    let mark = dir.join("first-run-done");
    if mark.exists() {
        return Ok(FirstRun { now: false, credentials: found.unwrap_or_default() });
    }
    let mut credentials = found.unwrap_or_default();
    credentials.provide(ADMIN, wishes.admin_password.as_ref(), seams);
    if wishes.demo {
        credentials.provide(DEVICE, wishes.demo_password.as_ref(), seams);
        credentials.provide(APP, wishes.demo_password.as_ref(), seams);
    }
    credentials.write(dir)?;
    create(&credentials, wishes.demo, registry, store, seams).await?;
    credentials::replace(dir, &mark, "Remove this file and penstock does its first run again.\n")?;
    Ok(FirstRun { now: true, credentials })
}

async fn create(
    credentials: &Credentials,
    demo: bool,
    registry: &dyn Registry,
    store: &dyn Store,
    seams: &Seams,
) -> Result<(), FirstRunError> {
    if demo {
        let tenant = Tenant {
            partitions: PARTITIONS,
            limits: Limits::default(),
            isolation: Isolation::Tenant,
            users_version: 1,
            created_at: seams.now_ms(),
        };
        match registry.create_tenant(&TenantName::new(DEMO)?, &tenant).await {
            Ok(()) | Err(RegistryError::Exists(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Also makes the operators' tenant.
    let admin = credentials.password(ADMIN).map(Secret::expose);
    bootstrap_admin(store, registry, seams, admin).await?;
    for (name, password) in credentials.users() {
        let role = match name {
            ADMIN => Role::Admin,
            DEVICE if demo => Role::Device,
            APP if demo => Role::Service,
            _ => continue,
        };
        let (tenant, user) = name.split_once('/').unwrap_or((SYSTEM_TENANT, name));
        let verifier = hash_password(password.expose(), seams)?;
        let user = User { name: user.to_owned(), role, verifier };
        // Over one that an interrupted first run has left: the file is what people have seen.
        store.put_user(&TenantName::new(tenant)?, &user, false).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
