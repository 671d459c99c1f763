//! Load and its verdict. The [`ledger`] is the oracle that all whole-system tests share: it knows what was sent and
//! acknowledged, is told what was seen, and says what was lost, stored twice, reordered or leaked. The [`fleet`] publishes
//! and subscribes over plain MQTT 3.1.1, so that it can be pointed at any broker; [`readers`] consume groups. On top of
//! them, `penstock-loadtest` is a program: [`program::main`].
//!
//! It does not start servers, and it judges nothing but the ledger and what it was told to expect.

mod access;
mod account;
mod alarm;
mod arguments;
mod churn;
mod cli;
mod clock;
mod connection;
mod engine;
pub mod fleet;
mod generator;
mod group;
mod html;
mod interrupt;
pub mod ledger;
mod marks;
mod observer;
mod pace;
mod packets;
mod plot;
pub mod program;
mod publisher;
mod pusher;
mod quantity;
pub mod readers;
mod report;
mod scenario;
mod settings;
mod slo;
pub mod stamp;
mod subscriber;
mod summary;
pub mod tally;
mod traffic;
pub mod verdict;
mod verification;
pub mod wire;
