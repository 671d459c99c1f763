//! `penstock-mapper`: a group's messages to a REST API. The work is in the library; see [`penstock_mapper`].

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    penstock_mapper::main()
}
