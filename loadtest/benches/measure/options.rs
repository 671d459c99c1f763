//! The command line.

use clap::Parser;

use crate::{
    scenarios::{SCENARIOS, Scenario},
    systems::{KINDS, Kind},
};

/// Measures what a message and a connection cost, for Penstock and for the brokers that are here: everything that serves on
/// core 0, the load on core 1.
#[derive(Parser, Debug)]
#[command(
    name = "make bench",
    after_help = "Examples:
  make bench                               everything, some 30 minutes; writes docs/performance.md and .svg
  make bench ONLY='cluster nats qos1-64'   these systems and scenarios only; prints the table, leaves docs alone
  make bench ONLY='--rounds 1 cluster'     once
  make bench ONLY='cluster-backlog cluster-pair'   groups, memory, pushes
  make bench ONLY=--list                   names of systems and scenarios, and how to install what is missing"
)]
pub struct Options {
    /// Systems and scenarios; all when none is given
    #[arg(value_name = "NAME")]
    only: Vec<String>,
    /// Rounds; the table shows the median
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub rounds: u32,
    /// Length of a flood
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub seconds: u32,
    /// Print the names and what is missing, measure nothing
    #[arg(long)]
    pub list: bool,
    /// Measure nothing: write the documents from the last results
    #[arg(long)]
    pub render: bool,
    /// Write the documents also when only a part was measured (its runs replace the same ones of the last results)
    #[arg(long)]
    pub write: bool,
    /// Use the programs of this directory, don't build
    #[arg(long, value_name = "DIR")]
    pub programs: Option<std::path::PathBuf>,
    /// What `cargo bench` says
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// The systems to measure; the names that mean nothing, if there are any.
    pub fn kinds(&self) -> Result<Vec<Kind>, String> {
        let known = |name: &String| {
            KINDS.iter().any(|kind| kind.name() == name) || SCENARIOS.iter().any(|own| own.name() == name)
        };
        let unknown: Vec<&str> = self.only.iter().filter(|name| !known(name)).map(String::as_str).collect();
        if !unknown.is_empty() {
            return Err(format!("no such system or scenario: {} (see --list)", unknown.join(", ")));
        }
        Ok(chosen(KINDS, &self.only, |kind| kind.name()))
    }

    /// The scenarios to measure.
    pub fn scenarios(&self) -> Vec<Scenario> {
        chosen(SCENARIOS, &self.only, |scenario| scenario.name())
    }

    /// Whether nothing is left out.
    pub fn is_whole(&self) -> bool {
        self.only.is_empty()
    }
}

fn chosen<T: Copy>(all: &[T], only: &[String], name: impl Fn(&T) -> &'static str) -> Vec<T> {
    let named: Vec<T> = all.iter().copied().filter(|own| only.iter().any(|word| word == name(own))).collect();
    if named.is_empty() { all.to_vec() } else { named }
}
