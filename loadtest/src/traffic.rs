//! A run of publishers and pushes through its phases: readers first, then clients, then load, then what is still under way,
//! and the verdict.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    access::Access,
    clock::Clock,
    engine::Engine,
    generator::{GeneratorReport, Usage},
    interrupt::Interrupt,
    observer::{INTERVAL, Observer, connected, counted},
    pace::{Pace, PhasePlan},
    publisher::{Orders, Publisher, Signal},
    pusher::{PushOrders, Pushing},
    report::{Counted, Latency, LatencyTable, Messages, PhaseReport, Report},
    scenario::Phase,
    settings::{Settings, Traffic},
    stamp::stamp_bytes,
    tally::{Counters, Timings},
    verification::{self, Verification},
};

/// Between the signal and the first message: for the signal to arrive everywhere.
const LEAD: Duration = Duration::from_millis(20);

/// How clients of a run get in.
pub(crate) fn access(settings: &Settings) -> Access {
    Access {
        targets: settings.targets.clone(),
        sources: settings.sources.clone(),
        users: settings.users.clone(),
        client_id: settings.client_id.clone(),
        keep_alive: settings.keep_alive,
        limit: settings.connect_timeout,
        connecting: Arc::new(Semaphore::new(settings.connecting.min(Semaphore::MAX_PERMITS))),
    }
}

/// Runs it.
pub(crate) async fn run(
    settings: &Settings,
    traffic: &Traffic,
    engine: &Engine,
    interrupt: &Interrupt,
    mut report: Report,
) -> anyhow::Result<Report> {
    let (clock, access) = (Clock::now(), access(settings));
    let mut observer = Observer::new(engine, interrupt);
    observer.say("connecting those who verify");
    let verification = Verification::start(settings, traffic, &access, engine, &observer, clock);
    let mut verification = Box::pin(verification).await?;
    observer.say("connecting clients");
    let signal = watch::Sender::new(Signal::Wait);
    let mut load = Load { settings, traffic, engine, signal, clock, tasks: Vec::new() };
    let started = load.start(&access, &verification, interrupt).await;
    verification.or_abandon(started).await?;
    report.connections.wanted += verification.verifiers();
    let mut timings = observer.begin(Instant::now() + LEAD);
    // Nothing is sent yet: connecting is all that was timed.
    let interrupted = load.phases(&mut observer, &mut timings, &mut report).await;
    let unfinished = load.settle().await;
    observer.say("waiting for those who verify");
    report.backlog = verification.drain(settings, traffic, engine).await?;
    let verdict = verification.judge(traffic.settle).await?;
    // What was slow at the end comes while it settles: it counts, too.
    let late = engine.take();
    timings.add_errors(&late);
    report.timings.add(&late);
    report.latency_ms = LatencyTable::of(&report.timings);
    totals(&mut report, engine, traffic, timings);
    report.verdict = verdict;
    report.series = observer.finish();
    report.connections.connected = engine.count(|tally| Counters::get(&tally.counters.most));
    if interrupted {
        report.failures.push("it was interrupted".to_owned());
    } else if unfinished > 0 || report.messages.unacked > 0 {
        report.failures.push(format!("unacked={}", report.messages.unacked.max(unfinished)));
    }
    Ok(report)
}

struct Load<'a> {
    settings: &'a Settings,
    traffic: &'a Traffic,
    engine: &'a Engine,
    signal: watch::Sender<Signal>,
    clock: Clock,
    tasks: Vec<JoinHandle<u64>>,
}

/// What a number of measured phases came to.
#[derive(Default)]
struct Sum {
    seconds: f64,
    counted: Counted,
    timings: Timings,
    first: Option<Usage>,
    last: Option<Usage>,
}

fn plan(phases: &[Phase], what: impl Fn(&Phase) -> Option<(u64, Pace)>) -> Vec<PhasePlan> {
    let mut start = Duration::ZERO;
    let mut plan = Vec::new();
    for phase in phases {
        let (clients, pace) = what(phase).unwrap_or((0, Pace::steady(0.0)));
        plan.push(PhasePlan { start, length: phase.length, clients, pace });
        start += phase.length;
    }
    plan
}

impl Load<'_> {
    /// Connects everybody.
    async fn start(
        &mut self,
        access: &Access,
        verification: &Verification,
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        let present = connected(self.engine);
        let scenario = &self.traffic.scenario;
        if scenario.pushes() {
            for number in 0..self.traffic.pushers {
                // The first where nothing else is; more than one need more than one core, where there are some.
                let worker = match number.checked_sub(1) {
                    None => self.engine.readers(),
                    Some(number) => self.engine.of_client(number),
                };
                let orders = self.pushes(access, number)?;
                let (tally, ticket, signal) = (&worker.tally, worker.ticket(), self.signal.subscribe());
                let pushing = Pushing::new(orders, &verification.pushed, tally, ticket, signal);
                self.tasks.push(worker.spawn(pushing.run()));
            }
        }
        let orders = Arc::new(self.orders(access));
        for number in 0..scenario.publishers() {
            let worker = self.engine.of_client(number);
            let tenant = access.tenant(number);
            let entries = verification.verifies().then(|| verification.published.publisher(number, tenant));
            let (ticket, signal) = (worker.ticket(), self.signal.subscribe());
            let publisher = Publisher::new(number, number, &orders, entries, &worker.tally, ticket, signal);
            self.tasks.push(worker.spawn(publisher.run()));
        }
        let first = present + scenario.phases.first().map_or(0, |phase| phase.publishers);
        let limit = self.settings.connect_timeout;
        let connected = || connected(self.engine);
        verification::reached(self.engine, interrupt, "clients", first, limit, connected).await
    }

    fn orders(&self, access: &Access) -> Orders {
        let (traffic, scenario) = (self.traffic, &self.traffic.scenario);
        let tenants = self.settings.tenants();
        let publishers = scenario.publishers().max(1);
        let stamp = tenants.iter().map(|tenant| stamp_bytes(tenant, scenario.publishers())).max();
        Orders {
            access: access.clone(),
            topic: traffic.topic.clone(),
            payload_bytes: traffic.payload_bytes,
            stamped: traffic.payload_bytes >= stamp.unwrap_or_default(),
            qos: traffic.qos,
            inflight: traffic.inflight,
            plan: plan(&scenario.phases, |phase| Some((phase.publishers, phase.rate))),
            messages: traffic.messages.map(|messages| messages / publishers),
            one_more: traffic.messages.unwrap_or(0) % publishers,
            behind_max: None,
            clock: self.clock,
        }
    }

    /// Of one pusher. The doors are its own, and it begins with another one than its neighbour.
    fn pushes(&self, access: &Access, pusher: u64) -> anyhow::Result<PushOrders> {
        let (traffic, scenario) = (self.traffic, &self.traffic.scenario);
        let doors = traffic.doors.as_ref().context("pushes need --messaging")?;
        let tenant = access.tenant(0).to_owned();
        let mut doors = doors.clone();
        let first = pusher.checked_rem(doors.servers.len() as u64).unwrap_or_default();
        doors.servers.rotate_left(usize::try_from(first).unwrap_or_default());
        let pushers = traffic.pushers;
        let share = |all: u64| all / pushers + u64::from(pusher < all % pushers);
        Ok(PushOrders {
            pusher,
            pushers,
            client: verification::door(&doors, &tenant)?,
            tenant,
            topic: verification::push_topic(self.settings),
            client_id: verification::client_id(self.settings, "d"),
            devices: scenario.devices,
            qos: traffic.qos,
            payload_bytes: traffic.payload_bytes,
            inflight: traffic.inflight,
            messages: traffic.messages.map(share),
            plan: plan(&scenario.phases, |phase| phase.pushes.map(|pace| (pushers, pace))),
            clock: self.clock,
        })
    }

    /// Through all phases; true if somebody broke it off.
    async fn phases(
        &mut self,
        observer: &mut Observer<'_>,
        before: &mut Timings,
        report: &mut Report,
    ) -> bool {
        let start = Instant::now() + LEAD;
        let mut before_it = counted(self.engine);
        self.signal.send_replace(Signal::Go(start));
        sleep_until(start).await;
        let mut sum = Sum::default();
        let (mut begun, mut end) = (start, start);
        let mut interrupted = false;
        for phase in &self.traffic.scenario.phases {
            end += phase.length;
            let usage = Usage::now(self.engine);
            let timings;
            (timings, interrupted) = self.phase(observer, &phase.name, end).await;
            let (now, after_it) = (Instant::now(), counted(self.engine));
            let seconds = now.saturating_duration_since(begun).as_secs_f64();
            let counted = after_it.since(before_it);
            (begun, before_it) = (now, after_it);
            report.phases.push(PhaseReport {
                name: phase.name.clone(),
                measured: phase.measured,
                seconds,
                messages: counted,
                rate: counted.per_second(seconds),
                latency_ms: LatencyTable::of(&timings),
            });
            before.add_errors(&timings);
            if phase.measured {
                sum.add(seconds, counted, &timings);
                sum.first.get_or_insert(usage);
                sum.last = Some(Usage::now(self.engine));
            }
            if interrupted || self.ended() {
                break;
            }
        }
        sum.tell(report);
        // What connecting took is told, though nothing else was measured then.
        report.timings.connect.add(&before.connect);
        interrupted
    }

    fn ended(&self) -> bool {
        self.tasks.iter().all(JoinHandle::is_finished)
    }

    /// Until then, until all is sent, or until somebody breaks it off (true).
    async fn phase(&self, observer: &mut Observer<'_>, name: &str, end: Instant) -> (Timings, bool) {
        /// How exact the end of a run of so many messages is.
        const LOOK: Duration = Duration::from_millis(5);
        let mut timings = Timings::default();
        let mut next_sample = Instant::now() + INTERVAL;
        loop {
            let look = if self.traffic.messages.is_some() { Instant::now() + LOOK } else { end };
            let wake = end.min(next_sample).min(look);
            let interrupted = tokio::select! {
                () = sleep_until(wake) => false,
                () = observer.interrupt.wait() => true,
            };
            let now = Instant::now();
            let over = interrupted || now >= end || self.ended();
            if over || now >= next_sample {
                timings.add(&observer.sample(name));
                next_sample += INTERVAL;
            }
            if over {
                return (timings, interrupted);
            }
        }
    }

    /// Waits for what is in flight. Gives the number of tasks that did not end.
    async fn settle(&mut self) -> u64 {
        self.signal.send_replace(Signal::Stop);
        let end = Instant::now() + self.traffic.settle;
        let mut unfinished = 0;
        for mut task in self.tasks.drain(..) {
            if timeout_at(end, &mut task).await.is_err() {
                task.abort();
                unfinished += 1;
            }
        }
        unfinished
    }
}

impl Sum {
    fn add(&mut self, seconds: f64, counted: Counted, timings: &Timings) {
        self.seconds += seconds;
        self.counted = self.counted.plus(counted);
        self.timings.add(timings);
    }

    fn tell(self, report: &mut Report) {
        report.seconds = self.seconds;
        report.measured = self.counted;
        report.rate = self.counted.per_second(self.seconds);
        if let (Some(first), Some(last)) = (&self.first, &self.last) {
            let lag = Latency::of(&self.timings.send_lag).map(|lag| lag.p99);
            (report.generator, report.generator_bound_reason) = GeneratorReport::between(first, last, lag);
            report.generator_bound = report.generator_bound_reason.is_some();
        }
        report.timings = self.timings;
    }
}

/// Over the whole run.
fn totals(report: &mut Report, engine: &Engine, traffic: &Traffic, timings: Timings) {
    let all = counted(engine);
    let owed = if traffic.qos > 0 { all.sent.saturating_sub(all.acked) } else { 0 };
    // Pushes that failed are errors, and have their receipts.
    let unacked = if traffic.scenario.pushes() { 0 } else { owed };
    let unsent = traffic.due().map_or(0, |due| due.saturating_sub(all.sent));
    report.messages = Messages { sent: all.sent, acked: all.acked, received: all.received, unacked, unsent };
    report.connections.refused = engine.count(|tally| Counters::get(&tally.counters.refused));
    report.connections.broken = engine.count(|tally| Counters::get(&tally.counters.broken));
    report.acked_out_of_order = engine.count(|tally| Counters::get(&tally.counters.acked_out_of_order));
    report.errors = timings.errors;
}
