//! Administration of tenants, users and clients: for `system/admin`, and for a tenant's own tenant-admin as far as that goes.

use penstock_proto::admin as wire;
pub use penstock_proto::admin::{
    ClientConnection, ClientEnd, ClientFilter, ClientSession, ClientStatus, ClientSummary,
    ClusterResponse as Cluster, Limits, LinkStatus, ListClientsResponse as ClientPage, Member, Tenant, User,
};

use crate::{client::Client, error::CallError};

/// The administrative calls of a [`Client`]. Values are the contract's own: 0 in [`Limits`] means the default.
#[derive(Debug, Clone)]
pub struct Admin {
    client: Client,
}

impl Client {
    /// The administrative calls.
    pub fn admin(&self) -> Admin {
        Admin { client: self.clone() }
    }
}

/// One call of the Admin service, asked of the present server.
macro_rules! call {
    ($self:ident.$method:ident($request:expr)) => {{
        let request = $request;
        $self.client.ask(move |client, number| {
            let request = request.clone();
            async move { client.administration(number)?.$method(request).await }
        })
    }};
}

impl Admin {
    /// Creates a tenant. Partitions are fixed for ever: 1 to 64, 0 means the default (4).
    pub async fn create_tenant(
        &self,
        name: &str,
        partitions: u32,
        limits: Limits,
    ) -> Result<Tenant, CallError> {
        let name = name.to_owned();
        let request =
            wire::CreateTenantRequest { name, partitions, limits: Some(limits), isolation: String::new() };
        call!(self.create_tenant(request)).await
    }

    /// Creates a tenant whose clients receive nothing of each other's: what a client publishes reaches only groups, and it
    /// receives only pushes. Otherwise as [`Self::create_tenant`].
    pub async fn create_isolated_tenant(
        &self,
        name: &str,
        partitions: u32,
        limits: Limits,
    ) -> Result<Tenant, CallError> {
        let (name, isolation) = (name.to_owned(), "device".to_owned());
        let request = wire::CreateTenantRequest { name, partitions, limits: Some(limits), isolation };
        call!(self.create_tenant(request)).await
    }

    /// All tenants.
    pub async fn tenants(&self) -> Result<Vec<Tenant>, CallError> {
        Ok(call!(self.list_tenants(wire::ListTenantsRequest {})).await?.tenants)
    }

    /// One tenant.
    pub async fn tenant(&self, name: &str) -> Result<Tenant, CallError> {
        call!(self.show_tenant(wire::ShowTenantRequest { name: name.to_owned() })).await
    }

    /// Changes limits; 0 leaves one as it is.
    pub async fn set_limits(&self, name: &str, limits: Limits) -> Result<Tenant, CallError> {
        call!(self.set_tenant(wire::SetTenantRequest { name: name.to_owned(), limits: Some(limits) })).await
    }

    /// Deletes a tenant with its users, groups and everything stored.
    pub async fn delete_tenant(&self, name: &str) -> Result<(), CallError> {
        call!(self.delete_tenant(wire::DeleteTenantRequest { name: name.to_owned() })).await.map(|_| ())
    }

    /// Adds a user; role: device, service, tenant-admin or admin.
    pub async fn add_user(
        &self,
        tenant: &str,
        name: &str,
        role: &str,
        password: &str,
    ) -> Result<User, CallError> {
        call!(self.add_user(wire::AddUserRequest {
            tenant: tenant.to_owned(),
            name: name.to_owned(),
            role: role.to_owned(),
            password: password.to_owned(),
        }))
        .await
    }

    /// The users of a tenant.
    pub async fn users(&self, tenant: &str) -> Result<Vec<User>, CallError> {
        Ok(call!(self.list_users(wire::ListUsersRequest { tenant: tenant.to_owned() })).await?.users)
    }

    /// Gives a user a new password.
    pub async fn set_password(&self, tenant: &str, name: &str, password: &str) -> Result<User, CallError> {
        call!(self.set_password(wire::SetPasswordRequest {
            tenant: tenant.to_owned(),
            name: name.to_owned(),
            password: password.to_owned(),
        }))
        .await
    }

    /// Deletes a user.
    pub async fn delete_user(&self, tenant: &str, name: &str) -> Result<(), CallError> {
        let request = wire::DeleteUserRequest { tenant: tenant.to_owned(), name: name.to_owned() };
        call!(self.delete_user(request)).await.map(|_| ())
    }

    /// A page of a tenant's clients that are connected or have a session, in the order of their identifiers: the first
    /// `limit` (0: 1,000; at most 4,000) after one (empty: from the beginning) whose identifiers begin with `prefix`.
    pub async fn clients(
        &self,
        tenant: &str,
        prefix: &str,
        after: &str,
        limit: u32,
    ) -> Result<ClientPage, CallError> {
        let (tenant, prefix, after) = (tenant.to_owned(), prefix.to_owned(), after.to_owned());
        call!(self.list_clients(wire::ListClientsRequest { tenant, after, limit, prefix })).await
    }

    /// One client, connected or not. It is no error when nothing is known of it.
    pub async fn client_status(&self, tenant: &str, client: &str) -> Result<ClientStatus, CallError> {
        let request = wire::ShowClientRequest { tenant: tenant.to_owned(), client: client.to_owned() };
        call!(self.show_client(request)).await
    }

    /// Closes a client's connection, wherever it is; [`CallError::NotFound`] when it is not connected. Returns what it
    /// was like.
    pub async fn disconnect(&self, tenant: &str, client: &str) -> Result<ClientStatus, CallError> {
        let request = wire::DisconnectClientRequest { tenant: tenant.to_owned(), client: client.to_owned() };
        call!(self.disconnect_client(request)).await
    }

    /// Gateways, routers, and the links of the router that answers.
    pub async fn cluster(&self) -> Result<Cluster, CallError> {
        call!(self.cluster(wire::ClusterRequest {})).await
    }
}
