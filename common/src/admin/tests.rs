//! The admin listener over a real socket.

#![allow(clippy::unwrap_used)]

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

async fn ask(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn readiness_follows_the_phase_and_every_check() {
    let life = Lifecycle::new();
    let admin = start(([127, 0, 0, 1], 0).into(), life.clone(), "[mqtt]\n".to_owned()).unwrap();
    let at = admin.address();
    assert_eq!(ask(at, "/livez").await.0, 200);
    assert_eq!(ask(at, "/readyz").await, (503, "starting\n".to_owned()));
    assert_eq!(ask(at, "/metrics").await.0, 200);

    let (store, holds) = watch::channel(false);
    let mut metrics = Registry::default();
    let counter = Counter::<u64>::default();
    metrics.register("penstock_things", "Things", counter.clone());
    counter.inc();
    admin.show(Shown { metrics, checks: vec![Check { name: "store", holds }] });
    life.started();
    assert_eq!(ask(at, "/readyz").await, (503, "store: not ready\n".to_owned()));
    store.send(true).unwrap();
    assert_eq!(ask(at, "/readyz").await, (200, "ready\n".to_owned()));
    assert!(ask(at, "/metrics").await.1.contains("penstock_things_total 1"));
    assert_eq!(ask(at, "/config").await, (200, "[mqtt]\n".to_owned()));

    life.begin_drain();
    assert_eq!(ask(at, "/readyz").await, (503, "draining\n".to_owned()));
    assert_eq!(ask(at, "/livez").await.0, 200, "a draining process is alive");
}

#[tokio::test]
async fn a_taken_port_is_told_with_the_way_out() {
    let taken = net::listen(([127, 0, 0, 1], 0).into(), false).unwrap();
    let error = start(taken.local_addr().unwrap(), Lifecycle::new(), String::new()).err().unwrap();
    let text = error.to_string();
    assert!(text.contains("--admin-listen") && !text.contains('\n'), "{text}");
}
