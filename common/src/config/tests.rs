//! The loader's promises: order of the layers, all faults at once, nothing secret shown.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{fs, net::SocketAddr, time::Duration};

use super::*;

const SETTINGS: &[Setting] = &[
    Setting::new("mqtt-listen", "mqtt.listen", "ADDRESS", "Where.").or("127.0.0.1:1883"),
    Setting::new("wait", "mqtt.wait", "DURATION", "How long.").or("30s"),
    Setting::new("buffer", "mqtt.buffer", "SIZE", "How much.").or("8MiB"),
    Setting::new("etcd", "etcd.url", "URL[,URL…]", "Where etcd is."),
    Setting::switch("no-demo", "demo.none", "Creates nothing."),
    Setting::secret_file("key-file", "key.file", "The key."),
    Setting::secret_variable("demo-password", "A password."),
];

const PROGRAM: Program =
    Program { name: "prog", about: "Tests.", examples: "prog --no-demo", settings: &[SETTINGS] };

fn ask(args: &[&str], environment: &[(&str, &str)]) -> Reader {
    let look = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    match PROGRAM.ask_with([&["prog"], args].concat(), &look).unwrap() {
        Asked::Run(reader) => reader,
        Asked::Print(text) => panic!("{text}"),
    }
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("settings.toml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn the_later_layer_wins() {
    let (_dir, path) =
        file("[mqtt]\nlisten = \"127.0.0.1:1\"\nwait = \"1s\"\nbuffer = 2048\n[demo]\nnone = true");
    let environment =
        [("PENSTOCK_MQTT_LISTEN", "127.0.0.1:2"), ("PENSTOCK_WAIT", "2s"), ("PENSTOCK_ETCD", "")];
    let mut reader = ask(&["--config", &path, "--mqtt-listen", "127.0.0.1:3"], &environment);
    assert_eq!(reader.value::<SocketAddr>("mqtt-listen").port(), 3);
    assert_eq!(reader.value::<Duration>("wait"), Duration::from_secs(2));
    assert_eq!(reader.value::<Size>("buffer"), Size(2_048));
    assert!(reader.switch("no-demo"));
    assert_eq!(reader.optional::<String>("etcd"), None, "an empty variable says nothing");
    assert!(reader.finish().is_ok());
}

#[test]
fn all_faults_are_told_at_once() {
    let (_dir, path) = file("[mqtt]\nlistn = 1\nwait = \"soon\"\n[other]\nx = 1");
    let mut reader = ask(&["--config", &path, "--mqtt-listen", "here"], &[("PENSTOCK_BUFFER", "big")]);
    let _: SocketAddr = reader.value("mqtt-listen");
    let _: Duration = reader.value("wait");
    let _: Size = reader.value("buffer");
    let _: String = reader.value("etcd");
    reader.fault("etcd", "is nonsense");
    let text = reader.finish().unwrap_err().to_string();
    let expected = [
        "7 settings are wrong",
        "there is no setting mqtt.listn (did you mean mqtt.listen?)",
        "there is no setting other.x\n",
        "--mqtt-listen: \"here\" is not an address",
        "--wait (in the file of settings): \"soon\" is not a duration",
        "--buffer (in the environment): \"big\" is not a size",
        "--etcd: is missing",
        "--etcd: is nonsense",
    ];
    for part in expected {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn a_file_that_is_no_toml_is_told_with_its_line() {
    let (_dir, path) = file("[mqtt]\n\nlisten = = 3");
    let text = ask(&["--config", &path], &[]).finish().unwrap_err().to_string();
    assert!(text.contains("line 3"), "{text}");
    let text = ask(&["--config", "not/there.toml"], &[]).finish().unwrap_err().to_string();
    assert!(text.contains("not/there.toml"), "{text}");
}

#[test]
fn what_is_printed_can_be_read_back_and_holds_no_secret() {
    let (_dir, path) = file("s3cret");
    let environment = [("PENSTOCK_DEMO_PASSWORD", "hunter2"), ("PENSTOCK_ETCD", "http://u:pa55@h:1")];
    let mut reader = ask(&["--print-config", "--key-file", &path, "--no-demo"], &environment);
    assert_eq!(reader.secret_file("key-file").unwrap().expose(), "s3cret");
    assert_eq!(reader.secret_variable("demo-password").unwrap().expose(), "hunter2");
    let debug = format!("{reader:?}");
    let effective = reader.finish().unwrap();
    assert!(effective.print);
    for secret in ["s3cret", "hunter2", "pa55"] {
        assert!(!effective.text.contains(secret) && !debug.contains(secret));
    }
    let (_dir, printed) = file(&effective.text);
    let mut again = ask(&["--config", &printed], &[]);
    assert!(again.switch("no-demo"));
    assert_eq!(again.value::<Size>("buffer"), Size(8 << 20));
    assert!(again.finish().is_ok());
}

#[test]
fn a_wrong_command_line_is_one_line() {
    let none = |_: &str| None;
    let error = PROGRAM.ask_with(["prog", "--mqtt-lisen", "x"], &none).unwrap_err().to_string();
    assert!(
        !error.contains('\n') && error.contains("--mqtt-lisen") && error.contains("prog --help"),
        "{error}"
    );
    let error = PROGRAM.ask_with(["prog", "--wait"], &none).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    let Asked::Print(help) = PROGRAM.ask_with(["prog", "--help"], &none).unwrap() else { panic!("no help") };
    for part in ["--mqtt-listen <ADDRESS>", "PENSTOCK_DEMO_PASSWORD", "Examples:", "[default: 30s]"] {
        assert!(help.contains(part), "{part} is not in\n{help}");
    }
    assert!(matches!(PROGRAM.ask_with(["prog", "--version"], &none), Ok(Asked::Print(_))));
}

#[test]
fn a_part_is_the_programs_own_and_comes_back_in_what_is_printed() {
    const PARTS: &[Setting] = &[Setting::part("route", "Routes.")];
    const WITH: Program = Program { settings: &[SETTINGS, PARTS], ..PROGRAM };
    let (_dir, path) =
        file("[mqtt]\nwait = \"1s\"\n[[route]]\nname = \"a\"\n[route.x]\ny = 1\n[[route]]\nname = \"b\"");
    let args = ["prog", "--config", &path, "--etcd", "e"];
    let Asked::Run(reader) = WITH.ask_with(args, &|_| None).unwrap() else { panic!("it runs") };
    let names: Vec<_> =
        reader.part("route").unwrap().as_array().unwrap().iter().map(|r| &r["name"]).collect();
    assert_eq!(names, [&toml::Value::from("a"), &toml::Value::from("b")]);
    assert_eq!(reader.file(), Some(std::path::Path::new(&path)));
    let shown: toml::Table = reader.finish().unwrap().text.parse().unwrap();
    assert_eq!(shown["route"].as_array().unwrap().len(), 2);
    let mut reader = ask(&["--config", &path], &[]);
    reader.fault("", "");
    let told = reader.finish().unwrap_err().to_string();
    assert!(told.contains("there is no setting route"), "unknown to a program without it: {told}");
    let Asked::Print(help) = WITH.ask_with(["prog", "--help"], &|_| None).unwrap() else { panic!("help") };
    assert!(help.contains("[[route]]") && !help.contains("--route"), "{help}");
}
