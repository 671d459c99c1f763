//! `penstock-loadtest`: load on an MQTT endpoint, and the ledger's verdict. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    penstock_loadtest::program::main()
}
