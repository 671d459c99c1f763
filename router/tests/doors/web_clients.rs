//! The WebSocket door and what ordinary clients of HTTP and WebSockets do: methods and paths as they come, bodies in chunks,
//! offers that are not taken, frames in fragments, and coming back at once.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{SinkExt, StreamExt};
use penstock_router::door::web::{self, WebConfig, avro::Generation};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
};
use tokio_tungstenite::{
    client_async,
    tungstenite::{
        Message,
        client::IntoClientRequest,
        protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};
use tokio_util::sync::CancellationToken;

use super::{
    web::{Web, avro, consumer, http, next, open, record, say, seen_of, token},
    world::*,
    *,
};

/// The head, and as much body as it says, of the next answer on a connection.
async fn answer(stream: &mut TcpStream) -> (u16, String, String) {
    let read = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        stream.read_exact(&mut body).await.unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head, String::from_utf8(body).unwrap())
    };
    timeout(LIMIT, read).await.expect("an answer")
}

fn asked(shared: bool) -> Value {
    json!({"subscriber": "s", "subscription": "a%2Fb", "shared": shared})
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_says_in_json_what_is_wrong() {
    let cluster = Cluster::start(1).await;
    let at = cluster.routers[0].web;
    let token = token(&cluster, asked(false)).await;
    for (request, status, error, header) in [
        ("GET /".to_owned(), 404, "no_path", ""),
        ("POST /notification2/subscriptions".to_owned(), 404, "no_path", ""),
        ("PUT /notification2/token".to_owned(), 405, "wrong_method", "allow: post,get,head"),
        ("OPTIONS /notification2/token".to_owned(), 405, "wrong_method", "allow: post,get,head"),
        (format!("GET /notification2/unsubscribe?token={token}"), 405, "wrong_method", "allow: post"),
        (format!("DELETE /notification2/consumer/?token={token}"), 405, "wrong_method", "allow: get,head"),
        (format!("POST /notification2/producer/?token={token}"), 405, "wrong_method", "allow: get,head"),
        (format!("GET /notification2/consumer/?token={token}"), 426, "bad_request", "upgrade: websocket"),
        ("GET /notification2/consumer/?token=x".to_owned(), 401, "bad_token", "www-authenticate: bearer"),
        ("GET /notification2/producer/".to_owned(), 401, "bad_token", "www-authenticate: bearer"),
        ("GET /notification2/token?token=x".to_owned(), 401, "bad_token", "www-authenticate: bearer"),
        ("POST /notification2/unsubscribe?token=x".to_owned(), 401, "bad_token", "www-authenticate: bearer"),
        ("POST /notification2/token".to_owned(), 401, "unauthorized", "www-authenticate: basic"),
    ] {
        let (got, head, body) = http(at, &request, None, "").await;
        assert_eq!(got, status, "{request} {body}");
        let told: Value = serde_json::from_str(&body).unwrap();
        assert!(told["error"] == error && told["message"].as_str().is_some_and(|m| !m.is_empty()), "{told}");
        assert!(head.contains("content-type: application/json") && head.contains(header), "{request} {head}");
    }
    let (status, _, body) = http(at, &format!("HEAD /notification2/consumer/?token={token}"), None, "").await;
    assert_eq!((status, body.as_str()), (426, ""), "as GET, without a body");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_asked_for_in_all_the_ways_of_http() {
    let cluster = Cluster::start(1).await;
    let at = cluster.routers[0].web;
    // Quoted numbers, a field that nobody knows: what libraries of JSON make of objects.
    let body = json!({"subscriber": "s", "subscription": "a/b", "type": "mqtt", "signed": "true", "shared": "true",
        "expiresInMinutes": "60", "self": null, "isReadOnly": false});
    let body = body.to_string();
    let login = |credentials| format!("Authorization: Basic {}\r\n", STANDARD.encode(credentials));
    let head = |path: &str, credentials, more: &str| {
        let login = login(credentials);
        format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\n{login}Content-Type: application/json; charset=UTF-8\r\n\
             Accept: application/json\r\n{more}\r\n"
        )
    };
    let length = format!("Content-Length: {}\r\n", body.len());
    // All on one connection, which a wrong password does not end.
    let mut stream = TcpStream::connect(at).await.unwrap();
    for (path, credentials, more, status) in [
        ("/notification2/token", "demo/app:wrong", "", 401),
        ("/notification2/token", APP, "", 200),
        ("/notification2/token/", APP, "", 200),
        ("//notification2/token", APP, "", 200),
        ("http://a/notification2/token", APP, "", 200),
        ("/notification2/token", APP, "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", 200),
    ] {
        let request = format!("{}{body}", head(path, credentials, &format!("{more}{length}")));
        stream.write_all(request.as_bytes()).await.unwrap();
        let (got, _, told) = answer(&mut stream).await;
        assert_eq!(got, status, "{path} {told}");
    }
    // In chunks, the first of them late.
    let chunked = head("/notification2/token", APP, "Transfer-Encoding: chunked\r\n");
    stream.write_all(chunked.as_bytes()).await.unwrap();
    let (begin, end) = body.split_at(20);
    for part in [begin, end, ""] {
        let chunk = format!("{:x}\r\n{part}\r\n", part.len());
        stream.write_all(chunk.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }
    assert_eq!(answer(&mut stream).await.0, 200);
    // The body is sent when it is asked for, and not when the password is wrong.
    let waits = format!("Expect: 100-continue\r\n{length}");
    stream.write_all(head("/notification2/token", APP, &waits).as_bytes()).await.unwrap();
    assert_eq!(answer(&mut stream).await.0, 100);
    stream.write_all(body.as_bytes()).await.unwrap();
    let (status, _, told) = answer(&mut stream).await;
    let token = serde_json::from_str::<Value>(&told).unwrap()["token"].as_str().unwrap().to_owned();
    assert_eq!(status, 200);
    stream.write_all(head("/notification2/token", "demo/app:wrong", &waits).as_bytes()).await.unwrap();
    assert_eq!(answer(&mut stream).await.0, 401);
    let (_, _, claims) = http(at, &format!("GET /notification2/token?token={token}"), None, "").await;
    let claims: Value = serde_json::from_str(&claims).unwrap();
    let life = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
    assert!(life == 3_600 && claims["shared"] == true, "{claims}");
    let unsubscribe = format!("POST /notification2/unsubscribe/?token={token}");
    assert_eq!(http(at, &unsubscribe, None, "").await.0, 200);
}

/// A WebSocket of a client that offers compression, and the head of the answer.
async fn open_with_offers(at: SocketAddr, path_and_token: &str) -> (Web, String) {
    let mut request = format!("ws://{at}//notification2/{path_and_token}").into_client_request().unwrap();
    for (name, value) in [
        ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
        ("authorization", "Basic bm90OmFza2Vk"),
        ("origin", "http://elsewhere"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(at).await.unwrap();
    let (web, response) = timeout(LIMIT, client_async(request, stream)).await.unwrap().unwrap();
    (web, format!("{:?}", response.headers()))
}

/// Says a text in three fragments, with a ping in between.
async fn say_in_pieces(web: &mut Web, text: &str) {
    let (first, rest) = text.split_at(text.len() / 3);
    let (second, third) = rest.split_at(rest.len() / 2);
    let frame =
        |text: &str, kind, last| Message::Frame(Frame::message(text.to_owned(), OpCode::Data(kind), last));
    web.send(frame(first, Data::Text, false)).await.unwrap();
    web.send(Message::Ping("between".into())).await.unwrap();
    web.send(frame(second, Data::Continue, false)).await.unwrap();
    web.send(frame(third, Data::Continue, true)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_are_ignored_and_fragments_are_put_together() {
    let cluster = Cluster::start(1).await;
    let at = cluster.routers[0].web;
    let token = token(&cluster, asked(false)).await;
    let (mut web, head) = open_with_offers(at, &format!("consumer?token={token}")).await;
    assert!(!head.contains("extensions"), "{head}");
    let client = clients().remove(0);
    cluster.publish(&client, "a/b", 0..3).await;
    // None of it ends the socket.
    for idle in ["", "\n", "1", "unknown"] {
        say(&mut web, idle).await;
    }
    for number in 0..3 {
        let got = record(&mut web).await;
        assert_eq!((got.number, got.dup), (number, false));
        say_in_pieces(&mut web, &format!(" {}\r\n", got.ack)).await;
    }
    until("all is done", async || cluster.lag(0, "notification2/s/a/b").await == 0).await;
    say_in_pieces(&mut web, "unsubscribe_subscriber\n").await;
    assert_eq!(next(&mut web).await, Err(1000));
    let (mut web, _) = open_with_offers(at, &format!("producer?token={token}")).await;
    // As encoders for mail write base64.
    let encoded = avro(Some(&client), &[7; 200], Generation::Older);
    let lines: Vec<_> =
        encoded.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
    say_in_pieces(&mut web, &format!("12\r\n{}\r\n", lines.join("\r\n"))).await;
    assert_eq!(next(&mut web).await, Ok("12".to_owned()));
    let pushed = cluster.routers[0].homes.pushed.lock().unwrap().clone();
    assert!(
        pushed.len() == 1 && pushed[0].client == client && pushed[0].payload[..] == [7; 200],
        "{pushed:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn more_consumers_than_partitions_share_clients_in_order() {
    let cluster = Cluster::start(2).await;
    let token = token(&cluster, asked(true)).await;
    let (told, mut seen) = mpsc::channel(1_000);
    let mut consumers = JoinSet::new();
    for number in 0..PARTITIONS as usize + 2 {
        let named = format!("{token}&consumer=instance{number}");
        let mut web = consumer(&cluster, number % 2, &named).await.unwrap();
        let told = told.clone();
        consumers.spawn(async move {
            while let Some(Ok(Message::Text(text))) = web.next().await {
                let got = seen_of(&text);
                let ack = got.ack.clone();
                // Before the ack: until then nobody gets the client's next record.
                told.send((number, got)).await.unwrap();
                say(&mut web, ack).await;
            }
        });
    }
    const EACH: u32 = 30;
    for part in [0..EACH / 2, EACH / 2..EACH] {
        for client in clients() {
            cluster.publish(&client, "a/b", part.clone()).await;
        }
    }
    let mut of_client: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let mut of_consumer: BTreeMap<usize, u32> = BTreeMap::new();
    let all = EACH as usize * clients().len();
    while of_client.values().map(Vec::len).sum::<usize>() < all {
        let (number, got) = timeout(LIMIT, seen.recv()).await.expect("all of them").unwrap();
        // What was too long on its way on a busy machine may come again.
        let numbers = of_client.entry(got.client).or_default();
        if !(got.dup && numbers.contains(&got.number)) {
            numbers.push(got.number);
            *of_consumer.entry(number).or_default() += 1;
        }
    }
    let in_order: Vec<u32> = (0..EACH).collect();
    assert!(of_client.values().all(|numbers| *numbers == in_order), "{of_client:?}");
    assert!(of_consumer.len() > 1, "they share: {of_consumer:?}");
    until("all is done", async || cluster.lag(0, "notification2/s/a/b").await == 0).await;
    consumers.shutdown().await;
}

/// Another door of a router, and its figures.
async fn another_door(router: &TestRouter, config: WebConfig) -> (SocketAddr, Registered) {
    let door = web::Door::new(router.inside.clone(), router.auth.clone(), config, CancellationToken::new());
    let (listener, mut metrics) = (bind().await, Registered::default());
    let at = listener.local_addr().unwrap();
    door.register(&mut metrics);
    tokio::spawn(web::serve::serve(door.routes(), listener, CancellationToken::new()));
    (at, metrics)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_busy_client_has_not_read_yet_does_not_come_twice() {
    let cluster = Cluster::start(1).await;
    let config = WebConfig { ack_timeout: Duration::from_millis(300), ..WebConfig::default() };
    let (at, metrics) = another_door(&cluster.routers[0], config).await;
    let token = token(&cluster, asked(false)).await;
    let mut web = open(at, &format!("consumer/?token={token}")).await.unwrap();
    for client in clients() {
        cluster.publish(&client, "a/b", 0..1).await;
    }
    // Nobody reads, so nobody answers pings.
    let held = || figure(&metrics, r#"penstock_web_messages_total{result="held"}"#).unwrap_or(0.0);
    until("all have come again", async || held() >= 3.0 * clients().len() as f64).await;
    let mut first = Vec::new();
    for _ in clients() {
        let got = record(&mut web).await;
        assert!(!got.dup, "{} came twice", got.client);
        first.push(got.client);
    }
    first.sort_unstable();
    let mut all = clients();
    all.sort_unstable();
    assert_eq!(first, all);
    // It reads and acknowledges nothing: now they come again.
    for _ in clients() {
        let got = record(&mut web).await;
        assert!(got.dup);
        say(&mut web, got.ack).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_comes_back_at_once_is_let_in() {
    let cluster = Cluster::start(2).await;
    let token = token(&cluster, asked(false)).await;
    let config = WebConfig { patience: LIMIT, ..WebConfig::default() };
    let (patient, _) = another_door(&cluster.routers[1], config).await;
    let other_kind = self::token(&cluster, asked(true)).await;
    for held in [token.clone(), other_kind] {
        let mut first = consumer(&cluster, 0, &token).await.unwrap();
        let path = format!("consumer/?token={held}");
        let second = open(patient, &path);
        tokio::pin!(second);
        let early = timeout(Duration::from_millis(300), &mut second).await;
        assert!(early.is_err(), "neither refused nor let in while there is another");
        first.close(None).await.unwrap();
        let mut second = second.await.expect("let in when the one before is gone");
        second.close(None).await.unwrap();
        while next(&mut second).await.is_ok() {}
        drop(first);
        until("the second is gone", async || {
            cluster.show(0, "notification2/s/a/b").await.iter().all(|partition| partition.consumers == 0)
        })
        .await;
    }
}
