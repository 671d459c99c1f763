//! `penstock-gateway`: MQTT in front, links behind. The work is in the library; see [`penstock_gateway`].

mod program;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    penstock_common::process::run(&program::PROGRAM, program::read, program::run)
}
