//! What is printed: aligned columns or text for people, one JSON object a line for programs.

use std::io::{self, Write};

use serde::Serialize;

use crate::failure::Failure;

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    pub fn json(self) -> bool {
        self.json
    }

    /// One result: an object, or a line for people.
    pub fn one(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let line = if self.json { encode(value)? } else { text() };
        print(&line)
    }

    /// Rows under a header, or, with an empty one, that go on.
    pub fn many<T: Serialize>(
        self,
        values: &[T],
        header: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<(), Failure> {
        if self.json {
            return values.iter().try_for_each(|value| print(&encode(value)?));
        }
        let header: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
        let header = Some(header).filter(|header| !header.is_empty());
        let rows: Vec<Vec<String>> = header.into_iter().chain(values.iter().map(row)).collect();
        columns(&rows).iter().try_for_each(|line| print(line))
    }

    /// Something was done that has no other result.
    pub fn done(self, what: &str) -> Result<(), Failure> {
        self.one(&serde_json::json!({ "done": what }), || what.to_owned())
    }
}

fn encode(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::Failed(format!("cannot print as JSON: {error}")))
}

fn print(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|at| width(at).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_without_trailing_blanks() {
        let rows = [vec!["NAME".into(), "N".into()], vec!["ä".into(), "100".into()]];
        assert_eq!(columns(&rows), ["NAME  N", "ä     100"]);
    }
}
