//! rmqtt 0.24 as a peer: its library without plugins (its own program builds 700 crates, with Kafka, Pulsar and Raft), on the
//! allocator that its own program uses, with limits that the benchmark does not meet. `bench-rmqtt 127.0.0.1:1883`.

use std::{num::NonZeroU32, time::Duration};

use rmqtt::{Result, context::ServerContext, net::Builder, server::MqttServer};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:1883".to_owned());
    if address == "--version" {
        println!("rmqtt 0.24.0 (library)");
        return Ok(());
    }
    let context = ServerContext::new().busy_check_enable(false).build().await;
    let listener = Builder::new()
        .name("tcp")
        .laddr(address.parse()?)
        .backlog(4_096)
        .nodelay(true)
        .max_connections(100_000)
        .max_handshaking_limit(20_000)
        .handshake_timeout(Duration::from_secs(60))
        .max_inflight(u16::MAX.try_into()?)
        .max_mqueue_len(10_000_000)
        .mqueue_rate_limit(NonZeroU32::MAX, Duration::from_secs(1));
    MqttServer::new(context).listener(listener.bind()?.tcp()?).build().run().await
}
