//! `penstockctl`: the operator's and developer's command line. It speaks to the gRPC door of a router and holds no state.
//! Exit codes: 0 fine, 1 failed, 2 wrong usage.

mod cli;
mod client;
mod cluster;
mod consume;
mod credentials;
mod dead;
mod failure;
mod group;
mod output;
mod push;
mod quantity;
mod ready;
mod tenant;
mod user;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    cli::{Cli, Command},
    failure::Failure,
    output::Output,
};

/// Runs `penstockctl` with the arguments of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn start(cli: Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start: {error}")))?;
    runtime.block_on(run(cli))
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let output = Output::new(cli.common.json);
    let client = || credentials::client(&cli.common);
    match cli.command {
        Command::Tenant(command) => tenant::run(command, &client()?.admin(), output).await,
        Command::User(command) => user::run(command, &client()?.admin(), output).await,
        Command::Group(command) => group::run(command, &client()?, output).await,
        Command::Client(command) => client::run(command, &client()?.admin(), output).await,
        Command::Consume(arguments) => consume::run(arguments, &client()?, output).await,
        Command::Push(arguments) => push::run(arguments, &client()?, output).await,
        Command::Cluster => cluster::run(&client()?.admin(), output).await,
        Command::Ready { address, timeout } => ready::run(&address, timeout, output).await,
    }
}
