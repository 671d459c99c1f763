//! `--dry-run`: prints what would be sent and sends nothing. It takes messages of the group, settles none, and gives all back
//! when it ends.

use std::{
    io::{self, Write},
    time::Duration,
};

use penstock_client::{Consumer, Message};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::EngineError,
    routes::{self, Route},
};

/// Until the drain begins, or `limit` messages were shown.
pub async fn run(
    mut consumer: Consumer,
    routes: &[Route],
    limit: u32,
    drain: &CancellationToken,
) -> Result<(), EngineError> {
    let mut positions = Vec::new();
    while positions.len() < limit as usize {
        let message = tokio::select! {
            () = drain.cancelled() => break,
            message = consumer.next() => message?,
        };
        // Nobody reads stdout: nobody wants to see more.
        if show(routes, &message).is_err() {
            break;
        }
        positions.push(message.position);
    }
    tracing::info!(messages = positions.len(), "all shown messages go back to the group");
    let acker = consumer.acker();
    positions.into_iter().for_each(|position| acker.nack(position, Duration::ZERO));
    Ok(consumer.close().await?)
}

fn show(routes: &[Route], message: &Message) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in lines(routes, message) {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

/// One JSON object a request; one that says why when there is none.
fn lines(routes: &[Route], message: &Message) -> Vec<Value> {
    let head = json!({"topic": message.topic, "client_id": message.client_id, "position": message.position.to_string()});
    let with = |more: Value| {
        let mut line = head.clone();
        if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
            line.extend(more);
        }
        line
    };
    match routes::map(routes, message) {
        None => vec![with(json!({"skipped": "no route takes this topic"}))],
        Some(Err(unmappable)) => vec![with(json!({"dead_letter": unmappable.to_string()}))],
        Some(Ok(requests)) if requests.is_empty() => {
            vec![with(json!({"skipped": "the program has no output"}))]
        }
        Some(Ok(requests)) => requests
            .into_iter()
            .map(|request| {
                let target = request.target;
                with(json!({
                    "route": request.route,
                    "method": target.method.as_str(),
                    "path": target.path,
                    "body": request.body,
                    "device": request.device,
                }))
            })
            .collect(),
    }
}
