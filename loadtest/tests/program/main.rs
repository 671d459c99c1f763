//! `penstock-loadtest` as a process: against a broker that does what brokers must not do, against mosquitto, and with
//! command lines that are wrong.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod faults;
mod loads;
mod mosquitto;
mod process;
mod results;
mod standin;
mod usage;
