//! All programs in one file: what it does is said by the name by which it was called. They share nearly all of their code, so
//! that one file takes a fifth of what a file for each takes. `image/programs` lists the names, and `image/root` links them.

use std::{env, ffi::OsStr, path::Path, process::ExitCode};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let called = env::args_os().next().unwrap_or_default();
    let name = Path::new(&called).file_name().and_then(OsStr::to_str).unwrap_or_default();
    match name {
        "penstock" => penstock::main(),
        "penstock-gateway" => penstock_gateway::program::main(),
        "penstock-loadtest" => penstock_loadtest::program::main(),
        "penstock-mapper" => penstock_mapper::main(),
        "penstock-router" => penstock_router::program::main(),
        "penstockctl" => penstockctl::main(),
        _ => unknown(name),
    }
}

#[allow(clippy::print_stderr)]
fn unknown(name: &str) -> ExitCode {
    let programs: Vec<&str> = include_str!("../programs").lines().collect();
    eprintln!(
        "{name:?} is none of the programs in this file; call it by the name of one: {}",
        programs.join(", ")
    );
    ExitCode::from(2)
}
