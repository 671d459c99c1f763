//! A way to etcd that can turn deaf: requests still arrive, answers get lost. So a call is carried out and nobody knows.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

pub struct DeafProxy {
    pub url: String,
    deaf: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl DeafProxy {
    /// In front of `http://host:port`.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let target = target.trim_start_matches("http://").to_owned();
        let deaf = Arc::new(AtomicBool::new(false));
        let turns_deaf = deaf.clone();
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&target).await.unwrap();
                tokio::spawn(pass(near, far, turns_deaf.clone()));
            }
        });
        Self { url, deaf, task }
    }

    pub fn lose_answers(&self, lose: bool) {
        self.deaf.store(lose, Ordering::SeqCst);
    }
}

impl Drop for DeafProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(near: TcpStream, far: TcpStream, deaf: Arc<AtomicBool>) {
    let (mut from_near, mut to_near) = near.into_split();
    let (mut from_far, mut to_far) = far.into_split();
    let requests = tokio::spawn(async move { copy(&mut from_near, &mut to_far).await });
    let mut buffer = vec![0; 64 << 10];
    let mut lost = false;
    while let Ok(read @ 1..) = from_far.read(&mut buffer).await {
        if deaf.load(Ordering::SeqCst) {
            lost = true;
            continue;
        }
        // A connection that lost something is of no use any more.
        if lost || to_near.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    requests.abort();
}
