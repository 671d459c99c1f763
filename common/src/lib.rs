//! What Penstock's gateway *and* router use: names, fencing numbers, the [`store`] and [`registry`] traits with their
//! backends, configuration, telemetry, the fault table, lifecycle. Nothing here knows MQTT or the link.

pub mod clock;
pub mod epoch;
pub mod name;
pub mod net;
pub mod position;
pub mod registry;
pub mod rendezvous;
pub mod store;
