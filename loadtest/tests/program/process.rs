//! Runs the program to its end.

use std::{process::Stdio, time::Duration};

use serde_json::Value;
use tokio::process::Command;

/// For a run, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// What a run did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// The JSON result.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The JSON result of a run that passed.
    pub fn passed(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        let json = self.json();
        assert_eq!((&json["passed"], &json["failures"]), (&Value::Bool(true), &Value::Array(vec![])));
        json
    }
}

/// Runs it with these arguments, separated by spaces.
pub async fn run(arguments: &str) -> Ran {
    run_with(&arguments.split_whitespace().collect::<Vec<_>>()).await
}

/// Runs it with these arguments.
pub async fn run_with(arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-loadtest"));
    command.args(arguments).env("PENSTOCK_PASSWORD", "secret").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{arguments:?} did not end within {LIMIT:?}")).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}
