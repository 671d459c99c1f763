//! What a microservice links: consume a tenant's messages in a group, push messages to devices, manage groups, and
//! administer tenants and users, over the gRPC door of any router.
//!
//! It reconnects by itself, with backoff and jitter, to the next of the servers it was given. Nothing is acknowledged
//! that the caller has not acknowledged: what was in flight when a router died is handed out again (at least once), in
//! order. It keeps no state on disk and does not speak MQTT.
#![doc = ""]
#![doc = include_str!("../README.md")]

mod acks;
mod admin;
mod backoff;
mod client;
mod consume;
mod consumer;
mod dead;
mod error;
mod group;
mod message;
mod pusher;

pub use admin::{
    Admin, ClientConnection, ClientEnd, ClientFilter, ClientPage, ClientSession, ClientStatus, ClientSummary,
    Cluster, Limits, LinkStatus, Member, Tenant, User,
};
pub use client::{Builder, Client};
pub use consumer::{Acker, Consumer, ConsumerBuilder};
pub use dead::DeadLetter;
pub use error::{BuildError, CallError, ConsumeError, PushError};
pub use group::{BacklogPolicy, Group, GroupChange, GroupSpec, GroupStatus, Mode, PartitionStatus, Start};
pub use message::{AuthType, Batch, Message, Position, Properties};
pub use pusher::{Push, Pusher, Receipt, ReceiptStatus, Receiving};
