//! Messages to devices: pipelined on one stream, one receipt each. A push whose connection breaks is never sent again by
//! itself: the device may have it.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use penstock_proto::messaging::{PushReceipt, PushRequest};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

pub use penstock_proto::messaging::ReceiptStatus;

use crate::{client::Client, error::PushError};

/// Pushes without a receipt yet, at most; further ones wait in `Pusher::push`.
const IN_FLIGHT: usize = 1_024;
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A message for devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    topic: String,
    client: String,
    qos: u8,
    payload: Bytes,
    wait: Option<Duration>,
    ttl: Option<Duration>,
    idempotency_key: String,
}

impl Push {
    /// To every client with a matching subscription, QoS 0.
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            client: String::new(),
            qos: 0,
            payload: payload.into(),
            wait: None,
            ttl: None,
            idempotency_key: String::new(),
        }
    }

    /// To this client only.
    pub fn client(mut self, client: impl Into<String>) -> Self {
        self.client = client.into();
        self
    }

    /// 0 or 1.
    pub fn qos(mut self, qos: u8) -> Self {
        self.qos = qos;
        self
    }

    /// The receipt comes when the device has acknowledged, or after this time. QoS 1, and one client, only.
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = Some(limit);
        self
    }

    /// The message waits so long for the client to be connected and subscribed, in its mailbox: the receipt is
    /// [`ReceiptStatus::Queued`], or with [`Self::wait`] what becomes of it meanwhile. QoS 1, and one client, only; at most
    /// the age of the tenant's mailboxes.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// A push that is sent again to the client with the same key (within 10 minutes) is not done again: its receipt tells
    /// what became of the first. At most 128 printable ASCII characters; one client only.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = key.into();
        self
    }

    fn to_wire(&self, id: u64) -> PushRequest {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        let wait_ms = self.wait.map_or(0, |wait| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1));
        PushRequest {
            id,
            topic: self.topic.clone(),
            client: self.client.clone(),
            qos: u32::from(self.qos),
            payload: self.payload.clone(),
            wait: self.wait.is_some(),
            wait_ms,
            ttl_ms: self.ttl.map_or(0, millis),
            idempotency_key: self.idempotency_key.clone(),
        }
    }
}

/// What became of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// How far it came.
    pub status: ReceiptStatus,
    /// Clients reached, for a push to all subscribers.
    pub clients: u32,
    /// Why it was refused, else empty.
    pub reason: String,
}

type Answer = oneshot::Sender<Result<Receipt, PushError>>;

/// A receipt that is on its way.
#[derive(Debug)]
#[must_use = "a push may fail: its receipt says so"]
pub struct Receiving {
    answer: oneshot::Receiver<Result<Receipt, PushError>>,
}

impl Future for Receiving {
    type Output = Result<Receipt, PushError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(cx).map(|answer| answer.unwrap_or(Err(PushError::Closed)))
    }
}

/// A stream of pushes. Cheap to clone; ends when the last clone and its pushes are gone.
#[derive(Debug, Clone)]
pub struct Pusher {
    queue: mpsc::Sender<(Push, Answer)>,
}

impl Client {
    /// Begins a stream of pushes; connects when first used. Needs a tokio runtime around it.
    pub fn pusher(&self) -> Pusher {
        let (queue, pushes) = mpsc::channel(IN_FLIGHT);
        tokio::spawn(Driver { client: self.clone(), pushes, next_id: 1 }.run());
        Pusher { queue }
    }
}

impl Pusher {
    /// Queues a push; waits while too many are without a receipt. Pushes leave in the order of these calls.
    pub async fn push(&self, push: Push) -> Result<Receiving, PushError> {
        let (sender, answer) = oneshot::channel();
        self.queue.send((push, sender)).await.map_err(|_| PushError::Closed)?;
        Ok(Receiving { answer })
    }

    /// One push and its receipt.
    pub async fn send(&self, push: Push) -> Result<Receipt, PushError> {
        self.push(push).await?.await
    }
}

struct Driver {
    client: Client,
    pushes: mpsc::Receiver<(Push, Answer)>,
    next_id: u64,
}

struct Wire {
    requests: mpsc::Sender<PushRequest>,
    receipts: Streaming<PushReceipt>,
}

impl Driver {
    async fn run(mut self) {
        let mut waiting: HashMap<u64, Answer> = HashMap::new();
        while let Some(first) = self.pushes.recv().await {
            let number = self.client.present();
            let request = self.enter(first, &mut waiting);
            let ended = match self.open(number, request).await {
                Ok(wire) => self.serve(wire, &mut waiting).await,
                Err(status) => Err(status),
            };
            let error = match ended {
                Ok(()) => PushError::Closed,
                Err(status) => {
                    self.client.leave(number);
                    PushError::from_status(&status)
                }
            };
            for (_, answer) in waiting.drain() {
                // Fails only when nobody waits for the receipt.
                let _ = answer.send(Err(error.clone()));
            }
        }
    }

    fn enter(&mut self, (push, answer): (Push, Answer), waiting: &mut HashMap<u64, Answer>) -> PushRequest {
        let id = self.next_id;
        self.next_id += 1;
        waiting.insert(id, answer);
        push.to_wire(id)
    }

    async fn open(&self, number: usize, first: PushRequest) -> Result<Wire, Status> {
        let (requests, receiver) = mpsc::channel(IN_FLIGHT);
        requests.try_send(first).map_err(|_| Status::internal("no room"))?;
        let mut messaging = self.client.messaging(number)?;
        let response = timeout(OPEN_TIMEOUT, messaging.push(ReceiverStream::new(receiver)))
            .await
            .map_err(|_| Status::deadline_exceeded(format!("no answer within {OPEN_TIMEOUT:?}")))??;
        Ok(Wire { requests, receipts: response.into_inner() })
    }

    /// Until the stream breaks (error), or no push can come any more and all receipts are in.
    async fn serve(&mut self, mut wire: Wire, waiting: &mut HashMap<u64, Answer>) -> Result<(), Status> {
        let mut more = true;
        while more || !waiting.is_empty() {
            tokio::select! {
                receipt = wire.receipts.message() => {
                    let receipt = receipt?.ok_or_else(|| Status::unavailable("the server ended the stream"))?;
                    settle(receipt, waiting);
                }
                push = self.pushes.recv(), if more && waiting.len() < IN_FLIGHT => match push {
                    // As many as may be in flight have room, so this never fails for being full.
                    Some(push) => {
                        let request = self.enter(push, waiting);
                        wire.requests.try_send(request).map_err(|_| Status::unavailable("the stream was closed"))?;
                    }
                    None => more = false,
                },
            }
        }
        Ok(())
    }
}

fn settle(receipt: PushReceipt, waiting: &mut HashMap<u64, Answer>) {
    if let Some(answer) = waiting.remove(&receipt.id) {
        let status = receipt.status();
        // Fails only when nobody waits for the receipt.
        let _ = answer.send(Ok(Receipt { status, clients: receipt.clients, reason: receipt.reason }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_never_rounded_to_the_default() {
        let request = Push::new("t", "p").client("c").qos(1).wait(Duration::from_micros(10)).to_wire(4);
        assert!(request.wait && request.wait_ms == 1 && request.id == 4);
        let plain = Push::new("t", "p").to_wire(1);
        assert!(!plain.wait && plain.ttl_ms == 0 && plain.idempotency_key.is_empty());
        assert_eq!(Push::new("t", "p").ttl(Duration::from_micros(10)).to_wire(1).ttl_ms, 1);
    }
}
