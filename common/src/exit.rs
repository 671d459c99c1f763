//! How a program ends: one clear line on stderr, and the exit status that scripts rely on.

use std::process::ExitCode;

use crate::config::Faults;

/// Why a program ends other than well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Wrong usage or settings: status 2.
    #[error(transparent)]
    Settings(#[from] Faults),
    /// Anything else: status 1. The text says what happened and what to do.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// A failure from an error whose text is fit for an operator.
    pub fn of(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Settings(_) => 2,
            Self::Failed(_) => 1,
        }
    }
}

/// Runs a program to its exit status.
pub fn run(name: &str, program: impl FnOnce() -> Result<(), Failure>) -> ExitCode {
    match program() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{name}: {failure}");
            ExitCode::from(failure.status())
        }
    }
}
