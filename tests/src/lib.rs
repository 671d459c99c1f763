//! The harness of the whole-system tests: etcd, Redis, and Penstock's own programs as child processes on free ports, the
//! faults that can be done to them, load judged by the ledger. Everything that is started ends by its handle when the
//! harness is dropped; nothing else is touched.
//!
//! Panics are its way to fail: it is used by tests only.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod binaries;
pub mod child;
pub mod cluster;
pub mod command;
pub mod device;
pub mod etcd;
pub mod hostile;
pub mod load;
pub mod paho;
pub mod platform;
pub mod ports;
pub mod program;
pub mod pushing;
pub mod redis;
pub mod redis_cluster;
pub mod standalone;
pub mod stored;
pub mod tenant;
pub mod wait;
pub mod web;
