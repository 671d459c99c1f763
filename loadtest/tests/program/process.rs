//! Runs the program to its end.

use std::{process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};

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
    spawn(arguments).end().await
}

/// Starts it with these arguments, separated by spaces.
pub fn start(arguments: &str) -> Running {
    spawn(&arguments.split_whitespace().collect::<Vec<_>>())
}

fn spawn(arguments: &[&str]) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-loadtest"));
    command.args(arguments).env("PENSTOCK_PASSWORD", "secret").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running { child: command.spawn().unwrap() }
}

/// A run that has not ended.
pub struct Running {
    child: Child,
}

impl Running {
    /// SIGTERM.
    pub fn terminate(&self) {
        let id = i32::try_from(self.child.id().expect("it runs")).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
    }

    /// Waits for its end.
    pub async fn end(self) -> Ran {
        let output = tokio::time::timeout(LIMIT, self.child.wait_with_output()).await;
        let output = output.unwrap_or_else(|_| panic!("it did not end within {LIMIT:?}")).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}
