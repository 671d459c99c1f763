//! How a crate's bench runs its hot paths: timed by divan, or a given number of times and nothing else, for a tool that counts
//! instructions (`.ci/instructions`). Included by path into each `benches/hot.rs`; knows no path itself.
//!
//! `PENSTOCK_HOT=list` prints the names with the operations of a step; `PENSTOCK_HOT=name:steps` runs one of them.
#![allow(clippy::print_stdout, clippy::disallowed_methods)]

use divan::{Bencher, counter::ItemsCount};

/// A piece of work that is done again and again for every message or connection.
pub struct Path {
    /// For the table and the baseline.
    pub name: &'static str,
    /// Operations (messages, lookups) that one step does.
    pub operations: u64,
    /// Prepares the step.
    pub prepare: fn() -> Box<dyn FnMut()>,
}

/// Answers `PENSTOCK_HOT`, or lets divan measure.
pub fn main(paths: &[Path]) {
    let Ok(asked) = std::env::var("PENSTOCK_HOT") else { return divan::main() };
    if asked == "list" {
        return paths.iter().for_each(|path| println!("{} {}", path.name, path.operations));
    }
    let (name, steps) = asked.split_once(':').unwrap_or((&asked, "1"));
    let path = paths.iter().find(|path| path.name == name);
    let (Some(path), Ok(steps)) = (path, steps.parse::<u64>()) else {
        panic!("PENSTOCK_HOT={asked}: no such path, or no number of steps");
    };
    let mut step = (path.prepare)();
    (0..steps).for_each(|_| step());
}

/// Times one path.
pub fn time(bencher: Bencher<'_, '_>, path: &Path) {
    let step = (path.prepare)();
    bencher.counter(ItemsCount::new(path.operations)).bench_local(step);
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
