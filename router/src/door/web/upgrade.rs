//! The request that opens a WebSocket (RFC 6455, 4.2), and the answer to it.

use std::time::Duration;

use axum::{
    body::Body,
    extract::Request,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_util::task::TaskTracker;
use tungstenite::{
    error::{Error, ProtocolError},
    handshake::server::create_response,
    protocol::{Role, WebSocketConfig},
};

use super::refusal::Refusal;

/// For the answer to be on its way.
const SWITCH: Duration = Duration::from_secs(10);
/// Read at once, and kept by every socket.
const READ_BUFFER: usize = 4 << 10;
/// Written at once.
const WRITE_BUFFER: usize = 16 << 10;
/// A frame that waits for a client that does not read: the largest packet as Avro and base64.
const WRITE_BUFFER_MOST: usize = 4 << 20;

/// A WebSocket that can be opened.
pub struct Upgrade {
    response: Response,
    on: OnUpgrade,
}

/// The stream beneath.
pub type Wire = TokioIo<Upgraded>;

impl Upgrade {
    /// Reads the request.
    pub fn of(mut request: Request) -> Result<Self, Refusal> {
        let on = request.extensions_mut().remove::<OnUpgrade>();
        let (parts, _) = request.into_parts();
        let head = axum::http::Request::from_parts(parts, ());
        let response = create_response(&head).map_err(|error| refusal(&error))?;
        let on = on.ok_or_else(|| {
            Refusal::no_upgrade(StatusCode::UPGRADE_REQUIRED, "a WebSocket is opened with HTTP/1.1")
        })?;
        Ok(Self { response: response.map(|()| Body::empty()).into_response(), on })
    }

    /// Answers, and gives the stream to `then` once the answer is on its way. `frame_most` bounds what is read, bytes.
    pub fn accept<F>(
        self,
        tracker: &TaskTracker,
        frame_most: usize,
        then: impl FnOnce(WebSocketStream<Wire>) -> F + Send + 'static,
    ) -> Response
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(WRITE_BUFFER)
            .max_write_buffer_size(WRITE_BUFFER_MOST)
            .max_message_size(Some(frame_most))
            .max_frame_size(Some(frame_most));
        let on = self.on;
        tracker.spawn(async move {
            let Ok(Ok(upgraded)) = timeout(SWITCH, on).await else { return };
            let wire = TokioIo::new(upgraded);
            Box::pin(then(WebSocketStream::from_raw_socket(wire, Role::Server, Some(config)).await)).await;
        });
        self.response
    }
}

fn refusal(error: &Error) -> Refusal {
    let (status, message) = match error {
        Error::Protocol(ProtocolError::WrongHttpVersion) => {
            (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "a WebSocket is opened with HTTP/1.1")
        }
        // HEAD is answered as GET would be; other methods don't come here.
        Error::Protocol(
            ProtocolError::WrongHttpMethod
            | ProtocolError::MissingConnectionUpgradeHeader
            | ProtocolError::MissingUpgradeWebSocketHeader,
        ) => (StatusCode::UPGRADE_REQUIRED, "this path is opened as a WebSocket"),
        Error::Protocol(ProtocolError::MissingSecWebSocketVersionHeader) => {
            (StatusCode::UPGRADE_REQUIRED, "version 13 of WebSocket is spoken here")
        }
        _ => (StatusCode::BAD_REQUEST, "this is no request for a WebSocket"),
    };
    Refusal::no_upgrade(status, message)
}
