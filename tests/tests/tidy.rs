//! Is the house tidy? Arrows between crates, a first line in every file, sizes of files and functions, names, README's tree,
//! and nothing of any one machine. It reads text and compiles nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

#[path = "tidy/conformance.rs"]
mod conformance;

/// Lines of code of a file, its unit tests not counted.
const FILE_LINES: usize = 400;
/// Lines of code of a function.
const FUNCTION_LINES: usize = 70;

/// What a crate may depend on; `tests` may depend on all.
const ARROWS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("mqtt", &[]),
    ("common", &[]),
    ("gateway", &["common", "mqtt", "proto"]),
    ("router", &["common", "mqtt", "proto"]),
    ("standalone", &["common", "gateway", "router"]),
    ("client", &["proto"]),
    ("ctl", &["client", "proto"]),
    ("mapper", &["client", "common", "mqtt"]),
    ("loadtest", &["client", "mqtt", "proto"]),
    ("image", &["ctl", "gateway", "loadtest", "mapper", "router", "standalone"]),
];

/// Crates without I/O, and what they therefore don't link.
const PURE: &[(&str, &[&str])] =
    &[("mqtt", &["tokio", "tokio-util", "redis", "etcd-client", "tonic", "rand", "tracing"])];

const BAD_NAMES: &[&str] =
    &["mod", "utils", "util", "helpers", "helper", "types", "manager", "misc", "common"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file of the repository, as path relative to its top.
fn files() -> Vec<PathBuf> {
    fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let built = matches!(
                name.as_str(),
                ".git" | "target" | "penstock-data" | "penstock-cluster" | "node_modules"
            );
            if path.is_dir() && !built {
                walk(&path, into);
            } else if path.is_file() && name != ".git" {
                into.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    let mut found: Vec<_> = found.iter().map(|path| path.strip_prefix(root()).unwrap().to_owned()).collect();
    found.sort();
    found
}

fn sources() -> Vec<(String, String)> {
    let rust = files().into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs"));
    let sources: Vec<_> = rust
        .map(|path| (path.to_string_lossy().into_owned(), fs::read_to_string(root().join(&path)).unwrap()))
        .collect();
    assert!(sources.len() > 30, "the walk has lost its way");
    sources
}

fn report(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn is_code(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with("//")
}

fn manifest(name: &str) -> toml::Table {
    fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap().parse().unwrap()
}

fn dependencies(name: &str) -> BTreeSet<String> {
    let manifest = manifest(name);
    let table = manifest.get("dependencies").and_then(toml::Value::as_table).cloned().unwrap_or_default();
    table.keys().cloned().collect()
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let mut faults = Vec::new();
    for (name, allowed) in ARROWS {
        for dependency in dependencies(name) {
            if let Some(ours) = dependency.strip_prefix("penstock-")
                && !allowed.contains(&ours)
            {
                faults.push(format!("{name} may not depend on {ours}"));
            }
        }
    }
    for (name, forbidden) in PURE {
        let found = dependencies(name);
        faults.extend(
            forbidden.iter().filter(|f| found.contains(**f)).map(|f| format!("{name} is pure: no {f}")),
        );
    }
    let members = manifest(".")["workspace"]["members"].as_array().unwrap().clone();
    for member in members.iter().map(|member| member.as_str().unwrap()) {
        if member != "tests" && !ARROWS.iter().any(|(name, _)| *name == member) {
            faults.push(format!("{member} has no arrows here"));
        }
        if manifest(member).get("lints").is_none() {
            faults.push(format!("{member} does not take the lints of the workspace"));
        }
    }
    report(&faults);
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = sources().into_iter().filter(|(_, text)| !text.starts_with("//! "));
    report(&silent.map(|(path, _)| format!("{path} does not begin with //!")).collect::<Vec<_>>());
}

#[test]
fn no_file_is_called_after_nothing() {
    let mut faults = Vec::new();
    for (path, _) in sources() {
        let stem = Path::new(&path).file_stem().unwrap().to_string_lossy().into_owned();
        if BAD_NAMES.contains(&stem.as_str()) {
            faults.push(format!("{path}: name it after its job"));
        }
    }
    report(&faults);
}

/// What is too large, by what it is: `path` for files, `path fn name` for functions.
fn oversizes() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for (path, text) in sources() {
        let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
        let lines = code.lines().filter(|line| is_code(line)).count();
        if lines > FILE_LINES {
            found.insert(path.clone(), lines);
        }
        for (name, lines) in functions(&text) {
            if lines > FUNCTION_LINES {
                found.insert(format!("{path} fn {name}"), lines);
            }
        }
    }
    found
}

/// Functions with their lines of code, braces not counted. Formatted sources end a block at the indentation of its head.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let indentation = line.len() - line.trim_start().len();
        let Some((_, name)) = line.split_once("fn ").filter(|(before, _)| is_head(before)) else { continue };
        let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let end = format!("{}}}", " ".repeat(indentation));
        let body = lines[at..].iter().skip_while(|line| !line.ends_with('{') && !line.ends_with(';'));
        let body: Vec<_> =
            body.skip(1).take_while(|line| **line != end).filter(|line| is_code(line)).collect();
        if !line.ends_with(';') && !line.ends_with('}') && !name.is_empty() {
            found.push((name, body.len()));
        }
    }
    found
}

fn is_head(before: &str) -> bool {
    before.split_whitespace().all(|word| {
        word.starts_with("pub")
            || matches!(word, "async" | "const" | "unsafe" | "extern" | "in" | "crate)" | "super)")
    })
}

#[test]
fn files_and_functions_are_small_but_for_a_list_that_shrinks() {
    let listed: BTreeMap<String, usize> = include_str!("tidy/exceptions.txt")
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|line| {
            line.rsplit_once(' ').map(|(what, lines)| (what.to_owned(), lines.parse().unwrap())).unwrap()
        })
        .collect();
    let found = oversizes();
    let mut faults = Vec::new();
    for (what, lines) in &found {
        match listed.get(what) {
            None => faults.push(format!("{what}: {lines} lines of code; split it by job")),
            Some(limit) if lines > limit => {
                faults.push(format!("{what}: grew from {limit} to {lines} lines of code"))
            }
            Some(_) => {}
        }
    }
    for what in listed.keys().filter(|what| !found.contains_key(*what)) {
        faults.push(format!("{what} is not too large any more: take it off tests/tests/tidy/exceptions.txt"));
    }
    report(&faults);
}

#[test]
fn readme_shows_the_real_tree() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let tree = readme.split("\n## The tree\n").nth(1).expect("README has a part called The tree");
    let tree = tree.split("```").nth(1).expect("with a block");
    let shown: BTreeSet<String> = tree
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_alphanumeric()))
        .map(|line| line.split_whitespace().next().unwrap().trim_end_matches('/').to_owned())
        .collect();
    let real: BTreeSet<String> = files()
        .iter()
        .map(|path| path.components().next().unwrap().as_os_str().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.'))
        .collect();
    let missing: Vec<_> = real.difference(&shown).collect();
    let invented: Vec<_> = shown.difference(&real).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "not in README: {missing:?}; only in README: {invented:?}"
    );
}

#[test]
fn nothing_belongs_to_one_machine() {
    // Written in halves, so that this file does not find itself.
    let places =
        [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];
    let mut faults = Vec::new();
    for path in files() {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for place in places.iter().filter(|place| text.contains(**place)) {
            faults.push(format!("{} names {place}", path.display()));
        }
    }
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let sources = lock.lines().filter(|line| line.starts_with("source = "));
    // The public index as cargo writes it; a mirror has another name, a repository no index at all.
    let index = concat!("crates", ".io-index\"");
    let foreign = sources.filter(|line| !(line.contains("registry+") && line.ends_with(index)));
    faults.extend(foreign.map(|line| format!("Cargo.lock: {line} is not from the public index")));
    let cargo = root().join(".cargo");
    if cargo.exists() {
        faults.push("settings of one machine's cargo belong to that machine: .cargo".to_owned());
    }
    report(&faults);
}

#[test]
fn the_measure_measures() {
    let text = format!(
        "fn short() {{\n    1\n}}\n\n    pub(crate) async fn long(\n        a: u8,\n    ) -> u8 {{\n{}    }}\n",
        "        a;\n".repeat(90)
    );
    assert_eq!(functions(&text), [("short".to_owned(), 1), ("long".to_owned(), 90)]);
}
