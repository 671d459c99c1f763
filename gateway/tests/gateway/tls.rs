//! MQTT over TLS: versions, bad wires, certificates that change, and who gives up on whom.

use std::sync::Arc;

use mqttbytes::QoS;
use penstock_common::clock::Seams;
use penstock_gateway::{Gateway, GatewayConfig, StartError, TransportKind, config::transports::TlsFiles};
use penstock_proto::{link::WillEnd, record::RecordBatch};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::rustls::{
    self, AlertDescription, HandshakeKind,
    version::{TLS12, TLS13},
};

use crate::{
    authority::{Authority, replace},
    client::{Client, PATIENCE},
    registry::TestRegistry,
    router::Router,
    setup::{Setup, config, until},
    wires::{drip, tls, tls_client, tls_error, tls_over},
};

/// Far enough to be valid, whenever the test runs.
const VALID: i64 = 36_500;

pub fn with_tls(files: TlsFiles) -> GatewayConfig {
    let mut config = config();
    config.transports.mqtts_listen = Some(config.mqtt_listen);
    config.transports.wss_listen = Some(config.mqtt_listen);
    config.transports.ws_listen = Some(config.mqtt_listen);
    config.transports.tls = Some(files);
    // Only what a test asks for is read again.
    config.transports.tls_poll_ms = 3_600_000;
    config
}

struct Secured {
    authority: Authority,
    directory: tempfile::TempDir,
    router: Router,
    setup: Setup,
}

impl Secured {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut GatewayConfig)) -> Self {
        let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
        let mut config = with_tls(authority.write(directory.path(), VALID));
        change(&mut config);
        let router = Router::start(1).await;
        let setup = Setup::with(config, &[&router]).await;
        Self { authority, directory, router, setup }
    }

    fn address(&self) -> std::net::SocketAddr {
        self.setup.gateway.address(TransportKind::Mqtts).unwrap()
    }

    fn failures(&self, transport: &str, reason: &str) -> f64 {
        let name = "penstock_transport_failures_total";
        self.setup.metric(&format!("{name}{{transport=\"{transport}\",reason=\"{reason}\"}}")).unwrap_or(0.0)
    }

    fn reloads(&self, result: &str) -> Option<f64> {
        self.setup.metric(&format!("penstock_tls_reloads_total{{result=\"{result}\"}}"))
    }

    fn reload(&self) {
        self.setup.gateway.certificate_reloader().unwrap()();
    }
}

#[tokio::test]
async fn both_versions_carry_mqtt_and_a_big_publish_and_come_back_with_a_ticket() {
    let mut it = Secured::new().await;
    for version in [&TLS12, &TLS13] {
        let mut client = tls_client(it.authority.roots(), version);
        client.alpn_protocols = vec![b"mqtt".to_vec()];
        let client = Arc::new(client);
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let stream = TcpStream::connect(it.address()).await.unwrap();
            let stream = tls_over(stream, &client).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"mqtt"[..]));
            let handshake = stream.get_ref().1.handshake_kind();
            let mut client = Client::connect_over(stream, "c1").await;
            let payload: Vec<u8> = (0..900_000u32).map(|n| (n / 7) as u8).collect();
            client.publish("big", 1, &payload).await;
            client.expect_puback(1).await;
            let append = it.router.expect_append().await;
            let record = RecordBatch::decode(append.records).unwrap().records.remove(0);
            assert!(record.payload == payload, "the payload is another one");
            assert_eq!(handshake, Some(kind), "{version:?}");
            assert_eq!(it.setup.metric("penstock_connections{transport=\"mqtts\"}"), Some(1.0));
            drop(client);
            until("the end", || it.setup.metric("penstock_connections{transport=\"mqtts\"}") == Some(0.0))
                .await;
        }
    }
}

#[tokio::test]
async fn bytes_that_come_one_by_one_are_a_handshake_and_packets_all_the_same() {
    let it = Secured::new().await;
    let client = Arc::new(tls_client(it.authority.roots(), &TLS13));
    let stream = tls_over(drip(it.address()).await, &client).await.unwrap();
    let mut client = Client::connect_over(stream, "c1").await;
    client.publish("a", 1, &[b'x'; 3_000]).await;
    client.expect_puback(1).await;
    client.expect_silence().await;
}

#[tokio::test]
async fn a_client_of_another_protocol_is_refused_by_name() {
    let it = Secured::new().await;
    let mut client = tls_client(it.authority.roots(), &TLS13);
    client.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(it.address()).await.unwrap();
    let error = tls_over(stream, &Arc::new(client)).await.unwrap_err();
    let expected = rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol);
    assert_eq!(tls_error(&error), Some(&expected));
    until("a count", || it.failures("mqtts", "tls_incompatible") == 1.0).await;
}

#[tokio::test]
async fn a_new_certificate_serves_new_connections_and_old_ones_stay() {
    let it = Secured::new().await;
    let mut old = Client::connect_over(tls(it.address(), it.authority.roots()).await, "old").await;
    let other = Authority::new();
    other.write(it.directory.path(), VALID + 1);
    it.reload();
    until("a reload", || it.reloads("loaded") == Some(1.0)).await;
    let ends = it.setup.metric("penstock_tls_certificate_expires_seconds").unwrap();
    assert_eq!(ends, 1_577_836_800.0 + 86_400.0 * (VALID + 1) as f64);
    old.publish("a", 1, b"still here").await;
    old.expect_puback(1).await;
    let _new = Client::connect_over(tls(it.address(), other.roots()).await, "new").await;
    let config = Arc::new(tls_client(it.authority.roots(), &TLS13));
    let stream = TcpStream::connect(it.address()).await.unwrap();
    assert!(tls_over(stream, &config).await.is_err(), "a certificate of an authority that it does not trust");
    until("a count", || it.failures("mqtts", "tls_alert") == 1.0).await;
}

#[tokio::test]
async fn a_broken_certificate_changes_nothing_but_a_counter() {
    let it = Secured::new().await;
    let certificate = it.directory.path().join("certificate.pem");
    let good = std::fs::read_to_string(&certificate).unwrap();
    let breaks: [(&str, &dyn Fn()); 4] = [
        ("not PEM", &|| replace(&certificate, "hello")),
        ("another key's", &|| {
            let other = tempfile::tempdir().unwrap();
            let files = Authority::new().write(other.path(), VALID);
            replace(&certificate, &std::fs::read_to_string(files.certificate).unwrap());
        }),
        ("gone", &|| std::fs::remove_file(&certificate).unwrap()),
        ("expired", &|| drop(it.authority.write(it.directory.path(), 1))),
    ];
    for (count, (what, change)) in breaks.into_iter().enumerate() {
        change();
        it.reload();
        until(what, || it.reloads("failed") == Some((count + 1) as f64)).await;
        let stream = tls(it.address(), it.authority.roots()).await;
        Client::connect_over(stream, "c1").await.expect_silence().await;
    }
    replace(&certificate, &good);
    assert_eq!(it.reloads("loaded"), Some(0.0));
}

#[tokio::test]
async fn a_change_of_the_files_is_noticed_without_a_signal() {
    let it = Secured::with(|config| config.transports.tls_poll_ms = 20).await;
    it.authority.write(it.directory.path(), VALID + 2);
    // Key and certificate are two files: a look in between may fail, the next one does not.
    until("a reload", || it.reloads("loaded").is_some_and(|loaded| loaded >= 1.0)).await;
    let stream = tls(it.address(), it.authority.roots()).await;
    Client::connect_over(stream, "c1").await.expect_silence().await;
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_ended_and_counted() {
    let it = Secured::with(|config| config.timeouts.connect_ms = 300).await;
    // Nothing, half a header, and a record whose rest never comes.
    for said in [&b""[..], b"\x16\x03", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"] {
        let mut stream = TcpStream::connect(it.address()).await.unwrap();
        stream.write_all(said).await.unwrap();
        let ended = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("not closed");
        assert!(matches!(ended, Ok(0) | Err(_)));
    }
    until("three counts", || it.failures("mqtts", "tls_timeout") == 3.0).await;
    // The handshake is there and the CONNECT is not.
    let mut stream = tls(it.address(), it.authority.roots()).await;
    let ended = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("not closed");
    assert!(matches!(ended, Ok(0)), "with a close_notify, not {ended:?}");
    until("the end", || it.setup.metric("penstock_connections_opening") == Some(0.0)).await;
    assert_eq!(it.failures("mqtts", "tls_timeout"), 3.0);
    assert_eq!(it.setup.metric("penstock_closes_total{reason=\"connect_timeout\"}"), Some(4.0));
}

#[tokio::test]
async fn the_wrong_protocol_on_a_port_is_closed_at_once_and_counted() {
    let it = Secured::new().await;
    let mut mqtt = Client::dial(it.address()).await;
    mqtt.say_connect("c1", "acme/device", "secret").await;
    until("a count", || it.failures("mqtts", "not_tls") == 1.0).await;
    let config = Arc::new(tls_client(it.authority.roots(), &TLS13));
    for (kind, address) in it.setup.gateway.listeners() {
        if matches!(kind, TransportKind::Mqtt | TransportKind::Ws) {
            let stream = TcpStream::connect(address).await.unwrap();
            let dialled = timeout(PATIENCE, tls_over(stream, &config)).await.expect("not closed");
            assert!(dialled.is_err());
            until("a count", || it.failures(kind.label(), "unexpected_tls") == 1.0).await;
        }
    }
}

#[tokio::test]
async fn connections_without_a_connect_are_bounded_and_room_comes_back() {
    let it = Secured::with(|config| config.limits.handshakes = 2).await;
    let first = TcpStream::connect(it.address()).await.unwrap();
    let _second = TcpStream::connect(it.setup.address).await.unwrap();
    until("two", || it.setup.metric("penstock_connections_opening") == Some(2.0)).await;
    let mut third = TcpStream::connect(it.address()).await.unwrap();
    let ended = timeout(PATIENCE, third.read(&mut [0; 1])).await.expect("not closed");
    assert!(matches!(ended, Ok(0) | Err(_)));
    assert_eq!(it.failures("mqtts", "too_many"), 1.0);
    drop(first);
    until("room", || it.setup.metric("penstock_connections_opening") == Some(1.0)).await;
    // Who has connected takes no such room.
    let mut clients = Vec::new();
    for name in ["a", "b", "c"] {
        clients.push(Client::connect_over(tls(it.address(), it.authority.roots()).await, name).await);
    }
}

#[tokio::test]
async fn a_wire_that_is_cut_or_closed_without_a_disconnect_publishes_the_will() {
    let mut it = Secured::new().await;
    for cut in [true, false] {
        let mut stream = tls(it.address(), it.authority.roots()).await;
        let mut connect = bytes::BytesMut::new();
        let mut packet = mqttbytes::v4::Connect::new("c1");
        packet.login = Some(mqttbytes::v4::Login::new("acme/device", "secret"));
        packet.last_will = Some(mqttbytes::v4::LastWill::new("state", "gone", QoS::AtLeastOnce, false));
        packet.write(&mut connect).unwrap();
        stream.write_all(&connect).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 0x20, "CONNACK");
        if cut {
            // Not even a close_notify.
            drop(stream);
        } else {
            stream.shutdown().await.unwrap();
        }
        assert_eq!(it.router.expect_ended_will().await.end(), WillEnd::Fire);
    }
}

#[tokio::test]
async fn a_certificate_that_can_not_be_used_is_told_at_the_start() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    let mut files = authority.write(directory.path(), VALID);
    files.key = directory.path().join("nothing.pem");
    let mut metrics = prometheus_client::registry::Registry::default();
    let started = Gateway::start(with_tls(files), TestRegistry::new(), Seams::real(), &mut metrics).await;
    let error = started.err().unwrap();
    assert!(matches!(error, StartError::Certificates(_)), "{error}");
    assert!(error.to_string().contains("nothing.pem"), "{error}");
    let mut without = config();
    without.transports.mqtts_listen = Some(without.mqtt_listen);
    let started = Gateway::start(without, TestRegistry::new(), Seams::real(), &mut metrics).await;
    let error = started.err().unwrap().to_string();
    assert!(error.contains("mqtts-listen: needs --tls-cert-file and --tls-key-file"), "{error}");
}

#[tokio::test]
async fn a_listener_that_is_taken_is_named_with_its_flag() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config();
    config.transports.ws_listen = Some(taken.local_addr().unwrap());
    let mut metrics = prometheus_client::registry::Registry::default();
    let started = Gateway::start(config, TestRegistry::new(), Seams::real(), &mut metrics).await;
    let error = started.err().unwrap().to_string();
    assert!(error.contains("--ws-listen"), "{error}");
    drop(taken);
}
