//! The loop between group and jobs: takes messages, starts jobs with what waits, gives back what has to come again, drains.
//! While all jobs are busy, what comes waits, and goes together: that is all the batching there is.

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use penstock_client::{ConsumeError, Consumer, Message, Position};
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    job::{self, Ground, Outcome},
    queues::{Offered, Queues},
    retry::Retry,
};

const TIDY: Duration = Duration::from_secs(1);

/// How much at a time.
#[derive(Debug, Clone, Copy)]
pub struct EngineConfig {
    /// Jobs at a time, which is requests at a time.
    pub concurrency: usize,
    /// Messages of one job.
    pub messages: usize,
    /// When what went back comes again.
    pub retry: Retry,
    /// For jobs under way when the process ends.
    pub drain_timeout: Duration,
}

/// A job died: its messages are not settled, and nobody knows which.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The group can't be consumed.
    #[error("the group can't be consumed any more: {0}")]
    Consume(#[from] ConsumeError),
    /// A defect of this program.
    #[error("a job died: {0}")]
    Job(#[from] JoinError),
}

/// See the module.
pub struct Engine {
    consumer: Consumer,
    ground: Arc<Ground>,
    config: EngineConfig,
    queues: Queues,
    jobs: JoinSet<Vec<Outcome>>,
}

impl Engine {
    /// Nothing runs before [`Engine::run`].
    pub fn new(consumer: Consumer, ground: Arc<Ground>, config: EngineConfig) -> Self {
        Self { consumer, ground, config, queues: Queues::default(), jobs: JoinSet::new() }
    }

    /// Until the drain begins and is over, or something can't go on.
    pub async fn run(mut self, drain: &CancellationToken) -> Result<(), EngineError> {
        let mut tidy = interval(TIDY);
        tidy.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                Some(outcomes) = self.jobs.join_next() => self.settle(outcomes?),
                message = self.consumer.next() => self.take(message?)?,
                _ = tidy.tick() => self.queues.tidy(Instant::now()),
            }
            self.start_jobs();
        }
        self.drain().await
    }

    /// A message, and all others that are here already.
    fn take(&mut self, first: Message) -> Result<(), EngineError> {
        self.offer(first);
        while let Some(message) = self.consumer.next().now_or_never() {
            self.offer(message?);
        }
        Ok(())
    }

    fn offer(&mut self, message: Message) {
        let position = message.position;
        match self.queues.offer(message, Instant::now()) {
            Offered::Taken => drop(self.ground.metrics.held.inc()),
            Offered::Held => self.ground.metrics.message("repeated"),
            Offered::Early(delay) => self.give_back(position, delay),
        }
    }

    fn give_back(&self, position: Position, delay: Duration) {
        self.ground.acker.nack(position, delay);
        self.ground.metrics.message("returned");
    }

    fn start_jobs(&mut self) {
        while self.jobs.len() < self.config.concurrency && self.queues.ready() > 0 {
            // What is ready is spread over the jobs that can be had.
            let free = self.config.concurrency - self.jobs.len();
            let shares = self.queues.take(self.queues.ready().div_ceil(free), self.config.messages);
            self.jobs.spawn(job::run(Arc::clone(&self.ground), shares));
        }
    }

    fn settle(&mut self, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            let Some(first) = outcome.returned.first().copied() else {
                self.queues.done(&outcome.client);
                self.let_go(outcome.messages);
                continue;
            };
            let delay = self.config.retry.delay(outcome.deliveries);
            let waiting = self.queues.given_back(&outcome.client, first, Instant::now() + delay);
            self.let_go(outcome.messages + waiting.len());
            for position in outcome.returned.into_iter().chain(waiting) {
                self.give_back(position, delay);
            }
        }
    }

    fn let_go(&self, messages: usize) {
        self.ground.metrics.held.dec_by(i64::try_from(messages).unwrap_or(i64::MAX));
    }

    /// Jobs under way end, within the limit; everything that is not settled comes again to another consumer of the group.
    async fn drain(mut self) -> Result<(), EngineError> {
        let limit = self.config.drain_timeout;
        let rest = async {
            while let Some(outcomes) = self.jobs.join_next().await {
                self.settle(outcomes?);
            }
            Ok::<(), EngineError>(())
        };
        match timeout(limit, rest).await {
            Ok(ended) => ended?,
            Err(_) => {
                tracing::warn!(jobs = self.jobs.len(), ?limit, "ended before all requests had an answer")
            }
        }
        self.jobs.shutdown().await;
        if let Err(error) = self.consumer.close().await {
            tracing::warn!(%error, "the last acknowledgements may not have arrived: their messages come again");
        }
        Ok(())
    }
}
