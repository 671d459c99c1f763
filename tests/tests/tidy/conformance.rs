//! Is docs/conformance.md what it claims? Every numbered statement of MQTT 3.1.1 is there, once and in order; every test that it
//! names exists and is a test; every statement that it leaves to the table of packets has a row there.

use std::{collections::BTreeSet, fs};

use super::{report, root};

/// The sections with numbered statements, and how many.
const STATEMENTS: &[(&str, usize)] = &[
    ("1.5.3", 3),
    ("2.2.2", 2),
    ("2.3.1", 7),
    ("3.1.0", 2),
    ("3.1.2", 24),
    ("3.1.3", 11),
    ("3.1.4", 5),
    ("3.2.0", 1),
    ("3.2.2", 6),
    ("3.3.1", 12),
    ("3.3.2", 3),
    ("3.3.4", 1),
    ("3.3.5", 2),
    ("3.6.1", 1),
    ("3.8.1", 1),
    ("3.8.3", 4),
    ("3.8.4", 6),
    ("3.9.3", 2),
    ("3.10.1", 1),
    ("3.10.3", 2),
    ("3.10.4", 6),
    ("3.12.4", 1),
    ("3.14.1", 1),
    ("3.14.4", 3),
    ("4.1.0", 2),
    ("4.3.1", 1),
    ("4.3.2", 2),
    ("4.3.3", 2),
    ("4.4.0", 1),
    ("4.5.0", 2),
    ("4.6.0", 6),
    ("4.7.1", 3),
    ("4.7.2", 1),
    ("4.7.3", 4),
    ("4.8.0", 2),
    ("6.0.0", 4),
    ("7.0.0", 2),
    ("7.1.1", 1),
    ("7.1.2", 1),
];

/// What a row says instead of naming a test.
const REASONS: &[&str] =
    &["the client's", "have their own issue", "has its own issue", "nothing is retained", "it does not"];

/// The table of packets.
const TABLE: &str = "mqtt/tests/malformed/table.txt";

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Rows: (statement, what shows it).
fn rows(page: &str) -> Vec<(&str, &str)> {
    let rows = page.lines().filter(|line| {
        line.strip_prefix("| ").is_some_and(|line| line.starts_with(|c: char| c.is_ascii_digit()))
    });
    rows.filter_map(|line| {
        let mut columns = line.trim_matches('|').split(" | ");
        Some((columns.next()?.trim(), columns.nth(1)?.trim()))
    })
    .filter(|(statement, _)| statement.contains('-'))
    .collect()
}

/// Whether a file has a test of this name.
fn is_test(path: &str, name: &str) -> bool {
    let Ok(text) = fs::read_to_string(root().join(path)) else { return false };
    let lines: Vec<&str> = text.lines().collect();
    let head = format!("fn {name}(");
    lines.iter().enumerate().any(|(at, line)| {
        let before = &lines[at.saturating_sub(3)..at];
        line.contains(&head) && before.iter().any(|line| line.contains("test]") || line.contains("::test("))
    })
}

#[test]
fn the_page_on_conformance_names_every_statement_and_tests_that_exist() {
    let page = read("docs/conformance.md");
    let rows = rows(&page);
    let numbered =
        |(section, count): &(&str, usize)| (1..=*count).map(|n| format!("{section}-{n}")).collect::<Vec<_>>();
    let expected: Vec<String> = STATEMENTS.iter().flat_map(numbered).collect();
    let listed: Vec<&str> = rows.iter().map(|(statement, _)| *statement).collect();
    let table = read(TABLE);
    let tabled: BTreeSet<&str> =
        table.lines().filter_map(|line| line.split('|').next()?.trim().strip_prefix("MQTT-")).collect();
    let mut faults = Vec::new();
    for statement in expected.iter().filter(|it| !listed.contains(&it.as_str())) {
        faults.push(format!("docs/conformance.md has no row for {statement}"));
    }
    for (statement, shown) in &rows {
        let quoted = || shown.split('`').skip(1).step_by(2);
        for (path, name) in quoted().filter_map(|quote| quote.split_once("::")) {
            if !is_test(path, name) {
                faults.push(format!("{statement}: {path} has no test {name}"));
            }
        }
        for after in shown.split("`table`").skip(1) {
            // Another statement's rows, when one is named.
            let named = after.split_whitespace().next().unwrap_or_default().trim_end_matches([',', ';']);
            let meant = if named.contains('-') { named } else { statement };
            if !tabled.contains(meant) {
                faults.push(format!("{statement}: {TABLE} has no row for {meant}"));
            }
        }
        if quoted().next().is_none() && !REASONS.iter().any(|reason| shown.contains(reason)) {
            faults.push(format!("{statement}: neither a test nor a reason"));
        }
    }
    report(&faults);
    assert_eq!(listed, expected, "in order, and each once");
}
