//! One subscriber: subscribes again after each reconnect (clean sessions), and enters what it gets into the ledger. What
//! is published while it has no connection is not for it: tests that judge loss keep it connected.

use std::{sync::Arc, time::Duration};

use mqttbytes::{
    QoS,
    v4::{Packet, PubAck, Subscribe, SubscribeReasonCode},
};
use tokio::{sync::watch, time::sleep, time::sleep_until};

use crate::{
    fleet::{Counters, SubscriberConfig},
    ledger::{Ledger, ReaderId},
    wire::{Login, Wire, WireError},
};

const RETRY: Duration = Duration::from_millis(100);
const SUBSCRIBE_ID: u16 = 1;

pub(crate) async fn run(
    config: SubscriberConfig,
    ledger: Ledger,
    reader: ReaderId,
    counters: Arc<Counters>,
    subscribed: watch::Sender<bool>,
) {
    let login = Login {
        client_id: config.client_id.clone(),
        username: config.username.clone(),
        password: config.password.clone(),
        keep_alive: config.keep_alive,
        clean_session: true,
    };
    for target in config.targets.iter().cycle() {
        match Wire::open(target, &login).await {
            Ok(mut wire) => {
                Counters::add(&counters.connected);
                let seen = |payload: &[u8]| ledger.seen(reader, payload, None);
                // It ends only by breaking: the next connection follows.
                let _ = serve(&mut wire, &config, seen, &subscribed).await;
                Counters::subtract(&counters.connected);
                Counters::add(&counters.broken);
                subscribed.send_replace(false);
            }
            Err(_) => Counters::add(&counters.refused),
        }
        sleep(RETRY.mul_f64(rand::random_range(0.5..=1.0))).await;
    }
}

async fn serve(
    wire: &mut Wire,
    config: &SubscriberConfig,
    seen: impl Fn(&[u8]),
    subscribed: &watch::Sender<bool>,
) -> Result<(), WireError> {
    let qos = if config.qos > 0 { QoS::AtLeastOnce } else { QoS::AtMostOnce };
    let mut subscribe = Subscribe::empty_subscribe();
    subscribe.pkid = SUBSCRIBE_ID;
    for filter in &config.filters {
        subscribe.add(filter.clone(), qos);
    }
    subscribe.write(&mut wire.out).map_err(WireError::Malformed)?;
    loop {
        wire.flush().await?;
        let keep_alive_at = wire.keep_alive_at();
        let packet = tokio::select! {
            packet = wire.next() => Some(packet?),
            () = sleep_until(keep_alive_at) => {
                wire.keep_alive().await?;
                None
            }
        };
        let mut next = packet;
        while let Some(packet) = next {
            match packet {
                Packet::Publish(publish) => {
                    seen(&publish.payload);
                    if publish.qos != QoS::AtMostOnce {
                        PubAck::new(publish.pkid).write(&mut wire.out).map_err(WireError::Malformed)?;
                    }
                }
                Packet::SubAck(ack) => {
                    let granted = |code: &SubscribeReasonCode| *code != SubscribeReasonCode::Failure;
                    subscribed.send_replace(ack.return_codes.iter().all(granted));
                }
                _ => {}
            }
            next = wire.buffered()?;
        }
    }
}
