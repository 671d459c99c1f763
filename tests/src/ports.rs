//! Free ports, for programs that can't be told to pick one and say which.

use std::{
    fs,
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

/// Where the ports begin from which the kernel takes those of clients, when it does not say.
const EPHEMERAL: u16 = 32_768;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port that nobody listens on, that was not given before in this process, and that no client gets by chance before the
/// program listens on it: it is below the kernel's range for those.
///
/// # Panics
/// When the machine has none.
pub fn free() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
    let begin = range.and_then(|range| range.split_whitespace().next()?.parse().ok()).unwrap_or(EPHEMERAL);
    let lowest = begin / 2;
    // Processes that run beside this one begin elsewhere.
    let process =
        u16::try_from(std::process::id() % u32::from(begin - lowest)).expect("below the range's length");
    for _ in 0..begin - lowest {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % (begin - lowest);
        let port = lowest + (process + step) % (begin - lowest);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}
