//! `penstock-mapper`: a microservice that is a product. It consumes a group, maps each message with a jq program, sends what
//! comes out to a REST API, and acknowledges. It keeps nothing but a cache of devices and the dead letters.
//!
//! The way of a message: group → [`engine`] → [`queues`] → [`job`]: [`routes`] ([`input`], [`jq`], [`outgoing`]) → [`identity`] →
//! [`api`] → acknowledged, given back, or kept in [`dead_letters`].

mod api;
mod cache;
mod config;
mod dead_letters;
mod dry_run;
mod engine;
mod group;
mod identity;
mod input;
mod job;
mod jq;
mod metrics;
mod outgoing;
mod program;
mod queues;
mod retry;
mod routes;
mod sample;
mod settings;

/// Runs `penstock-mapper` with the arguments and the environment of this process.
pub fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "test") {
        // A program's start is where the environment is read.
        #[allow(clippy::disallowed_methods)]
        let environment = |name: &str| std::env::var(name).ok();
        return penstock_common::exit::run(settings::TEST.name, || {
            program::test(arguments.collect(), &environment)
        });
    }
    penstock_common::process::run(&settings::PROGRAM, settings::read, program::run)
}
