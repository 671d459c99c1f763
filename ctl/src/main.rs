//! `penstockctl`. The work is in the library of this crate.

fn main() -> std::process::ExitCode {
    penstockctl::main()
}
