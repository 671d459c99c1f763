//! The WebSocket door under a test's own hand: tokens, and sockets of consumers and producers that do nothing by themselves.

use std::{net::SocketAddr, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use penstock_client::Position;
use penstock_router::door::web::{
    avro::{Generation, Message, Metadata},
    frame::AckId,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message as Frame},
};

use crate::tenant::TestTenant;

/// For one answer; a door takes up to 10 s until it knows that not all partitions answer.
const LIMIT: Duration = Duration::from_secs(30);

/// A token of the tenant's `app` for (subscriber, topic), without `shared`.
///
/// # Panics
/// When the door does not give it.
pub async fn token(door: SocketAddr, tenant: &TestTenant, subscriber: &str, topic: &str) -> String {
    let body = json!({"subscriber": subscriber, "subscription": topic}).to_string();
    let credentials = STANDARD.encode(format!("{}:{}", tenant.app(), tenant.password));
    let length = body.len();
    let request = format!(
        "POST /notification2/token HTTP/1.1\r\nHost: {door}\r\nConnection: close\r\nAuthorization: Basic {credentials}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    let mut stream = TcpStream::connect(door).await.expect("the door answers");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    timeout(LIMIT, stream.read_to_string(&mut answer)).await.expect("an answer in time").expect("an answer");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let token =
        serde_json::from_str::<Value>(body).ok().and_then(|body| body["token"].as_str().map(str::to_owned));
    token.unwrap_or_else(|| panic!("no token: {answer}"))
}

/// Why there is no socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// The door's status.
    Status(u16),
    /// Nobody answers there, or the connection broke.
    Dead,
}

/// An open one.
pub struct Socket(WebSocketStream<TcpStream>);

/// A record as its consumer gets it.
pub struct Got {
    /// To be said when it is done.
    pub ack: String,
    /// Where it is stored, as the ackId tells those who know.
    pub position: Position,
    /// What was published.
    pub payload: Bytes,
    /// It was handed out before.
    pub again: bool,
}

impl Socket {
    /// Opens `consumer` or `producer`.
    ///
    /// # Panics
    /// When the door neither answers nor breaks the connection.
    pub async fn open(door: SocketAddr, what: &str, token: &str) -> Result<Self, Refused> {
        let Ok(stream) = TcpStream::connect(door).await else { return Err(Refused::Dead) };
        let _ = stream.set_nodelay(true);
        let url = format!("ws://{door}/notification2/{what}/?token={token}");
        match timeout(LIMIT, client_async(url, stream)).await.expect("an answer in time") {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(tungstenite::Error::Http(answer)) => Err(Refused::Status(answer.status().as_u16())),
            Err(_) => Err(Refused::Dead),
        }
    }

    /// The next text, however long it takes; None: the socket is closed or broken.
    pub async fn text(&mut self) -> Option<String> {
        loop {
            match self.0.next().await {
                Some(Ok(Frame::Text(text))) => return Some(text.to_string()),
                Some(Ok(Frame::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// Says a text; false: the socket is closed or broken.
    pub async fn say(&mut self, text: impl Into<String>) -> bool {
        self.0.send(Frame::text(text.into())).await.is_ok()
    }

    /// The next record; None as for [`Self::text`].
    ///
    /// # Panics
    /// When it can't be read.
    pub async fn record(&mut self) -> Option<Got> {
        let text = self.text().await?;
        let (ack, encoded) = text.split_once('\n').expect("an ackId and a record");
        let avro = STANDARD.decode(encoded).expect("base64").into();
        let message = Message::decode(&avro, Generation::Newer).expect("Avro");
        let AckId { partition, term, sequence, index } = ack.parse().expect("an ackId");
        let position = Position { partition, term, sequence, index };
        Some(Got {
            ack: ack.to_owned(),
            position,
            payload: message.payload,
            again: message.metadata.dup_flag,
        })
    }

    /// Says a message for one client; false as for [`Self::say`].
    pub async fn produce(&mut self, sequence: &str, client: &str, payload: Bytes) -> bool {
        let metadata = Metadata { client_id: Some(client.to_owned()), ..Metadata::default() };
        let avro = Message { payload, metadata }.encode(Generation::Newer);
        self.say(format!("{sequence}\n{}", STANDARD.encode(avro))).await
    }
}
