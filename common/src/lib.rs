//! What Penstock's gateway *and* router use: names, fencing numbers, the [`store`] and [`registry`] traits with their
//! backends, configuration, telemetry, the fault table, lifecycle. Nothing here knows MQTT or the link.

pub mod admin;
pub mod clock;
pub mod config;
pub mod epoch;
pub mod exit;
pub mod fault;
pub mod lifecycle;
pub mod name;
pub mod net;
pub mod position;
pub mod process;
pub mod registry;
pub mod rendezvous;
pub mod secret;
pub mod store;
pub mod telemetry;
