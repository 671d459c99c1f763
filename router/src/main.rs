//! `penstock-router`: links, store, doors. The work is in the library; see [`penstock_router`].

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    penstock_router::program::main()
}
