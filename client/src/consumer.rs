//! A consumer as the caller sees it: settings, messages, acknowledgements. The stream behind it is `consume`.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use penstock_proto::messaging::Begin;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    acks::AckBuffer,
    client::Client,
    consume::{Driver, Handed},
    error::ConsumeError,
    message::{Batch, Message, Position},
};

/// Records in a consumer's hands when nothing else is said.
const CREDIT: u32 = 1_000;
/// Most that the contract allows.
const CREDIT_MAX: u32 = 100_000;

/// What the stream and its handles share.
pub(crate) struct Shared {
    acks: Mutex<AckBuffer>,
    /// Acknowledgements wait.
    pub(crate) wake: Notify,
    pub(crate) closing: CancellationToken,
    /// Number of the present connection: what an earlier one handed out and nobody took yet comes again, in order.
    pub(crate) connection: AtomicU64,
    /// Records that may be in the consumer's hands.
    pub(crate) credit: AtomicU32,
}

impl Shared {
    fn new(credit: u32) -> Self {
        Self {
            acks: Mutex::default(),
            wake: Notify::new(),
            closing: CancellationToken::new(),
            connection: AtomicU64::new(0),
            credit: AtomicU32::new(credit),
        }
    }

    pub(crate) fn with_acks<T>(&self, act: impl FnOnce(&mut AckBuffer) -> T) -> T {
        act(&mut self.acks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Settings of a consumer.
#[derive(Debug)]
#[must_use = "nothing is consumed before `start`"]
pub struct ConsumerBuilder {
    client: Client,
    begin: Begin,
    give_up_after: Option<Duration>,
}

impl Client {
    /// Begins a consumer of a group that exists.
    pub fn consumer(&self, group: impl Into<String>) -> ConsumerBuilder {
        let begin = Begin { group: group.into(), consumer: String::new(), credit: CREDIT, ack_timeout_ms: 0 };
        ConsumerBuilder { client: self.clone(), begin, give_up_after: None }
    }
}

impl ConsumerBuilder {
    /// A name that operators see.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.begin.consumer = name.into();
        self
    }

    /// Records that may be in the consumer's hands and unacknowledged, 1 to 100,000; 1,000 unless told otherwise. It also
    /// bounds the memory that waits for `next`.
    pub fn credit(mut self, records: u32) -> Self {
        self.begin.credit = records.clamp(1, CREDIT_MAX);
        self
    }

    /// After this time an unacknowledged record is handed out again; one minute unless told otherwise.
    pub fn ack_timeout(mut self, timeout: Duration) -> Self {
        self.begin.ack_timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
        self
    }

    /// Ends with `Unavailable` when no server has answered for this long; without it, a consumer tries for ever.
    pub fn give_up_after(mut self, time: Duration) -> Self {
        self.give_up_after = Some(time);
        self
    }

    /// Connects in the background. Needs a tokio runtime around it.
    pub fn start(self) -> Consumer {
        // A batch holds at least one record, so what credit allows always has room.
        let (out, handed) = mpsc::channel(self.begin.credit as usize);
        let shared = Arc::new(Shared::new(self.begin.credit));
        let (joined, state) = watch::channel(false);
        let driver =
            Driver::new(self.client, self.begin, self.give_up_after, Arc::clone(&shared), out, joined);
        let driver = tokio::spawn(driver.run());
        Consumer {
            shared,
            handed,
            state,
            ready: VecDeque::new(),
            ready_of: 0,
            driver: Some(driver),
            failed: None,
        }
    }
}

/// A connected member of a group. Dropping it sends what was acknowledged, if the connection lives; [`Consumer::close`]
/// also waits for that.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    handed: mpsc::Receiver<Result<Handed, ConsumeError>>,
    state: watch::Receiver<bool>,
    ready: VecDeque<Message>,
    /// Connection that handed out what is ready.
    ready_of: u64,
    driver: Option<JoinHandle<Result<(), ConsumeError>>>,
    failed: Option<ConsumeError>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl Consumer {
    /// The next message; waits for one, over reconnects. May be cancelled without losing a message. An error is final.
    pub async fn next(&mut self) -> Result<Message, ConsumeError> {
        loop {
            if self.ready_of != self.shared.connection.load(Ordering::Acquire) {
                self.ready.clear();
            }
            if let Some(message) = self.ready.pop_front() {
                return Ok(message);
            }
            let handed = self.receive().await?;
            match handed.batch.messages() {
                Ok(messages) => self.ready = messages.into(),
                Err(error) => return Err(self.fail(error)),
            }
            self.ready_of = handed.connection;
        }
    }

    /// The next batch, undecoded. Not to be mixed with `next` on one consumer: messages that `next` has decoded and not
    /// yet returned are not in it.
    pub async fn next_batch(&mut self) -> Result<Batch, ConsumeError> {
        Ok(self.receive().await?.batch)
    }

    async fn receive(&mut self) -> Result<Handed, ConsumeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        loop {
            match self.handed.recv().await {
                Some(Ok(handed)) if handed.connection == self.shared.connection.load(Ordering::Acquire) => {
                    return Ok(handed);
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(self.fail(error)),
                None => return Err(self.fail(ConsumeError::Closed)),
            }
        }
    }

    fn fail(&mut self, error: ConsumeError) -> ConsumeError {
        self.failed = Some(error.clone());
        error
    }

    /// Waits until the group is joined on all partitions.
    pub async fn joined(&mut self) -> Result<(), ConsumeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let joined = self.state.wait_for(|joined| *joined).await.is_ok();
        if joined {
            return Ok(());
        }
        // The stream has ended: what it said last is why.
        self.receive().await.map(|_| ())
    }

    /// Whether the group is joined on all partitions, as it changes: for readiness. False while no server answers.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.state.clone()
    }

    /// A new bound for records in the consumer's hands, 1 to 100,000, kept over reconnects: lower it to be handed less while
    /// the work is slow. What is in hand already stays.
    pub fn set_credit(&self, records: u32) {
        self.shared.credit.store(records.clamp(1, CREDIT_MAX), Ordering::Release);
        self.shared.wake.notify_one();
    }

    /// Acknowledges a message: it is done for the group. Sent with others at the end of the turn; any order.
    pub fn ack(&self, message: &Message) {
        self.acker().ack(message.position);
    }

    /// Acknowledges all records of a batch.
    pub fn ack_batch(&self, batch: &Batch) -> Result<(), ConsumeError> {
        let parts = batch.decode()?;
        self.shared.with_acks(|acks| parts.iter().for_each(|(position, ..)| acks.ack(*position)));
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Gives a message back: it is handed out again after the delay, and the later ones of its client wait for it.
    pub fn nack(&self, message: &Message, delay: Duration) {
        self.acker().nack(message.position, delay);
    }

    /// A handle for acknowledging from other tasks.
    pub fn acker(&self) -> Acker {
        Acker { shared: Arc::clone(&self.shared) }
    }

    /// Sends what was acknowledged and ends. An error means that some acknowledgements may not have arrived: their
    /// messages come again to another consumer of the group.
    pub async fn close(mut self) -> Result<(), ConsumeError> {
        self.shared.closing.cancel();
        self.handed.close();
        match self.driver.take() {
            Some(driver) => driver.await.unwrap_or(Err(ConsumeError::Closed)),
            None => Ok(()),
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

/// Acknowledges messages of one consumer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Acker {
    shared: Arc<Shared>,
}

impl Acker {
    /// As [`Consumer::ack`].
    pub fn ack(&self, position: Position) {
        self.shared.with_acks(|acks| acks.ack(position));
        self.shared.wake.notify_one();
    }

    /// As [`Consumer::nack`].
    pub fn nack(&self, position: Position, delay: Duration) {
        self.shared.with_acks(|acks| acks.nack(position, delay));
        self.shared.wake.notify_one();
    }
}
