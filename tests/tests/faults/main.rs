//! What the design's failure table promises, row by row: real processes, one fault each under load, judged by the ledger.
//! Zero lost, zero reordered, zero stored twice, nothing stale.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod consumers_come_and_go;
mod etcd_killed;
mod etcd_paused;
mod gateway_killed;
mod gateway_paused;
mod home_killed_under_consumers;
mod hostile_clients;
mod identifier_fought_over;
mod redis_cluster;
mod redis_paused;
mod redis_restarted;
mod rolling_upgrade;
mod router_killed;
mod router_killed_under_pushes;
mod router_killed_under_websockets;
mod router_paused;
mod routers_added_and_removed;
mod sessions;
mod slow_receivers;
mod under_load;
mod wills;
