//! The one place where sockets are made. A simulation replaces this module and nothing else.

use std::{io, net::SocketAddr, time::Duration};

pub use tokio::net::{TcpListener, TcpStream};

/// Connections that wait to be accepted: fewer cost SYN retries of 1 to 2 s in a reconnect storm.
const BACKLOG: i32 = 4_096;

/// Binds a listening socket. With `shared`, several listeners of this process may hold the address and the kernel spreads
/// connections over them.
pub fn listen(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connects within a limit.
pub async fn connect(address: &str, limit: Duration) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(limit, TcpStream::connect(address)).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, format!("{address} did not answer within {limit:?}"))
    })??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
