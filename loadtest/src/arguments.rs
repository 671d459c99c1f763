//! Command line, scenario file and password into one value, or every fault at once.

use std::{fs, net::IpAddr, path::Path, time::Duration};

use crate::{
    access::User,
    cli::{Cli, Command, Common, Load},
    pace::Pace,
    quantity,
    scenario::{Phase, Scenario, ScenarioFile},
    settings::{Doors, Job, Settings, Traffic, Verify},
    slo,
    stamp::stamp_bytes,
};

const PASSWORD: &str = "PENSTOCK_PASSWORD";
/// One loopback address has some 28,000 ports.
const A_SOURCE: u64 = 20_000;

/// Collects what is wrong.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, flag: &str, fault: impl std::fmt::Display) {
        self.0.push(format!("{flag}: {fault}"));
    }

    fn take<T>(&mut self, flag: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|fault| self.add(flag, fault)).ok()
    }

    fn time(&mut self, flag: &str, text: &str) -> Duration {
        let time = humantime::parse_duration(text);
        self.take(flag, time.map_err(|_| format!("{text:?} is not a time such as 500ms, 30s or 2min")))
            .unwrap_or_default()
    }

    fn number(&mut self, flag: &str, text: &str, from: u64, to: u64) -> u64 {
        let number = text.parse::<u64>().ok().filter(|number| (from..=to).contains(number));
        self.take(flag, number.ok_or_else(|| format!("{text:?} is not a number of {from} to {to}")))
            .unwrap_or(from)
    }

    fn password(&mut self, flag: &str, file: &Path) -> Option<String> {
        match fs::read_to_string(file) {
            Err(error) => self.add(flag, format!("{}: {error}", file.display())),
            Ok(text) => {
                let password = text.trim_end_matches(['\r', '\n']);
                if !password.is_empty() {
                    return Some(password.to_owned());
                }
                self.add(flag, format!("{}: the file is empty", file.display()));
            }
        }
        None
    }
}

/// Reads and checks everything; every fault.
pub(crate) fn read(cli: Cli) -> Result<Settings, Vec<String>> {
    let mut faults = Faults::default();
    let settings = match cli.command {
        Command::Ingest { load, common } => traffic("ingest", &mut faults, &load, &common, Shape::Ingest),
        Command::Push { load, common } => traffic("push", &mut faults, &load, &common, Shape::Push),
        Command::Fanout { publishers, load, common } => {
            traffic("fanout", &mut faults, &load, &common, Shape::Fanout { publishers })
        }
        Command::Run { scenario, load, common } => run_file(&mut faults, &scenario, load, common),
        Command::Connect { hold, rate, common } => {
            let hold = faults.time("--hold", &hold);
            let rate = rate.and_then(|rate| faults.take("--rate", quantity::rate(&rate)));
            base(
                "connect",
                &mut faults,
                &common,
                Job::Connect { hold, rate: rate.filter(|rate| *rate > 0.0) },
            )
        }
        Command::Storm { rounds, common } => {
            if rounds == 0 {
                faults.add("--rounds", "at least 1");
            }
            base("storm", &mut faults, &common, Job::Storm { rounds })
        }
        Command::Takeover { common } => base("takeover", &mut faults, &common, Job::Takeover),
    };
    if faults.0.is_empty() { Ok(settings) } else { Err(faults.0) }
}

enum Shape {
    Ingest,
    Push,
    Fanout { publishers: u64 },
    Scenario(Scenario),
}

fn run_file(faults: &mut Faults, path: &Path, mut load: Load, mut common: Common) -> Settings {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| error.to_string());
    let file =
        text.and_then(|text| ScenarioFile::parse(&text)).map_err(|error| faults.add(&name, error)).ok();
    let scenario = file.as_ref().and_then(|file| {
        let all = file.scenario();
        all.map_err(|all| all.iter().for_each(|fault| faults.add(&name, fault))).ok()
    });
    if let Some(file) = file {
        load.payload = load.payload.or(file.payload);
        load.topic = load.topic.or(file.topic);
        load.qos = load.qos.or(file.qos.map(|qos| qos.to_string()));
        load.inflight = load.inflight.or(file.inflight.map(|inflight| inflight.to_string()));
        common.slo = common.slo.or(file.slo);
    }
    for (flag, given) in [
        ("--rate", load.rate.is_some()),
        ("--duration", load.duration.is_some()),
        ("--warmup", load.warmup.is_some()),
        ("--clients", common.clients.is_some()),
    ] {
        if given {
            faults.add(flag, "a scenario says this itself, in its phases");
        }
    }
    // Only for the other faults: nothing runs without a scenario.
    let nothing = Scenario { name, subscribers: 0, devices: 0, phases: Vec::new() };
    traffic("run", faults, &load, &common, Shape::Scenario(scenario.unwrap_or(nothing)))
}

fn traffic(
    command: &'static str,
    faults: &mut Faults,
    load: &Load,
    common: &Common,
    shape: Shape,
) -> Settings {
    let mut settings = base(command, faults, common, Job::Takeover);
    let text = |value: &Option<String>, or: &str| value.clone().unwrap_or_else(|| or.to_owned());
    let rate = load.rate.as_deref().and_then(|rate| faults.take("--rate", quantity::rate(rate)));
    if rate == Some(0.0) {
        faults.add("--rate", "more than 0");
    }
    let length = faults.time("--duration", &text(&load.duration, "10s"));
    if length.is_zero() {
        faults.add("--duration", "more than 0");
    }
    let warmup = faults.time("--warmup", &text(&load.warmup, "0s"));
    let scenario = scenario(command, settings.clients, &shape, rate, length, warmup);
    let payload = faults.take("--payload", quantity::bytes(&text(&load.payload, "64B")));
    let verify = verify(faults, load);
    let topic = if matches!(shape, Shape::Fanout { .. }) { "fan/{run}/{i}" } else { "load/{run}/{i}" };
    let traffic = Traffic {
        // At most 1.
        qos: faults.number("--qos", &text(&load.qos, "1"), 0, 1) as u8,
        payload_bytes: payload.unwrap_or_default(),
        inflight: faults.number("--inflight", &text(&load.inflight, "16"), 1, 65_535) as usize,
        topic: text(&load.topic, topic).replace("{run}", &settings.run),
        messages: load.messages.as_deref().map(|text| faults.number("--messages", text, 1, u64::MAX)),
        verify,
        consumers: faults.number("--consumers", &text(&load.consumers, "1"), 1, 256),
        backlog: load.backlog,
        pushers: faults.number("--pushers", &text(&load.pushers, "1"), 1, 1_024),
        doors: doors(faults, load, common, &settings),
        settle: faults.time("--settle", &text(&load.settle, "30s")),
        scenario,
    };
    together(faults, &traffic, &settings);
    several(faults, &traffic, load);
    settings.clients =
        traffic.scenario.publishers() + traffic.scenario.subscribers + traffic.scenario.devices;
    spread(&mut settings, common);
    settings.job = Job::Traffic(traffic);
    settings
}

/// What must fit together.
fn together(faults: &mut Faults, traffic: &Traffic, settings: &Settings) {
    let (scenario, verified) = (&traffic.scenario, traffic.verify != Verify::Nobody);
    let longest = settings.tenants().iter().map(|tenant| stamp_bytes(tenant, settings.clients)).max();
    let stamp = longest.unwrap_or_default();
    if verified && traffic.payload_bytes < stamp {
        faults.add(
            "--payload",
            format!(
                "{} B has no room for a stamp of {stamp} B; give more, or --verify none",
                traffic.payload_bytes
            ),
        );
    }
    if traffic.doors.is_none() && scenario.pushes() {
        faults.add(
            "--messaging",
            "pushes go through the messaging door: give its URL, as http://127.0.0.1:7070",
        );
    }
    if traffic.topic.contains(['+', '#']) || traffic.topic.is_empty() {
        faults.add("--topic", "a topic to publish to has no wildcards and is not empty");
    }
    if settings.users.len() > 1 && scenario.pushes() && settings.tenants().len() > 1 {
        faults.add("--user-template", "pushes go to the clients of one tenant");
    }
}

/// What only groups and pushes have.
fn several(faults: &mut Faults, traffic: &Traffic, load: &Load) {
    let scenario = &traffic.scenario;
    let group = traffic.verify == Verify::Group && scenario.publishers() > 0;
    for (flag, given) in [("--consumers", load.consumers.is_some()), ("--backlog", load.backlog)] {
        if given && !group {
            faults.add(flag, "only a group that verifies publishes has consumers: give --messaging URL");
        }
    }
    if load.pushers.is_some() && !scenario.pushes() {
        faults.add("--pushers", "nothing is pushed here");
    } else if traffic.pushers > scenario.devices.max(1) {
        let (pushers, devices) = (traffic.pushers, scenario.devices);
        faults
            .add("--pushers", format!("{pushers} can't share {devices} devices: each needs one of its own"));
    }
}

fn scenario(
    command: &str,
    clients: u64,
    shape: &Shape,
    rate: Option<f64>,
    length: Duration,
    warmup: Duration,
) -> Scenario {
    let (publishers, subscribers, devices) = match shape {
        Shape::Ingest => (clients, 0, 0),
        Shape::Push => (0, 0, clients),
        Shape::Fanout { publishers } => (*publishers, clients, 0),
        Shape::Scenario(scenario) => return scenario.clone(),
    };
    let pace = rate.map_or(Pace::Max, Pace::steady);
    let phase = |name: &str, length, measured| Phase {
        name: name.to_owned(),
        length,
        publishers,
        rate: pace,
        pushes: (devices > 0).then_some(pace),
        measured,
    };
    let mut phases = vec![phase("load", length, true)];
    if !warmup.is_zero() {
        phases.insert(0, phase("warm-up", warmup, false));
    }
    Scenario { name: command.to_owned(), subscribers, devices, phases }
}

fn verify(faults: &mut Faults, load: &Load) -> Verify {
    match load.verify.as_deref() {
        None if load.messaging.is_empty() => Verify::Subscriber,
        None => Verify::Group,
        Some("group") => {
            if load.messaging.is_empty() {
                faults.add("--verify", "a group needs --messaging URL");
            }
            Verify::Group
        }
        Some("subscriber") => Verify::Subscriber,
        Some("none") => Verify::Nobody,
        Some(other) => {
            faults.add("--verify", format!("{other:?} is not group, subscriber or none"));
            Verify::Nobody
        }
    }
}

fn doors(faults: &mut Faults, load: &Load, common: &Common, settings: &Settings) -> Option<Doors> {
    if load.messaging.is_empty() {
        return None;
    }
    if common.user_template.is_empty() {
        faults.add(
            "--user-template",
            "with --messaging, the tenant must be known: give a user such as demo/device",
        );
        return None;
    }
    let password = match &load.messaging_password_file {
        Some(file) => faults.password("--messaging-password-file", file),
        None => settings.users.first().map(|user| user.password.clone()),
    };
    let tenants = settings.tenants();
    let users = tenants.iter().map(|tenant| {
        let given = load.messaging_user.iter().find(|user| user.split('/').next() == Some(tenant));
        let name = given.cloned().unwrap_or_else(|| format!("{tenant}/app"));
        User { name, password: password.clone().unwrap_or_default() }
    });
    let doors = Doors { users: users.collect(), servers: load.messaging.clone() };
    for user in &load.messaging_user {
        if !doors.users.iter().any(|own| own.name == *user) {
            faults.add("--messaging-user", format!("{user:?} is of no tenant in --user-template"));
        }
    }
    Some(doors)
}

// A program's start is where the environment is read.
#[allow(clippy::disallowed_methods)]
fn from_environment() -> Option<String> {
    std::env::var(PASSWORD).ok().filter(|password| !password.is_empty())
}

fn users(faults: &mut Faults, common: &Common) -> Vec<User> {
    if common.user_template.is_empty() {
        return Vec::new();
    }
    let password = match &common.password_file {
        Some(file) => faults.password("--password-file", file),
        None => from_environment(),
    };
    if password.is_none() && common.password_file.is_none() {
        faults.add("--password-file", format!("the password is missing: give the file, or set {PASSWORD}"));
    }
    let password = password.unwrap_or_default();
    let user = |name: &String| User { name: name.clone(), password: password.clone() };
    let users: Vec<User> = common.user_template.iter().map(user).collect();
    for user in &users {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if user.tenant().is_empty() || !user.tenant().chars().all(plain) {
            let fault = format!("{:?}: what is before / is the tenant: a-z, 0-9 and '-'", user.name);
            faults.add("--user-template", fault);
        }
    }
    users
}

fn known_kinds(faults: &mut Faults, kinds: &[String]) {
    for kind in kinds.iter().filter(|kind| !slo::FAULTS.contains(&kind.as_str())) {
        faults.add("--tolerate", format!("there is no {kind:?}; known are {}", slo::FAULTS.join(", ")));
    }
}

fn base(command: &'static str, faults: &mut Faults, common: &Common, job: Job) -> Settings {
    let targets = common.targets.iter().filter_map(|text| faults.take("--target", quantity::target(text)));
    let targets = targets.collect();
    let many = !matches!(command, "ingest" | "push" | "fanout" | "run");
    let clients = common.clients.as_deref().unwrap_or(if many { "1000" } else { "100" });
    let clients = faults.number("--clients", clients, 1, 10_000_000);
    if clients > 1 && !common.client_id.contains("{i}") {
        faults.add("--client-id", "clients need different identifiers: use {i}");
    }
    let sources = common.source_ips.as_deref();
    let sources = sources.and_then(|text| faults.take("--source-ips", quantity::addresses(text)));
    let half = std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2).max(1);
    let threads = common.threads.as_deref().map(|text| faults.number("--threads", text, 1, 1_024) as usize);
    let slos = common.slo.as_deref().map(slo::parse).transpose();
    let slos = slos.map_err(|all| all.iter().for_each(|fault| faults.add("--slo", fault)));
    known_kinds(faults, &common.tolerate);
    let run = format!("{:04x}", rand::random_range(0..=0xffff_u32));
    let keep_alive = faults.time("--keep-alive", &common.keep_alive);
    if !(1..=65_535).contains(&keep_alive.as_secs()) {
        faults.add("--keep-alive", "1s to 65535s");
    }
    let mut settings = Settings {
        command,
        client_id: common.client_id.replace("{run}", &run),
        run,
        targets,
        users: users(faults, common),
        clients,
        sources: sources.unwrap_or_default(),
        threads: threads.unwrap_or(half).min(usize::try_from(clients).unwrap_or(usize::MAX)),
        connecting: faults.number("--connecting", &common.connecting, 1, 1_000_000) as usize,
        connect_timeout: faults.time("--connect-timeout", &common.connect_timeout),
        keep_alive,
        tolerate: common.tolerate.clone(),
        slos: slos.ok().flatten().unwrap_or_default(),
        json: common.json,
        html: common.html.clone(),
        job,
    };
    spread(&mut settings, common);
    settings
}

/// More clients than one address has ports: several addresses, where all targets are on this machine.
fn spread(settings: &mut Settings, common: &Common) {
    let local =
        settings.targets.iter().all(|target| target.starts_with("127.") || target.starts_with("localhost:"));
    let per_target = settings.clients / settings.targets.len().max(1) as u64;
    if common.source_ips.is_none() && local && per_target > A_SOURCE {
        let needed = u32::try_from(per_target.div_ceil(A_SOURCE)).unwrap_or(u32::MAX).min(65_000);
        let first = u32::from(std::net::Ipv4Addr::new(127, 0, 1, 1));
        settings.sources = (0..needed).map(|at| IpAddr::from(std::net::Ipv4Addr::from(first + at))).collect();
    }
}
