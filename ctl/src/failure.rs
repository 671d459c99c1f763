//! How a command fails: one line that says what to do, and the exit code.

use std::{io, process::ExitCode};

use penstock_client::{BuildError, CallError, ConsumeError, PushError};

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line or the environment is wrong: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// It was tried and failed: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// Whoever read the output has gone: nothing to say, as with other programs in a pipe.
    #[error("nobody reads the output")]
    Pipe,
}

impl Failure {
    /// Prints the line and gives the exit code.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Pipe => return ExitCode::SUCCESS,
            Self::Usage(_) | Self::Failed(_) => eprintln!("penstockctl: {self}"),
        }
        ExitCode::from(if matches!(self, Self::Usage(_)) { 2 } else { 1 })
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::Pipe
        } else {
            Self::Failed(format!("cannot write: {error}"))
        }
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        Self::Usage(match error {
            BuildError::BadServer { .. } => format!("--server: {error}"),
            BuildError::BadUser(_) => format!("--user: {error}"),
            BuildError::NoServer | BuildError::NoCredentials => error.to_string(),
        })
    }
}

const UNAUTHORIZED: &str = "the user or the password is wrong (--user tenant/user, --password-file or \
                            PENSTOCK_PASSWORD)";

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::Failed(match error {
            CallError::Unauthorized => UNAUTHORIZED.into(),
            CallError::Unreachable { server, reason } => {
                format!("cannot reach {server}: is a router running there? (see --server; {reason})")
            }
            other => other.to_string(),
        })
    }
}

impl From<ConsumeError> for Failure {
    fn from(error: ConsumeError) -> Self {
        Self::Failed(match error {
            ConsumeError::Unauthorized => UNAUTHORIZED.into(),
            other => other.to_string(),
        })
    }
}

impl From<PushError> for Failure {
    fn from(error: PushError) -> Self {
        Self::Failed(match error {
            PushError::Unauthorized => UNAUTHORIZED.into(),
            PushError::Unavailable(reason) => {
                format!("cannot reach the server: is a router running there? (see --server; {reason})")
            }
            other => other.to_string(),
        })
    }
}
