//! Compiles the contracts without protoc.

use std::{env, path::PathBuf};

const PROTOS: [&str; 5] = [
    "penstock/record.proto",
    "penstock/link.proto",
    "penstock/messaging.proto",
    "penstock/admin.proto",
    "penstock/peer.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    // Cargo tells a build script where it is.
    #[allow(clippy::disallowed_methods)]
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    let files = protox::compile(PROTOS, [root])?;
    tonic_prost_build::configure().bytes(".").codec_path("crate::codec::Codec").compile_fds(files)?;
    Ok(())
}
