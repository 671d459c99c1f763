//! The flags of a program, made from its table of settings.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command, error::ErrorKind};

use super::{Kind, Program, Setting};

/// Why a command line gives no matches.
pub(super) enum Stop {
    /// Help or version.
    Print(String),
    /// One line.
    Wrong(String),
}

pub(super) fn parse<I>(program: &Program, args: I) -> Result<ArgMatches, Stop>
where
    I: IntoIterator,
    I::Item: Into<OsString> + Clone,
{
    command(program).try_get_matches_from(args).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Print(error.render().to_string()),
        _ => {
            let text = error.render().to_string();
            let end = text.find("\nUsage:").or_else(|| text.find("\nFor more")).unwrap_or(text.len());
            let lines = text.get(..end).unwrap_or(&text).trim_start_matches("error: ").lines();
            let parts: Vec<_> = lines.map(str::trim).filter(|line| !line.is_empty()).collect();
            Stop::Wrong(parts.join(" "))
        }
    })
}

/// What a flag says about a setting.
pub(super) fn value(matches: &ArgMatches, setting: &Setting) -> Option<String> {
    match setting.kind {
        Kind::SecretVariable | Kind::Part => None,
        Kind::Switch => matches.get_flag(setting.flag).then(|| "true".to_owned()),
        Kind::Plain | Kind::SecretFile => matches.get_one::<String>(setting.flag).cloned(),
    }
}

fn command(program: &Program) -> Command {
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE.toml")
        .help("File of settings [env: PENSTOCK_CONFIG]");
    let print = Arg::new("print-config")
        .long("print-config")
        .action(ArgAction::SetTrue)
        .help("Print the settings in effect, without secrets, and end");
    let no_flag = |kind| matches!(kind, Kind::SecretVariable | Kind::Part);
    let flags = program.all().filter(|setting| !no_flag(setting.kind)).map(flag);
    Command::new(program.name)
        .version(env!("CARGO_PKG_VERSION"))
        .about(program.about)
        .after_help(after_help(program))
        .arg(config)
        .arg(print)
        .args(flags)
}

fn flag(setting: &'static Setting) -> Arg {
    let default = setting.default.map(|text| format!(" [default: {text}]")).unwrap_or_default();
    let help = format!("{}{default} [env: {}]", setting.help, setting.variable());
    let arg = Arg::new(setting.flag).long(setting.flag).help(help);
    match setting.kind {
        Kind::Switch => arg.action(ArgAction::SetTrue),
        _ => arg.value_name(setting.value).action(ArgAction::Set),
    }
}

fn after_help(program: &Program) -> String {
    let mut text = String::new();
    let secrets: Vec<_> = program.all().filter(|setting| setting.kind == Kind::SecretVariable).collect();
    if !secrets.is_empty() {
        text.push_str("Environment only:\n");
        for setting in secrets {
            text.push_str(&format!("  {:<28} {}\n", setting.variable(), setting.help));
        }
        text.push('\n');
    }
    let parts: Vec<_> = program.all().filter(|setting| setting.kind == Kind::Part).collect();
    if !parts.is_empty() {
        text.push_str("In the file only:\n");
        for setting in parts {
            text.push_str(&format!("  {:<28} {}\n", format!("[[{}]]", setting.key), setting.help));
        }
        text.push('\n');
    }
    text.push_str("Examples:\n");
    for line in program.examples.trim_matches('\n').lines() {
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str("\nExit status: 0 fine, 1 failed, 2 wrong usage or settings.");
    text
}
