//! A consumer of a group that enters what it is handed into a ledger, and acknowledges it.

use std::{sync::Arc, time::Duration};

use penstock_client::{Batch, Client, ConsumeError, Consumer};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

use crate::{
    clock::Clock,
    ledger::{Ledger, ReaderId, Sighting},
    tally::{Counters, Tally},
};

/// A group's consumer at work. Dropping it ends it.
#[derive(Debug)]
pub struct GroupReader {
    task: JoinHandle<Result<u64, ConsumeError>>,
    stop: oneshot::Sender<()>,
}

/// One consumer and where it enters what it sees.
pub(crate) struct Reading {
    pub(crate) consumer: Consumer,
    pub(crate) ledger: Ledger,
    pub(crate) reader: ReaderId,
    pub(crate) acks: bool,
    /// Counts and times.
    pub(crate) tally: Arc<Tally>,
    pub(crate) clock: Clock,
}

impl GroupReader {
    /// Starts consuming; the group exists. Needs a tokio runtime around it.
    pub fn start(client: &Client, group: &str, credit: u32, ledger: &Ledger, reader: ReaderId) -> Self {
        Self::with(client, group, credit, ledger, reader, true)
    }

    /// As `start`, but it acknowledges nothing: what it is handed comes again to others when it has gone.
    pub fn holding(client: &Client, group: &str, credit: u32, ledger: &Ledger, reader: ReaderId) -> Self {
        Self::with(client, group, credit, ledger, reader, false)
    }

    fn with(
        client: &Client,
        group: &str,
        credit: u32,
        ledger: &Ledger,
        reader: ReaderId,
        acks: bool,
    ) -> Self {
        let consumer = client.consumer(group).credit(credit).ack_timeout(Duration::from_secs(60)).start();
        let (ledger, tally, clock) = (ledger.clone(), Arc::default(), Clock::now());
        let reading = Reading { consumer, ledger, reader, acks, tally, clock };
        let (stop, stopping) = oneshot::channel();
        Self { task: tokio::spawn(reading.run(stopping)), stop }
    }

    /// Ends at once, with messages in its hands.
    pub fn vanish(self) {
        self.task.abort();
    }

    /// Ends, sending the acknowledgements that are left. Gives the number of messages handed out.
    pub async fn stop(self) -> Result<u64, ConsumeError> {
        // Fails only when the task has ended: then it says why.
        let _ = self.stop.send(());
        self.task.await.unwrap_or(Err(ConsumeError::Closed))
    }
}

impl Reading {
    /// Until it is stopped, or whoever could stop it has gone.
    pub(crate) async fn run(mut self, mut stopping: oneshot::Receiver<()>) -> Result<u64, ConsumeError> {
        let mut count = 0;
        loop {
            let batch = tokio::select! {
                _ = &mut stopping => break,
                batch = self.consumer.next_batch() => batch?,
            };
            count += self.enter(&batch)?;
            if self.acks {
                self.consumer.ack_batch(&batch)?;
            }
        }
        self.consumer.close().await.map(|()| count)
    }

    fn enter(&self, batch: &Batch) -> Result<u64, ConsumeError> {
        let records = batch.decode()?;
        let now = self.clock.micros(Instant::now());
        let seeing = self.ledger.seeing(self.reader);
        let mut timings = self.tally.timings();
        for (position, _, record) in &records {
            if let Some(sent_at) = seeing.see(&record.payload, None, Sighting::Stored(*position)) {
                timings.one_way.record(now.saturating_sub(sent_at));
            }
        }
        let count = records.len() as u64;
        Counters::add_many(&self.tally.counters.received, count);
        Ok(count)
    }
}
