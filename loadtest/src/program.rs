//! The program: command line to exit code. What a run does is elsewhere.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    arguments, churn, cli::Cli, engine::Engine, html, interrupt::Interrupt, report::Report, settings::Job,
    settings::Settings, summary, traffic,
};

/// The run's verdict.
const FAILED: u8 = 1;
/// Command line, scenario or environment.
const USAGE: u8 = 2;

/// Runs `penstock-loadtest` with the arguments of this process.
pub fn main() -> ExitCode {
    let settings = match arguments::read(Cli::parse()) {
        Ok(settings) => settings,
        Err(faults) => {
            for fault in faults {
                eprintln!("penstock-loadtest: {fault}");
            }
            return ExitCode::from(USAGE);
        }
    };
    match measure(&settings).and_then(|report| tell(&settings, &report).map(|()| report.passed)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => {
            eprintln!("penstock-loadtest: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn measure(settings: &Settings) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let started_at = OffsetDateTime::now_utc().format(&Rfc3339)?;
        let interrupt = Interrupt::listen()?;
        let engine = Engine::start(settings.threads, settings.files())?;
        let report = Report::new(settings, started_at);
        let mut report = match &settings.job {
            Job::Traffic(load) => Box::pin(traffic::run(settings, load, &engine, &interrupt, report)).await?,
            Job::Connect { hold, rate } => {
                Box::pin(churn::connect(settings, *hold, *rate, &engine, &interrupt, report)).await
            }
            Job::Storm { rounds } => {
                Box::pin(churn::storm(settings, *rounds, &engine, &interrupt, report)).await
            }
            Job::Takeover => Box::pin(churn::takeover(settings, &engine, &interrupt, report)).await,
        };
        report.judge(settings);
        Ok(report)
    })
}

fn tell(settings: &Settings, report: &Report) -> anyhow::Result<()> {
    if let Some(path) = &settings.html {
        std::fs::write(path, html::page(report))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = if settings.json { serde_json::to_string(report)? } else { summary::text(report) };
    println!("{}", text.trim_end());
    Ok(())
}
