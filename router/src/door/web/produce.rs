//! A producer's WebSocket: messages come, go to devices as pushes of QoS 1, and are answered one by one.
//!
//! Messages for one client, and those for all subscribers, keep their order: the next one of them is not read before the
//! one before it has its receipt. Messages for different clients are under way together, at most [`UNDER_WAY`].

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use penstock_proto::messaging::{PushReceipt, PushRequest, ReceiptStatus};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Door,
    avro::Message,
    frame,
    socket::{End, Socket, Step},
    token::Grant,
};

/// Messages without an answer.
const UNDER_WAY: usize = 64;

/// Why a producer's socket ends.
enum Over {
    Client(End),
    Nonsense(&'static str),
    NoTenant,
    Draining,
}

impl Over {
    fn close(&self) -> Option<(u16, &'static str)> {
        match self {
            Self::Client(end) => end.close(),
            Self::Nonsense(reason) => Some((1007, reason)),
            Self::NoTenant => Some((1008, "the tenant was deleted")),
            Self::Draining => Some((1001, "the router drains: connect again")),
        }
    }
}

/// See the module.
pub struct Producing {
    door: Arc<Door>,
    grant: Grant,
    under_way: FuturesUnordered<BoxFuture<'static, Pushed>>,
    /// Clients that a message is under way to; empty: all subscribers.
    busy: HashSet<String>,
    /// Waits until its client is not busy any more.
    held: Option<Incoming>,
    answers: VecDeque<String>,
}

struct Incoming {
    sequence: String,
    client: String,
    payload: bytes::Bytes,
}

struct Pushed {
    sequence: String,
    client: String,
    receipt: PushReceipt,
}

impl Producing {
    /// A producer with this token.
    pub fn new(door: &Arc<Door>, grant: Grant) -> Self {
        Self {
            door: Arc::clone(door),
            grant,
            under_way: FuturesUnordered::new(),
            busy: HashSet::new(),
            held: None,
            answers: VecDeque::new(),
        }
    }

    /// Serves the client until it goes, or has to.
    pub async fn run<S: AsyncRead + AsyncWrite + Unpin>(mut self, mut socket: Socket<S>) {
        let over = self.serve(&mut socket).await;
        let told = over.close();
        if told.is_some() {
            // What is pushed already gets its answer.
            while let Some(pushed) = self.under_way.next().await {
                self.answer(pushed);
            }
            while let (Some(answer), Step::Room) = (self.answers.pop_front(), socket.step(false, true).await)
            {
                if socket.send(answer).is_err() {
                    break;
                }
            }
        }
        if let Some((code, reason)) = told {
            socket.close(code, reason, |_| {}).await;
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&mut self, socket: &mut Socket<S>) -> Over {
        let door = Arc::clone(&self.door);
        loop {
            if let Some(incoming) = self.held.take_if(|held| !self.busy.contains(&held.client))
                && let Err(over) = self.push(incoming)
            {
                return over;
            }
            let reads = self.held.is_none() && self.under_way.len() + self.answers.len() < UNDER_WAY;
            tokio::select! {
                step = socket.step(reads, !self.answers.is_empty()) => match step {
                    Step::Text(text) => if let Err(over) = self.take(&text) {
                        return over;
                    },
                    Step::Room => if let Some(answer) = self.answers.pop_front()
                        && let Err(end) = socket.send(answer)
                    {
                        return Over::Client(end);
                    },
                    Step::Pong => {}
                    Step::End(end) => return Over::Client(end),
                },
                Some(pushed) = self.under_way.next() => self.answer(pushed),
                () = door.draining.cancelled() => return Over::Draining,
            }
        }
    }

    fn take(&mut self, text: &str) -> Result<(), Over> {
        let (sequence, avro) = frame::from_producer(text).map_err(|nonsense| Over::Nonsense(nonsense.0))?;
        let read = avro.map_err(|nonsense| nonsense.0.to_owned()).and_then(|avro| {
            Message::decode(&avro, self.door.config.generation).map_err(|malformed| malformed.to_string())
        });
        match read {
            Ok(message) => {
                let client = message.metadata.client_id.unwrap_or_default();
                self.held =
                    Some(Incoming { sequence: sequence.to_owned(), client, payload: message.payload });
            }
            Err(reason) => self.refuse(sequence, &reason),
        }
        Ok(())
    }

    fn push(&mut self, incoming: Incoming) -> Result<(), Over> {
        let inside = self.door.inside.clone();
        let tenant = inside.tenant(&self.grant.tenant).map_err(|_| Over::NoTenant)?;
        let Incoming { sequence, client, payload } = incoming;
        let request = PushRequest {
            topic: self.grant.topic.clone(),
            client: client.clone(),
            qos: 1,
            payload,
            ..PushRequest::default()
        };
        self.busy.insert(client.clone());
        let push = async move {
            let receipt = crate::push::route(&inside.homes, &inside.peers, &tenant, request).await;
            inside.receipts.count(&receipt);
            Pushed { sequence, client, receipt }
        };
        self.under_way.push(push.boxed());
        Ok(())
    }

    fn answer(&mut self, pushed: Pushed) {
        self.busy.remove(&pushed.client);
        let status = pushed.receipt.status();
        match status {
            ReceiptStatus::Refused | ReceiptStatus::Expired => {
                let reason = format!(
                    "{}: {}",
                    status.as_str_name().trim_start_matches("RECEIPT_STATUS_").to_lowercase(),
                    pushed.receipt.reason
                );
                self.refuse(&pushed.sequence, &reason);
            }
            // Nobody there to get it is no fault of the producer's, as with any publish.
            _ => {
                self.door.metrics.produced.inc();
                self.answers.push_back(pushed.sequence);
            }
        }
    }

    fn refuse(&mut self, sequence: &str, reason: &str) {
        self.door.metrics.refused_messages.inc();
        self.answers.push_back(format!("{sequence}\n{reason}"));
    }
}
