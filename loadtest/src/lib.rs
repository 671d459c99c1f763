//! Load and its verdict. The [`ledger`] is the oracle that all whole-system tests share: it knows what was sent and
//! acknowledged, is told what was seen, and says what was lost, stored twice, reordered or leaked. The [`fleet`] publishes
//! and subscribes over plain MQTT 3.1.1, so that it can be pointed at any broker; [`readers`] consume groups.
//!
//! It does not start servers, and it judges nothing but the ledger.

mod account;
pub mod fleet;
pub mod ledger;
mod marks;
mod publisher;
pub mod readers;
pub mod stamp;
mod subscriber;
pub mod verdict;
pub mod wire;
