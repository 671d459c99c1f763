//! A microservice that prints what devices publish, in a group, until Ctrl-C. Several of them share the group.
//!
//! ```text
//! cargo run -p penstock-client --example consume -- http://127.0.0.1:7070 demo/app app.password readings 'sensors/#'
//! ```

use std::time::Duration;

use penstock_client::{Client, GroupSpec, Message};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, user, password_file, group, filters @ ..] = arguments.as_slice() else {
        return Err("usage: consume SERVER TENANT/USER PASSWORD-FILE GROUP [FILTER…]".into());
    };
    let password = std::fs::read_to_string(password_file)?;
    let client = Client::builder().server(server).credentials(user, password.trim_end()).connect_lazy()?;
    client.create_group(&GroupSpec::new(group).filters(filters)).await?;

    let mut consumer = client.consumer(group).name("example").start();
    loop {
        let message = tokio::select! {
            message = consumer.next() => message?,
            _ = tokio::signal::ctrl_c() => break,
        };
        match handle(&message) {
            Ok(()) => consumer.ack(&message),
            Err(error) => {
                eprintln!("{}: {error}; it comes again", message.position);
                consumer.nack(&message, Duration::from_secs(5));
            }
        }
    }
    Ok(consumer.close().await?)
}

fn handle(message: &Message) -> Result<(), std::str::Utf8Error> {
    let Message { client_id, topic, delivery_count, .. } = message;
    println!("{client_id} {topic} ({delivery_count}): {}", std::str::from_utf8(&message.payload)?);
    Ok(())
}
