//! What a microservice links: consume a tenant's messages in a group, push messages to devices, manage groups, and
//! administer tenants and users, over the gRPC door of any router.
//!
//! It reconnects by itself, with backoff and jitter, to the next of the servers it was given. Nothing is acknowledged
//! that the caller has not acknowledged: what was in flight when a router died is handed out again (at least once), in
//! order. It keeps no state on disk and does not speak MQTT.
//!
//! ```no_run
//! use std::time::Duration;
//! use penstock_client::{Client, GroupSpec, Start};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let password = std::fs::read_to_string("app.password")?;
//!     let client = Client::builder()
//!         .server("http://127.0.0.1:7070")
//!         .credentials("demo/app", password.trim_end())
//!         .connect_lazy()?;
//!     client.create_group(&GroupSpec::new("orders").filter("orders/#").start(Start::Earliest)).await?;
//!     let mut consumer = client.consumer("orders").credit(500).ack_timeout(Duration::from_secs(30)).start();
//!     for _ in 0..10 {
//!         let message = consumer.next().await?;
//!         println!("{} {}: {} bytes", message.client_id, message.topic, message.payload.len());
//!         consumer.ack(&message);
//!     }
//!     consumer.close().await?; // sends the acknowledgements that are left
//!     Ok(())
//! }
//! ```

mod acks;
mod admin;
mod backoff;
mod client;
mod consume;
mod consumer;
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
pub use error::{BuildError, CallError, ConsumeError, PushError};
pub use group::{Group, GroupChange, GroupSpec, GroupStatus, Mode, PartitionStatus, Start};
pub use message::{AuthType, Batch, Message, Position, Properties};
pub use pusher::{Push, Pusher, Receipt, ReceiptStatus, Receiving};
