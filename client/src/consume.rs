//! The stream behind a consumer: connects, hands batches on, sends acknowledgements, and connects again. It acknowledges
//! nothing by itself.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use penstock_proto::messaging::{
    Begin, ConsumeRequest, ConsumeResponse, consume_request, consume_response::Kind,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    backoff::Backoff,
    client::Client,
    consumer::Shared,
    error::{ConsumeError, deepest},
    message::Batch,
};

/// Requests on their way to the connection; what waits longer waits in the ack buffer.
const REQUESTS: usize = 16;
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// For sending what was acknowledged, and for the server to end the stream after it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A batch and the connection it came on.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) connection: u64,
    pub(crate) batch: Batch,
}

/// How one connection ended.
enum End {
    Closed,
    Broken(String),
    Failed(ConsumeError),
}

pub(crate) struct Driver {
    client: Client,
    begin: Begin,
    give_up_after: Option<Duration>,
    shared: Arc<Shared>,
    out: mpsc::Sender<Result<Handed, ConsumeError>>,
    joined: watch::Sender<bool>,
    backoff: Backoff,
    /// The group was joined: what has it now may be an earlier connection of this consumer, which is soon found dead.
    had_it: bool,
    /// Since when no server answers.
    silent_since: Option<Instant>,
}

/// One connection.
struct Wire {
    requests: Option<mpsc::Sender<ConsumeRequest>>,
    responses: Streaming<ConsumeResponse>,
    connection: u64,
    /// As the server knows it.
    credit: u32,
}

impl Wire {
    /// What is to be told to the server, None when nothing is.
    fn request(&mut self, shared: &Shared) -> Option<ConsumeRequest> {
        let credit = shared.credit.load(Ordering::Acquire);
        if credit != self.credit {
            self.credit = credit;
            return Some(ConsumeRequest { kind: Some(consume_request::Kind::Credit(credit)) });
        }
        shared.with_acks(|acks| acks.take())
    }

    fn has_request(&self, shared: &Shared) -> bool {
        shared.credit.load(Ordering::Acquire) != self.credit || shared.with_acks(|acks| !acks.is_empty())
    }
}

impl Driver {
    pub(crate) fn new(
        client: Client,
        begin: Begin,
        give_up_after: Option<Duration>,
        shared: Arc<Shared>,
        out: mpsc::Sender<Result<Handed, ConsumeError>>,
        joined: watch::Sender<bool>,
    ) -> Self {
        let (backoff, had_it, silent_since) = (Backoff::new(), false, None);
        Self { client, begin, give_up_after, shared, out, joined, backoff, had_it, silent_since }
    }

    /// Until closed, or until something that trying again can't cure.
    pub(crate) async fn run(mut self) -> Result<(), ConsumeError> {
        loop {
            let number = self.client.present();
            let end = self.connection(number).await;
            self.joined.send_replace(false);
            let reason = match end {
                End::Closed => return Ok(()),
                End::Failed(error) => return self.fail(error).await,
                End::Broken(reason) => reason,
            };
            self.client.leave(number);
            if self.shared.closing.is_cancelled() {
                let nothing_left = self.shared.with_acks(|acks| acks.is_empty());
                return if nothing_left { Ok(()) } else { Err(ConsumeError::Unavailable(reason)) };
            }
            let since = *self.silent_since.get_or_insert_with(Instant::now);
            if self.give_up_after.is_some_and(|limit| since.elapsed() >= limit) {
                return self.fail(ConsumeError::Unavailable(reason)).await;
            }
            let wait = self.backoff.wait();
            tokio::select! {
                () = sleep(wait) => {}
                () = self.shared.closing.cancelled() => {}
            }
        }
    }

    async fn fail(&mut self, error: ConsumeError) -> Result<(), ConsumeError> {
        // Fails only when the consumer is gone: then nobody wants to know.
        let _ = self.out.send(Err(error.clone())).await;
        Err(error)
    }

    fn ended(&self, status: &Status) -> End {
        match ConsumeError::permanent(status, &self.begin.group) {
            Some(error @ ConsumeError::Occupied(_)) if self.had_it => End::Broken(error.to_string()),
            Some(error) => End::Failed(error),
            None => End::Broken(deepest(status)),
        }
    }

    async fn open(&self, number: usize) -> Result<Wire, Status> {
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let credit = self.shared.credit.load(Ordering::Acquire);
        let begin = consume_request::Kind::Begin(Begin { credit, ..self.begin.clone() });
        requests.try_send(ConsumeRequest { kind: Some(begin) }).map_err(|_| Status::internal("no room"))?;
        let mut messaging = self.client.messaging(number)?;
        let call = messaging.consume(ReceiverStream::new(receiver));
        let response = timeout(OPEN_TIMEOUT, call)
            .await
            .map_err(|_| Status::deadline_exceeded(format!("no answer within {OPEN_TIMEOUT:?}")))??;
        let connection = self.shared.connection.fetch_add(1, Ordering::AcqRel) + 1;
        Ok(Wire { requests: Some(requests), responses: response.into_inner(), connection, credit })
    }

    async fn connection(&mut self, number: usize) -> End {
        let opened = tokio::select! {
            opened = self.open(number) => opened,
            // Nothing is open: what was acknowledged on an earlier connection gets one short chance.
            () = self.abandoned() => return End::Closed,
        };
        let mut wire = match opened {
            Ok(wire) => wire,
            Err(status) => return self.ended(&status),
        };
        let end = self.serve(&mut wire).await;
        match end {
            End::Closed => self.finish(wire).await,
            other => other,
        }
    }

    /// The consumer closes and no acknowledgement waits.
    async fn abandoned(&self) {
        self.shared.closing.cancelled().await;
        if !self.shared.with_acks(|acks| acks.is_empty()) {
            std::future::pending::<()>().await;
        }
    }

    /// Both directions of one connection, until it breaks or the consumer closes.
    async fn serve(&mut self, wire: &mut Wire) -> End {
        let (shared, out) = (Arc::clone(&self.shared), self.out.clone());
        let Some(requests) = wire.requests.clone() else { return End::Closed };
        let mut waiting: Option<Handed> = None;
        loop {
            let something = wire.has_request(&shared);
            tokio::select! {
                biased;
                () = shared.closing.cancelled() => return End::Closed,
                permit = requests.reserve(), if something => match permit {
                    Ok(permit) => if let Some(request) = wire.request(&shared) { permit.send(request) },
                    Err(_) => return End::Broken("the connection was closed".into()),
                },
                () = shared.wake.notified() => {}
                permit = out.reserve(), if waiting.is_some() => match (permit, waiting.take()) {
                    (Ok(permit), Some(handed)) => permit.send(Ok(handed)),
                    _ => return End::Closed,
                },
                response = wire.responses.message(), if waiting.is_none() => match response {
                    Ok(Some(response)) => waiting = self.received(response, wire.connection),
                    Ok(None) => return End::Broken("the server ended the stream".into()),
                    Err(status) => return self.ended(&status),
                },
            }
        }
    }

    fn received(&mut self, response: ConsumeResponse, connection: u64) -> Option<Handed> {
        self.silent_since = None;
        match response.kind? {
            Kind::Joined(_) => {
                self.backoff.reset();
                self.had_it = true;
                self.joined.send_replace(true);
                None
            }
            Kind::Batch(batch) => Some(Handed { connection, batch: Batch::new(batch) }),
        }
    }

    /// Sends what was acknowledged, says that no more follows, and waits for the server to end the stream: then it has
    /// read everything.
    async fn finish(&mut self, mut wire: Wire) -> End {
        let shared = Arc::clone(&self.shared);
        let flush = async {
            if let Some(requests) = wire.requests.take() {
                while let Some(request) = shared.with_acks(|acks| acks.take()) {
                    requests.send(request).await.map_err(|_| "the connection was closed".to_owned())?;
                }
            }
            while wire.responses.message().await.map_err(|status| deepest(&status))?.is_some() {}
            Ok::<(), String>(())
        };
        match timeout(CLOSE_TIMEOUT, flush).await {
            Ok(Ok(())) => End::Closed,
            Ok(Err(reason)) => End::Failed(ConsumeError::Unavailable(reason)),
            Err(_) => End::Failed(ConsumeError::Unavailable(format!(
                "not everything acknowledged was taken within {CLOSE_TIMEOUT:?}"
            ))),
        }
    }
}
