//! Penstock's own programs, built once a test run by the cargo that runs the tests.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
};

/// Names of crates and programs alike.
const PROGRAMS: &str = include_str!("../../image/programs");

/// As in the Makefile.
const FEATURES: &str = "penstock-gateway/bench,penstock-gateway/cluster,penstock-router/cluster";

static BUILT: OnceLock<PathBuf> = OnceLock::new();

/// Path of a program.
///
/// # Panics
/// When it can't be built.
pub fn path(name: &str) -> PathBuf {
    BUILT.get_or_init(build).join(name)
}

fn build() -> PathBuf {
    // <target>/<profile>/deps/<test>
    let test = std::env::current_exe().expect("a test knows its path");
    let profile = test.ancestors().nth(2).expect("a test lies in <target>/<profile>/deps").to_owned();
    let mut command = Command::new(env!("CARGO"));
    command.arg("build").current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    for package in PROGRAMS.lines().chain([env!("CARGO_PKG_NAME")]) {
        command.args(["-p", package]);
    }
    command.args(["--bins", "--features", FEATURES]);
    command.arg("--target-dir").arg(profile.parent().expect("a profile lies in a target directory"));
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let output = command.stdin(Stdio::null()).output().expect("cargo starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the programs can't be built:\n{said}");
    profile
}
