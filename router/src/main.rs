//! `penstock-router`: links, store, doors. The work is in the library; see [`penstock_router`].

mod program;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    penstock_common::process::run(&program::PROGRAM, program::read, program::run)
}
