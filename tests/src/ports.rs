//! Free ports, for programs that can't be told to pick one and say which.

use std::{
    collections::HashSet,
    net::TcpListener,
    sync::{LazyLock, Mutex},
};

static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A port that nobody listens on, and that was not given before in this process.
///
/// # Panics
/// When the machine has none.
pub fn free() -> u16 {
    for _ in 0..1_000 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let port = listener.local_addr().expect("a bound port").port();
        if GIVEN.lock().expect("not poisoned").insert(port) {
            return port;
        }
    }
    panic!("no free port");
}
