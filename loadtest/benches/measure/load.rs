//! One scenario on one running system: starts `penstock-loadtest` on the load core, watches what the system takes meanwhile,
//! and reads the result. The verdict is the generator's; what it failed has no figures.

// A child process lives in real time: its end is polled with a deadline.
#![allow(clippy::disallowed_methods)]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{
    ours,
    raw::{Calls, Logs, Raw, Reading},
    results::Run,
    scenarios::{HELD, MANY, Scenario, stored_bytes},
    systems::{Kind, System},
};

/// Core of the load, and of this process.
pub const LOAD_CORE: &str = "1";
/// Between two looks at the generator and the memory.
const LOOK: Duration = Duration::from_millis(250);

/// What was seen of the system while the load ran.
struct Watched {
    /// Resident bytes with seconds since the start.
    rss: Vec<(f64, u64)>,
    seconds: f64,
}

/// CPU seconds between two looks below which a system is idle.
const IDLE: f64 = 0.04;
/// For a system to become idle again; what it does later is the next scenario's burden.
const CALM: Duration = Duration::from_secs(15);

/// Waits until the system has done what the last scenario left to do.
fn calm(system: &System) {
    let cpu = || system.cpu_each().iter().map(|(_, seconds)| seconds).sum::<f64>();
    let (until, mut before) = (Instant::now() + CALM, f64::MIN);
    while Instant::now() < until {
        let now = cpu();
        if now - before < IDLE {
            return;
        }
        before = now;
        thread::sleep(LOOK);
    }
}

/// Runs a scenario. A scenario that fails is a result; an error is a fault of this program or of the machine.
pub fn run(
    kind: Kind,
    system: &mut System,
    scenario: Scenario,
    round: u32,
    seconds: u32,
) -> anyhow::Result<Run> {
    let mut run = Run::new(kind.name(), scenario.name(), round);
    let arguments = arguments(system, scenario, seconds)?;
    let mut redis = system.redis.map(Raw::to).transpose()?;
    calm(system);
    let logs = kept_from(scenario, redis.as_mut())?;
    let (rss, cpu, commands) = (system.rss(), system.cpu_each(), calls(redis.as_mut())?);
    let output = system.dir.path().join("load.json");
    let mut child = start(&arguments, &output)?;
    let watched = watch(&mut child, system, scenario, seconds);
    let called = calls(redis.as_mut())?;
    let reading = match (redis.as_mut(), logs) {
        (Some(redis), Some(logs)) => Some(look(system, redis, &logs)?),
        _ => None,
    };
    let text = fs::read_to_string(&output)?;
    let said = fs::read_to_string(output.with_extension("err"))?;
    run.failure = watched.as_ref().err().map(ToString::to_string);
    let Ok(result) = serde_json::from_str::<Value>(&text) else {
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no result").to_owned();
        run.failure.get_or_insert(last);
        return Ok(run);
    };
    run.generator_bound = bound(&result);
    run.failure = run.failure.or_else(|| failure(&result));
    run.figures =
        scenario.figures(&result).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    if let Some(messages) = scenario.messages(&result) {
        run.cpu = costs(&cpu, &system.cpu_each(), messages);
        run.figures.insert("cpu_seconds_per_million".to_owned(), run.cpu.values().sum());
    }
    if let (Ok(watched), Scenario::Connect) = (&watched, scenario) {
        run.figures.extend(watched.idle(rss).map(|bytes| ("idle_bytes".to_owned(), bytes)));
    }
    let stored = result.pointer("/messages/acked").and_then(Value::as_f64).filter(|count| *count > 0.0);
    if let (Some(before), Some(after), Some(stored)) = (commands, called, stored) {
        run.figures.insert("appends_per_message".to_owned(), (after.appends - before.appends) / stored);
        run.figures.insert("commands_per_message".to_owned(), (after.all - before.all) / stored);
    }
    if let Some(reading) = reading {
        read(&mut run, scenario, &reading, stored.unwrap_or(0.0));
    }
    Ok(run)
}

fn calls(redis: Option<&mut Raw>) -> anyhow::Result<Option<Calls>> {
    redis.map(Raw::calls).transpose()
}

/// Where the logs end before the load, for scenarios that look at what is stored.
fn kept_from(scenario: Scenario, redis: Option<&mut Raw>) -> anyhow::Result<Option<Logs>> {
    let Some(redis) = redis.filter(|_| scenario.keeps()) else { return Ok(None) };
    redis.logs().map(Some)
}

/// What was stored since then, read from Redis itself.
fn look(system: &System, redis: &mut Raw, logs: &Logs) -> anyhow::Result<Reading> {
    calm(system);
    redis.read_since(logs)
}

/// Figures of what was read. What is not there says nothing of its speed and size.
fn read(run: &mut Run, scenario: Scenario, reading: &Reading, stored: f64) {
    if reading.records < stored || reading.records == 0.0 {
        let missing = format!("only {} of {stored} records were in Redis", reading.records);
        run.failure.get_or_insert(missing);
        return;
    }
    let mut tell = |name: &str, value: f64| run.figures.insert(name.to_owned(), value);
    if scenario.is_stored() {
        let bytes = reading.bytes / reading.records;
        tell("bytes_per_message", bytes);
        tell("of_payload_topic_client", bytes / stored_bytes());
        return;
    }
    let rate = reading.records / reading.seconds;
    tell("xrange_per_second", rate);
    if let Some(own) = run.figures.get("per_second").copied() {
        run.figures.insert("of_xrange".to_owned(), own / rate);
    }
}

/// The command line of a scenario on a system, with the machine's own places in it.
fn arguments(system: &mut System, scenario: Scenario, seconds: u32) -> anyhow::Result<Vec<String>> {
    let mut words: Vec<String> = scenario.arguments(seconds).split(' ').map(str::to_owned).collect();
    let mut targets = format!("mqtt://{}", system.target);
    if let (Scenario::Takeover, Some(another)) = (scenario, &system.another) {
        let (part, target) = another.start(system.dir.path(), "gateway-2")?;
        system.parts.push(part);
        targets = format!("{targets},mqtt://{target}");
    }
    if let Some((mqtt, _)) = system.second {
        targets = format!("{targets},mqtt://{mqtt}");
    }
    let mut flag = |name: &str, value: String| words.extend([name.to_owned(), value]);
    flag("--target", targets);
    flag("--threads", "1".to_owned());
    if let Some(login) = &system.login {
        flag("--user-template", login.user.clone());
        flag("--password-file", login.password_file.display().to_string());
    }
    if let Some(door) = system.door.filter(|_| scenario.takes_the_door()) {
        let second = system.second.map(|(_, door)| format!(",http://{door}")).unwrap_or_default();
        flag("--messaging", format!("http://{door}{second}"));
    }
    words.push("--json".to_owned());
    Ok(words)
}

/// The command as the report shows it.
pub fn command(scenario: Scenario, seconds: u32) -> String {
    let door = if scenario.takes_the_door() { " --messaging …" } else { "" };
    format!(
        "taskset -c {LOAD_CORE} penstock-loadtest {} --threads 1 --json --target …{door}",
        scenario.arguments(seconds)
    )
}

fn start(arguments: &[String], output: &std::path::Path) -> anyhow::Result<Child> {
    Command::new("taskset")
        .args(["-c", LOAD_CORE])
        .arg(ours::program("penstock-loadtest"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(File::create(output)?)
        .stderr(File::create(output.with_extension("err"))?)
        .spawn()
        .context("cannot start penstock-loadtest")
}

/// Waits for the generator's end; kills it when it takes too long.
fn watch(child: &mut Child, system: &System, scenario: Scenario, seconds: u32) -> anyhow::Result<Watched> {
    let (started, limit) = (Instant::now(), scenario.limit(seconds));
    let mut rss = Vec::new();
    while child.try_wait()?.is_none() {
        if started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("more than {} s", limit.as_secs());
        }
        if scenario == Scenario::Connect {
            rss.push((started.elapsed().as_secs_f64(), system.rss()));
        }
        thread::sleep(LOOK);
    }
    Ok(Watched { rss, seconds: started.elapsed().as_secs_f64() })
}

impl Watched {
    /// Bytes of a connection in the middle of the time in which all were held.
    fn idle(&self, before: u64) -> Option<f64> {
        let middle = self.seconds - f64::from(HELD) / 2.0;
        let far = |at: f64| (at - middle).abs();
        let nearest = self.rss.iter().min_by(|a, b| far(a.0).total_cmp(&far(b.0)))?;
        Some(nearest.1.saturating_sub(before) as f64 / f64::from(MANY))
    }
}

/// CPU seconds of each part for a million messages.
fn costs(before: &[(String, f64)], after: &[(String, f64)], messages: f64) -> BTreeMap<String, f64> {
    let cost = |((name, now), (_, then)): (&(String, f64), &(String, f64))| {
        (name.clone(), (now - then) / messages * 1e6)
    };
    after.iter().zip(before).map(cost).collect()
}

/// Why the run counts for nothing.
fn failure(result: &Value) -> Option<String> {
    let passed = result.get("passed").and_then(Value::as_bool).unwrap_or(false);
    let failures = result.get("failures").and_then(Value::as_array).into_iter().flatten();
    let failures: Vec<&str> = failures.filter_map(Value::as_str).collect();
    (!passed).then(|| if failures.is_empty() { "failed".to_owned() } else { failures.join(", ") })
}

fn bound(result: &Value) -> Option<String> {
    let is_bound = result.get("generator_bound").and_then(Value::as_bool).unwrap_or(false);
    let reason = result.get("generator_bound_reason").and_then(Value::as_str).unwrap_or("it says no more");
    is_bound.then(|| reason.to_owned())
}
