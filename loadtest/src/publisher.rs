//! One publisher: a window of messages in flight, in order, over as many connections as it takes. What is due comes from
//! its course, what was sent and acknowledged goes into its account.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    access::{Access, numbered},
    account::Account,
    alarm::Ticket,
    clock::Clock,
    connection::{Broken, Connection},
    ledger::Entries,
    pace::{Course, Next, PhasePlan},
    packets::{self, Incoming},
    stamp::StampRef,
    tally::{Counters, Tally, Timings},
};

/// Bytes that may wait for the socket before nothing more is written.
const SEND: usize = 64 * 1024;
/// Messages of one turn: then the socket is read again, and other clients have their turn.
const A_TURN: usize = 1_024;
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// What clients wait for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Signal {
    /// Connect, and publish nothing yet.
    Wait,
    /// The load begins, or has begun, then.
    Go(Instant),
    /// Publish nothing new, wait for what is in flight.
    Stop,
}

/// What all publishers of a fleet do.
#[derive(Debug)]
pub(crate) struct Orders {
    pub(crate) access: Access,
    /// `{i}` is the publisher's number.
    pub(crate) topic: String,
    pub(crate) payload_bytes: usize,
    /// False: payloads are filler, for brokers whose messages nobody reads.
    pub(crate) stamped: bool,
    /// 0 or 1.
    pub(crate) qos: u8,
    /// QoS 1 messages without a PUBACK, at most.
    pub(crate) inflight: usize,
    pub(crate) plan: Vec<PhasePlan>,
    /// Messages of one publisher, at most.
    pub(crate) messages: Option<u64>,
    /// So many publishers have one message more.
    pub(crate) one_more: u64,
    /// A publisher that fell behind its pace by more catches up no further. None: it catches up with all, and says how
    /// late it was.
    pub(crate) behind_max: Option<Duration>,
    pub(crate) clock: Clock,
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    id: u16,
    sequence: u64,
    due: Instant,
}

/// What a publisher may do now.
enum Upcoming {
    Due(Instant),
    Later(Instant),
    /// Not before the load has begun.
    Waiting,
    Absent(Instant),
    Over,
}

enum Served {
    /// All is sent and acknowledged.
    Over,
    /// Nothing to do before then.
    Absent(Instant),
}

pub(crate) struct Publisher {
    /// In the ledger and in names.
    number: u64,
    orders: Arc<Orders>,
    tenant: String,
    topic: Vec<u8>,
    entries: Option<Entries>,
    tally: Arc<Tally>,
    ticket: Ticket,
    signal: watch::Receiver<Signal>,
    connection: u32,
    flow: Flow,
}

/// What it has sent and what comes next.
struct Flow {
    course: Course,
    /// What is left of the way is that much later.
    shift: Duration,
    /// How many it sends, at most.
    messages: Option<u64>,
    next_sequence: u64,
    next_id: u16,
    in_flight: VecDeque<InFlight>,
    /// After the last message that was acknowledged on this connection.
    acked_below: u64,
    /// The window or the socket was in the way of the next message.
    held_up: bool,
    /// There is a rate: then a message can be late.
    paced: bool,
}

impl Publisher {
    /// `place`: its number among those of its fleet.
    pub(crate) fn new(
        number: u64,
        place: u64,
        orders: &Arc<Orders>,
        entries: Option<Entries>,
        tally: &Arc<Tally>,
        ticket: Ticket,
        signal: watch::Receiver<Signal>,
    ) -> Self {
        let flow = Flow {
            course: Course::new(place),
            shift: Duration::ZERO,
            messages: orders.messages.map(|messages| messages + u64::from(place < orders.one_more)),
            next_sequence: 0,
            next_id: 1,
            in_flight: VecDeque::new(),
            acked_below: 0,
            held_up: false,
            paced: false,
        };
        Self {
            number,
            orders: Arc::clone(orders),
            tenant: orders.access.tenant(number).to_owned(),
            topic: numbered(&orders.topic, number).into_bytes(),
            entries,
            tally: Arc::clone(tally),
            ticket,
            signal,
            connection: 0,
            flow,
        }
    }

    /// Until all is sent and acknowledged, or it is stopped and all is acknowledged. Gives the number of messages that were
    /// never acknowledged: 0, unless it is cut off.
    pub(crate) async fn run(mut self) -> u64 {
        let mut wait = RETRY_MIN;
        loop {
            match self.upcoming(Instant::now()) {
                Upcoming::Over if self.flow.in_flight.is_empty() => return 0,
                Upcoming::Absent(until) if self.flow.in_flight.is_empty() => {
                    self.away(until).await;
                    continue;
                }
                _ => {}
            }
            self.connection += 1;
            if let Ok(mut connection) =
                self.orders.access.open(self.number, u64::from(self.connection) - 1, &self.tally).await
            {
                let served = self.serve(&mut connection).await;
                match served {
                    Ok(served) => {
                        // All is acknowledged: a good-bye that doesn't arrive changes nothing.
                        connection.disconnect();
                        match served {
                            Served::Over => return 0,
                            Served::Absent(until) => self.away(until).await,
                        }
                        continue;
                    }
                    Err(broken) => {
                        Access::ended(&self.tally, &broken);
                        wait = RETRY_MIN;
                    }
                }
            }
            self.pause(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn pause(&mut self, wait: Duration) {
        sleep(wait.mul_f64(rand::random_range(0.5..=1.0))).await;
    }

    async fn away(&mut self, until: Instant) {
        tokio::select! {
            () = self.ticket.until(until) => {}
            // A sender that has gone has stopped: `upcoming` sees it.
            _ = self.signal.changed() => {}
        }
    }

    fn upcoming(&mut self, now: Instant) -> Upcoming {
        let signal = if self.signal.has_changed().is_err() { Signal::Stop } else { *self.signal.borrow() };
        let used_up = self.flow.messages.is_some_and(|messages| self.flow.next_sequence >= messages);
        match signal {
            _ if used_up => Upcoming::Over,
            Signal::Stop => Upcoming::Over,
            Signal::Wait => self.flow.waiting(&self.orders.plan),
            Signal::Go(start) => self.flow.upcoming(&self.orders, start, now),
        }
    }

    async fn serve(&mut self, connection: &mut Connection) -> Result<Served, Broken> {
        self.send_again(connection);
        loop {
            let upcoming = self.fill(connection, Instant::now());
            connection.push()?;
            let wake = match upcoming {
                Upcoming::Over if self.settled(connection) => return Ok(Served::Over),
                Upcoming::Absent(until) if self.settled(connection) => return Ok(Served::Absent(until)),
                Upcoming::Later(at) => Some(at),
                // The socket has taken it all, and there is more.
                Upcoming::Due(_) if !self.window_is_full() && connection.waiting() < SEND => {
                    self.receive(connection)?;
                    tokio::task::yield_now().await;
                    continue;
                }
                _ => None,
            };
            let keep_alive_at = connection.keep_alive_at();
            let until = wake.map_or(keep_alive_at, |wake| wake.min(keep_alive_at));
            tokio::select! {
                biased;
                ready = connection.ready() => {
                    ready?;
                    self.receive(connection)?;
                }
                () = self.ticket.until(until) => {}
                changed = self.signal.changed(), if self.signal.has_changed().is_ok() => drop(changed),
            }
            if Instant::now() >= keep_alive_at {
                connection.keep_alive()?;
            }
        }
    }

    fn settled(&self, connection: &Connection) -> bool {
        self.flow.in_flight.is_empty() && connection.waiting() == 0
    }

    fn window_is_full(&self) -> bool {
        self.flow.in_flight.len() >= self.orders.inflight.clamp(1, usize::from(u16::MAX))
    }

    /// What was not acknowledged, in order, before anything new ([MQTT-4.4.0-1], [MQTT-4.6.0-1]).
    fn send_again(&mut self, connection: &mut Connection) {
        self.flow.acked_below = 0;
        let mut account = self.entries.as_ref().map(Entries::lock);
        for at in 0..self.flow.in_flight.len() {
            if let Some(message) = self.flow.in_flight.get(at).copied() {
                self.write(connection, account.as_deref_mut(), message, true);
            }
        }
    }

    /// Writes what is due, as far as window and socket allow, and says what comes next.
    fn fill(&mut self, connection: &mut Connection, now: Instant) -> Upcoming {
        let entries = self.entries.clone();
        let mut account = entries.as_ref().map(Entries::lock);
        let tally = Arc::clone(&self.tally);
        let mut timings = None;
        let mut sent = 0;
        let next = loop {
            let upcoming = self.upcoming(now);
            let Upcoming::Due(due) = upcoming else {
                self.flow.held_up = false;
                break upcoming;
            };
            if sent >= A_TURN || self.window_is_full() || connection.waiting() >= SEND {
                self.flow.held_up |= sent < A_TURN;
                break upcoming;
            }
            if self.flow.paced && !self.flow.held_up {
                timings.get_or_insert_with(|| tally.timings()).send_lag.record_since(due, now);
            }
            let message = self.flow.take(due, self.orders.qos > 0);
            self.write(connection, account.as_deref_mut(), message, false);
            sent += 1;
        };
        Counters::add_many(&tally.counters.published, sent as u64);
        next
    }

    fn write(
        &self,
        connection: &mut Connection,
        account: Option<&mut Account>,
        message: InFlight,
        again: bool,
    ) {
        let orders = &self.orders;
        // Entered before it is sent: a reader may see it before this task runs again.
        if let Some(account) = account {
            account.sent(message.sequence, self.connection);
        }
        let id = (orders.qos > 0).then_some(message.id);
        let out = &mut connection.out;
        let size = orders.payload_bytes;
        if !orders.stamped {
            packets::publish_head(out, &self.topic, id, again, size);
            out.resize(out.len() + size, b'.');
            return;
        }
        let stamp = StampRef {
            tenant: &self.tenant,
            publisher: self.number,
            sequence: message.sequence,
            connection: self.connection,
            sent_at: orders.clock.micros(message.due),
        };
        packets::publish_head(out, &self.topic, id, again, stamp.length().max(size));
        stamp.write(out, size);
    }

    fn receive(&mut self, connection: &mut Connection) -> Result<(), Broken> {
        let mut account = self.entries.as_ref().map(Entries::lock);
        let mut timings = None;
        let (tally, flow, mut acked) = (&self.tally, &mut self.flow, 0);
        let now = Instant::now();
        let read = connection.receive(|packet, _| {
            if let Incoming::PubAck(id) = packet {
                let timings = timings.get_or_insert_with(|| tally.timings());
                acked += u64::from(flow.acked(id, now, account.as_deref_mut(), timings, tally));
            }
        });
        Counters::add_many(&tally.counters.acked, acked);
        read
    }
}

impl Flow {
    fn waiting(&mut self, plan: &[PhasePlan]) -> Upcoming {
        match self.course.next(plan, Duration::ZERO) {
            // It will be asked again when the load begins.
            Next::Absent(_) => Upcoming::Absent(Instant::now() + RETRY_MAX),
            Next::Done => Upcoming::Over,
            Next::At(_) | Next::Max(..) => Upcoming::Waiting,
        }
    }

    fn upcoming(&mut self, orders: &Orders, start: Instant, now: Instant) -> Upcoming {
        let start = start + self.shift;
        let since = now.saturating_duration_since(start);
        let at = |offset: Duration| start.checked_add(offset);
        // Beyond what the clock can hold: never.
        let next = self.course.next(&orders.plan, since);
        self.paced = matches!(next, Next::At(_));
        match next {
            Next::Done => Upcoming::Over,
            Next::Absent(until) => at(until).map_or(Upcoming::Over, Upcoming::Absent),
            Next::Max(from, _) if now >= start && since >= from => Upcoming::Due(now),
            Next::Max(from, _) => at(from).map_or(Upcoming::Over, Upcoming::Later),
            Next::At(due) => match at(due) {
                None => Upcoming::Over,
                Some(due) if due > now => Upcoming::Later(due),
                Some(due) => Upcoming::Due(self.not_too_late(orders, due, now)),
            },
        }
    }

    fn not_too_late(&mut self, orders: &Orders, due: Instant, now: Instant) -> Instant {
        let late = now.saturating_duration_since(due);
        match orders.behind_max.filter(|most| late > *most) {
            Some(most) => {
                self.shift += late - most;
                due + (late - most)
            }
            None => due,
        }
    }

    fn take(&mut self, due: Instant, kept: bool) -> InFlight {
        let message = InFlight { id: self.next_id, sequence: self.next_sequence, due };
        self.course.sent();
        self.next_sequence += 1;
        if kept {
            self.in_flight.push_back(message);
            self.next_id = self.free_id();
        }
        message
    }

    /// The next identifier that no message in flight has: one that is never acknowledged keeps its own.
    fn free_id(&self) -> u16 {
        let after = |id: u16| id.checked_add(1).unwrap_or(1);
        let mut id = after(self.next_id);
        let oldest = self.in_flight.front().map_or(self.next_sequence, |oldest| oldest.sequence);
        let wrapped = self.next_sequence - oldest >= u64::from(u16::MAX) - 1;
        while wrapped && self.in_flight.iter().any(|message| message.id == id) {
            id = after(id);
        }
        id
    }

    fn acked(
        &mut self,
        id: u16,
        now: Instant,
        account: Option<&mut Account>,
        timings: &mut Timings,
        tally: &Tally,
    ) -> bool {
        let Some(at) = self.in_flight.iter().position(|message| message.id == id) else { return false };
        let Some(message) = self.in_flight.remove(at) else { return false };
        if message.sequence < self.acked_below {
            Counters::add(&tally.counters.acked_out_of_order);
        }
        self.acked_below = self.acked_below.max(message.sequence + 1);
        if let Some(account) = account {
            account.acked(message.sequence);
        }
        timings.puback.record_since(message.due, now);
        true
    }
}
