//! A consumer of a group that enters what it is handed into a ledger, and acknowledges it.

use std::time::Duration;

use penstock_client::{Client, ConsumeError};
use tokio::{sync::oneshot, task::JoinHandle};

use crate::ledger::{Ledger, ReaderId};

/// A group's consumer at work. Dropping it ends it.
#[derive(Debug)]
pub struct GroupReader {
    task: JoinHandle<Result<u64, ConsumeError>>,
    stop: oneshot::Sender<()>,
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
        let (stop, mut stopping) = oneshot::channel();
        let mut consumer = client.consumer(group).credit(credit).ack_timeout(Duration::from_secs(60)).start();
        let ledger = ledger.clone();
        let task = tokio::spawn(async move {
            let mut count = 0;
            loop {
                let message = tokio::select! {
                    _ = &mut stopping => break,
                    message = consumer.next() => message?,
                };
                ledger.seen(reader, &message.payload, Some(message.position));
                if acks {
                    consumer.ack(&message);
                }
                count += 1;
            }
            consumer.close().await.map(|()| count)
        });
        Self { task, stop }
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
