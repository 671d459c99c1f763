//! What was measured, as it is kept in `target/bench/results.json`, and the median of the rounds.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::{scenarios::Scenario, systems::Kind};

/// One scenario on one fresh system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// [`Kind::name`].
    pub system: String,
    /// [`Scenario::name`].
    pub scenario: String,
    /// From 1.
    pub round: u32,
    /// Name with its unit, and value.
    pub figures: BTreeMap<String, f64>,
    /// CPU seconds a million messages, by part.
    pub cpu: BTreeMap<String, f64>,
    /// Why the figures are the generator's own.
    pub generator_bound: Option<String>,
    /// Why there are none that count.
    pub failure: Option<String>,
}

/// A system as it was here.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Of the program.
    pub version: String,
    /// That made it.
    pub commands: Vec<String>,
    /// Why it was not measured, and what installs it.
    pub missing: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// RFC 3339.
    pub started_at: String,
    /// Lines about the machine.
    pub machine: Vec<String>,
    /// Rounds.
    pub rounds: u32,
    /// Length of a flood.
    pub seconds: u32,
    /// By name.
    pub systems: BTreeMap<String, Facts>,
    /// Every run.
    pub runs: Vec<Run>,
}

impl Run {
    /// Nothing measured yet.
    pub fn new(system: &str, scenario: &str, round: u32) -> Self {
        let (system, scenario) = (system.to_owned(), scenario.to_owned());
        let (figures, cpu) = (BTreeMap::new(), BTreeMap::new());
        Self { system, scenario, round, figures, cpu, generator_bound: None, failure: None }
    }
}

impl Results {
    /// Reads what was kept.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("{}: measure first", path.display()))?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Keeps it.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        Ok(fs::write(path, serde_json::to_string_pretty(self)?)?)
    }

    fn of(&self, kind: Kind, scenario: Scenario) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.system == kind.name() && run.scenario == scenario.name())
    }

    /// Why a scenario has no figures on a system: one run that failed is enough.
    pub fn failure(&self, kind: Kind, scenario: Scenario) -> Option<&str> {
        self.of(kind, scenario).find_map(|run| run.failure.as_deref())
    }

    /// Whether the generator was the limit in most rounds.
    pub fn is_generator_bound(&self, kind: Kind, scenario: Scenario) -> bool {
        let bound = self.of(kind, scenario).filter(|run| run.generator_bound.is_some()).count();
        2 * bound > self.of(kind, scenario).count()
    }

    /// The median of a figure over the rounds.
    pub fn median(&self, kind: Kind, scenario: Scenario, figure: &str) -> Option<f64> {
        if self.failure(kind, scenario).is_some() {
            return None;
        }
        median(self.of(kind, scenario).filter_map(|run| run.figures.get(figure).copied()))
    }

    /// The median cost of each part.
    pub fn parts(&self, kind: Kind, scenario: Scenario) -> Vec<(String, f64)> {
        let names: std::collections::BTreeSet<&String> =
            self.of(kind, scenario).flat_map(|run| run.cpu.keys()).collect();
        let cost =
            |name: &String| median(self.of(kind, scenario).filter_map(|run| run.cpu.get(name).copied()));
        names.into_iter().filter_map(|name| Some((name.clone(), cost(name)?))).collect()
    }

    /// Takes the runs of a newer measurement in place of the same ones here.
    pub fn replace(&mut self, newer: Self) {
        let same =
            |run: &Run| newer.runs.iter().any(|n| n.system == run.system && n.scenario == run.scenario);
        self.runs.retain(|run| !same(run));
        self.runs.extend(newer.runs);
        self.systems.extend(newer.systems);
        (self.started_at, self.machine) = (newer.started_at, newer.machine);
        (self.rounds, self.seconds) = (newer.rounds, newer.seconds);
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}
