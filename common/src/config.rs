//! Settings of a program: defaults < TOML file < environment `PENSTOCK_…` < flag. A program declares a table of
//! [`Setting`]s once; flags, keys of the file, variables, `--help` and `--print-config` all come from it.
//!
//! Invariants:
//! * All faults are reported at once: [`Reader::value`] notes them, [`Reader::finish`] tells them.
//! * Unknown keys of the file are faults. Unknown variables are not: an orchestrator makes `PENSTOCK_…` variables of its
//!   own out of service names.
//! * A secret is read from a file or the environment; neither a flag nor the file of settings can hold one, and nothing
//!   that is printed shows one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::secret::Secret;

mod command_line;
mod effective;
mod file;
pub mod value;

pub use effective::Effective;
pub use value::{Size, Value};

/// What a setting is to the reader of a command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A value.
    Plain,
    /// On when it is named.
    Switch,
    /// The path of a file that holds a secret.
    SecretFile,
    /// A secret itself: in the environment and nowhere else.
    SecretVariable,
    /// A part of the file that the program reads itself: in the file and nowhere else.
    Part,
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Long flag without the dashes; the variable is `PENSTOCK_` and this, in capitals.
    pub flag: &'static str,
    /// Key in the file, with its section: `mqtt.listen`.
    pub key: &'static str,
    /// What stands for the value in the help.
    pub value: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// Text of the default.
    pub default: Option<&'static str>,
    /// What it is.
    pub kind: Kind,
}

impl Setting {
    /// A setting that may be left out.
    pub const fn new(flag: &'static str, key: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { flag, key, value, help, default: None, kind: Kind::Plain }
    }

    /// With a default.
    pub const fn or(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    /// A switch, off by default.
    pub const fn switch(flag: &'static str, key: &'static str, help: &'static str) -> Self {
        Self { flag, key, value: "", help, default: None, kind: Kind::Switch }
    }

    /// The path of a secret.
    pub const fn secret_file(flag: &'static str, key: &'static str, help: &'static str) -> Self {
        Self { flag, key, value: "FILE", help, default: None, kind: Kind::SecretFile }
    }

    /// A secret in the variable `PENSTOCK_<NAME>`, where `name` is written like a flag.
    pub const fn secret_variable(name: &'static str, help: &'static str) -> Self {
        Self { flag: name, key: "", value: "", help, default: None, kind: Kind::SecretVariable }
    }

    /// A part of the file below this key, such as a list of tables, that the program reads itself ([`Reader::part`]).
    pub const fn part(key: &'static str, help: &'static str) -> Self {
        Self { flag: key, key, value: "", help, default: None, kind: Kind::Part }
    }

    /// Its variable.
    pub fn variable(&self) -> String {
        format!("PENSTOCK_{}", self.flag.to_ascii_uppercase().replace('-', "_"))
    }

    /// Its name where it is spoken about.
    fn called(&self) -> String {
        match self.kind {
            Kind::SecretVariable => self.variable(),
            Kind::Part => format!("[[{}]]", self.key),
            _ => format!("--{}", self.flag),
        }
    }
}

/// A program as its command line sees it.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// Shown below the flags.
    pub examples: &'static str,
    /// Tables of settings, joined.
    pub settings: &'static [&'static [Setting]],
}

/// Where a value came from; the later one wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// The TOML file.
    File,
    /// A variable.
    Environment,
    /// A flag.
    Flag,
}

/// A value as text.
#[derive(Clone, Debug)]
struct Found {
    text: String,
    source: Source,
}

/// What is wrong with the settings, all of it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", render(.program, .faults))]
pub struct Faults {
    program: &'static str,
    faults: Vec<String>,
}

fn render(program: &str, faults: &[String]) -> String {
    let hint = format!("see {program} --help");
    match faults {
        [one] => format!("{one} ({hint})"),
        many => format!("{} settings are wrong ({hint})\n  {}", many.len(), many.join("\n  ")),
    }
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// Run with what the reader gives.
    Run(Reader),
    /// Print this and end with 0: help, version.
    Print(String),
}

/// Gives the values one by one and notes what is wrong with them.
pub struct Reader {
    program: Program,
    found: BTreeMap<&'static str, Found>,
    secrets: BTreeMap<&'static str, Secret>,
    parts: BTreeMap<&'static str, toml::Value>,
    file: Option<PathBuf>,
    otlp_endpoint: Option<String>,
    print: bool,
    faults: Vec<String>,
}

impl Program {
    /// Reads the process's own arguments and environment.
    pub fn ask(&'static self) -> Result<Asked, Faults> {
        // The one place where the environment is read.
        #[allow(clippy::disallowed_methods)]
        self.ask_with(std::env::args_os(), &|name| std::env::var(name).ok())
    }

    /// Reads these arguments (the program's name first) and this environment.
    pub fn ask_with<I>(&self, args: I, environment: &dyn Fn(&str) -> Option<String>) -> Result<Asked, Faults>
    where
        I: IntoIterator,
        I::Item: Into<std::ffi::OsString> + Clone,
    {
        let matches = match command_line::parse(self, args) {
            Ok(matches) => matches,
            Err(command_line::Stop::Print(text)) => return Ok(Asked::Print(text)),
            Err(command_line::Stop::Wrong(line)) => {
                return Err(Faults { program: self.name, faults: vec![line] });
            }
        };
        let mut reader = Reader::new(*self);
        reader.print = matches.get_flag("print-config");
        reader.take_defaults();
        let file = matches.get_one::<String>("config").cloned().or_else(|| environment("PENSTOCK_CONFIG"));
        if let Some(path) = file {
            reader.take_file(Path::new(&path));
        }
        reader.take_environment(environment);
        for setting in self.all() {
            if let Some(text) = command_line::value(&matches, setting) {
                reader.put(setting, text, Source::Flag);
            }
        }
        Ok(Asked::Run(reader))
    }

    /// All settings.
    pub fn all(&self) -> impl Iterator<Item = &'static Setting> {
        self.settings.iter().flat_map(|table| table.iter())
    }
}

impl std::fmt::Debug for Reader {
    // Values may hold passwords (in a URL): they are not shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({}, {} values)", self.program.name, self.found.len())
    }
}

impl Reader {
    fn new(program: Program) -> Self {
        Self {
            program,
            found: BTreeMap::new(),
            secrets: BTreeMap::new(),
            parts: BTreeMap::new(),
            file: None,
            otlp_endpoint: None,
            print: false,
            faults: Vec::new(),
        }
    }

    fn put(&mut self, setting: &'static Setting, text: String, source: Source) {
        self.found.insert(setting.flag, Found { text, source });
    }

    fn take_defaults(&mut self) {
        let program = self.program;
        for setting in program.all() {
            if let Some(text) = setting.default {
                self.put(setting, text.to_owned(), Source::Default);
            }
        }
    }

    fn take_file(&mut self, path: &Path) {
        let program = self.program;
        self.file = Some(path.to_owned());
        let own = program.all().filter(|setting| setting.kind == Kind::Part);
        match file::read(path, &own.map(|setting| setting.key).collect::<Vec<_>>()) {
            Err(fault) => self.faults.push(fault),
            Ok((values, parts)) => {
                self.parts = parts;
                for (key, value) in values {
                    let setting = program.all().find(|s| s.key == key && !key.is_empty());
                    match (setting, value) {
                        (Some(setting), Ok(text)) => self.put(setting, text, Source::File),
                        (Some(_), Err(fault)) => self.faults.push(format!("{key}: {fault}")),
                        (None, _) => self.faults.push(file::unknown(&program, path, &key)),
                    }
                }
            }
        }
    }

    fn take_environment(&mut self, environment: &dyn Fn(&str) -> Option<String>) {
        let program = self.program;
        self.otlp_endpoint = environment("OTEL_EXPORTER_OTLP_ENDPOINT").filter(|text| !text.is_empty());
        for setting in program.all().filter(|setting| setting.kind != Kind::Part) {
            // An empty variable is one that a script has left out.
            let Some(text) = environment(&setting.variable()).filter(|text| !text.is_empty()) else {
                continue;
            };
            if setting.kind == Kind::SecretVariable {
                self.secrets.insert(setting.flag, Secret::new(text));
            } else {
                self.put(setting, text, Source::Environment);
            }
        }
    }

    /// The value of a setting that has a default or must be given.
    pub fn value<T: Value>(&mut self, flag: &str) -> T {
        match self.optional(flag) {
            Some(value) => value,
            None => {
                if !self.found.contains_key(flag) {
                    self.fault(flag, "is missing");
                }
                T::placeholder()
            }
        }
    }

    /// The value of a setting, if it is given.
    pub fn optional<T: Value>(&mut self, flag: &str) -> Option<T> {
        let found = self.found.get(flag)?;
        match T::parse(&found.text) {
            Ok(value) => Some(value),
            Err(expected) => {
                let fault = format!("{:?} is not {expected}", found.text);
                self.fault(flag, &fault);
                None
            }
        }
    }

    /// Whether a switch is on.
    pub fn switch(&mut self, flag: &str) -> bool {
        self.optional(flag).unwrap_or_default()
    }

    /// The secret in the file that a setting names.
    pub fn secret_file(&mut self, flag: &str) -> Option<Secret> {
        let path = self.found.get(flag)?.text.clone();
        match Secret::from_file(Path::new(&path)) {
            Ok(secret) => Some(secret),
            Err(error) => {
                self.fault(flag, &error.to_string());
                None
            }
        }
    }

    /// The secret in a variable.
    pub fn secret_variable(&self, name: &str) -> Option<Secret> {
        self.secrets.get(name).cloned()
    }

    /// A part of the file as it stands there.
    pub fn part(&self, key: &str) -> Option<&toml::Value> {
        self.parts.get(key)
    }

    /// The file of settings, if there is one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// What OpenTelemetry's own variable says.
    pub fn otlp_endpoint(&self) -> Option<String> {
        self.otlp_endpoint.clone()
    }

    /// Notes a fault of a setting; with an empty name, of several together.
    pub fn fault(&mut self, flag: &str, fault: &str) {
        if flag.is_empty() {
            return self.faults.push(fault.to_owned());
        }
        let program = self.program;
        let called =
            program.all().find(|s| s.flag == flag).map_or_else(|| format!("--{flag}"), Setting::called);
        let origin = match self.found.get(flag).map(|found| found.source) {
            Some(Source::File) => " (in the file of settings)",
            Some(Source::Environment) => " (in the environment)",
            Some(Source::Default | Source::Flag) | None => "",
        };
        self.faults.push(format!("{called}{origin}: {fault}"));
    }

    /// Tells all faults, or the settings in effect.
    pub fn finish(self) -> Result<Effective, Faults> {
        if !self.faults.is_empty() {
            return Err(Faults { program: self.program.name, faults: self.faults });
        }
        Ok(Effective::new(&self.program, &self.found, &self.secrets, &self.parts, self.print))
    }
}

#[cfg(test)]
mod tests;
