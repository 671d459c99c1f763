//! Who calls the door, and what the role allows. Basic credentials only; which user it is, is [`crate::verify`]'s job.

use std::{net::SocketAddr, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use penstock_common::{
    name::{SYSTEM_TENANT, TenantName},
    store::Role,
};
use tonic::{Request, Status, transport::server::TcpConnectInfo};

use crate::verify::{Verdict, Verifier};

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user's tenant: the tenant of a messaging call.
    pub tenant: TenantName,
    /// User name within the tenant.
    pub user: String,
    /// What it may do.
    pub role: Role,
}

/// Settings of the door's authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DoorConfig {
    /// Take passwords over connections without TLS also off loopback.
    pub plain_passwords: bool,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Auth {
    verifier: Arc<Verifier>,
    config: DoorConfig,
}

impl Auth {
    /// Asks this verifier.
    pub fn new(verifier: Arc<Verifier>, config: DoorConfig) -> Self {
        Self { verifier, config }
    }

    /// A caller of the Messaging service: role service or tenant-admin.
    pub async fn messaging<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        messaging(self.caller(request).await?)
    }

    /// The same over HTTP, with the value of the header `authorization`, and the addresses of the connection.
    pub async fn messaging_over_http(
        &self,
        authorization: Option<&str>,
        own: SocketAddr,
        peer: SocketAddr,
    ) -> Result<Caller, Status> {
        messaging(self.known(authorization, Some(own), Some(peer)).await?)
    }

    /// A caller of the Admin service: role tenant-admin or admin.
    pub async fn admin<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = self.caller(request).await?;
        match caller.role {
            Role::Admin if caller.tenant.as_str() == SYSTEM_TENANT => Ok(caller),
            Role::TenantAdmin => Ok(caller),
            _ => Err(refused("administration needs a user with role tenant-admin or admin")),
        }
    }

    async fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let info = request.extensions().get::<TcpConnectInfo>();
        let (own, peer) = (info.and_then(|info| info.local_addr), info.and_then(|info| info.remote_addr));
        let authorization = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        self.known(authorization, own, peer).await
    }

    async fn known(
        &self,
        authorization: Option<&str>,
        own: Option<SocketAddr>,
        peer: Option<SocketAddr>,
    ) -> Result<Caller, Status> {
        let local = own.is_some_and(|own| own.ip().is_loopback());
        if !local && !self.config.plain_passwords {
            return Err(Status::unauthenticated("passwords are not taken without TLS off loopback"));
        }
        let (tenant, user, password) = authorization.and_then(basic).ok_or_else(|| {
            Status::unauthenticated("send authorization: Basic base64(tenant/user:password)")
        })?;
        let address = peer.map(|peer| peer.ip().to_string()).unwrap_or_default();
        match self.verifier.verify(&tenant, &user, password.as_bytes(), &address).await {
            Verdict::Allowed { role, .. } => Ok(Caller { tenant, user, role }),
            Verdict::Denied => Err(Status::unauthenticated("the tenant, the user or the password is wrong")),
            Verdict::Busy => Err(super::status::of_pool(crate::hashing::PoolError::Busy)),
            Verdict::Unavailable => Err(Status::unavailable("the store does not answer: try again")),
        }
    }
}

fn messaging(caller: Caller) -> Result<Caller, Status> {
    match caller.role {
        Role::Service | Role::TenantAdmin => Ok(caller),
        Role::Device => Err(refused("role device may only use MQTT: use a user with role service")),
        Role::Admin => {
            Err(refused("system/admin has no messages: use a user of the tenant with role service"))
        }
    }
}

fn refused(reason: &str) -> Status {
    Status::permission_denied(reason)
}

fn basic(value: &str) -> Option<(TenantName, String, String)> {
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    let (tenant, user) = name.split_once('/')?;
    Some((TenantName::new(tenant).ok()?, user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_name_a_tenant_and_a_user() {
        let read = |text: &str| {
            basic(&format!("Basic {}", STANDARD.encode(text)))
                .map(|(tenant, user, password)| format!("{tenant}|{user}|{password}"))
        };
        assert_eq!(read("demo/app:a:b/c").as_deref(), Some("demo|app|a:b/c"));
        assert_eq!(read("demo/a/b:x").as_deref(), Some("demo|a/b|x"));
        for bad in ["demo:x", "demo/app", "DEMO/app:x", "/app:x", ""] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(basic("Bearer x"), None);
    }
}
