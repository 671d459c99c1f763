//! `penstock`: everything in one process. The work is in the library of this crate.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    penstock::main()
}
