//! `penstockctl consume`: prints a group's messages and acknowledges each after it is printed.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use penstock_client::{AuthType, Client, Consumer, Message, Properties};
use serde_json::{Map, Value, json};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

use crate::{cli::ConsumeArguments, failure::Failure, group, output::Output, quantity::show_time};

const CREDIT: u64 = 1_000;
/// Without acknowledgements credit is never given back: as much as may be had.
const CREDIT_WITHOUT_ACKS: u64 = 100_000;

/// Why printing ended.
enum Ended {
    Counted,
    Quiet(Duration),
    Signalled,
}

/// Runs it.
pub async fn run(arguments: ConsumeArguments, client: &Client, output: Output) -> Result<(), Failure> {
    let signals = Signals::new()?;
    group::ensure(client, &arguments.group, &arguments.filters, arguments.start).await?;
    let most = if arguments.no_ack { CREDIT_WITHOUT_ACKS } else { CREDIT };
    let credit = arguments.count.unwrap_or(most).min(most);
    let consumer = client
        .consumer(&arguments.group)
        .name(&arguments.consumer)
        .credit(u32::try_from(credit).unwrap_or(u32::MAX));
    let mut consumer = consumer.start();
    let mut printed = 0;
    let tenant = client.tenant().to_owned();
    let ended = print_all(&arguments, &tenant, &mut consumer, output, signals, &mut printed).await;
    // What was printed is acknowledged also when something went wrong.
    let closed = consumer.close().await;
    let ended = ended?;
    closed?;
    match (ended, arguments.count) {
        (Ended::Quiet(time), Some(count)) => Err(Failure::Failed(format!(
            "{printed} of {count} messages came; then none for {}",
            humantime::format_duration(time)
        ))),
        (Ended::Signalled, Some(count)) => {
            Err(Failure::Failed(format!("ended by a signal after {printed} of {count} messages")))
        }
        _ => Ok(()),
    }
}

async fn print_all(
    arguments: &ConsumeArguments,
    tenant: &str,
    consumer: &mut Consumer,
    output: Output,
    mut signals: Signals,
    printed: &mut u64,
) -> Result<Ended, Failure> {
    while arguments.count.is_none_or(|count| *printed < count) {
        let message = tokio::select! {
            () = signals.any() => return Ok(Ended::Signalled),
            message = within(arguments.timeout, consumer) => message?,
        };
        let Some(message) = message else { return Ok(Ended::Quiet(arguments.timeout.unwrap_or_default())) };
        if output.json() {
            output.one(&object(tenant, &message), String::new)?;
        } else {
            output.one(&(), || line(&message))?;
        }
        *printed += 1;
        if !arguments.no_ack {
            consumer.ack(&message);
        }
    }
    Ok(Ended::Counted)
}

/// None: no message came in time.
async fn within(limit: Option<Duration>, consumer: &mut Consumer) -> Result<Option<Message>, Failure> {
    match limit {
        None => Ok(Some(consumer.next().await?)),
        Some(limit) => match timeout(limit, consumer.next()).await {
            Ok(message) => Ok(Some(message?)),
            Err(_) => Ok(None),
        },
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let on =
            |kind| signal(kind).map_err(|error| Failure::Failed(format!("cannot watch signals: {error}")));
        Ok(Self { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())? })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A message as JSON.
pub fn object(tenant: &str, message: &Message) -> Value {
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
    put("tenant", json!(tenant));
    put("client_id", json!(message.client_id));
    put("user", json!(message.user));
    put("auth_type", json!(auth_type(message.auth_type)));
    put("topic", json!(message.topic));
    put("qos", json!(message.qos));
    match std::str::from_utf8(&message.payload) {
        Ok(text) => put("payload", json!(text)),
        Err(_) => put("payload_base64", json!(STANDARD.encode(&message.payload))),
    };
    put("received_at", json!(show_time(message.received_at)));
    put("position", json!(message.position.to_string()));
    put("delivery_count", json!(message.delivery_count));
    put("last_will", json!(message.last_will));
    if let Some(properties) = &message.properties {
        add_properties(&mut object, properties);
    }
    Value::Object(object)
}

fn add_properties(object: &mut Map<String, Value>, properties: &Properties) {
    let mut put = |key: &str, value: Option<Value>| value.map(|value| object.insert(key.to_owned(), value));
    put("payload_format", properties.payload_format.map(Value::from));
    put("content_type", properties.content_type.clone().map(Value::from));
    put("response_topic", properties.response_topic.clone().map(Value::from));
    put(
        "correlation_data_base64",
        properties.correlation_data.as_ref().map(|data| json!(STANDARD.encode(data))),
    );
    put("message_expiry", properties.message_expiry.map(Value::from));
    let pairs = properties.user_properties.iter().map(|pair| json!({ "key": pair.key, "value": pair.value }));
    let pairs: Vec<Value> = pairs.collect();
    put("user_properties", (!pairs.is_empty()).then(|| pairs.into()));
}

fn auth_type(auth_type: AuthType) -> &'static str {
    match auth_type {
        AuthType::Unspecified => "unspecified",
        AuthType::Password => "password",
        AuthType::Certificate => "certificate",
        AuthType::Token => "token",
    }
}

/// A message as one line for people; what would break it is escaped.
pub fn line(message: &Message) -> String {
    let payload = match std::str::from_utf8(&message.payload) {
        Ok(text) => plain(text),
        Err(_) => format!("base64:{}", STANDARD.encode(&message.payload)),
    };
    let again =
        if message.delivery_count > 1 { format!(" #{}", message.delivery_count) } else { String::new() };
    let will = if message.last_will { " will" } else { "" };
    let (time, client) = (show_time(message.received_at), plain(&message.client_id));
    format!("{time} {client} {} q{}{will}{again} {payload}", plain(&message.topic), message.qos)
}

/// A terminal must not obey what a device sends.
fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use penstock_client::Position;

    use super::*;

    fn message(payload: &'static [u8]) -> Message {
        Message {
            topic: "sensors/1".into(),
            client_id: "sensor-1".into(),
            user: "device".into(),
            auth_type: AuthType::Password,
            qos: 1,
            payload: payload.into(),
            received_at: SystemTime::UNIX_EPOCH,
            position: Position { partition: 2, term: 5, sequence: 1, index: 0 },
            delivery_count: 1,
            last_will: false,
            properties: None,
        }
    }

    #[test]
    fn json_holds_what_scripts_rely_on() {
        let text = object("demo", &message(b"21.5")).to_string();
        let expected = r#"{"auth_type":"password","client_id":"sensor-1","delivery_count":1,"last_will":false,"payload":"21.5","position":"2/5-1/0","qos":1,"received_at":"1970-01-01T00:00:00.000Z","tenant":"demo","topic":"sensors/1","user":"device"}"#;
        assert_eq!(text, expected);
        assert_eq!(object("demo", &message(&[0xff, 0]))["payload_base64"], json!("/wA="));
    }

    #[test]
    fn a_device_cannot_command_the_terminal() {
        let line = line(&message(b"a\n\x1b[2Jb"));
        assert!(line.ends_with("q1 a\\n\\u{1b}[2Jb"), "{line}");
    }
}
