//! `penstock-mapper` between devices and the platform: nothing is lost and no device made twice, whatever is killed or away.

use std::{collections::BTreeSet, fs, net::SocketAddr, ops::Range, path::PathBuf, time::Duration};

use penstock_tests::{
    binaries,
    command::{Ran, run},
    device::Device,
    platform::{self, Mode, Platform},
    ports,
    program::Program,
    standalone::Penstock,
    wait::{alone, eventually},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(60);

const ROUTES: &str = r#"
[[route]]
name = "numbers"
filter = "numbers/+"
send = "measurement"
jq = '{type: "r", r: {n: {value: .payload.n}}, poison: .payload.poison, fatal: .payload.fatal}'

[[route]]
name = "for others"
filter = "others"
send = "measurement"
jq = '{type: "r", source: {externalId: .payload.device}, r: {n: {value: .payload.n}}}'

[[route]]
name = "events"
filters = ["numbers/+", "events"]
send = "event"
jq = '.payload | select(.event) | {type: "e", text: .event}'

[[route]]
name = "update"
filter = "update"
payload = "text"
request = { method = "PUT", path = "/inventory/managedObjects/{id}" }
jq = '{version: .payload}'
"#;

struct World {
    penstock: Penstock,
    platform: Platform,
    directory: TempDir,
}

impl World {
    async fn start() -> Self {
        let (penstock, platform) = tokio::join!(Penstock::start(), Platform::start());
        Self { penstock, platform, directory: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn mapper_at(&self, api: SocketAddr) -> Program {
        let path = |name: &str, text: &str| self.file(name, text).display().to_string();
        let demo = self.penstock.demo();
        Program::new("mapper", "penstock-mapper", &["admin"])
            .flag("config", path("mapper.toml", ROUTES))
            .flag("server", self.penstock.server())
            .flag("user", demo.app())
            .flag("password-file", path("app.password", &demo.password))
            .flag("start", "earliest")
            .flag("api-url", format!("http://{api}"))
            .flag("api-user", platform::USER.0)
            .flag("api-password-file", path("api.password", platform::USER.1))
            .flag("api-timeout", "2s")
            .flag("retry-first", "100ms")
            .flag("retry-longest", "500ms")
            .flag("dead-letter-dir", self.directory.path().join("dead").display().to_string())
    }

    async fn mapper(&self) -> Program {
        let mut mapper = self.mapper_at(self.platform.address);
        mapper.start().await;
        mapper
    }

    async fn devices<const N: usize>(&self, names: [&str; N]) -> Vec<Device> {
        let mut devices = Vec::new();
        for name in names {
            let device = Device::connect(&self.penstock.target(), &self.penstock.demo(), name).await;
            devices.push(device.unwrap());
        }
        devices
    }

    /// Nothing of the group is left to do.
    async fn done(&self) {
        let client = self.penstock.client();
        let client = &client;
        eventually("the group is done", LIMIT, || async move {
            client.group("mapper").await.ok().filter(|status| status.lag() == 0)
        })
        .await;
    }

    fn dead_letters(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.directory.path().join("dead/dead-letters.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Publishes numbers of several devices, alternating.
async fn publish(devices: &mut [Device], numbers: Range<u64>) {
    for n in numbers {
        for device in &mut *devices {
            device.publish("numbers/1", &format!("{{\"n\": {n}}}")).await.unwrap();
        }
    }
}

/// The numbers without repetitions, which at least once allows.
fn first_times(numbers: Vec<u64>) -> Vec<u64> {
    let mut seen = BTreeSet::new();
    numbers.into_iter().filter(|n| seen.insert(*n)).collect()
}

async fn mapper(arguments: &[&str]) -> Ran {
    let mut command = Command::new(binaries::path("penstock-mapper"));
    command.args(arguments);
    run("penstock-mapper", command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_message_makes_no_second_device() {
    let _alone = alone().await;
    let world = World::start().await;
    // Long enough that everything comes while the first creation is under way.
    world.platform.takes(Duration::from_millis(50));
    let mut first = world.mapper().await;
    let mut second = world.mapper().await;
    let mut devices = world.devices(["gateway/0", "b", "c", "d", "e", "f", "g", "h", "i", "j"]).await;
    for (n, device) in devices.iter_mut().enumerate() {
        device.publish("others", &format!("{{\"device\": \"shared\", \"n\": {n}}}")).await.unwrap();
    }
    publish(&mut devices[..1], 0..5).await;
    world.done().await;
    let numbers: BTreeSet<u64> = world.platform.numbers("shared").into_iter().collect();
    assert_eq!(numbers, (0..10).collect());
    assert_eq!(first_times(world.platform.numbers("gateway/0")), [0, 1, 2, 3, 4]);
    let gateway = ("c8y_Serial".to_owned(), "gateway/0".to_owned());
    {
        let mut held = world.platform.held();
        assert_eq!(held.devices.len(), 2, "what both mappers made is deleted again: {:?}", held.devices);
        assert_eq!(held.externals.len(), 2);
        // Someone deletes a device on the platform, while the mappers remember it.
        let id = held.externals.remove(&gateway).unwrap();
        held.devices.remove(&id);
    }
    publish(&mut devices[..1], 5..7).await;
    world.done().await;
    assert_eq!(first_times(world.platform.numbers("gateway/0")), [5, 6], "made anew, and nothing is lost");
    assert_eq!(world.platform.held().devices.len(), 2);
    first.drain().await;
    second.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_mapper_loses_nothing_and_keeps_the_order() {
    let _alone = alone().await;
    let world = World::start().await;
    let names = ["a", "b", "c", "d", "e"];
    let mut mapper = world.mapper().await;
    let mut devices = world.devices(names).await;
    // So that something is under way when it is killed.
    world.platform.takes(Duration::from_millis(20));
    for round in [0, 20, 40] {
        let before = world.platform.held().measurements.len();
        publish(&mut devices, round..round + 15).await;
        eventually("the mapper works", LIMIT, || async {
            (world.platform.held().measurements.len() > before).then_some(())
        })
        .await;
        mapper.kill().await;
        publish(&mut devices, round + 15..round + 20).await;
        mapper.start().await;
    }
    world.done().await;
    for name in names {
        let numbers = first_times(world.platform.numbers(name));
        assert_eq!(numbers, (0..60).collect::<Vec<_>>(), "{name}");
    }
    assert_eq!(world.platform.held().externals.len(), 5);
    assert!(world.platform.held().together > 1, "what waited went together");
    mapper.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_is_away_loses_nothing_and_keeps_the_order() {
    let _alone = alone().await;
    let mut world = World::start().await;
    // Nobody listens there yet.
    let address = SocketAddr::from(([127, 0, 0, 1], ports::free()));
    let mut mapper = world.mapper_at(address);
    mapper.start().await;
    let names = ["a", "b", "c"];
    let mut devices = world.devices(names).await;
    publish(&mut devices, 0..10).await;
    mapper.metric_until("penstock_mapper_messages_total", LIMIT, |returned| returned >= 60.0).await;
    world.platform = Platform::start_at(address).await;
    let platform = &world.platform;
    for (status, first) in [(500, 10), (503, 20), (401, 30), (429, 40)] {
        platform.behaves(Mode::Status(status));
        publish(&mut devices, first..first + 5).await;
        let before = platform.held().errors;
        eventually("the API was asked in vain", LIMIT, || async move {
            (platform.held().errors >= before + 5).then_some(())
        })
        .await;
        platform.behaves(Mode::Well);
        publish(&mut devices, first + 5..first + 10).await;
    }
    world.done().await;
    platform.behaves(Mode::Silent);
    publish(&mut devices, 50..55).await;
    mapper.metric_until("penstock_mapper_api_up", LIMIT, |up| up == 0.0).await;
    platform.behaves(Mode::Well);
    world.done().await;
    for name in names {
        assert_eq!(first_times(platform.numbers(name)), (0..55).collect::<Vec<_>>(), "{name}");
    }
    assert_eq!(platform.held().devices.len(), 3);
    assert_eq!(world.dead_letters(), Vec::<Value>::new());
    mapper.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_kept_and_holds_nobody_up() {
    let _alone = alone().await;
    let world = World::start().await;
    let mut mapper = world.mapper_at(world.platform.address).flag("concurrency", "1");
    mapper.start().await;
    // An alert sees the first one, too: the counter is there before it.
    mapper.metric_until("penstock_mapper_dead_letters_total", LIMIT, |kept| kept == 0.0).await;
    // While the first one waits for its answer, all others come, and go together.
    world.platform.takes(Duration::from_millis(300));
    let mut devices = world.devices(["good", "bad", "fatal"]).await;
    publish(&mut devices, 0..1).await;
    let [good, bad, fatal] = devices.as_mut_slice() else { panic!("three devices") };
    bad.publish("numbers/x", "no JSON").await.unwrap();
    bad.publish("numbers/x", "{\"n\": 1, \"poison\": true}").await.unwrap();
    bad.publish("numbers/x", "{\"n\": 2, \"event\": \"after\"}").await.unwrap();
    bad.publish("update", "1.2").await.unwrap();
    fatal.publish("numbers/x", "{\"n\": 1}").await.unwrap();
    fatal.publish("numbers/x", "{\"n\": 2, \"fatal\": true}").await.unwrap();
    fatal.publish("numbers/x", "{\"n\": 3}").await.unwrap();
    good.publish("numbers/x", "{\"n\": 1}").await.unwrap();
    world.platform.takes(Duration::ZERO);
    let platform = &world.platform;
    eventually("all but what fails is there", LIMIT, || async move {
        let there = [("good", vec![0, 1]), ("bad", vec![0, 2]), ("fatal", vec![0, 1])];
        let there = there.iter().all(|(name, numbers)| first_times(platform.numbers(name)) == *numbers);
        (there && platform.held().updates.len() == 1).then_some(())
    })
    .await;
    assert_eq!(platform.held().events.len(), 1);
    assert_eq!(platform.held().updates[0].1["version"], "1.2");
    let letters = world.dead_letters();
    assert_eq!(letters.len(), 2, "{letters:#?}");
    assert_eq!(letters[0]["message"]["payload"], "no JSON");
    assert!(letters[0]["reason"].as_str().unwrap().contains("not JSON"), "{letters:#?}");
    assert!(letters[1]["reason"].as_str().unwrap().contains("422"), "{letters:#?}");
    assert_eq!(letters[1]["request"]["path"], "/measurement/measurements");
    assert_eq!(letters[1]["message"]["client_id"], "bad");
    assert_eq!(mapper.metric("penstock_mapper_dead_letters_total").await, Some(2.0));
    mapper.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_sends_nothing_and_takes_nothing_away() {
    let _alone = alone().await;
    let world = World::start().await;
    let mut dry = world.mapper_at(world.platform.address).switch("dry-run");
    dry.start().await;
    let mut devices = world.devices(["sensor"]).await;
    publish(&mut devices, 7..8).await;
    let line = dry.child().line("the request", LIMIT, |line| {
        let value: Value = serde_json::from_str(line).ok()?;
        value.get("route").is_some().then_some(value)
    });
    let line = line.await;
    assert_eq!((line["method"].as_str(), line["device"].as_str()), (Some("POST"), Some("sensor")), "{line}");
    dry.drain().await;
    assert!(world.platform.held().devices.is_empty() && world.platform.held().measurements.is_empty());
    let mut mapper = world.mapper().await;
    world.done().await;
    assert_eq!(world.platform.numbers("sensor"), [7]);
    mapper.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_and_settings_are_checked_without_a_connection() {
    let _alone = alone().await;
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../mapper/examples");
    let fine = mapper(&["test", "--config", &format!("{examples}/binary.toml")]).await.fine();
    assert!(fine.iter().any(|line| line.starts_with("ok ")), "{fine:?}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mapper.toml");
    let file = path.to_str().unwrap();
    let sample = "[[route.sample]]\ntopic = \"update\"\npayload = \"1\"\nexpect = '[]'\n";
    fs::write(&path, format!("{ROUTES}\n{sample}")).unwrap();
    let wrong = mapper(&["test", "--config", file]).await;
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    assert!(wrong.lines.iter().any(|line| line.starts_with("FAILED update")), "{wrong:?}");
    fs::write(&path, "[[route]]\nfilter = \"a/#\"\nsend = \"event\"\njq = \".a | nosuch\"\n").unwrap();
    let faults = mapper(&["--config", file, "--batch", "0"]).await;
    assert_eq!(faults.code, Some(2), "{faults:?}");
    let text = faults.lines.join("\n");
    for part in [
        "jq, line 1, column 6: there is no filter nosuch",
        "--user",
        "--api-url",
        "--batch",
        "--dead-letter-dir",
        "PENSTOCK_API_PASSWORD",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let help = mapper(&["--help"]).await.fine().join("\n");
    assert!(help.contains("Examples:") && help.contains("[[route]]"), "{help}");
    let passwords = ["--password-file", file, "--api-password-file", file, "--print-config"];
    let json = format!("{examples}/json.toml");
    let shown = mapper(&[&["--config", &json][..], &passwords[..]].concat()).await.fine();
    let shown: toml::Table = shown.join("\n").parse().unwrap();
    assert_eq!(shown["route"].as_array().unwrap().len(), 3);
}
