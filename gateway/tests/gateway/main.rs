//! The gateway between raw MQTT on one side and a router of the test's own on the other: what it promises to devices and
//! what the link contract asks of it. Nothing sleeps: every step waits for a message with a deadline.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod admission;
mod authority;
mod client;
mod hostile;
mod links;
mod pause;
mod proxy;
mod registry;
mod router;
mod setup;
mod slow;
mod takeover;
mod tls;
mod way_in;
mod way_out;
mod web_socket;
mod wills;
mod wires;
