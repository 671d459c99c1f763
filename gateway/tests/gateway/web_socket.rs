//! MQTT over WebSocket, with and without TLS.

use futures::{SinkExt, StreamExt};
use mqttbytes::{QoS, v4::Packet};
use penstock_gateway::TransportKind;
use penstock_proto::{link::WillEnd, record::RecordBatch};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use crate::{
    authority::Authority,
    client::{Client, PATIENCE},
    router::Router,
    setup::{Setup, config, until},
    tls::with_tls,
    wires::{drip, stream_of, tls, web_socket},
};

async fn with_web_sockets(router: &Router) -> (Setup, std::net::SocketAddr) {
    let mut config = config();
    config.transports.ws_listen = Some(config.mqtt_listen);
    config.timeouts.connect_ms = 500;
    let setup = Setup::with(config, &[router]).await;
    let address = setup.gateway.address(TransportKind::Ws).unwrap();
    (setup, address)
}

fn failures(setup: &Setup, reason: &str) -> f64 {
    let name = "penstock_transport_failures_total";
    setup.metric(&format!("{name}{{transport=\"ws\",reason=\"{reason}\"}}")).unwrap_or(0.0)
}

fn connect(client: &str, will: Option<&str>) -> Vec<u8> {
    let mut connect = mqttbytes::v4::Connect::new(client);
    connect.login = Some(mqttbytes::v4::Login::new("acme/device", "secret"));
    connect.last_will =
        will.map(|topic| mqttbytes::v4::LastWill::new(topic, "gone", QoS::AtLeastOnce, false));
    let mut bytes = bytes::BytesMut::new();
    connect.write(&mut bytes).unwrap();
    bytes.to_vec()
}

#[tokio::test]
async fn packets_span_frames_and_frames_hold_packets() {
    let router = Router::start(1).await;
    let (_setup, address) = with_web_sockets(&router).await;
    for frame in [1, 3, 20_000] {
        let socket = web_socket(TcpStream::connect(address).await.unwrap()).await.unwrap();
        let mut client = Client::connect_over(stream_of(socket, frame), "c1").await;
        client.publish("a", 1, &[b'x'; 500]).await;
        client.publish("b", 2, b"").await;
        client.expect_puback(1).await;
        client.expect_puback(2).await;
        client.subscribe(3, &[("a/#", QoS::AtLeastOnce)]).await;
        client.expect_suback().await;
        client.expect_silence().await;
    }
}

#[tokio::test]
async fn a_ping_within_a_fragmented_packet_is_answered() {
    let router = Router::start(1).await;
    let (_setup, address) = with_web_sockets(&router).await;
    let mut socket = web_socket(drip(address).await).await.unwrap();
    let bytes = connect("c1", None);
    let (begin, end) = bytes.split_at(5);
    socket.send(Message::binary(begin.to_vec())).await.unwrap();
    socket.send(Message::Ping("are you there".into())).await.unwrap();
    let pong = timeout(PATIENCE, socket.next()).await.expect("no pong").unwrap().unwrap();
    assert_eq!(pong, Message::Pong("are you there".into()));
    socket.send(Message::binary(end.to_vec())).await.unwrap();
    let connack = timeout(PATIENCE, socket.next()).await.expect("no CONNACK").unwrap().unwrap();
    assert_eq!(connack, Message::binary(vec![0x20, 2, 0, 0]));
    // Not a DISCONNECT, but an end in good form.
    socket.close(None).await.unwrap();
}

#[tokio::test]
async fn text_is_refused_by_its_code_and_the_will_is_published() {
    let mut router = Router::start(1).await;
    let (setup, address) = with_web_sockets(&router).await;
    for text in [true, false] {
        let mut socket = web_socket(TcpStream::connect(address).await.unwrap()).await.unwrap();
        socket.send(Message::binary(connect("c1", Some("state")))).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(vec![0x20, 2, 0, 0]));
        let code = if text {
            socket.send(Message::text("hello")).await.unwrap();
            CloseCode::Unsupported
        } else {
            socket.close(None).await.unwrap();
            CloseCode::Normal
        };
        let answer = timeout(PATIENCE, socket.next()).await.expect("no answer").unwrap().unwrap();
        assert!(matches!(&answer, Message::Close(Some(frame)) if frame.code == code), "{answer:?}");
        assert_eq!(router.expect_ended_will().await.end(), WillEnd::Fire);
    }
    assert_eq!(failures(&setup, "ws_text"), 1.0);
}

#[tokio::test]
async fn a_request_that_is_not_mqtts_gets_an_answer_of_http() {
    let router = Router::start(1).await;
    let (setup, address) = with_web_sockets(&router).await;
    let head = "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (request, status, reason) in [
        (format!("GET /other HTTP/1.1\r\n{head}Sec-WebSocket-Protocol: mqtt\r\n\r\n"), "404", "ws_path"),
        (format!("GET /mqtt HTTP/1.1\r\n{head}\r\n"), "400", "ws_subprotocol"),
        ("GET /mqtt HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "426", "http"),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("not closed").unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.ends_with('\n') && failures(&setup, reason) == 1.0, "{reason}: {answer}");
    }
}

#[tokio::test]
async fn an_upgrade_that_never_ends_is_ended_and_counted() {
    let router = Router::start(1).await;
    let (setup, address) = with_web_sockets(&router).await;
    for said in ["", "GET /mqtt HT", "GET /mqtt HTTP/1.1\r\nHost: a\r\n"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        let ended = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("not closed");
        assert!(matches!(ended, Ok(0) | Err(_)));
    }
    until("three counts", || failures(&setup, "ws_timeout") == 3.0).await;
}

#[tokio::test]
async fn a_drain_says_that_the_gateway_goes_away() {
    let router = Router::start(1).await;
    let (setup, address) = with_web_sockets(&router).await;
    let mut socket = web_socket(TcpStream::connect(address).await.unwrap()).await.unwrap();
    socket.send(Message::binary(connect("c1", None))).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(vec![0x20, 2, 0, 0]));
    let drained = setup.gateway.drain(std::time::Duration::from_secs(5));
    let answer = async {
        let answer = timeout(PATIENCE, socket.next()).await.expect("no answer").unwrap().unwrap();
        assert!(
            matches!(&answer, Message::Close(Some(frame)) if frame.code == CloseCode::Away),
            "{answer:?}"
        );
    };
    tokio::join!(drained, answer);
}

#[tokio::test]
async fn a_big_publish_goes_through_both_layers_and_a_reader_that_stops_costs_a_bounded_queue() {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    let mut config = with_tls(authority.write(directory.path(), 36_500));
    config.limits.outbound_bytes = 200_000;
    let mut router = Router::start(1).await;
    let setup = Setup::with(config, &[&router]).await;
    let address = setup.gateway.address(TransportKind::Wss).unwrap();
    let dial = async || web_socket(tls(address, authority.roots()).await).await.unwrap();
    let mut client = Client::connect_over(stream_of(dial().await, 100_000), "big").await;
    let payload: Vec<u8> = (0..1_000_000u32).map(|n| (n / 5) as u8).collect();
    client.publish("big", 1, &payload).await;
    client.expect_puback(1).await;
    let append = router.expect_append().await;
    let record = RecordBatch::decode(append.records).unwrap().records.remove(0);
    assert!(record.payload == payload, "the payload is another one");

    // A subscriber that does not read: QoS 0 is dropped at the limit, and what fits arrives when it reads again.
    let mut socket = dial().await;
    socket.send(Message::binary(connect("slow", None))).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(vec![0x20, 2, 0, 0]));
    socket.send(Message::binary(b"\x82\x06\0\x01\0\x01a\0".to_vec())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(vec![0x90, 3, 0, 1, 0]));
    let dropped = "penstock_deliveries_total{result=\"dropped\"}";
    let mut sent = 0;
    while setup.metric(dropped).unwrap_or(0.0) < 3.0 {
        sent += 1;
        router.data(crate::way_out::deliver_payload(sent, "a", &[b'p'; 50_000])).await;
        crate::way_out::taken(&mut router).await;
        assert!(sent < 2_000, "the queue has no end");
    }
    let (mut unread, mut got) = (bytes::BytesMut::new(), 0);
    let whole = sent - 3;
    while got < whole {
        match mqttbytes::v4::read(&mut unread, 2 << 20) {
            Ok(Packet::Publish(publish)) => {
                assert_eq!(publish.payload.len(), 50_000);
                got += 1;
            }
            Ok(other) => panic!("PUBLISH expected, not {other:?}"),
            Err(_) => match timeout(PATIENCE, socket.next()).await.expect("no frame").unwrap().unwrap() {
                Message::Binary(bytes) => unread.extend_from_slice(&bytes),
                other => panic!("a binary frame expected, not {other:?}"),
            },
        }
    }
}
