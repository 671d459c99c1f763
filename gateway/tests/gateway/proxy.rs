//! The PROXY protocol: whose word counts, and what a broken header costs.

use std::net::SocketAddr;

use penstock_gateway::{GatewayConfig, TransportKind};
use penstock_proto::link::control_up;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    authority::Authority,
    client::{Client, PATIENCE},
    router::{Router, Seen},
    setup::{Setup, config, until},
    tls::with_tls,
    wires::{stream_of, tls_client, tls_over, web_socket},
};

const TEXT: &[u8] = b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 1883\r\n";
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x08\x7f\0\0\x01\x12\x67\x07\x5b";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn trusting(mut config: GatewayConfig, network: &str) -> GatewayConfig {
    config.transports.proxies = vec![network.parse().unwrap()];
    config.timeouts.connect_ms = 500;
    config
}

async fn asked_about(router: &mut Router) -> String {
    router
        .expect("Authenticate", |seen| match seen {
            Seen::Control(control_up::Kind::Authenticate(asked)) => Some(asked.address.clone()),
            _ => None,
        })
        .await
}

async fn dial(address: SocketAddr, header: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(header).await.unwrap();
    stream
}

fn failures(setup: &Setup, reason: &str) -> f64 {
    let name = "penstock_transport_failures_total";
    setup.metric(&format!("{name}{{transport=\"mqtt\",reason=\"{reason}\"}}")).unwrap_or(0.0)
}

#[tokio::test]
async fn a_trusted_proxy_says_whose_connection_it_is() {
    let mut router = Router::start(1).await;
    let setup = Setup::with(trusting(config(), "127.0.0.0/8"), &[&router]).await;
    for (header, address) in [(TEXT, "192.0.2.7"), (BINARY, "192.0.2.8"), (LOCAL, "127.0.0.1")] {
        // Header and CONNECT in one piece, and the header in two.
        let mut whole = Client::over(dial(setup.address, header).await);
        // Every user is judged once: what was judged is remembered.
        whole.say_connect("c1", &format!("acme/{address}"), "secret").await;
        assert_eq!(asked_about(&mut router).await, address);
        whole.read().await.unwrap();
        let (begin, end) = header.split_at(9);
        let mut stream = dial(setup.address, begin).await;
        tokio::task::yield_now().await;
        stream.write_all(end).await.unwrap();
        let mut client = Client::over(stream);
        client.say_connect("c2", &format!("acme/{address}"), "secret").await;
        client.read().await.unwrap();
        client.publish("a", 1, b"x").await;
        client.expect_puback(1).await;
    }
}

#[tokio::test]
async fn a_trusted_proxy_without_a_good_header_is_closed_and_counted() {
    let router = Router::start(1).await;
    let setup = Setup::with(trusting(config(), "127.0.0.1/32"), &[&router]).await;
    for (said, reason) in [
        (&b"\x10\x0c\0\x04MQTT\x04\x02\0\0\0\0"[..], "proxy_missing"),
        (b"PROXY TCP4 192.0.2.7\r\n", "proxy_malformed"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", "proxy_malformed"),
        (b"PROXY TC", "proxy_timeout"),
        (b"", "proxy_timeout"),
    ] {
        let before = failures(&setup, reason);
        let mut stream = dial(setup.address, said).await;
        let ended = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("not closed");
        assert!(matches!(ended, Ok(0) | Err(_)), "{reason}");
        until(reason, || failures(&setup, reason) == before + 1.0).await;
    }
}

#[tokio::test]
async fn a_stranger_is_not_believed() {
    let mut router = Router::start(1).await;
    let setup = Setup::with(trusting(config(), "10.0.0.0/8"), &[&router]).await;
    for header in [TEXT, BINARY] {
        let mut stream = dial(setup.address, header).await;
        let ended = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("not closed");
        assert!(matches!(ended, Ok(0) | Err(_)));
    }
    let _direct = Client::connect(setup.address, "c1").await;
    assert_eq!(asked_about(&mut router).await, "127.0.0.1");
}

#[tokio::test]
async fn the_header_comes_before_tls_and_web_socket() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    let files = authority.write(directory.path(), 36_500);
    let mut router = Router::start(1).await;
    let mut config = trusting(with_tls(files), "127.0.0.0/8");
    config.transports.proxied = vec![TransportKind::Wss];
    let setup = Setup::with(config, &[&router]).await;
    let stream = dial(setup.gateway.address(TransportKind::Wss).unwrap(), BINARY).await;
    let client = tls_client(authority.roots(), &tokio_rustls::rustls::version::TLS13);
    let stream = tls_over(stream, &std::sync::Arc::new(client)).await.unwrap();
    let socket = web_socket(stream).await.unwrap();
    let mut client = Client::connect_over(stream_of(socket, 10), "c1").await;
    assert_eq!(asked_about(&mut router).await, "192.0.2.8");
    client.expect_silence().await;
    // Plain TCP is not among the listeners of proxies.
    let _direct = Client::connect(setup.address, "c2").await;
}
