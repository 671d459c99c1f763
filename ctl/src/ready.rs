//! `penstockctl ready`: asks a process's admin listener whether it is ready. Needs no user: it is made for health checks of
//! containers, where nothing else can speak HTTP.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{failure::Failure, output::Output};

/// An answer is a few lines; more is from something else.
const ANSWER_MAX: u64 = 16 * 1_024;

/// Runs it: an error unless the answer is 200.
pub async fn run(address: &str, limit: Duration, output: Output) -> Result<(), Failure> {
    let asked = timeout(limit, ask(address)).await;
    let answer = asked.map_err(|_| Failure::Failed(format!("{address} did not answer within {limit:?}")))?;
    let answer = answer.map_err(|error| Failure::Failed(format!("{address} does not answer: {error}")))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => output.done("ready"),
        Some(_) if !body.trim().is_empty() => Err(Failure::Failed(format!("not ready: {}", body.trim()))),
        _ => Err(Failure::Failed(format!("{address} is no admin listener of Penstock"))),
    }
}

async fn ask(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the answer is not chunked and ends with the connection.
    let request = format!("GET /readyz HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
