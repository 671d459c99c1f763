//! The router's settings as an operator gives them, for `penstock-router` and `penstock` alike.

use std::net::SocketAddr;

use penstock_common::config::{Reader, Setting};

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
    "Take passwords without TLS on a --grpc-listen that other machines can reach",
);
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
    let address: SocketAddr = reader.value(GRPC_LISTEN.flag);
    let accepted = reader.switch(ACCEPT_PLAIN_PASSWORDS.flag);
    if !address.ip().is_loopback() && !accepted {
        let fault = format!(
            "{address} can be reached from other machines, and passwords would come without TLS: listen on 127.0.0.1 behind a TLS proxy, or give --accept-plain-passwords"
        );
        reader.fault(GRPC_LISTEN.flag, &fault);
    }
    address
}
