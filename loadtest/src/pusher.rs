//! Pushes through the messaging door to devices in turn, at a pace; their receipts are the acknowledgements. Of several
//! pushers each has devices of its own: nothing but the order of one pusher is promised, and so a device has one.

use std::{sync::Arc, time::Duration};

use penstock_client::{Client, Push, PushError, ReceiptStatus};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::Instant,
};

use crate::{
    access::numbered,
    alarm::Ticket,
    clock::Clock,
    ledger::{Entries, Ledger},
    pace::{Course, Next, PhasePlan},
    publisher::Signal,
    stamp::StampRef,
    tally::{Counters, Tally},
};

/// How long a receipt may take.
const RECEIPT: Duration = Duration::from_secs(10);

/// What is pushed to whom.
#[derive(Debug)]
pub(crate) struct PushOrders {
    /// Its number, from 0.
    pub(crate) pusher: u64,
    /// All that push.
    pub(crate) pushers: u64,
    pub(crate) client: Client,
    pub(crate) tenant: String,
    pub(crate) topic: String,
    /// `{i}` is the device's number.
    pub(crate) client_id: String,
    pub(crate) devices: u64,
    pub(crate) qos: u8,
    pub(crate) payload_bytes: usize,
    /// Pushes without a receipt, at most.
    pub(crate) inflight: usize,
    pub(crate) messages: Option<u64>,
    pub(crate) plan: Vec<PhasePlan>,
    pub(crate) clock: Clock,
}

pub(crate) struct Pushing {
    orders: PushOrders,
    devices: Vec<Device>,
    tally: Arc<Tally>,
    ticket: Ticket,
    signal: watch::Receiver<Signal>,
    window: Arc<Semaphore>,
    receipts: JoinSet<()>,
}

/// One that is pushed to.
struct Device {
    number: u64,
    /// The account of a device numbers what is pushed to it.
    entries: Entries,
    /// The next one.
    sequence: u64,
}

/// The devices of a pusher: every so many-th.
fn own(orders: &PushOrders) -> impl Iterator<Item = u64> {
    (orders.pusher..orders.devices).step_by(usize::try_from(orders.pushers.max(1)).unwrap_or(usize::MAX))
}

impl Pushing {
    pub(crate) fn new(
        orders: PushOrders,
        ledger: &Ledger,
        tally: &Arc<Tally>,
        ticket: Ticket,
        signal: watch::Receiver<Signal>,
    ) -> Self {
        let device =
            |number| Device { number, entries: ledger.publisher(number, &orders.tenant), sequence: 0 };
        let devices = own(&orders).map(device).collect();
        let window = Arc::new(Semaphore::new(orders.inflight.max(1)));
        Self { orders, devices, tally: Arc::clone(tally), ticket, signal, window, receipts: JoinSet::new() }
    }

    /// Until all is pushed, or it is stopped, and all receipts are in.
    pub(crate) async fn run(mut self) -> u64 {
        let pusher = self.orders.client.pusher();
        let mut course = Course::new(self.orders.pusher);
        let mut count = 0;
        while self.orders.messages.is_none_or(|messages| count < messages) {
            // The window first: without a rate, a push is due when there is room for it.
            let Ok(permit) = Arc::clone(&self.window).acquire_owned().await else { break };
            let Some(due) = self.next(&mut course).await else { break };
            course.sent();
            let Some((push, entries, sequence)) = self.make(count, due) else { break };
            count += 1;
            Counters::add(&self.tally.counters.published);
            // The driver of the pusher has ended: nothing more can be pushed.
            let Ok(receiving) = pusher.push(push).await else { break };
            let (tally, qos) = (Arc::clone(&self.tally), self.orders.qos);
            self.receipts.spawn(async move {
                let kind = match receiving.await {
                    Ok(receipt) => kind(receipt.status, qos),
                    Err(error) => Some(failure(&error)),
                };
                let mut timings = tally.timings();
                match kind {
                    Some(kind) => timings.error(kind),
                    None => {
                        timings.receipt.record_since(due, Instant::now());
                        Counters::add(&tally.counters.acked);
                        if qos > 0 {
                            entries.lock().acked(sequence);
                        }
                    }
                }
                drop(permit);
            });
            while self.receipts.try_join_next().is_some() {}
        }
        while self.receipts.join_next().await.is_some() {}
        0
    }

    /// When the next push is due, waiting for it; None: there is none.
    async fn next(&mut self, course: &mut Course) -> Option<Instant> {
        loop {
            let signal = *self.signal.borrow_and_update();
            let now = Instant::now();
            let wake = match signal {
                Signal::Stop => return None,
                Signal::Wait => None,
                Signal::Go(start) => {
                    match course.next(&self.orders.plan, now.saturating_duration_since(start)) {
                        Next::Done => return None,
                        Next::At(due) if start + due <= now => return Some(start + due),
                        Next::Max(from, _) if start + from <= now => return Some(now),
                        Next::At(at) | Next::Max(at, _) | Next::Absent(at) => Some(start + at),
                    }
                }
            };
            let far = now + Duration::from_secs(3_600);
            tokio::select! {
                () = self.ticket.until(wake.unwrap_or(far)) => {}
                changed = self.signal.changed() => changed.ok()?,
            }
        }
    }

    fn make(&mut self, count: u64, due: Instant) -> Option<(Push, Entries, u64)> {
        let orders = &self.orders;
        let at = count.checked_rem(self.devices.len() as u64)?;
        let own = self.devices.get_mut(usize::try_from(at).ok()?)?;
        let (device, sequence, entries) = (own.number, own.sequence, own.entries.clone());
        own.sequence += 1;
        entries.lock().sent(sequence, 1);
        let sent_at = orders.clock.micros(due);
        let stamp = StampRef { tenant: &orders.tenant, publisher: device, sequence, connection: 1, sent_at };
        let mut payload = Vec::with_capacity(orders.payload_bytes);
        stamp.write(&mut payload, orders.payload_bytes);
        let push = Push::new(orders.topic.clone(), payload)
            .client(numbered(&orders.client_id, device))
            .qos(orders.qos);
        Some((if orders.qos > 0 { push.wait(RECEIPT) } else { push }, entries, sequence))
    }
}

/// None: it came as far as its QoS promises.
fn kind(status: ReceiptStatus, qos: u8) -> Option<&'static str> {
    match status {
        ReceiptStatus::Delivered => None,
        ReceiptStatus::Routed if qos == 0 => None,
        ReceiptStatus::Routed => Some("receipt_routed_only"),
        ReceiptStatus::Queued => Some("receipt_queued_only"),
        ReceiptStatus::NotConnected => Some("receipt_not_connected"),
        ReceiptStatus::NotSubscribed => Some("receipt_not_subscribed"),
        ReceiptStatus::Expired => Some("receipt_expired"),
        ReceiptStatus::Refused => Some("receipt_refused"),
        ReceiptStatus::Unspecified => Some("receipt_unreadable"),
    }
}

fn failure(error: &PushError) -> &'static str {
    match error {
        PushError::Unauthorized => "push_unauthorized",
        PushError::Unavailable(_) => "push_unavailable",
        _ => "push_failed",
    }
}
