//! The file of settings: TOML with one section a part, flattened to `section.key` and text.

use std::{collections::BTreeMap, fs, path::Path};

use toml::{Table, Value};

use super::Program;

/// A value as text, or what is wrong with it.
pub(super) type Text = Result<String, String>;

/// Parts of the file that the program reads itself.
pub(super) type Parts = BTreeMap<&'static str, Value>;

/// The values, and the parts with these keys of the top level as they are.
pub(super) fn read(path: &Path, own: &[&'static str]) -> Result<(Vec<(String, Text)>, Parts), String> {
    let text = fs::read_to_string(path).map_err(|error| format!("--config {}: {error}", path.display()))?;
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
        let line =
            error.span().map(|span| text.get(..span.start).unwrap_or_default().matches('\n').count() + 1);
        let line = line.map(|line| format!(", line {line}")).unwrap_or_default();
        format!("--config {}{line}: {}", path.display(), error.message())
    })?;
    let parts = own.iter().filter_map(|key| table.remove(*key).map(|value| (*key, value))).collect();
    let mut values = Vec::new();
    flatten("", &table, &mut values);
    Ok((values, parts))
}

fn flatten(prefix: &str, table: &Table, into: &mut Vec<(String, Text)>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) => flatten(&key, inner, into),
            value => into.push((key, text(value))),
        }
    }
}

fn text(value: &Value) -> Text {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(on) => Ok(on.to_string()),
        Value::Array(parts) => Ok(parts.iter().map(text).collect::<Result<Vec<_>, _>>()?.join(",")),
        Value::Datetime(_) | Value::Table(_) => {
            Err("is neither text, a number, true or false, nor a list".into())
        }
    }
}

/// The fault of a key that nobody knows, with the nearest one that somebody does.
pub(super) fn unknown(program: &Program, path: &Path, key: &str) -> String {
    let known = program.all().map(|setting| setting.key).filter(|known| !known.is_empty());
    let nearest = known.map(|known| (distance(key, known), known)).min();
    let hint = match nearest {
        Some((away, known)) if away <= 1 + key.len() / 4 => format!(" (did you mean {known}?)"),
        _ => String::new(),
    };
    format!("{}: there is no setting {key}{hint}", path.display())
}

/// Edits that make one text the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, right) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}
