//! `penstock-gateway`: MQTT in front, links behind. The work is in the library; see [`penstock_gateway`].

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    penstock_gateway::program::main()
}
