//! A tenant made for a test: its users and their passwords.

use penstock_client::{Client, Limits};

/// A tenant with a device user and a service user.
#[derive(Debug, Clone)]
pub struct TestTenant {
    /// Its name.
    pub name: String,
    /// Of `device` (role device) and `app` (role service) alike.
    pub password: String,
}

impl TestTenant {
    /// Creates it, with connections enough for load.
    pub async fn create(admin: &Client, name: &str) -> Self {
        let tenant = Self { name: name.to_owned(), password: format!("{name}-password-0123456789") };
        let administration = admin.admin();
        let limits = Limits { connections: 10_000, ..Limits::default() };
        administration.create_tenant(name, 4, limits).await.expect("the tenant is created");
        for (user, role) in [("device", "device"), ("app", "service")] {
            let added = administration.add_user(name, user, role, &tenant.password).await;
            added.unwrap_or_else(|error| panic!("{name}/{user} is not added: {error}"));
        }
        tenant
    }

    /// MQTT user name.
    pub fn device(&self) -> String {
        format!("{}/device", self.name)
    }

    /// User of the doors.
    pub fn app(&self) -> String {
        format!("{}/app", self.name)
    }

    /// A client of the doors.
    pub fn client(&self, servers: &[String]) -> Client {
        let builder = servers.iter().fold(Client::builder(), |builder, server| builder.server(server));
        builder.credentials(self.app(), &self.password).connect_lazy().expect("a client")
    }
}
