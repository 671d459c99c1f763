//! What goes down a link's data stream. Settles are gathered between two polls and leave as one message; everything else
//! keeps its order behind them. Bounded: settles by the credit that was given, Delivers and pushes by the link's limits.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures::Stream;
use penstock_proto::link::{DataDown, Settle, Settles, data_down::Kind};
use tonic::Status;

/// The sending half, shared by everything that talks to a link.
#[derive(Default)]
pub struct Outbox {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    settles: Vec<Settle>,
    queue: VecDeque<Kind>,
    /// Bytes of records and payloads in `queue`.
    bytes: usize,
    closed: bool,
    waker: Option<Waker>,
}

/// The link is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl Outbox {
    /// Adds settles.
    pub fn settle(&self, settles: impl IntoIterator<Item = Settle>) {
        let mut inner = self.lock();
        inner.settles.extend(settles);
        wake(inner);
    }

    /// Adds a message behind all others.
    pub fn send(&self, message: Kind) -> Result<(), Closed> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(Closed);
        }
        inner.bytes += weight(&message);
        inner.queue.push_back(message);
        wake(inner);
        Ok(())
    }

    /// Bytes of records and payloads that the stream has not taken.
    pub fn waiting(&self) -> usize {
        self.lock().bytes
    }

    /// Ends the stream.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.settles.clear();
        inner.queue.clear();
        inner.bytes = 0;
        wake(inner);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn weight(kind: &Kind) -> usize {
    match kind {
        Kind::Deliver(deliver) => deliver.records.len(),
        Kind::Push(push) => push.payload.len(),
        Kind::Mail(mail) => mail.letters.iter().map(|letter| letter.record.len()).sum(),
        Kind::Settles(_) | Kind::LaneLost(_) | Kind::Overrun(_) | Kind::Doorbell(_) => 0,
    }
}

fn wake(mut inner: MutexGuard<'_, Inner>) {
    let waker = inner.waker.take();
    drop(inner);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The stream that tonic sends.
pub struct Outgoing(pub Arc<Outbox>);

impl Stream for Outgoing {
    type Item = Result<DataDown, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut inner = self.0.lock();
        let kind = if inner.settles.is_empty() {
            let next = inner.queue.pop_front();
            inner.bytes -= next.as_ref().map_or(0, weight);
            next
        } else {
            Some(Kind::Settles(Settles { settles: std::mem::take(&mut inner.settles) }))
        };
        match kind {
            Some(kind) => Poll::Ready(Some(Ok(DataDown { kind: Some(kind) }))),
            None if inner.closed => Poll::Ready(None),
            None => {
                inner.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::StreamExt;
    use penstock_proto::link::LaneLost;

    use super::*;

    #[tokio::test]
    async fn settles_leave_together_and_before_what_follows_them() {
        let outbox = Arc::new(Outbox::default());
        let mut stream = Outgoing(Arc::clone(&outbox));
        outbox.settle([Settle { first: 1, ..Settle::default() }]);
        outbox.settle([Settle { first: 2, ..Settle::default() }]);
        outbox.send(Kind::LaneLost(LaneLost::default())).unwrap();
        let Some(Kind::Settles(settles)) = stream.next().await.unwrap().unwrap().kind else { panic!() };
        assert_eq!(settles.settles.len(), 2);
        assert!(matches!(stream.next().await.unwrap().unwrap().kind, Some(Kind::LaneLost(_))));
        outbox.close();
        assert!(stream.next().await.is_none());
        assert_eq!(outbox.send(Kind::LaneLost(LaneLost::default())), Err(Closed));
    }
}
