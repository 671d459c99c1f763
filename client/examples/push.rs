//! Pushes a message to one device and waits for its acknowledgement.
//!
//! ```text
//! cargo run -p penstock-client --example push -- http://127.0.0.1:7070 demo/app app.password sensor-1 commands/reboot now
//! ```

use std::time::Duration;

use penstock_client::{Client, Push, ReceiptStatus};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, user, password_file, device, topic, payload] = arguments.as_slice() else {
        return Err("usage: push SERVER TENANT/USER PASSWORD-FILE CLIENT TOPIC PAYLOAD".into());
    };
    let password = std::fs::read_to_string(password_file)?;
    let client = Client::builder().server(server).credentials(user, password.trim_end()).connect_lazy()?;

    let push = Push::new(topic, payload.clone()).client(device).qos(1).wait(Duration::from_secs(10));
    let receipt = client.pusher().send(push).await?;
    match receipt.status {
        ReceiptStatus::Delivered => println!("{device} has acknowledged it"),
        other => return Err(format!("{other:?} {}", receipt.reason).into()),
    }
    Ok(())
}
