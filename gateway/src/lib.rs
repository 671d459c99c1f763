//! Penstock's gateway: MQTT in front, links to routers behind. A gateway is stateless: it can be killed at any time, and
//! nothing that it acknowledged is lost, because a PUBACK is a router's word that the record is stored.
//!
//! The way in: `connection::listener` → `transport` (PROXY header, TLS, WebSocket; nothing on plain TCP, with `certificates`
//! beside it) → `connection` (the driver) → `admission` (with `credentials`, `claims`, `kicks`)
//! → [`penstock_mqtt::session`] → `uplink` (lanes and batches) → `link`; settled back the same way. The way out: `link` →
//! `deliver` or `push` → session → `connection`. A shard does all of it on one thread; `interest` and `subscriptions` say
//! what it wants, `pause` and `drain` how it ends.

mod admission;
#[cfg(feature = "bench")]
pub mod batcher;
pub mod certificates;
mod claims;
pub mod config;
mod connection;
mod credentials;
mod deliver;
mod drain;
mod inspect;
mod interest;
mod kicks;
mod link;
mod mailbox;
mod metrics;
mod pause;
#[cfg(feature = "cluster")]
pub mod program;
mod push;
mod questions;
pub mod settings;
mod shard;
mod start;
mod subscriptions;
mod tenants;
mod transport;
mod uplink;
mod voice;
mod waiting;

pub use config::{ClusterSecret, GatewayConfig, transports::TransportKind};
pub use start::{Gateway, RunningGateway, StartError};
