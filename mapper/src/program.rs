//! `penstock-mapper` from settings to parts and back: group, consumer, jobs, drain; and its subcommand `test`.

use std::sync::Arc;

use penstock_client::Consumer;
use penstock_common::{
    admin::{Check, Shown},
    clock::Seams,
    config::Asked,
    exit::Failure,
    process::{self, Process},
};
use prometheus_client::registry::Registry;

use crate::{
    api::Api,
    dead_letters::DeadLetters,
    dry_run,
    engine::{Engine, EngineConfig},
    group,
    identity::Identity,
    job::Ground,
    metrics::Metrics,
    sample,
    settings::{self, Mapper, Sending, TEST},
};

/// Runs until the drain is over.
pub async fn run(mapper: Mapper, process: Process) -> Result<(), Failure> {
    let Process { life, admin, drain_timeout } = process;
    let client = mapper.client.client().map_err(Failure::of)?;
    let provided = async {
        group::provide(&client, &mapper.group, mapper.start, &mapper.routes).await.map_err(Failure::of)
    };
    process::unless_drained(&life, provided).await?;
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    let consumer = client
        .consumer(&mapper.group)
        .name(&mapper.node_id)
        .credit(mapper.credit)
        .ack_timeout(mapper.ack_timeout)
        .start();
    let checks = vec![Check { name: "group", holds: consumer.connected() }];
    admin.show(Shown { metrics: registry, checks });
    life.started();
    let Some(sending) = mapper.sending else {
        return dry_run::run(consumer, &mapper.routes, mapper.credit, life.drain())
            .await
            .map_err(Failure::of);
    };
    let ground = Ground {
        routes: mapper.routes,
        batch: mapper.batch,
        ..ground(sending, mapper.engine.concurrency, &consumer, metrics)?
    };
    let config = EngineConfig { drain_timeout, ..mapper.engine };
    Engine::new(consumer, Arc::new(ground), config).run(life.drain()).await.map_err(Failure::of)
}

fn ground(
    sending: Sending,
    connections: usize,
    consumer: &Consumer,
    metrics: Arc<Metrics>,
) -> Result<Ground, Failure> {
    let (directory, bound) = &sending.dead_letters;
    let api = Api::new(&sending.api, connections).map_err(Failure::of)?;
    Ok(Ground {
        routes: Vec::new(),
        identity: Identity::new(api.clone(), sending.identity, Arc::clone(&metrics)),
        api,
        dead_letters: DeadLetters::open(directory, *bound, Seams::real()).map_err(Failure::of)?,
        acker: consumer.acker(),
        metrics,
        batch: 1,
    })
}

/// `penstock-mapper test`, with the arguments after that word.
pub fn test(
    arguments: Vec<std::ffi::OsString>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<(), Failure> {
    let arguments = std::iter::once(TEST.name.into()).chain(arguments);
    let mut reader = match TEST.ask_with(arguments, environment)? {
        Asked::Run(reader) => reader,
        Asked::Print(text) => {
            print!("{text}");
            return Ok(());
        }
    };
    let routes = settings::routes(&mut reader);
    let effective = reader.finish()?;
    if effective.print {
        print!("{}", effective.text);
        return Ok(());
    }
    let report = sample::run(&routes);
    print!("{}", report.text);
    let sum = format!("{} as expected, {} not, {} only shown", report.passed, report.failed, report.shown);
    println!("{sum}");
    if report.failed > 0 {
        return Err(Failure::Failed(format!("samples became something else: {sum}")));
    }
    if report.passed + report.shown == 0 {
        return Err(Failure::Failed("there is no [[route.sample]] to run".to_owned()));
    }
    Ok(())
}
