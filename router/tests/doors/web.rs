//! The WebSocket door: tokens, consumers, producers, and who is refused. The schemas have their own tests.

use std::{collections::BTreeMap, net::SocketAddr};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use penstock_common::registry::BacklogPolicy;
use penstock_router::door::web::avro::{Generation, Message, Metadata};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite};

use super::{world::*, *};

/// One request on a connection of its own: status, head and body.
pub async fn http(
    at: SocketAddr,
    request: &str,
    credentials: Option<&str>,
    body: &str,
) -> (u16, String, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let authorization = credentials.map_or(String::new(), |credentials| {
        format!("Authorization: Basic {}\r\n", STANDARD.encode(credentials))
    });
    let length = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{authorization}Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

pub async fn token(cluster: &Cluster, request: Value) -> String {
    let (at, request) = (cluster.routers[0].web, request.to_string());
    let (status, _, body) = http(at, "POST /notification2/token", Some(APP), &request).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["token"].as_str().unwrap().to_owned()
}

pub type Web = WebSocketStream<TcpStream>;

/// A WebSocket, or the status that refuses it.
pub async fn open(at: SocketAddr, path_and_token: &str) -> Result<Web, u16> {
    let stream = TcpStream::connect(at).await.unwrap();
    let url = format!("ws://{at}/notification2/{path_and_token}");
    match timeout(LIMIT, client_async(url, stream)).await.expect("an answer") {
        Ok((web, _)) => Ok(web),
        Err(tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

pub async fn consumer(cluster: &Cluster, router: usize, token: &str) -> Result<Web, u16> {
    open(cluster.routers[router].web, &format!("consumer/?token={token}")).await
}

pub async fn say(web: &mut Web, text: impl Into<String>) {
    web.send(tungstenite::Message::text(text.into())).await.unwrap();
}

/// The next text, or the code that the socket was closed with.
pub async fn next(web: &mut Web) -> Result<String, u16> {
    loop {
        match timeout(LIMIT, web.next()).await.expect("something comes") {
            Some(Ok(tungstenite::Message::Text(text))) => return Ok(text.to_string()),
            Some(Ok(tungstenite::Message::Close(frame))) => return Err(frame.map_or(1005, |f| f.code.into())),
            Some(Ok(_)) => {}
            Some(Err(error)) => panic!("{error}"),
            None => return Err(1006),
        }
    }
}

pub struct Seen {
    pub ack: String,
    pub client: String,
    pub number: u32,
    pub dup: bool,
    pub topic: String,
}

pub async fn record(web: &mut Web) -> Seen {
    seen_of(&next(web).await.expect("a record"))
}

pub fn seen_of(text: &str) -> Seen {
    let (ack, encoded) = text.split_once('\n').unwrap();
    let message = Message::decode(&STANDARD.decode(encoded).unwrap().into(), Generation::Newer).unwrap();
    Seen {
        ack: ack.to_owned(),
        client: message.metadata.client_id.unwrap(),
        number: u32::from_be_bytes(message.payload[..].try_into().unwrap()),
        dup: message.metadata.dup_flag,
        topic: message.metadata.topic.unwrap(),
    }
}

fn group_count(cluster: &Cluster) -> usize {
    cluster.registry.definitions().borrow().tenants[&cluster.tenant].groups.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_for_services_and_good_at_every_router() {
    let cluster = Cluster::start(2).await;
    let (here, there) = (cluster.routers[0].web, cluster.routers[1].web);
    let asked = json!({"subscriber": "s", "subscription": "a/b", "type": "mqtt", "signed": true,
        "expiresInMinutes": 1440, "shared": false, "nonPersistent": false});
    let device = format!("demo/device:{}", cluster.device_secret);
    let body = asked.to_string();
    for (credentials, body, status, error) in [
        (Some(device.as_str()), body.as_str(), 403, "forbidden"),
        (Some(OPERATOR), &body, 403, "forbidden"),
        (Some("demo/app:wrong"), &body, 401, "unauthorized"),
        (None, &body, 401, "unauthorized"),
        (Some(APP), "{", 400, "bad_request"),
        (Some(APP), r#"{"subscriber":"s"}"#, 400, "bad_request"),
    ] {
        let (got, head, answer) = http(here, "POST /notification2/token", credentials, body).await;
        assert_eq!(got, status, "{credentials:?} {answer}");
        assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["error"], error);
        assert_eq!(head.contains("www-authenticate: basic"), status == 401, "{head}");
    }
    let token = token(&cluster, asked).await;
    let (status, head, claims) =
        http(there, &format!("GET /notification2/token?token={token}"), None, "").await;
    assert!(status == 200 && head.contains("cache-control: no-store"), "{head}");
    let claims: Value = serde_json::from_str(&claims).unwrap();
    assert_eq!(
        (&claims["sub"], &claims["topic"], &claims["shared"]),
        (&json!("s"), &json!("demo/mqtt/a/b"), &json!(false))
    );
    let life = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
    assert!(life == 86_400 && claims["jti"].is_string() && claims.get("volatile").is_none(), "{claims}");
    let encoded = token.replace('.', "%2E");
    let verified = http(there, &format!("GET /notification2/token?x=y&token={encoded}"), None, "").await;
    assert_eq!(verified.0, 200, "a query may be encoded");
    for request in [
        "GET /notification2/token".to_owned(),
        "GET /notification2/token?token=".to_owned(),
        format!("GET /notification2/token?token={token}x"),
        "POST /notification2/unsubscribe".to_owned(),
        format!("POST /notification2/unsubscribe?token=x{token}"),
    ] {
        assert_eq!(http(there, &request, Some(APP), "").await.0, 401, "{request}");
    }
    assert_eq!(http(there, "GET /", None, "").await.0, 404);
    let path = format!("GET /notification2/consumer/?token={token}");
    assert_eq!(http(there, &path, None, "").await.0, 426);
    for path in ["consumer/", "consumer?token=x", "producer/?token=", &format!("producer/?token={token}x")] {
        assert_eq!(open(there, path).await.err(), Some(401), "{path}");
    }
    assert_eq!(group_count(&cluster), 0, "a token alone makes no group");
    let deleted = http(there, &format!("POST /notification2/unsubscribe?token={token}"), None, "").await;
    assert_eq!((deleted.0, deleted.2.as_str()), (200, r#"{"result":"DONE"}"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_gets_all_in_order_and_acks_in_any() {
    let cluster = Cluster::start(2).await;
    let token = token(&cluster, json!({"subscriber": "s", "subscription": "a%2F%23", "shared": true})).await;
    let mut web = consumer(&cluster, 0, &token).await.unwrap();
    for client in clients() {
        cluster.publish(&client, "a/b", 0..20).await;
        cluster.publish(&client, "other", 0..5).await;
    }
    let mut seen: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let mut acks = Vec::new();
    for _ in 0..20 * clients().len() {
        let got = record(&mut web).await;
        assert!(got.topic == "a/b" && !got.dup, "{} {}", got.topic, got.dup);
        seen.entry(got.client).or_default().push(got.number);
        acks.push(got.ack);
        if acks.len() == 50 {
            // Not in their order, and one of them twice.
            acks.reverse();
            let twice = acks[7].clone();
            for ack in acks.drain(..).chain([twice]) {
                say(&mut web, ack).await;
            }
        }
    }
    let all: Vec<u32> = (0..20).collect();
    assert!(seen.len() == clients().len() && seen.values().all(|numbers| *numbers == all), "{seen:?}");
    for ack in acks {
        say(&mut web, format!("{ack}\n")).await;
    }
    until("all is done", async || cluster.lag(1, "notification2/s/a/#").await == 0).await;
    web.close(None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_acked_comes_again_to_this_consumer_and_to_the_next() {
    let cluster = Cluster::start(2).await;
    let token = token(&cluster, json!({"subscriber": "s", "subscription": "a/b"})).await;
    let mut web = consumer(&cluster, 1, &token).await.unwrap();
    let client = clients().remove(0);
    cluster.publish(&client, "a/b", 0..3).await;
    let mut first = Vec::new();
    for _ in 0..3 {
        first.push(record(&mut web).await);
    }
    say(&mut web, first[1].ack.clone()).await;
    let mut again = Vec::new();
    while again.len() < 2 {
        let got = record(&mut web).await;
        assert!(got.dup && got.client == client);
        again.push(got.number);
    }
    again.sort_unstable();
    assert_eq!(again, [0, 2], "after the ack timeout");
    drop(web);
    let mut web = Err(409);
    let retried = timeout(LIMIT, async {
        // The home has to notice that the first one is gone.
        while web.is_err() {
            web = consumer(&cluster, 0, &token).await;
        }
    });
    retried.await.expect("the next consumer is let in");
    let mut web = web.unwrap();
    let mut numbers = [record(&mut web).await, record(&mut web).await].map(|got| got.number);
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 2], "at another router");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_consumer_at_a_time_unless_the_token_is_shared() {
    let cluster = Cluster::start(2).await;
    let asked = |shared| json!({"subscriber": "s", "subscription": "a/b", "shared": shared});
    let (exclusive, shared) = (token(&cluster, asked(false)).await, token(&cluster, asked(true)).await);
    let mut first = consumer(&cluster, 0, &exclusive).await.unwrap();
    for router in [0, 1] {
        assert_eq!(consumer(&cluster, router, &exclusive).await.err(), Some(409));
        assert_eq!(consumer(&cluster, router, &shared).await.err(), Some(409));
    }
    first.close(None).await.unwrap();
    while next(&mut first).await.is_ok() {}
    let opened = timeout(LIMIT, async {
        loop {
            if let Ok(web) = consumer(&cluster, 1, &format!("{shared}&consumer=instance1")).await {
                break web;
            }
        }
    });
    let mut one = opened.await.expect("the group goes over to shared when its consumer has gone");
    let mut two = consumer(&cluster, 0, &format!("{shared}&consumer=instance2")).await.unwrap();
    assert_eq!(consumer(&cluster, 0, &exclusive).await.err(), Some(409));
    for client in clients() {
        cluster.publish(&client, "a/b", 0..5).await;
    }
    let mut seen = BTreeMap::<String, Vec<u32>>::new();
    for _ in 0..5 * clients().len() {
        let got = tokio::select! {
            got = record(&mut one) => { say(&mut one, got.ack.clone()).await; got }
            got = record(&mut two) => { say(&mut two, got.ack.clone()).await; got }
        };
        seen.entry(got.client).or_default().push(got.number);
    }
    assert!(seen.values().all(|numbers| *numbers == [0, 1, 2, 3, 4]), "{seen:?}");
    // The tenant's places at one router are taken by four, whoever holds them.
    let mut more = Vec::new();
    for _ in 0..3 {
        more.push(consumer(&cluster, 0, &shared).await.unwrap());
    }
    assert_eq!(consumer(&cluster, 0, &shared).await.err(), Some(429));
    assert!(consumer(&cluster, 1, &shared).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_unsubscribes_on_its_socket_or_with_its_token() {
    let cluster = Cluster::start(2).await;
    let shared = token(&cluster, json!({"subscriber": "s", "subscription": "a", "shared": true})).await;
    let mut webs =
        [consumer(&cluster, 0, &shared).await.unwrap(), consumer(&cluster, 1, &shared).await.unwrap()];
    assert_eq!(group_count(&cluster), 1);
    say(&mut webs[0], "unsubscribe_subscriber").await;
    assert_eq!(next(&mut webs[0]).await, Err(1000));
    assert_eq!(next(&mut webs[1]).await, Err(1008), "the other one is told");
    until("the group is gone", async || group_count(&cluster) == 0).await;
    let mut web = consumer(&cluster, 0, &shared).await.expect("a token makes the group anew");
    let at = cluster.routers[1].web;
    let request = format!("POST /notification2/unsubscribe?token={shared}");
    for _ in 0..2 {
        assert_eq!(http(at, &request, None, "").await.0, 200);
        assert_eq!(group_count(&cluster), 0);
    }
    assert_eq!(next(&mut web).await, Err(1008));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volatile_group_goes_with_its_last_consumer() {
    let cluster = Cluster::start(2).await;
    let asked = json!({"subscriber": "s", "subscription": "a", "shared": true, "nonPersistent": true});
    let volatile = token(&cluster, asked).await;
    let durable = token(&cluster, json!({"subscriber": "s", "subscription": "a"})).await;
    let (one, two) =
        (consumer(&cluster, 0, &volatile).await.unwrap(), consumer(&cluster, 1, &volatile).await.unwrap());
    drop(consumer(&cluster, 0, &durable).await.unwrap());
    assert_eq!(group_count(&cluster), 2, "a volatile group is another one");
    let groups = cluster.registry.definitions().borrow().tenants[&cluster.tenant].groups.clone();
    let backlogs: Vec<_> = groups.values().map(|group| group.options.backlog).collect();
    let wanted = [BacklogPolicy::DropOldest, BacklogPolicy::Block];
    assert!(wanted.iter().all(|policy| backlogs.contains(policy)), "only the volatile one: {backlogs:?}");
    drop(one);
    let client = clients().remove(0);
    cluster.publish(&client, "a", 0..1).await;
    let mut two = two;
    assert_eq!(record(&mut two).await.number, 0, "one is still there");
    drop(two);
    until("the volatile group is gone", async || group_count(&cluster) == 1).await;
}

pub fn avro(client: Option<&str>, payload: &[u8], generation: Generation) -> String {
    let metadata = Metadata { client_id: client.map(str::to_owned), ..Metadata::default() };
    STANDARD.encode(Message { payload: Bytes::copy_from_slice(payload), metadata }.encode(generation))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_reaches_devices_and_hears_of_each_message() {
    let cluster = Cluster::start(2).await;
    let token = token(&cluster, json!({"subscriber": "p", "subscription": "cmd%2F1"})).await;
    let path = format!("producer/?token={token}");
    let mut web = open(cluster.routers[0].web, &path).await.unwrap();
    for (number, client) in (0u32..).zip(clients().iter().cycle().take(40)) {
        let generation = if number % 2 == 0 { Generation::Newer } else { Generation::Older };
        let client = (number % 10 != 9).then_some(client.as_str());
        say(&mut web, format!("{number}\n{}", avro(client, &number.to_be_bytes(), generation))).await;
    }
    let mut answers = Vec::new();
    for _ in 0..40 {
        answers.push(next(&mut web).await.unwrap().parse::<u32>().expect("a bare number"));
    }
    answers.sort_unstable();
    assert_eq!(answers, (0..40).collect::<Vec<_>>());
    let mut pushed: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for router in &cluster.routers {
        for push in router.homes.pushed.lock().unwrap().iter() {
            assert_eq!((push.topic.as_str(), push.qos), ("cmd/1", 1));
            let number = u32::from_be_bytes(push.payload[..].try_into().unwrap());
            pushed.entry(push.client.clone()).or_default().push(number);
        }
    }
    assert_eq!(pushed.values().map(Vec::len).sum::<usize>(), 40);
    assert_eq!(pushed[""], [9, 19, 29, 39]);
    assert!(pushed.values().all(|numbers| numbers.is_sorted()), "order of a client: {pushed:?}");
    for (wrong, reason) in [
        ("AAAA", "Avro"),
        ("A*", "base64"),
        (&*avro(Some(&"c".repeat(200)), b"", Generation::Newer), "client"),
    ] {
        say(&mut web, format!("seq-1\n{wrong}")).await;
        let answer = next(&mut web).await.unwrap();
        assert!(answer.starts_with("seq-1\n") && answer.contains(reason), "{answer}");
    }
    say(&mut web, "no line feed").await;
    assert_eq!(next(&mut web).await, Err(1007));
    for (frame, code) in [
        (tungstenite::Message::binary(b"1\n".to_vec()), 1003),
        (tungstenite::Message::text("x".repeat(3 << 20)), 1009),
    ] {
        let mut web = open(cluster.routers[1].web, &path).await.unwrap();
        web.send(frame).await.unwrap();
        assert_eq!(next(&mut web).await, Err(code));
    }
    let filter = self::token(&cluster, json!({"subscriber": "p", "subscription": "cmd/#"})).await;
    assert_eq!(open(cluster.routers[0].web, &format!("producer/?token={filter}")).await.err(), Some(400));
    assert_eq!(group_count(&cluster), 0, "producers have no group");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_and_a_drain_close_with_a_code() {
    let cluster = Cluster::start(1).await;
    let shared = token(&cluster, json!({"subscriber": "s", "subscription": "a", "shared": true})).await;
    for (said, code) in [
        (tungstenite::Message::text("1".repeat(8 << 10)), 1009),
        (tungstenite::Message::binary(b"1.1.1.1".to_vec()), 1003),
    ] {
        let mut web = consumer(&cluster, 0, &shared).await.unwrap();
        web.send(said).await.unwrap();
        assert_eq!(next(&mut web).await, Err(code));
    }
    let mut web = consumer(&cluster, 0, &shared).await.unwrap();
    // Of no entry that there is: nobody's harm.
    say(&mut web, "0.1.1.1").await;
    say(&mut web, "77.1.1.1").await;
    say(&mut web, "no ackId").await;
    web.send(tungstenite::Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
    let pong = timeout(LIMIT, web.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(pong, tungstenite::Message::Pong(Bytes::from_static(b"there?")));
    let producer = format!("producer/?token={shared}");
    let mut speaker = open(cluster.routers[0].web, &producer).await.unwrap();
    cluster.routers[0].drain.cancel();
    assert_eq!(next(&mut web).await, Err(1001));
    assert_eq!(next(&mut speaker).await, Err(1001));
}
