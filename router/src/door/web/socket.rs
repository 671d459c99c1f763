//! One WebSocket, driven from one task: reading and writing at the same time, pings, and an end for clients that are gone or
//! don't read. What texts mean is the business of consumer and producer.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{Sink, Stream, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_tungstenite::WebSocketStream;
use tungstenite::{
    Error, Message, Utf8Bytes,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

/// Between two pings, unless something depends on their answers.
pub const PING: Duration = Duration::from_secs(20);
/// A client from which nothing was heard for so long, pongs included, is gone. Longer than the minute after which java_websocket
/// pings by itself, also while a listener is at work in its read thread and answers nothing; it then gives up by itself.
const SILENCE: Duration = Duration::from_secs(90);
/// A client that has taken nothing for so long, though something waits for it, is as good as gone.
const UNREAD: Duration = Duration::from_secs(90);
/// For a client to answer a close.
const CLOSE: Duration = Duration::from_secs(2);

/// What comes of a step.
#[derive(Debug)]
pub enum Step {
    /// The client says something.
    Text(Utf8Bytes),
    /// It answers a ping.
    Pong,
    /// There is room for one frame.
    Room,
    /// It is over; with a code, close it.
    End(End),
}

/// Why it is over, from the side of the client or the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client has closed, or the connection is cut.
    Closed,
    /// Nothing was heard of the client, not even pongs.
    Silent,
    /// The client does not read.
    Unread,
    /// A binary frame.
    Binary,
    /// A text larger than any that makes sense.
    TooLarge,
    /// No UTF-8.
    NoText,
    /// Against the protocol.
    Protocol,
}

impl End {
    /// What to close with; None: there is nobody to tell.
    pub fn close(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Closed | Self::Silent | Self::Unread => None,
            Self::Binary => Some((1003, "text frames only")),
            Self::TooLarge => Some((1009, "the frame is too large")),
            Self::NoText => Some((1007, "the text is not UTF-8")),
            Self::Protocol => Some((1002, "against RFC 6455")),
        }
    }
}

/// See the module.
pub struct Socket<S> {
    web: WebSocketStream<S>,
    heard: Instant,
    /// Something waits for the client since.
    blocked: Option<Instant>,
    tick: Pin<Box<Sleep>>,
    every: Duration,
    /// Pings are numbered; the last that was sent, and the last that was answered.
    pings: u64,
    pongs: u64,
    writes_first: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// An open one, with a ping every so often.
    pub fn new(web: WebSocketStream<S>, every: Duration) -> Self {
        let tick = Box::pin(sleep(every));
        let (heard, blocked) = (Instant::now(), None);
        Self { web, heard, blocked, tick, every, pings: 0, pongs: 0, writes_first: false }
    }

    /// Pings sent.
    pub fn pings(&self) -> u64 {
        self.pings
    }

    /// The last of them that was answered.
    pub fn pongs(&self) -> u64 {
        self.pongs
    }

    /// The next thing that happens. Reads only when asked to; with `wants_room` also says when a frame can be sent. May be
    /// dropped at any await.
    pub async fn step(&mut self, reads: bool, wants_room: bool) -> Step {
        poll_fn(|context| self.poll_step(context, reads, wants_room)).await
    }

    /// Sends a text. Only after [`Step::Room`].
    pub fn send(&mut self, text: String) -> Result<(), End> {
        Pin::new(&mut self.web).start_send(Message::text(text)).map_err(|error| end_of(&error))
    }

    /// Closes with a code, and tells what the client still said.
    pub async fn close(&mut self, code: u16, reason: &'static str, mut said: impl FnMut(&str)) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: Utf8Bytes::from_static(reason) };
        let closed = async {
            if self.web.close(Some(frame)).await.is_err() {
                return;
            }
            while let Some(Ok(message)) = self.web.next().await {
                if let Message::Text(text) = message {
                    said(&text);
                }
            }
            // A socket that is closed with something unread is reset, and the client may lose the close frame: what it still sends
            // of a text that is too large is thrown away.
            let mut scrap = vec![0; 8 << 10];
            while self.web.get_mut().read(&mut scrap).await.is_ok_and(|count| count > 0) {}
        };
        // A client that does not answer loses the connection.
        let _ = timeout(CLOSE, closed).await;
    }

    fn poll_step(&mut self, context: &mut Context<'_>, reads: bool, wants_room: bool) -> Poll<Step> {
        // In turns, so that neither starves the other.
        self.writes_first = !self.writes_first;
        if self.writes_first
            && wants_room
            && let Poll::Ready(step) = self.poll_room(context)
        {
            return Poll::Ready(step);
        }
        if reads && let Poll::Ready(step) = self.poll_read(context) {
            return Poll::Ready(step);
        }
        let written = if wants_room { self.poll_room(context) } else { self.poll_flush(context) };
        if written.is_ready() {
            return written;
        }
        if !reads {
            // Whoever is not listened to is not silent.
            self.heard = Instant::now();
        }
        self.poll_tick(context)
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        loop {
            let Poll::Ready(next) = Pin::new(&mut self.web).poll_next(context) else { return Poll::Pending };
            self.heard = Instant::now();
            match next {
                Some(Ok(Message::Text(text))) => return Poll::Ready(Step::Text(text)),
                Some(Ok(Message::Binary(_))) => return Poll::Ready(Step::End(End::Binary)),
                // What nobody has asked for is no answer.
                Some(Ok(Message::Pong(number))) => {
                    let number = number.as_ref().try_into().map_or(0, u64::from_be_bytes);
                    if number <= self.pings {
                        self.pongs = self.pongs.max(number);
                    }
                    return Poll::Ready(Step::Pong);
                }
                // Pings are answered beneath; after a close nothing follows.
                Some(Ok(Message::Ping(_) | Message::Close(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Poll::Ready(Step::End(end_of(&error))),
                None => return Poll::Ready(Step::End(End::Closed)),
            }
        }
    }

    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        let ready = Pin::new(&mut self.web).poll_ready(context);
        match ready {
            Poll::Ready(Ok(())) => {
                self.blocked = None;
                Poll::Ready(Step::Room)
            }
            Poll::Ready(Err(error)) => Poll::Ready(Step::End(end_of(&error))),
            Poll::Pending => {
                self.blocked.get_or_insert_with(Instant::now);
                Poll::Pending
            }
        }
    }

    /// Ready only when it fails.
    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        match Pin::new(&mut self.web).poll_flush(context) {
            Poll::Ready(Ok(())) => {
                self.blocked = None;
                Poll::Pending
            }
            Poll::Ready(Err(error)) => Poll::Ready(Step::End(end_of(&error))),
            Poll::Pending => {
                self.blocked.get_or_insert_with(Instant::now);
                Poll::Pending
            }
        }
    }

    /// Ready only when the client is given up.
    fn poll_tick(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        while self.tick.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            if now - self.heard > SILENCE {
                return Poll::Ready(Step::End(End::Silent));
            }
            if self.blocked.is_some_and(|since| now - since > UNREAD) {
                return Poll::Ready(Step::End(End::Unread));
            }
            // Behind what waits already a ping would tell nothing.
            if self.blocked.is_none()
                && let Err(error) = self.ping()
            {
                return Poll::Ready(Step::End(end_of(&error)));
            }
            let _ = Pin::new(&mut self.web).poll_flush(context);
            let every = self.every;
            self.tick.as_mut().reset(now + every);
        }
        Poll::Pending
    }

    fn ping(&mut self) -> Result<(), Error> {
        self.pings += 1;
        let number = Bytes::copy_from_slice(&self.pings.to_be_bytes());
        Pin::new(&mut self.web).start_send(Message::Ping(number))
    }
}

fn end_of(error: &Error) -> End {
    match error {
        Error::Capacity(_) => End::TooLarge,
        Error::WriteBufferFull(_) => End::Unread,
        Error::Utf8(_) => End::NoText,
        Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => End::Closed,
        Error::Protocol(_) => End::Protocol,
        _ => End::Closed,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::SinkExt;
    use tokio::io::{DuplexStream, duplex};
    use tungstenite::protocol::Role;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    /// The router's end, and a client's. The time of these tests passes by itself.
    async fn pair(room: usize) -> (Socket<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (own, other) = duplex(room);
        let own = WebSocketStream::from_raw_socket(own, Role::Server, None).await;
        (Socket::new(own, PING), WebSocketStream::from_raw_socket(other, Role::Client, None).await)
    }

    async fn end_of_step(step: impl Future<Output = Step>) -> (End, Duration) {
        let begin = Instant::now();
        match timeout(HOUR, step).await.unwrap() {
            Step::End(end) => (end, begin.elapsed()),
            step => panic!("{step:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_of_which_nothing_is_heard_is_gone() {
        let (mut socket, _client) = pair(64 << 10).await;
        let (end, after) = end_of_step(socket.step(true, false)).await;
        assert_eq!(end, End::Silent);
        assert!((SILENCE..SILENCE + 2 * PING).contains(&after), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_only_answers_pings_stays() {
        let (mut socket, mut client) = pair(64 << 10).await;
        let answers =
            tokio::spawn(async move { while client.next().await.is_some_and(|said| said.is_ok()) {} });
        let stays = timeout(HOUR, async { while matches!(socket.step(true, false).await, Step::Pong) {} });
        assert!(stays.await.is_err());
        assert!(socket.pongs() > 100 && socket.pings() - socket.pongs() <= 1);
        drop(socket);
        answers.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_whose_reading_thread_is_busy_stays_while_it_pings_each_minute() {
        let (mut socket, mut client) = pair(64 << 10).await;
        let pings = tokio::spawn(async move {
            loop {
                sleep(Duration::from_secs(60)).await;
                client.send(Message::Ping("there?".into())).await.unwrap();
            }
        });
        assert!(timeout(HOUR, socket.step(true, false)).await.is_err());
        pings.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_not_listened_to_is_not_silent() {
        let (mut socket, mut client) = pair(64 << 10).await;
        client.send(Message::text("later")).await.unwrap();
        assert!(timeout(HOUR, socket.step(false, false)).await.is_err());
        assert!(matches!(socket.step(true, false).await, Step::Text(text) if text == "later"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (mut socket, mut client) = pair(1 << 10).await;
        let pings = tokio::spawn(async move {
            while client.send(Message::Ping("there?".into())).await.is_ok() {
                sleep(PING).await;
            }
        });
        socket.send("x".repeat(64 << 10)).unwrap();
        let (end, after) = end_of_step(socket.step(true, false)).await;
        assert_eq!(end, End::Unread);
        assert!((UNREAD..UNREAD + 2 * PING).contains(&after), "{after:?}");
        pings.abort();
    }
}
