//! The Admin service: tenants and users. `system/admin` may do all of it, a tenant-admin manages the users of its tenant and
//! sees its tenant. Passwords are hashed by [`crate::verify`] and never shown.

use std::sync::Arc;

use penstock_common::{
    name::{PARTITIONS_MAX, SYSTEM_TENANT, TenantName},
    registry::{self, Isolation, RegistryError},
    store::{self, Role},
};
use penstock_proto::admin::{
    AddUserRequest, ClientStatus, ClusterRequest, ClusterResponse, CreateTenantRequest, DeleteTenantRequest,
    DeleteTenantResponse, DeleteUserRequest, DeleteUserResponse, DisconnectClientRequest, Limits,
    ListClientsRequest, ListClientsResponse, ListTenantsRequest, ListTenantsResponse, ListUsersRequest,
    ListUsersResponse, SetPasswordRequest, SetTenantRequest, ShowClientRequest, ShowTenantRequest, Tenant,
    User,
    admin_server::{Admin, AdminServer},
};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::{
    Inside,
    auth::{Auth, Caller},
    clients, cluster, status,
};
use crate::verify::{PASSWORD_MAX, PASSWORD_MIN, USER_MAX, Verifier};

/// Partitions of a tenant that doesn't say.
const PARTITIONS: u32 = 4;
/// Largest packet that a tenant may be allowed, bytes.
const PACKET_MOST: u32 = 1_048_576;
/// Smallest limit that lets anything through, bytes.
const PACKET_LEAST: u32 = 64;

/// See the module.
pub struct AdminService {
    inside: Inside,
    auth: Auth,
    verifier: Arc<Verifier>,
}

impl AdminService {
    /// The service, to be added to the door's port.
    pub fn server(inside: Inside, auth: Auth, verifier: Arc<Verifier>) -> AdminServer<Self> {
        AdminServer::new(Self { inside, auth, verifier })
    }

    async fn operator<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = self.auth.admin(request).await?;
        if caller.role == Role::Admin { Ok(caller) } else { Err(not_yours()) }
    }

    /// An operator, or the tenant's own administrator.
    async fn of_tenant<T>(&self, request: &Request<T>, tenant: &str) -> Result<(Caller, TenantName), Status> {
        let caller = self.auth.admin(request).await?;
        if caller.role != Role::Admin && caller.tenant.as_str() != tenant {
            return Err(not_yours());
        }
        Ok((caller, tenant_name(tenant)?))
    }

    async fn changed(&self, tenant: &TenantName) -> Result<(), Status> {
        self.inside.registry.raise_users_version(tenant).await.map_err(|error| {
            warn!(%tenant, %error, "a user was changed, and old verdicts can't be recalled");
            Status::unavailable(
                "the user is changed, but the old password may work for 5 minutes more: try again",
            )
        })
    }

    async fn hash(&self, tenant: &TenantName, password: &str) -> Result<String, Status> {
        if password.chars().count() < PASSWORD_MIN || password.len() > PASSWORD_MAX {
            return Err(Status::invalid_argument(format!(
                "password: at least {PASSWORD_MIN} characters, at most {PASSWORD_MAX} bytes"
            )));
        }
        if !crate::hashing::usable(password) {
            return Err(status::of_hash(crate::hashing::HashError::Prefix));
        }
        self.verifier.hash(tenant, password).await.map_err(status::of_pool)
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_tenant(&self, request: Request<CreateTenantRequest>) -> Result<Response<Tenant>, Status> {
        self.operator(&request).await?;
        let wanted = request.into_inner();
        let name = tenant_name(&wanted.name)?;
        refuse_system(&name)?;
        let partitions = if wanted.partitions == 0 { PARTITIONS } else { wanted.partitions };
        if partitions > PARTITIONS_MAX {
            return Err(Status::invalid_argument(format!("partitions: at most {PARTITIONS_MAX}")));
        }
        let limits = limits(wanted.limits, registry::Limits::default())?;
        let isolation = isolation(&wanted.isolation)?;
        let created_at = self.inside.seams.now_ms();
        let tenant = registry::Tenant { partitions, limits, isolation, users_version: 1, created_at };
        self.inside
            .registry
            .create_tenant(&name, &tenant)
            .await
            .map_err(|error| status::of_registry(&error))?;
        info!(tenant = %name, partitions, "created a tenant");
        Ok(Response::new(to_proto(&name, &tenant)))
    }

    async fn list_tenants(
        &self,
        request: Request<ListTenantsRequest>,
    ) -> Result<Response<ListTenantsResponse>, Status> {
        self.operator(&request).await?;
        let definitions = self.inside.registry.definitions().borrow().clone();
        let devices = definitions.tenants.values().filter(|tenant| tenant.name.as_str() != SYSTEM_TENANT);
        let tenants = devices.map(|tenant| to_proto(&tenant.name, &tenant.tenant)).collect();
        Ok(Response::new(ListTenantsResponse { tenants }))
    }

    async fn show_tenant(&self, request: Request<ShowTenantRequest>) -> Result<Response<Tenant>, Status> {
        let (_, name) = self.of_tenant(&request, &request.get_ref().name).await?;
        let tenant = self.inside.tenant(&name)?;
        Ok(Response::new(to_proto(&name, &tenant.tenant)))
    }

    async fn set_tenant(&self, request: Request<SetTenantRequest>) -> Result<Response<Tenant>, Status> {
        self.operator(&request).await?;
        let wanted = request.into_inner();
        let name = tenant_name(&wanted.name)?;
        refuse_system(&name)?;
        let limits = limits(wanted.limits, self.inside.tenant(&name)?.tenant.limits)?;
        let set = self.inside.registry.set_limits(&name, limits).await;
        set.map(|tenant| Response::new(to_proto(&name, &tenant))).map_err(|error| status::of_registry(&error))
    }

    async fn delete_tenant(
        &self,
        request: Request<DeleteTenantRequest>,
    ) -> Result<Response<DeleteTenantResponse>, Status> {
        self.operator(&request).await?;
        let name = tenant_name(&request.get_ref().name)?;
        refuse_system(&name)?;
        let tenant = self.inside.tenant(&name);
        match self.inside.registry.delete_tenant(&name).await {
            Ok(()) | Err(RegistryError::Missing(_)) => {}
            Err(error) => return Err(status::of_registry(&error)),
        }
        // An earlier deletion may have died here: then the definition no longer says how many partitions there were.
        let partitions = tenant.as_ref().map_or(PARTITIONS_MAX, |tenant| tenant.tenant.partitions);
        let deleted = self.inside.store.delete_tenant(&name, partitions).await;
        deleted.map_err(|error| status::of_store(&error))?;
        tenant?;
        info!(tenant = %name, "deleted a tenant");
        Ok(Response::new(DeleteTenantResponse {}))
    }

    async fn add_user(&self, request: Request<AddUserRequest>) -> Result<Response<User>, Status> {
        let (_, tenant) = self.of_tenant(&request, &request.get_ref().tenant).await?;
        let wanted = request.into_inner();
        self.inside.tenant(&tenant)?;
        let role = role(&wanted.role, &tenant)?;
        user_name(&wanted.name)?;
        let verifier = self.hash(&tenant, &wanted.password).await?;
        let user = store::User { name: wanted.name, role, verifier };
        let created = self.inside.store.put_user(&tenant, &user, true).await;
        if !created.map_err(|error| status::of_store(&error))? {
            return Err(Status::already_exists(
                "there is a user of this name: set its password, or delete it first",
            ));
        }
        self.changed(&tenant).await?;
        Ok(Response::new(user_to_proto(&tenant, &user)))
    }

    async fn list_users(
        &self,
        request: Request<ListUsersRequest>,
    ) -> Result<Response<ListUsersResponse>, Status> {
        let (_, tenant) = self.of_tenant(&request, &request.get_ref().tenant).await?;
        self.inside.tenant(&tenant)?;
        let users = self.inside.store.users(&tenant).await.map_err(|error| status::of_store(&error))?;
        let users = users.iter().map(|user| user_to_proto(&tenant, user)).collect();
        Ok(Response::new(ListUsersResponse { users }))
    }

    async fn set_password(&self, request: Request<SetPasswordRequest>) -> Result<Response<User>, Status> {
        let (_, tenant) = self.of_tenant(&request, &request.get_ref().tenant).await?;
        let wanted = request.into_inner();
        let user = self.inside.store.user(&tenant, &wanted.name).await;
        let mut user = user.map_err(|error| status::of_store(&error))?.ok_or_else(no_user)?;
        user.verifier = self.hash(&tenant, &wanted.password).await?;
        self.inside.store.put_user(&tenant, &user, false).await.map_err(|error| status::of_store(&error))?;
        self.changed(&tenant).await?;
        Ok(Response::new(user_to_proto(&tenant, &user)))
    }

    async fn delete_user(
        &self,
        request: Request<DeleteUserRequest>,
    ) -> Result<Response<DeleteUserResponse>, Status> {
        let (caller, tenant) = self.of_tenant(&request, &request.get_ref().tenant).await?;
        let name = request.into_inner().name;
        if caller.tenant == tenant && caller.user == name {
            return Err(Status::failed_precondition(
                "you can't delete yourself: let another administrator do it",
            ));
        }
        let deleted = self.inside.store.delete_user(&tenant, &name).await;
        if !deleted.map_err(|error| status::of_store(&error))? {
            return Err(no_user());
        }
        self.changed(&tenant).await?;
        Ok(Response::new(DeleteUserResponse {}))
    }

    async fn list_clients(
        &self,
        request: Request<ListClientsRequest>,
    ) -> Result<Response<ListClientsResponse>, Status> {
        let (_, tenant) = self.of_tenant(&request, &request.get_ref().tenant).await?;
        clients::list(&self.inside, &tenant, request.into_inner()).await.map(Response::new)
    }

    async fn show_client(
        &self,
        request: Request<ShowClientRequest>,
    ) -> Result<Response<ClientStatus>, Status> {
        let (_, tenant) = self.of_tenant(&request, &request.get_ref().tenant).await?;
        clients::show(&self.inside, &tenant, &request.get_ref().client, false).await.map(Response::new)
    }

    async fn disconnect_client(
        &self,
        request: Request<DisconnectClientRequest>,
    ) -> Result<Response<ClientStatus>, Status> {
        let (caller, tenant) = self.of_tenant(&request, &request.get_ref().tenant).await?;
        let client = &request.get_ref().client;
        let closed = clients::show(&self.inside, &tenant, client, true).await?;
        info!(%tenant, client, by = %format!("{}/{}", caller.tenant, caller.user), "disconnected a client");
        Ok(Response::new(closed))
    }

    async fn cluster(&self, request: Request<ClusterRequest>) -> Result<Response<ClusterResponse>, Status> {
        self.operator(&request).await?;
        Ok(Response::new(cluster::show(&self.inside)))
    }
}

fn not_yours() -> Status {
    Status::permission_denied("only system/admin may do this")
}

fn no_user() -> Status {
    Status::not_found("there is no user of this name")
}

fn tenant_name(name: &str) -> Result<TenantName, Status> {
    TenantName::new(name).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn refuse_system(name: &TenantName) -> Result<(), Status> {
    if name.as_str() == SYSTEM_TENANT {
        return Err(Status::invalid_argument("tenant system is reserved: choose another name"));
    }
    Ok(())
}

fn user_name(name: &str) -> Result<(), Status> {
    // A colon ends the name in Basic credentials.
    let fits = (1..=USER_MAX).contains(&name.len()) && !name.chars().any(|c| c.is_control() || c == ':');
    let refused = || Status::invalid_argument(format!("name: 1 to {USER_MAX} bytes, printable, without ':'"));
    if fits { Ok(()) } else { Err(refused()) }
}

fn role(name: &str, tenant: &TenantName) -> Result<Role, Status> {
    let system = tenant.as_str() == SYSTEM_TENANT;
    match name {
        "device" if !system => Ok(Role::Device),
        "service" if !system => Ok(Role::Service),
        "tenant-admin" if !system => Ok(Role::TenantAdmin),
        "admin" if system => Ok(Role::Admin),
        "device" | "service" | "tenant-admin" => {
            Err(Status::invalid_argument("role: tenant system has role admin only"))
        }
        "admin" => Err(Status::invalid_argument("role: admin is for tenant system only")),
        _ => Err(Status::invalid_argument("role: device, service, tenant-admin or admin")),
    }
}

/// The name of a role in the contract.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Device => "device",
        Role::Service => "service",
        Role::TenantAdmin => "tenant-admin",
        Role::Admin => "admin",
    }
}

fn isolation(name: &str) -> Result<Isolation, Status> {
    match name {
        "" | "tenant" => Ok(Isolation::Tenant),
        "device" => Ok(Isolation::Device),
        _ => Err(Status::invalid_argument("isolation: tenant or device")),
    }
}

fn isolation_name(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Tenant => "tenant",
        Isolation::Device => "device",
    }
}

/// 0 leaves a limit as it is.
fn limits(wanted: Option<Limits>, present: registry::Limits) -> Result<registry::Limits, Status> {
    let wanted = wanted.unwrap_or_default();
    if wanted.packet_bytes != 0 && !(PACKET_LEAST..=PACKET_MOST).contains(&wanted.packet_bytes) {
        let range = format!("packet_bytes: {PACKET_LEAST} to {PACKET_MOST}");
        return Err(Status::invalid_argument(range));
    }
    let or = |wanted: u32, present: u32| if wanted == 0 { present } else { wanted };
    let or_long = |wanted: u64, present: u64| if wanted == 0 { present } else { wanted };
    Ok(registry::Limits {
        connections: or(wanted.connections, present.connections),
        packet_bytes: or(wanted.packet_bytes, present.packet_bytes),
        backlog_bytes: or_long(wanted.backlog_bytes, present.backlog_bytes),
        backlog_seconds: or(wanted.backlog_seconds, present.backlog_seconds),
        mailbox_messages: or(wanted.mailbox_messages, present.mailbox_messages),
        mailbox_bytes: or_long(wanted.mailbox_bytes, present.mailbox_bytes),
        mailbox_seconds: or(wanted.mailbox_seconds, present.mailbox_seconds),
        session_seconds: or(wanted.session_seconds, present.session_seconds),
    })
}

fn to_proto(name: &TenantName, tenant: &registry::Tenant) -> Tenant {
    Tenant {
        name: name.to_string(),
        partitions: tenant.partitions,
        limits: Some(Limits {
            connections: tenant.limits.connections,
            packet_bytes: tenant.limits.packet_bytes,
            backlog_bytes: tenant.limits.backlog_bytes,
            backlog_seconds: tenant.limits.backlog_seconds,
            mailbox_messages: tenant.limits.mailbox_messages,
            mailbox_bytes: tenant.limits.mailbox_bytes,
            mailbox_seconds: tenant.limits.mailbox_seconds,
            session_seconds: tenant.limits.session_seconds,
        }),
        created_at_ms: tenant.created_at,
        isolation: isolation_name(tenant.isolation).to_owned(),
    }
}

fn user_to_proto(tenant: &TenantName, user: &store::User) -> User {
    User { tenant: tenant.to_string(), name: user.name.clone(), role: role_name(user.role).to_owned() }
}
