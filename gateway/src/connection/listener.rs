//! Accepts connections of one shard. Every shard listens on the same address; the kernel spreads connections over them.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use penstock_common::net::{self, TcpListener};
use socket2::{SockRef, TcpKeepalive};

use crate::{config::transports::TransportKind, connection::drive, shard::ShardCell};

/// Pause after an accept failed for want of something (descriptors, memory): trying at once would spin.
const PAUSE: Duration = Duration::from_millis(50);
const IDLE: Duration = Duration::from_secs(60);
const PROBE: Duration = Duration::from_secs(15);

/// Whether nobody listens on the address: sockets that share it would not notice each other. Port 0 is always free.
pub(crate) fn probe(address: SocketAddr) -> std::io::Result<()> {
    if address.port() == 0 { Ok(()) } else { net::listen(address, false).map(drop) }
}

/// Accepts until aborted.
pub(crate) async fn accept(shard: ShardCell, kind: TransportKind, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Without it answers wait for the client's delayed acknowledgements.
                let _ = stream.set_nodelay(true);
                // Finds peers that vanished without a keep alive of MQTT's own.
                let keepalive = TcpKeepalive::new().with_time(IDLE).with_interval(PROBE);
                let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
                let stream = Rc::new(stream);
                let key = {
                    let mut shard = shard.borrow_mut();
                    shard.turn();
                    shard.accept(kind, Rc::clone(&stream), peer)
                };
                if let Some(key) = key {
                    tokio::task::spawn_local(drive(Rc::clone(&shard), key, stream));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
