//! Penstock's router: persists what gateways send and routes what goes to devices.
//!
//! The way in: a batch comes on a link ([`server`]), waits in the lane of its partition ([`lane`]), is appended to the store
//! by the partition's [`home`], and is settled back on the same link.
//!
//! The way out: the [`fanout`] reads the log and sends a Deliver to each link whose filters match ([`interest`]); a push
//! comes from a door and goes to the owner's link ([`route`]), or waits in the client's mailbox ([`waiting`]).
//!
//! Persistent sessions: the client's home opens and steps them ([`sessions`]), the fan-out of each partition appends their
//! mail ([`mail`]) by the filters that all routers follow ([`kept`]).
//!
//! What decides who may write is the term ([`penstock_common::store`]); membership only shrinks by two witnesses
//! ([`presence`]).

pub mod append;
mod append_own;
pub mod batch;
pub mod bootstrap;
pub mod clients;
pub mod config;
pub mod consume;
pub mod control;
pub mod door;
pub mod doors;
pub mod executor;
pub mod fan;
pub mod fanout;
pub mod groups;
pub mod hands;
pub mod hashing;
pub mod history;
pub mod holdings;
pub mod home;
pub mod homes;
pub mod intake;
pub mod interest;
pub mod kept;
pub mod lane;
pub mod link;
pub mod links;
pub mod mail;
pub mod metrics;
pub mod outbox;
pub mod owners;
pub mod pace;
pub mod peer;
pub mod peers;
pub mod presence;
pub mod producers;
#[cfg(feature = "cluster")]
pub mod program;
pub mod push;
pub mod relay;
pub mod route;
pub mod secret;
pub mod server;
pub mod serving;
pub mod sessions;
pub mod settings;
pub mod stale;
pub mod start;
pub mod tail;
pub mod verify;
pub mod waiting;
pub mod wills;
