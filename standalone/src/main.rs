//! `penstock`: a gateway and a router in one process, on the embedded registry and store.

mod credentials;
mod first_run;
mod program;
mod welcome;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    penstock_common::process::run(&program::PROGRAM, program::read, program::run)
}
