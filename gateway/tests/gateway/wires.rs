//! Clients' ends of the transports, and wires that behave badly.

use std::{net::SocketAddr, sync::Arc};

use futures::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, ClientConfig, RootCertStore, SupportedProtocolVersion, crypto::aws_lc_rs,
        pki_types::ServerName, version::TLS13,
    },
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest},
};

use crate::authority::NAME;

/// What a client says in its TLS handshake.
pub fn tls_client(roots: RootCertStore, version: &'static SupportedProtocolVersion) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// TLS over anything.
pub async fn tls_over<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    config: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<S>> {
    let name = ServerName::try_from(NAME).unwrap();
    TlsConnector::from(Arc::clone(config)).connect(name, stream).await
}

/// A TLS 1.3 connection by a client that trusts `roots`.
pub async fn tls(address: SocketAddr, roots: RootCertStore) -> TlsStream<TcpStream> {
    let config = Arc::new(tls_client(roots, &TLS13));
    tls_over(TcpStream::connect(address).await.unwrap(), &config).await.unwrap()
}

/// A WebSocket over anything, with the subprotocol of MQTT.
pub async fn web_socket<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
) -> Result<WebSocketStream<S>, tungstenite::Error> {
    let mut request = format!("ws://{NAME}/mqtt").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "mqtt".parse().unwrap());
    let (stream, response) = client_async(request, stream).await?;
    assert_eq!(response.headers().get("Sec-WebSocket-Protocol").unwrap(), "mqtt");
    Ok(stream)
}

/// The bytes of a WebSocket as one stream, written in frames of at most `frame` bytes.
pub fn stream_of<S>(socket: WebSocketStream<S>, frame: usize) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (near, far) = tokio::io::duplex(64 * 1_024);
    let (mut from, mut to) = tokio::io::split(far);
    let (mut sink, mut source) = socket.split();
    tokio::spawn(async move {
        let mut piece = vec![0; frame];
        while let Ok(n @ 1..) = from.read(&mut piece).await {
            if sink.send(Message::binary(piece[..n].to_vec())).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            if let Message::Binary(bytes) = message
                && to.write_all(&bytes).await.is_err()
            {
                return;
            }
        }
    });
    near
}

/// A wire on which every byte of the client's arrives on its own.
pub async fn drip(address: SocketAddr) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    let mut gateway = TcpStream::connect(address).await.unwrap();
    gateway.set_nodelay(true).unwrap();
    tokio::spawn(async move {
        let (mut from, mut back) = far.split();
        let (mut answers, mut to) = gateway.split();
        let there = async {
            while let Ok(byte) = from.read_u8().await {
                if to.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        let _ = tokio::join!(there, tokio::io::copy(&mut answers, &mut back));
    });
    near
}

/// Which error of TLS lies beneath.
pub fn tls_error(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}
