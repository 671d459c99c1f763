//! One publisher: a window of messages in flight, in order, over as many connections as it takes.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hdrhistogram::Histogram;
use mqttbytes::{
    QoS,
    v4::{Packet, Publish},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    fleet::{Counters, FleetConfig},
    ledger::Ledger,
    stamp::Stamp,
    wire::{Login, Wire, WireError},
};

/// Packets written before the socket is read again.
const A_TURN: usize = 256;
/// A publisher that fell behind its rate by more catches up no further: a pause is not followed by a flood.
const BEHIND_MAX: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(1);

pub(crate) struct Report {
    pub(crate) puback_micros: Histogram<u64>,
    pub(crate) unacked: u64,
}

/// Up to ten minutes, three digits: enough for a verdict, small enough for thousands of publishers.
pub(crate) fn histogram() -> Histogram<u64> {
    let bounds = Histogram::new_with_bounds(1, 600_000_000, 3);
    bounds.unwrap_or_else(|_| unreachable!("constant bounds, and valid ones"))
}

// Load runs against real servers only: no simulation gives it a clock.
#[allow(clippy::disallowed_methods)]
fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

struct InFlight {
    id: u16,
    sequence: u64,
    first_sent: Instant,
}

struct Publisher {
    number: u64,
    config: Arc<FleetConfig>,
    ledger: Ledger,
    counters: Arc<Counters>,
    stopping: watch::Receiver<bool>,
    connection: u32,
    next_sequence: u64,
    next_id: u16,
    in_flight: VecDeque<InFlight>,
    /// When the rate allows the next message.
    due: Instant,
    puback_micros: Histogram<u64>,
}

pub(crate) async fn run(
    number: u64,
    config: Arc<FleetConfig>,
    ledger: Ledger,
    counters: Arc<Counters>,
    stopping: watch::Receiver<bool>,
) -> Report {
    let mut publisher = Publisher {
        number,
        config,
        ledger,
        counters,
        stopping,
        connection: 0,
        next_sequence: 0,
        next_id: 1,
        in_flight: VecDeque::new(),
        due: Instant::now(),
        puback_micros: histogram(),
    };
    publisher.run().await;
    Report { puback_micros: publisher.puback_micros, unacked: publisher.in_flight.len() as u64 }
}

impl Publisher {
    async fn run(&mut self) {
        let mut wait = Duration::from_millis(20);
        while !self.ended() {
            match self.open().await {
                Ok(mut wire) => {
                    wait = Duration::from_millis(20);
                    Counters::add(&self.counters.connected);
                    let served = self.serve(&mut wire).await;
                    Counters::subtract(&self.counters.connected);
                    if served.is_ok() {
                        // All is acknowledged: a good-bye that doesn't arrive changes nothing.
                        let _ = wire.disconnect().await;
                        return;
                    }
                    Counters::add(&self.counters.broken);
                }
                Err(_) => Counters::add(&self.counters.refused),
            }
            sleep_until(Instant::now() + wait.mul_f64(rand::random_range(0.5..=1.0))).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    fn stopped(&self) -> bool {
        let all = self.config.messages.is_some_and(|messages| self.next_sequence >= messages);
        all || *self.stopping.borrow()
    }

    fn ended(&self) -> bool {
        self.stopped() && self.in_flight.is_empty()
    }

    async fn open(&mut self) -> Result<Wire, WireError> {
        self.connection += 1;
        let at = self.number.wrapping_add(u64::from(self.connection)) as usize;
        let target = self.config.targets.get(at % self.config.targets.len().max(1));
        let login = Login {
            client_id: self.config.client_id.replace("{n}", &self.number.to_string()),
            username: self.config.username.clone(),
            password: self.config.password.clone(),
            keep_alive: self.config.keep_alive,
            clean_session: true,
        };
        Wire::open(target.ok_or(WireError::Closed)?, &login).await
    }

    /// Until all that is to be sent is acknowledged, or the connection breaks.
    async fn serve(&mut self, wire: &mut Wire) -> Result<(), WireError> {
        self.send_again(wire)?;
        let mut stopping = self.stopping.clone();
        loop {
            self.fill(wire)?;
            wire.flush().await?;
            if self.ended() {
                return Ok(());
            }
            let (due, window) = (self.due, self.window() && !self.stopped());
            let keep_alive_at = wire.keep_alive_at();
            tokio::select! {
                packet = wire.next() => self.received(packet?),
                () = sleep_until(due), if window => {}
                () = sleep_until(keep_alive_at) => wire.keep_alive().await?,
                _ = stopping.changed() => {}
            }
            while let Some(packet) = wire.buffered()? {
                self.received(packet);
            }
        }
    }

    fn window(&self) -> bool {
        self.in_flight.len() < self.config.inflight.clamp(1, usize::from(u16::MAX))
    }

    /// What was not acknowledged, in order, before anything new ([MQTT-4.4.0-1], [MQTT-4.6.0-1]).
    fn send_again(&mut self, wire: &mut Wire) -> Result<(), WireError> {
        let again: Vec<(u16, u64)> = self.in_flight.iter().map(|entry| (entry.id, entry.sequence)).collect();
        again.into_iter().try_for_each(|(id, sequence)| self.write(wire, id, sequence, true))
    }

    fn fill(&mut self, wire: &mut Wire) -> Result<(), WireError> {
        for _ in 0..A_TURN {
            let now = Instant::now();
            if self.stopped() || !self.window() || self.due > now {
                return Ok(());
            }
            if let Some(rate) = self.config.rate.filter(|rate| *rate > 0.0) {
                let step = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX);
                let earliest = now.checked_sub(BEHIND_MAX).unwrap_or(now);
                self.due = self.due.max(earliest).checked_add(step).unwrap_or(self.due);
            }
            let sequence = self.next_sequence;
            self.next_sequence += 1;
            let id = self.next_id;
            if self.config.qos > 0 {
                self.next_id = self.next_id.checked_add(1).unwrap_or(1);
                self.in_flight.push_back(InFlight { id, sequence, first_sent: now });
            }
            self.write(wire, id, sequence, false)?;
        }
        Ok(())
    }

    fn write(&mut self, wire: &mut Wire, id: u16, sequence: u64, again: bool) -> Result<(), WireError> {
        let stamp = Stamp {
            tenant: self.config.tenant.clone(),
            publisher: self.number,
            sequence,
            connection: self.connection,
            sent_at: unix_micros(),
        };
        let topic = self.config.topic.replace("{n}", &self.number.to_string());
        let qos = if self.config.qos > 0 { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let mut publish = Publish::from_bytes(topic, qos, stamp.encode(self.config.payload_bytes));
        publish.pkid = if self.config.qos > 0 { id } else { 0 };
        publish.dup = again;
        // Entered before it is sent: a reader may see it before this task runs again.
        self.ledger.sent(&stamp);
        publish.write(&mut wire.out).map_err(WireError::Malformed)?;
        Counters::add(&self.counters.published);
        Ok(())
    }

    fn received(&mut self, packet: Packet) {
        let Packet::PubAck(ack) = packet else { return };
        let Some(at) = self.in_flight.iter().position(|entry| entry.id == ack.pkid) else { return };
        if at > 0 {
            Counters::add(&self.counters.acked_out_of_order);
        }
        if let Some(entry) = self.in_flight.remove(at) {
            self.ledger.acked(self.number, entry.sequence);
            Counters::add(&self.counters.acked);
            let micros = u64::try_from(entry.first_sent.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.puback_micros.saturating_record(micros.max(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_up_to_minutes_are_kept_apart() {
        let mut histogram = histogram();
        for micros in [150, 90_000_000] {
            histogram.saturating_record(micros);
        }
        assert_eq!(histogram.value_at_quantile(0.5), 150);
        assert!(histogram.max() >= 90_000_000);
    }
}
