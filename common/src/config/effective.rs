//! The settings in effect, as TOML with the origin of each, fit to be shown: no secret is in it.

use std::{collections::BTreeMap, fmt::Write};

use super::{Found, Kind, Program, Setting, Source};
use crate::secret::Secret;

/// What `--print-config` and `/config` show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Effective {
    /// TOML.
    pub text: String,
    /// `--print-config`: print it and end.
    pub print: bool,
}

impl Effective {
    pub(super) fn new(
        program: &Program,
        found: &BTreeMap<&'static str, Found>,
        secrets: &BTreeMap<&'static str, Secret>,
        parts: &BTreeMap<&'static str, toml::Value>,
        print: bool,
    ) -> Self {
        let mut sections = BTreeMap::<&str, String>::new();
        let of_its_own = |kind| matches!(kind, Kind::SecretVariable | Kind::Part);
        for setting in program.all().filter(|setting| !of_its_own(setting.kind)) {
            let (section, key) = setting.key.split_once('.').unwrap_or(("", setting.key));
            let text = sections.entry(section).or_default();
            line(text, key, setting, found.get(setting.flag));
        }
        let mut text = String::new();
        for (section, lines) in sections {
            let gap = if text.is_empty() { "" } else { "\n" };
            let head = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
            text.push_str(&format!("{gap}{head}{lines}"));
        }
        for (key, value) in parts {
            let part = toml::Table::from_iter([((*key).to_owned(), value.clone())]);
            text.push_str(&format!("\n{part}"));
        }
        for setting in program.all().filter(|setting| secrets.contains_key(setting.flag)) {
            text.push_str(&format!("\n# {} is set\n", setting.variable()));
        }
        Self { text, print }
    }
}

fn line(text: &mut String, key: &str, setting: &Setting, found: Option<&Found>) {
    let Some(found) = found else {
        let absent = if setting.kind == Kind::Switch { "false" } else { "(not set)" };
        let _ = writeln!(text, "# {key} = {absent}");
        return;
    };
    let origin = match found.source {
        Source::Default => "default",
        Source::File => "file",
        Source::Environment => "environment",
        Source::Flag => "flag",
    };
    let value = match setting.kind {
        Kind::Switch => found.text.clone(),
        _ => toml::Value::String(without_password(&found.text)).to_string(),
    };
    let _ = writeln!(text, "{key} = {value} # {origin}");
}

/// Hides the password in each URL of a list.
fn without_password(text: &str) -> String {
    text.split(',').map(hide).collect::<Vec<_>>().join(",")
}

fn hide(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find('/').unwrap_or(rest.len());
    let Some(at) = rest.get(..end).and_then(|host| host.rfind('@')) else { return url.to_owned() };
    let host = rest.get(at..).unwrap_or_default();
    format!("{scheme}://***{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_hidden() {
        assert_eq!(without_password("redis://:pw@h:6379/0"), "redis://***@h:6379/0");
        assert_eq!(without_password("redis://u:p@w@h"), "redis://***@h");
        assert_eq!(without_password("http://a:1,http://u:p@b:2"), "http://a:1,http://***@b:2");
        assert_eq!(without_password("127.0.0.1:80"), "127.0.0.1:80");
        assert_eq!(without_password("http://h/a@b"), "http://h/a@b");
    }
}
