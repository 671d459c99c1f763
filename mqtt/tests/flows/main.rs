//! One session, flow by flow: acknowledgements in order, backpressure, deliveries and their limits, subscriptions, wills, keep
//! alive. The client's packets are written by `mqttbytes`, so that both sides can't share a mistake.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod acknowledgements;
mod deliveries;
mod endings;
mod limits;
mod subscriptions;
mod support;
