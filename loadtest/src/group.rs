//! The group that verifies a tenant, with its consumers. It is there before the first message; its consumers are, too, or
//! they come for the backlog. Consumers of one group share its reader of the ledger: no record may be seen by two, and none
//! of a publisher before the one that was stored earlier.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use penstock_client::{Client, GroupSpec};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use crate::{clock::Clock, engine::Worker, readers::Reading, subscriber::Desk};

/// Records in the hands of all consumers of a group together.
const CREDIT: u64 = 20_000;
/// Records in the hands of one, at least.
const CREDIT_LEAST: u64 = 1_000;

/// A group that this run made.
pub(crate) struct Group {
    client: Client,
    name: String,
    desk: Desk,
    clock: Clock,
    consumers: Vec<Running>,
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<u64>>,
}

impl Group {
    /// Makes it, without consumers.
    pub(crate) async fn create(
        client: Client,
        name: String,
        filter: String,
        desk: Desk,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        client.create_group(&GroupSpec::new(&name).filter(filter)).await?;
        Ok(Self { client, name, desk, clock, consumers: Vec::new() })
    }

    /// Starts so many consumers, and waits until all have joined. Each begins as soon as it has joined itself.
    pub(crate) async fn consume(
        &mut self,
        worker: &Worker,
        count: u64,
        limit: Duration,
    ) -> anyhow::Result<()> {
        // At most 20,000.
        let credit = (CREDIT / count.max(1)).max(CREDIT_LEAST) as u32;
        let mut ready = Vec::new();
        for number in 0..count {
            let (joined, joining) = oneshot::channel();
            self.consumers.push(self.start(worker, number, credit, joined));
            ready.push(joining);
        }
        let end = Instant::now() + limit;
        for (at, joining) in ready.into_iter().enumerate() {
            match timeout_at(end, joining).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    // It has ended, and says why.
                    let ended = self.consumers.remove(at).task.await;
                    ended.context("the group's consumer failed")??;
                }
                Err(_) => anyhow::bail!("no partition was joined within {limit:?}"),
            }
        }
        Ok(())
    }

    fn start(&self, worker: &Worker, number: u64, credit: u32, joined: oneshot::Sender<()>) -> Running {
        let (stop, stopping) = oneshot::channel();
        let (client, group) = (self.client.clone(), self.name.clone());
        let (ledger, reader) = (self.desk.ledger.clone(), self.desk.reader);
        let (tally, clock) = (Arc::clone(&worker.tally), self.clock);
        let task = worker.spawn(async move {
            let name = format!("penstock-loadtest-{number}");
            let mut consumer = client.consumer(group).credit(credit).name(name).start();
            consumer.joined().await?;
            // Nobody waits any more: it is told to stop, too.
            let _ = joined.send(());
            Ok(Reading { consumer, ledger, reader, acks: true, tally, clock }.run(stopping).await?)
        });
        Running { stop, task }
    }

    /// Whether a consumer has ended, which none should before it is told to.
    pub(crate) fn has_lost_a_consumer(&self) -> bool {
        self.consumers.iter().any(|consumer| consumer.task.is_finished())
    }

    /// What it has not acknowledged is of no use to anybody: the group goes.
    pub(crate) async fn end(mut self, limit: Duration) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        for consumer in self.consumers.drain(..) {
            // Fails only when the task has ended: then it says why.
            let _ = consumer.stop.send(());
            let ended = timeout(limit, consumer.task).await.context("the group's consumer does not end");
            let ended = ended.and_then(|ended| ended.context("the group's consumer failed")).flatten();
            let ended = ended.context("the group's consumer ended early: its verdict would be worthless");
            outcome = outcome.and(ended.map(drop));
        }
        let deleted = self.client.delete_group(&self.name).await.context("the group is not deleted");
        outcome.and(deleted.map(drop))
    }

    /// Goes without a verdict, so that it does not hold what is stored.
    pub(crate) async fn abandon(self) {
        self.consumers.iter().for_each(|consumer| consumer.task.abort());
        // What went wrong before is what to tell.
        let _ = self.client.delete_group(&self.name).await;
    }
}
