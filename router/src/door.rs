//! The doors: what microservices and operators call. gRPC: [`auth`] says who calls and may do what, [`messaging`] and
//! [`groups`] serve the Messaging contract, [`admin`] administration, [`status`] maps every error to the wire. HTTP: [`web`], WebSockets of today's microservices.

pub mod admin;
pub mod auth;
pub mod clients;
pub mod cluster;
pub mod groups;
pub mod messaging;
pub mod orders;
pub mod receipts;
pub mod status;
pub mod web;

use std::sync::Arc;

use penstock_common::{
    clock::Seams,
    name::TenantName,
    registry::{Registry, TenantDefinition},
    store::Store,
};
use tonic::Status;

use crate::{
    groups::{home::Homes, serve::Serving},
    holdings::Holdings,
    peers::Peers,
};

/// What doors and the [`crate::peer`] service stand on. Cheap to clone.
#[derive(Clone)]
pub struct Inside {
    /// The homes of this router.
    pub homes: Arc<dyn Homes>,
    /// The groups that they serve.
    pub serving: Arc<Serving>,
    /// What consumers that reached this router hold.
    pub holdings: Arc<Holdings>,
    /// Other routers.
    pub peers: Arc<Peers>,
    /// Where partitions and users are.
    pub store: Arc<dyn Store>,
    /// Tenants and groups.
    pub registry: Arc<dyn Registry>,
    /// Wall time and randomness.
    pub seams: Seams,
    /// Counts of what pushes came to.
    pub receipts: receipts::Receipts,
}

impl Inside {
    /// A tenant as defined now.
    pub fn tenant(&self, name: &TenantName) -> Result<Arc<TenantDefinition>, Status> {
        self.registry.definitions().borrow().tenants.get(name).cloned().ok_or_else(status::no_tenant)
    }
}
