//! The router's settings as an operator gives them, for `penstock-router` and `penstock` alike.

use std::{net::SocketAddr, time::Duration};

use penstock_common::config::{Reader, Setting};

use crate::door::web::{WebConfig, avro::Generation};

/// Where microservices and operators call.
pub const GRPC_LISTEN: Setting = Setting::new(
    "grpc-listen",
    "grpc.listen",
    "ADDRESS:PORT",
    "Where microservices and operators call (gRPC)",
)
.or("127.0.0.1:7070");
/// Takes passwords without TLS from other machines.
pub const ACCEPT_PLAIN_PASSWORDS: Setting = Setting::switch(
    "accept-plain-passwords",
    "grpc.accept_plain_passwords",
    "Take passwords without TLS on a --grpc-listen or --http-listen that other machines can reach",
);
/// Where microservices of today connect.
pub const HTTP_LISTEN: Setting = Setting::new(
    "http-listen",
    "http.listen",
    "ADDRESS:PORT",
    "Where microservices connect with WebSockets (/notification2/…)",
)
.or("127.0.0.1:7080");
/// Which Avro schema the WebSocket door writes.
pub const AVRO_GENERATION: Setting = Setting::new(
    "avro-generation",
    "http.avro_generation",
    "newer|older",
    "Avro schema that WebSockets get; both are read",
)
.or("newer");
/// When the WebSocket door sends again.
pub const HTTP_ACK_TIMEOUT: Setting = Setting::new(
    "http-ack-timeout",
    "http.ack_timeout",
    "DURATION",
    "After this time without an ack a WebSocket gets a message again",
)
.or("60s");
/// Places at the WebSocket door.
pub const HTTP_SOCKETS: Setting = Setting::new(
    "http-sockets",
    "http.sockets",
    "NUMBER",
    "WebSockets that a tenant may have at this router",
)
.or("1000");
/// Everything of the doors that a microservice calls.
pub const DOORS: &[Setting] =
    &[GRPC_LISTEN, HTTP_LISTEN, ACCEPT_PLAIN_PASSWORDS, AVRO_GENERATION, HTTP_ACK_TIMEOUT, HTTP_SOCKETS];
/// Password of system/admin, for the first router.
pub const ADMIN_PASSWORD_FILE: Setting = Setting::secret_file(
    "admin-password-file",
    "users.admin_password_file",
    "Password that system/admin is created with when there is none",
);
/// The same, in the environment.
pub const ADMIN_PASSWORD: Setting = Setting::secret_variable(
    "admin-password",
    "Password that system/admin is created with when there is none",
);

/// Reads [`GRPC_LISTEN`]; passwords on it don't leave this machine in the clear unless that is accepted.
pub fn grpc_listen(reader: &mut Reader) -> SocketAddr {
    listen(reader, GRPC_LISTEN.flag)
}

/// Reads [`HTTP_LISTEN`]; the same holds for it.
pub fn http_listen(reader: &mut Reader) -> SocketAddr {
    listen(reader, HTTP_LISTEN.flag)
}

/// Reads [`ACCEPT_PLAIN_PASSWORDS`].
pub fn plain_passwords(reader: &mut Reader) -> bool {
    reader.switch(ACCEPT_PLAIN_PASSWORDS.flag)
}

/// Reads the settings of the WebSocket door.
pub fn web(reader: &mut Reader) -> WebConfig {
    let generation = match reader.value::<String>(AVRO_GENERATION.flag).as_str() {
        "newer" => Generation::Newer,
        "older" => Generation::Older,
        _ => {
            reader.fault(AVRO_GENERATION.flag, "is newer or older");
            Generation::Newer
        }
    };
    let ack_timeout: Duration = reader.value(HTTP_ACK_TIMEOUT.flag);
    if !(ACK_TIMEOUT_LEAST..=ACK_TIMEOUT_MOST).contains(&ack_timeout) {
        reader.fault(HTTP_ACK_TIMEOUT.flag, "is from 100ms to 1day");
    }
    let sockets = usize::try_from(reader.value::<u32>(HTTP_SOCKETS.flag)).unwrap_or(usize::MAX);
    WebConfig { generation, ack_timeout, sockets, ..WebConfig::default() }
}

const ACK_TIMEOUT_LEAST: Duration = Duration::from_millis(100);
const ACK_TIMEOUT_MOST: Duration = Duration::from_secs(24 * 3_600);

fn listen(reader: &mut Reader, flag: &str) -> SocketAddr {
    let address: SocketAddr = reader.value(flag);
    if !address.ip().is_loopback() && !plain_passwords(reader) {
        let fault = format!(
            "{address} can be reached from other machines, and passwords would come without TLS: listen on 127.0.0.1 behind a TLS proxy, or give --accept-plain-passwords"
        );
        reader.fault(flag, &fault);
    }
    address
}
