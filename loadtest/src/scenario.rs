//! Scenarios: what a load consists of, over its phases. Reading TOML; nothing is run here.

use std::time::Duration;

use serde::Deserialize;

use crate::{pace::Pace, quantity};

/// A load, over its phases.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    /// Subscribers; each gets everything that is published.
    pub(crate) subscribers: u64,
    /// Clients that pushes go to.
    pub(crate) devices: u64,
    pub(crate) phases: Vec<Phase>,
}

/// One part of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Phase {
    pub(crate) name: String,
    pub(crate) length: Duration,
    pub(crate) publishers: u64,
    /// Of all publishers together.
    pub(crate) rate: Pace,
    /// None: no pushes.
    pub(crate) pushes: Option<Pace>,
    pub(crate) measured: bool,
}

impl Scenario {
    /// Most publishers of any phase.
    pub(crate) fn publishers(&self) -> u64 {
        self.phases.iter().map(|phase| phase.publishers).max().unwrap_or(0)
    }

    pub(crate) fn pushes(&self) -> bool {
        self.phases.iter().any(|phase| phase.pushes.is_some())
    }

    /// Length of what is measured.
    pub(crate) fn measured(&self) -> Duration {
        self.phases.iter().filter(|phase| phase.measured).map(|phase| phase.length).sum()
    }
}

/// A scenario as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScenarioFile {
    name: String,
    #[serde(default)]
    subscribers: u64,
    #[serde(default)]
    devices: u64,
    pub(crate) payload: Option<String>,
    pub(crate) qos: Option<u8>,
    pub(crate) inflight: Option<u64>,
    pub(crate) topic: Option<String>,
    pub(crate) slo: Option<String>,
    phases: Vec<PhaseEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PhaseEntry {
    name: String,
    duration: String,
    #[serde(default)]
    publishers: u64,
    rate: Option<String>,
    pushes: Option<String>,
    #[serde(default = "yes")]
    measured: bool,
}

fn yes() -> bool {
    true
}

impl ScenarioFile {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// Checks the values; every fault in them.
    pub(crate) fn scenario(&self) -> Result<Scenario, Vec<String>> {
        let mut faults = Vec::new();
        let phases: Vec<_> = self.phases.iter().filter_map(|phase| phase.read(&mut faults)).collect();
        if self.phases.is_empty() {
            faults.push("a scenario has at least one phase".to_owned());
        }
        if !self.phases.is_empty() && !self.phases.iter().any(|phase| phase.measured) {
            faults.push("no phase is measured".to_owned());
        }
        if self.phases.iter().any(|phase| phase.pushes.is_some()) && self.devices == 0 {
            faults.push("pushes need devices = N".to_owned());
        }
        let (name, subscribers, devices) = (self.name.clone(), self.subscribers, self.devices);
        if faults.is_empty() { Ok(Scenario { name, subscribers, devices, phases }) } else { Err(faults) }
    }
}

impl PhaseEntry {
    fn read(&self, faults: &mut Vec<String>) -> Option<Phase> {
        let before = faults.len();
        let mut fault =
            |what: &str, fault: String| faults.push(format!("phase {:?}: {what}: {fault}", self.name));
        let length = humantime::parse_duration(&self.duration).ok().filter(|length| !length.is_zero());
        if length.is_none() {
            fault("duration", format!("{:?} is not a time such as 30s", self.duration));
        }
        let mut read = |what: &str, text: &Option<String>| {
            let pace = text.as_deref().map(quantity::pace).transpose();
            pace.unwrap_or_else(|error| {
                fault(what, error);
                None
            })
        };
        let (rate, pushes) = (read("rate", &self.rate), read("pushes", &self.pushes));
        if self.publishers > 0 && self.rate.is_none() {
            fault("rate", "publishers need one, such as \"100/s\", \"0/s..1k/s\" or \"max\"".to_owned());
        }
        if self.publishers == 0 && self.rate.is_some() {
            fault("publishers", "a rate needs publishers = N".to_owned());
        }
        (faults.len() == before).then(|| Phase {
            name: self.name.clone(),
            length: length.unwrap_or_default(),
            publishers: self.publishers,
            rate: rate.unwrap_or(Pace::steady(0.0)),
            pushes,
            measured: self.measured,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const RAMP: &str = r#"
        name = "up"
        subscribers = 2
        devices = 3
        [[phases]]
        name = "warm"
        duration = "2s"
        publishers = 5
        rate = "10/s"
        measured = false
        [[phases]]
        name = "ramp"
        duration = "10s"
        publishers = 10
        rate = "0/s..1k/s"
        pushes = "5/s"
    "#;

    #[test]
    fn phases_are_read() {
        let scenario = ScenarioFile::parse(RAMP).unwrap().scenario().unwrap();
        assert_eq!((scenario.publishers(), scenario.subscribers, scenario.devices), (10, 2, 3));
        assert_eq!(scenario.measured(), Duration::from_secs(10));
        assert_eq!(scenario.phases[1].rate, Pace::Ramp { from: 0.0, to: 1_000.0 });
        assert!(scenario.pushes() && !scenario.phases[0].measured);
    }

    #[test]
    fn what_is_unknown_or_wrong_is_told() {
        let unknown = ScenarioFile::parse(&RAMP.replace("measured", "meassured")).unwrap_err();
        assert!(unknown.contains("meassured"), "{unknown}");
        let wrong = RAMP.replace("2s", "2 moons").replace("10/s", "quick").replace("devices = 3", "");
        let faults = ScenarioFile::parse(&wrong).unwrap().scenario().unwrap_err();
        assert_eq!(faults.len(), 3, "{faults:#?}");
    }

    #[test]
    fn the_examples_are_scenarios() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let file =
                ScenarioFile::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            file.scenario().unwrap();
            count += 1;
        }
        assert!(count >= 3);
    }
}
