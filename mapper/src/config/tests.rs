//! What is read, what is refused, and that the shipped examples do what they say.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::sample;

fn routes(text: &str) -> Result<Vec<Route>, Vec<String>> {
    let table: toml::Table = text.parse().unwrap();
    read(table.get("route"), None)
}

#[test]
fn all_faults_of_all_routes_are_told_at_once() {
    let faults = routes(
        r#"
[[route]]
name = "a"
filters = ["x/#/y", "fine/+"]
payload = "xml"
send = "letter"
jq = "{a: .b | nosuch,\n c: ."
[[route]]
nmae = "b"
[[route]]
filter = "c"
request = { method = "BREW", path = "no slash" }
jq_file = "not/there.jq"
[[route.sample]]
topic = "c"
payload = "x"
payload_hex = "00"
[[route.sample]]
topic = "c"
payload_hex = "0g"
[[route.sample]]
topic = "c"
payload = "x"
received_at = "noon"
expect = "{}"
[[route]]
name = "a"
filter = "x"
send = "event"
jq = "."
"#,
    )
    .unwrap_err();
    let text = faults.join("\n");
    for part in [
        "route \"a\": filter \"x/#/y\"",
        "route \"a\": payload \"xml\" is not json, text or bytes",
        "route \"a\": send is measurement, event or alarm",
        "route \"a\": jq, line 2, column 6: expected closing brace, found the end",
        "route \"2\": unknown field `nmae`",
        "route \"3\": method \"BREW\"",
        "route \"3\": path \"no slash\"",
        "route \"3\": jq_file not/there.jq",
        "route \"3\": sample 1, c: give one of payload",
        "route \"3\": sample 2, c: payload_hex \"0g\"",
        "route \"3\": sample 3, c: received_at \"noon\"",
        "route \"3\": sample 3, c: expect is a JSON array",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
    assert_eq!(read(None, None).unwrap_err().len(), 1);
    let twice = "[[route]]\nname = \"a\"\nfilter = \"x\"\nsend = \"event\"\njq = \".\"\n".repeat(2);
    assert_eq!(routes(&twice).unwrap_err(), ["route \"a\": another one has this name"]);
}

#[test]
fn samples_are_compared_or_shown() {
    let routes = routes(
        r#"
[[route]]
name = "r"
filter = "s/+"
send = "event"
jq = '{type: "t", text: .payload.text, n: 1.0}'
[[route.sample]]
topic = "s/1"
payload = '{"text": "hello"}'
expect = '[{"type": "t", "text": "hello", "n": 1, "source": {"externalId": "device-1"}, "time": "2026-01-01T00:00:00.000Z"}]'
[[route.sample]]
topic = "s/1"
payload = 'no JSON'
expect_error = "not JSON"
[[route.sample]]
topic = "s/1"
payload = '{}'
expect = '[]'
[[route.sample]]
topic = "s/1/2"
payload = '{}'
expect = '[]'
[[route.sample]]
topic = "s/2"
client_id = "c"
payload_hex = "7b 7d"
"#,
    )
    .unwrap();
    let report = sample::run(&routes);
    assert_eq!((report.passed, report.failed, report.shown), (2, 2, 1), "{}", report.text);
    for part in [
        "ok     r: sample 1, s/1\n",
        "FAILED r: sample 3, s/1\n",
        "no filter of the route takes",
        "shown  r: sample 5",
    ] {
        assert!(report.text.contains(part), "{part:?} is not in\n{}", report.text);
    }
}

#[test]
fn the_examples_do_what_their_samples_say() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut seen = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "toml") {
            continue;
        }
        let table: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        let routes =
            read(table.get("route"), Some(&path)).unwrap_or_else(|faults| panic!("{path:?}: {faults:#?}"));
        assert!(routes.iter().all(|route| !route.samples.is_empty()), "{path:?}: a route without a sample");
        let report = sample::run(&routes);
        assert_eq!((report.failed, report.shown), (0, 0), "{path:?}:\n{}", report.text);
        seen += 1;
    }
    assert!(seen >= 3, "{seen} examples");
}
