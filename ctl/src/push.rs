//! `penstockctl push`: one message to devices, and its receipt.

use std::{fs, io::Read};

use penstock_client::{Client, Push, Receipt, ReceiptStatus};
use serde_json::json;

use crate::{
    cli::{Payload, PushArguments},
    failure::Failure,
    output::Output,
};

/// More than any packet holds.
const PAYLOAD_MAX: u64 = 1 << 20;

fn payload(given: Payload) -> Result<Vec<u8>, Failure> {
    let Some(file) = given.file else { return Ok(given.text.unwrap_or_default().into_bytes()) };
    let shown = file.display().to_string();
    let bad = |error: std::io::Error| Failure::Usage(format!("--payload-file {shown}: {error}"));
    let source: Box<dyn Read> =
        if shown == "-" { Box::new(std::io::stdin()) } else { Box::new(fs::File::open(&file).map_err(bad)?) };
    let mut bytes = Vec::new();
    source.take(PAYLOAD_MAX + 1).read_to_end(&mut bytes).map_err(bad)?;
    if bytes.len() as u64 > PAYLOAD_MAX {
        return Err(Failure::Usage(format!("--payload-file {shown}: a payload is less than 1MiB")));
    }
    Ok(bytes)
}

fn status(status: ReceiptStatus) -> &'static str {
    match status {
        ReceiptStatus::Unspecified => "unknown",
        ReceiptStatus::Routed => "routed",
        ReceiptStatus::Delivered => "delivered",
        ReceiptStatus::Queued => "queued",
        ReceiptStatus::NotConnected => "not_connected",
        ReceiptStatus::NotSubscribed => "not_subscribed",
        ReceiptStatus::Expired => "expired",
        ReceiptStatus::Refused => "refused",
    }
}

fn line(receipt: &Receipt) -> String {
    let mut line = status(receipt.status).to_owned();
    if receipt.clients > 0 {
        line.push_str(&format!(" clients={}", receipt.clients));
    }
    if !receipt.reason.is_empty() {
        line.push_str(&format!(": {}", receipt.reason));
    }
    line
}

/// Runs it. Exit code 0 only when the message is on its way or waits, or, with `--wait`, delivered.
pub async fn run(arguments: PushArguments, client: &Client, output: Output) -> Result<(), Failure> {
    if arguments.wait && arguments.qos == 0 {
        return Err(Failure::Usage("--wait needs --qos 1: a device acknowledges nothing else".into()));
    }
    if arguments.ttl.is_some() && arguments.qos == 0 {
        return Err(Failure::Usage("--ttl needs --qos 1: nothing else waits for a device".into()));
    }
    let mut push = Push::new(arguments.topic, payload(arguments.payload)?).qos(arguments.qos);
    if let Some(client) = arguments.client {
        push = push.client(client);
    }
    if arguments.wait {
        push = push.wait(arguments.wait_timeout);
    }
    if let Some(ttl) = arguments.ttl {
        push = push.ttl(ttl);
    }
    if let Some(key) = arguments.idempotency_key {
        push = push.idempotency_key(key);
    }
    let receipt = client.pusher().send(push).await?;
    let object = json!({
        "status": status(receipt.status), "clients": receipt.clients, "reason": receipt.reason,
    });
    output.one(&object, || line(&receipt))?;
    let fine = match receipt.status {
        ReceiptStatus::Delivered => true,
        ReceiptStatus::Routed | ReceiptStatus::Queued => !arguments.wait,
        _ => false,
    };
    if fine { Ok(()) } else { Err(Failure::Failed(format!("not delivered: {}", line(&receipt)))) }
}
