//! The first start of a cluster: the operators' tenant `system` and its user `admin`. Create-only, so that any number of
//! routers may start at once and later starts leave it alone.

use penstock_common::{
    clock::Seams,
    name::{SYSTEM_TENANT, TenantName},
    registry::{Limits, Registry, RegistryError, Tenant},
    store::{Role, Store, StoreError, User},
};
use tracing::info;

use crate::{
    hashing::{HashError, hash_password},
    verify::PASSWORD_MIN,
};

/// The first operator.
pub const ADMIN: &str = "admin";

/// The cluster has no operator, and none could be made.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// There is no `system/admin` and no password to create it with.
    #[error(
        "there is no user system/admin yet: give its password with --admin-password-file or PENSTOCK_ADMIN_PASSWORD"
    )]
    NoPassword,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The password can't be used.
    #[error(transparent)]
    Password(#[from] HashError),
    /// Too short.
    #[error("the password of system/admin has fewer than {} characters", PASSWORD_MIN)]
    TooShort,
}

/// Makes sure that `system/admin` exists. True: it was created now, with this password. Hashes on the caller's thread.
pub async fn bootstrap_admin(
    store: &dyn Store,
    registry: &dyn Registry,
    seams: &Seams,
    password: Option<&str>,
) -> Result<bool, BootstrapError> {
    let system = TenantName::new(SYSTEM_TENANT).map_err(|_| RegistryError::Missing(SYSTEM_TENANT.into()))?;
    let tenant = Tenant {
        partitions: 1,
        limits: Limits::default(),
        isolation: Default::default(),
        users_version: 1,
        created_at: seams.now_ms(),
    };
    match registry.create_tenant(&system, &tenant).await {
        Ok(()) | Err(RegistryError::Exists(_)) => {}
        Err(error) => return Err(error.into()),
    }
    if store.user(&system, ADMIN).await?.is_some() {
        return Ok(false);
    }
    let password = password.ok_or(BootstrapError::NoPassword)?;
    if password.chars().count() < PASSWORD_MIN {
        return Err(BootstrapError::TooShort);
    }
    let verifier = hash_password(password, seams)?;
    let created =
        store.put_user(&system, &User { name: ADMIN.to_owned(), role: Role::Admin, verifier }, true).await?;
    if created {
        info!("created the user system/admin");
    }
    Ok(created)
}
