//! Runs that measure connections: `connect`, `storm`, `takeover`. No messages.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    access::Access,
    alarm::Ticket,
    connection::{Broken, Connection},
    engine::{Engine, Worker},
    generator::{GeneratorReport, Usage, resident_bytes},
    interrupt::Interrupt,
    observer::{INTERVAL, Observer, connected, counted},
    report::{LatencyTable, Report},
    settings::Settings,
    tally::{Counters, Timings},
    traffic,
};

/// Between two looks at a count: how exact a duration is.
const LOOK: Duration = Duration::from_millis(2);
/// For all connections to be cut.
const CUT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(100);

/// Tasks of clients; dropped, their connections are cut without a good-bye.
#[derive(Default)]
struct Clients(Vec<AbortHandle>);

impl Drop for Clients {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

struct Churn<'a> {
    settings: &'a Settings,
    engine: &'a Engine,
    observer: Observer<'a>,
    access: Arc<Access>,
    timings: Timings,
    begun: (Instant, Usage),
}

impl<'a> Churn<'a> {
    fn new(settings: &'a Settings, engine: &'a Engine, interrupt: &Interrupt, at_once: bool) -> Self {
        let mut access = traffic::access(settings);
        if at_once {
            access.connecting = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        }
        let begun = (Instant::now(), Usage::now(engine));
        let observer = Observer::new(engine, interrupt);
        Self { settings, engine, observer, access: Arc::new(access), timings: Timings::default(), begun }
    }

    fn begin(&mut self) {
        let now = Instant::now();
        let before = self.observer.begin(now);
        self.timings.add_errors(&before);
        self.begun = (now, Usage::now(self.engine));
    }

    fn spawn<F>(&self, client: impl Fn(Arc<Access>, u64, &Worker) -> F) -> Clients
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let one = |number| {
            let worker = self.engine.of_client(number);
            worker.spawn(client(Arc::clone(&self.access), number, worker)).abort_handle()
        };
        Clients((0..self.settings.clients).map(one).collect())
    }

    /// Waits until a condition holds, a limit is over, or somebody breaks it off; samples meanwhile. Whether it holds.
    async fn until(&mut self, what: &str, limit: Duration, holds: impl Fn(&Engine) -> bool) -> bool {
        let end = Instant::now() + limit;
        let mut next_sample = Instant::now() + INTERVAL;
        loop {
            if holds(self.engine) {
                return true;
            }
            let interrupted = tokio::select! {
                () = sleep_until(end.min(Instant::now() + LOOK)) => false,
                () = self.observer.interrupt.wait() => true,
            };
            if Instant::now() >= next_sample {
                self.timings.add(&self.observer.sample(what));
                next_sample += INTERVAL;
            }
            if interrupted || Instant::now() >= end {
                return holds(self.engine);
            }
        }
    }

    fn tell_generator(&self, report: &mut Report) {
        let after = Usage::now(self.engine);
        (report.generator, report.generator_bound_reason) =
            GeneratorReport::between(&self.begun.1, &after, None);
        report.generator_bound = report.generator_bound_reason.is_some();
    }

    fn report(mut self, mut report: Report) -> Report {
        if self.observer.interrupt.is_set() {
            report.failures.push("it was interrupted".to_owned());
        }
        self.timings.add(&self.observer.sample(""));
        report.measured = counted(self.engine);
        report.rate = report.measured.per_second(report.seconds);
        report.latency_ms = LatencyTable::of(&self.timings);
        report.connections.refused = count(self.engine, |counters| &counters.refused);
        report.connections.broken = count(self.engine, |counters| &counters.broken);
        report.errors = self.timings.errors.clone();
        report.timings = self.timings;
        report.series = self.observer.finish();
        report
    }
}

fn count(engine: &Engine, counter: impl Fn(&Counters) -> &AtomicU64) -> u64 {
    engine.count(|tally| Counters::get(counter(&tally.counters)))
}

fn connects(engine: &Engine) -> u64 {
    count(engine, |counters| &counters.connects)
}

/// Keeps a connection until it breaks.
async fn hold(mut connection: Connection, ticket: &Ticket) -> Broken {
    let ended = async {
        loop {
            connection.push()?;
            connection.idle();
            let keep_alive_at = connection.keep_alive_at();
            tokio::select! {
                biased;
                ready = connection.ready() => {
                    ready?;
                    connection.receive(|_, _| {})?;
                }
                () = ticket.until(keep_alive_at) => {}
            }
            if Instant::now() >= keep_alive_at {
                connection.keep_alive()?;
            }
        }
    };
    let ended: Result<Infallible, Broken> = ended.await;
    match ended {
        Ok(never) => match never {},
        Err(broken) => broken,
    }
}

/// Connects some clients at a time or at a rate, and holds them.
pub(crate) async fn connect(
    settings: &Settings,
    held: Duration,
    rate: Option<f64>,
    engine: &Engine,
    interrupt: &Interrupt,
    mut report: Report,
) -> Report {
    let mut churn = Churn::new(settings, engine, interrupt, rate.is_some());
    let resident = resident_bytes();
    churn.begin();
    let start = churn.begun.0;
    let clients = churn.spawn(|access, number, worker| {
        let (tally, ticket) = (Arc::clone(&worker.tally), worker.ticket());
        let due = rate.and_then(|rate| Duration::try_from_secs_f64(number as f64 / rate).ok());
        async move {
            // Under a rate, it counts from when the connection was due.
            let due = due.map(|due| start + due);
            if let Some(due) = due {
                ticket.until(due).await;
            }
            if let Ok(connection) = access.open_since(due, number, 0, &tally).await {
                Access::ended(&tally, &hold(connection, &ticket).await);
            }
        }
    });
    let wanted = settings.clients;
    let needed = rate.map_or(0.0, |rate| wanted as f64 / rate);
    let limit = settings.connect_timeout + Duration::try_from_secs_f64(needed).unwrap_or_default();
    let tried = |engine: &Engine| connects(engine) + count(engine, |counters| &counters.refused) >= wanted;
    churn.until("connecting", limit, tried).await;
    report.seconds = start.elapsed().as_secs_f64();
    churn.tell_generator(&mut report);
    let grown = resident_bytes().saturating_sub(resident) as f64;
    let made = connected(engine);
    report.generator.rss_bytes_per_connection = (made > 0).then(|| (grown / made as f64).round());
    if made < wanted {
        report.failures.push(format!("connected {made} of {wanted}"));
    }
    let broken = |engine: &Engine| count(engine, |counters| &counters.broken);
    let before = broken(engine);
    if !held.is_zero() {
        churn.until("holding", held, |engine| connected(engine) == 0).await;
    }
    report.connections.connected = connected(engine);
    let lost = broken(engine).saturating_sub(before);
    if lost > 0 {
        report.failures.push(format!("{lost} connections broke while they were held"));
    }
    drop(clients);
    churn.report(report)
}

/// All connect at once, and try again until they are in.
pub(crate) async fn storm(
    settings: &Settings,
    rounds: u32,
    engine: &Engine,
    interrupt: &Interrupt,
    mut report: Report,
) -> Report {
    let mut churn = Churn::new(settings, engine, interrupt, true);
    let (wanted, limit) = (settings.clients, settings.connect_timeout);
    churn.begin();
    for round in 1..=rounds {
        let begun = Instant::now();
        let before = connects(engine);
        let clients = churn.spawn(|access, number, worker| {
            let (tally, ticket) = (Arc::clone(&worker.tally), worker.ticket());
            async move {
                // Who was refused comes again, at the next target.
                for turn in 0.. {
                    if let Ok(connection) = access.open(number, turn, &tally).await {
                        Access::ended(&tally, &hold(connection, &ticket).await);
                    }
                    sleep(RETRY.mul_f64(rand::random_range(0.5..=1.5))).await;
                }
            }
        });
        let name = format!("round {round}");
        let all = churn
            .until(&name, limit, |engine| connects(engine) - before >= wanted && connected(engine) >= wanted)
            .await;
        report.rounds.push(begun.elapsed().as_secs_f64());
        let in_now = connected(engine);
        report.connections.connected = in_now;
        drop(clients);
        churn.until("cutting", CUT, |engine| connected(engine) == 0).await;
        if !all {
            let limit = begun.elapsed();
            report.failures.push(format!("round {round}: {in_now} of {wanted} were in after {limit:?}"));
            break;
        }
    }
    report.seconds = report.rounds.iter().sum();
    churn.tell_generator(&mut report);
    churn.report(report)
}

/// The same identifiers once more, on the next target, until all old connections are closed.
pub(crate) async fn takeover(
    settings: &Settings,
    engine: &Engine,
    interrupt: &Interrupt,
    mut report: Report,
) -> Report {
    let mut churn = Churn::new(settings, engine, interrupt, false);
    let at_once = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
    let second = Arc::new(Access { connecting: at_once, ..churn.access.as_ref().clone() });
    let (go, closed) = (watch::Sender::new(false), Arc::new(AtomicU64::new(0)));
    let clients = churn.spawn(|access, number, worker| {
        let (tally, tickets, mut gone) =
            (Arc::clone(&worker.tally), (worker.ticket(), worker.ticket()), go.subscribe());
        let (second, closed) = (Arc::clone(&second), Arc::clone(&closed));
        async move {
            let Ok(old) = access.open(number, 0, &tally).await else { return };
            // A sender that has gone has ended the run: then nothing of this counts any more.
            let _ = gone.wait_for(|go| *go).await;
            let begun = Instant::now();
            let old = async {
                match hold(old, &tickets.0).await {
                    Broken::Closed | Broken::Io(_) => {
                        tally.timings().takeover.record_since(begun, Instant::now());
                        Counters::add(&closed);
                    }
                    other => Access::ended(&tally, &other),
                }
            };
            let new = async {
                if let Ok(new) = second.open(number, 1, &tally).await {
                    Access::ended(&tally, &hold(new, &tickets.1).await);
                }
            };
            tokio::join!(old, new);
        }
    });
    let (wanted, limit) = (settings.clients, settings.connect_timeout);
    let tried = |engine: &Engine| connected(engine) + count(engine, |counters| &counters.refused) >= wanted;
    churn.until("connecting", limit, tried).await;
    let first = connected(engine);
    if first < wanted {
        report.failures.push(format!("connected {first} of {wanted}: nothing was taken over"));
        return churn.report(report);
    }
    churn.begin();
    let begun = churn.begun.0;
    go.send_replace(true);
    let (all, both) = (Arc::clone(&closed), 2 * wanted);
    let over = move |engine: &Engine| Counters::get(&all) >= wanted && connects(engine) >= both;
    let over = churn.until("taking over", limit, over).await;
    report.seconds = begun.elapsed().as_secs_f64();
    churn.tell_generator(&mut report);
    report.connections.connected = connected(engine);
    if !over {
        let closed = Counters::get(&closed);
        report.failures.push(format!("{closed} of {wanted} old connections were closed after {limit:?}"));
    }
    drop(clients);
    churn.report(report)
}
