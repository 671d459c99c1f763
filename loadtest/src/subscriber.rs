//! One subscriber: subscribes again after each reconnect (clean sessions), and enters what it gets into the ledger. What
//! is published while it has no connection is not for it: who judges loss keeps it connected.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    access::{Access, numbered},
    alarm::Ticket,
    clock::Clock,
    connection::{Broken, Connection},
    ledger::{Ledger, ReaderId, Sighting},
    packets::{self, Incoming},
    tally::{Counters, Tally},
};

const RETRY: Duration = Duration::from_millis(100);
const SUBSCRIBE_ID: u16 = 1;

/// Whether a message may come again without its DUP flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeats {
    /// Yes: as after the death of a server that had not noted how far it was.
    MayCome,
    /// No: a repeat is a second message.
    AreDuplicates,
}

/// What all subscribers of a fleet want.
#[derive(Debug)]
pub(crate) struct Interest {
    pub(crate) access: Access,
    /// `{i}` is the subscriber's number.
    pub(crate) filters: Vec<String>,
    /// Requested QoS.
    pub(crate) qos: u8,
    pub(crate) repeats: Repeats,
    /// Messages carry the number of the client that they are for.
    pub(crate) only_own: bool,
    pub(crate) clock: Clock,
}

/// Where a subscriber enters what it sees.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    pub(crate) ledger: Ledger,
    pub(crate) reader: ReaderId,
}

pub(crate) struct Subscriber {
    number: u64,
    interest: Arc<Interest>,
    /// None: messages are counted only.
    desk: Option<Desk>,
    tally: Arc<Tally>,
    ticket: Ticket,
}

impl Subscriber {
    pub(crate) fn new(
        number: u64,
        interest: &Arc<Interest>,
        desk: Option<Desk>,
        tally: &Arc<Tally>,
        ticket: Ticket,
    ) -> Self {
        Self { number, interest: Arc::clone(interest), desk, tally: Arc::clone(tally), ticket }
    }

    /// Until it is cut off.
    pub(crate) async fn run(self) {
        let mut turn = 0;
        loop {
            if let Ok(mut connection) = self.interest.access.open(self.number, turn, &self.tally).await {
                let mut subscribed = false;
                // It ends only by breaking: the next connection follows.
                if let Err(broken) = self.serve(&mut connection, &mut subscribed).await {
                    Access::ended(&self.tally, &broken);
                }
                if subscribed {
                    Counters::subtract(&self.tally.counters.subscribed);
                }
            }
            turn += 1;
            sleep(RETRY.mul_f64(rand::random_range(0.5..=1.0))).await;
        }
    }

    async fn serve(&self, connection: &mut Connection, subscribed: &mut bool) -> Result<(), Broken> {
        let filters: Vec<String> =
            self.interest.filters.iter().map(|filter| numbered(filter, self.number)).collect();
        packets::subscribe(&mut connection.out, SUBSCRIBE_ID, &filters, self.interest.qos);
        drop(filters);
        loop {
            connection.push()?;
            connection.idle();
            let keep_alive_at = connection.keep_alive_at();
            tokio::select! {
                biased;
                ready = connection.ready() => {
                    ready?;
                    self.receive(connection, subscribed)?;
                }
                () = self.ticket.until(keep_alive_at) => {}
            }
            if Instant::now() >= keep_alive_at {
                connection.keep_alive()?;
            }
        }
    }

    fn receive(&self, connection: &mut Connection, subscribed: &mut bool) -> Result<(), Broken> {
        let now = self.interest.clock.micros(Instant::now());
        let (mut seeing, mut timings) = (None, None);
        let (mut granted, mut received) = (None, 0);
        let recipient = self.interest.only_own.then_some(self.number);
        let read = connection.receive(|packet, out| match packet {
            Incoming::Publish { payload, id, dup } => {
                received += 1;
                if let Some(desk) = &self.desk {
                    let sighting = match self.interest.repeats {
                        Repeats::MayCome => Sighting::Untold,
                        Repeats::AreDuplicates => Sighting::Delivered { dup },
                    };
                    let seeing = seeing.get_or_insert_with(|| desk.ledger.seeing(desk.reader));
                    if let Some(sent_at) = seeing.see(payload, recipient, sighting) {
                        let timings = timings.get_or_insert_with(|| self.tally.timings());
                        timings.one_way.record(now.saturating_sub(sent_at));
                    }
                }
                if let Some(id) = id {
                    packets::puback(out, id);
                }
            }
            Incoming::SubAck(all) => granted = Some(all),
            _ => {}
        });
        drop((seeing, timings));
        Counters::add_many(&self.tally.counters.received, received);
        read?;
        match granted {
            Some(true) if !*subscribed => {
                *subscribed = true;
                Counters::add(&self.tally.counters.subscribed);
                Ok(())
            }
            Some(false) => Err(Broken::NotGranted),
            _ => Ok(()),
        }
    }
}
