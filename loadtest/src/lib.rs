//! Load and its verdict. The [`ledger`] is the oracle that all whole-system tests share: it knows what was sent and
//! acknowledged, is told what was seen, and says what was lost, stored twice, reordered or leaked. The [`fleet`] publishes
//! and subscribes over plain MQTT 3.1.1, so that it can be pointed at any broker; [`readers`] consume groups. On top of
//! them, `penstock-loadtest` is a program: [`program::run`].
//!
//! It does not start servers, and it judges nothing but the ledger and what it was told to expect.

mod access;
mod account;
mod alarm;
mod clock;
mod connection;
pub mod fleet;
pub mod ledger;
mod marks;
mod pace;
mod packets;
mod publisher;
pub mod readers;
pub mod stamp;
mod subscriber;
pub mod tally;
pub mod verdict;
pub mod wire;
