//! Those who verify a load: groups, subscribers, the devices that pushes go to. They are there before the first message,
//! and what they saw becomes one verdict.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use penstock_client::Client;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep},
};

use crate::{
    access::{Access, User},
    clock::Clock,
    engine::Engine,
    group::Group,
    interrupt::Interrupt,
    ledger::{Ledger, ReaderId},
    observer::Observer,
    report::{Drained, Judged},
    settings::{Doors, Settings, Traffic, Verify},
    subscriber::{Desk, Interest, Repeats, Subscriber},
    tally::Counters,
    verdict::Verdict,
};

/// Between two looks at a count.
const LOOK: Duration = Duration::from_millis(10);

/// All readers of a run.
pub(crate) struct Verification {
    /// Of what publishers send.
    pub(crate) published: Ledger,
    /// Of what is pushed: its publishers are the devices.
    pub(crate) pushed: Ledger,
    readers: Vec<Judging>,
    groups: Vec<Group>,
    subscribers: Vec<AbortHandle>,
    verifiers: u64,
}

/// One reader, and whose verdict it adds to.
struct Judging {
    by: &'static str,
    ledger: Ledger,
    reader: ReaderId,
    /// The first of its tenant: what was sent is counted once.
    first: bool,
}

/// The filter that gets what is published under a topic template.
pub(crate) fn filter(topic: &str) -> String {
    let levels: Vec<&str> =
        topic.split('/').map(|level| if level.contains("{i}") { "+" } else { level }).collect();
    levels.join("/")
}

/// The topic of pushes.
pub(crate) fn push_topic(settings: &Settings) -> String {
    format!("push/{}", settings.run)
}

/// The client identifiers of those that are no publishers; `kind` sets them apart.
pub(crate) fn client_id(settings: &Settings, kind: &str) -> String {
    if settings.client_id.contains("{i}") {
        settings.client_id.replace("{i}", &format!("{kind}{{i}}"))
    } else {
        format!("{}-{kind}{{i}}", settings.client_id)
    }
}

impl Verification {
    /// Starts all readers, and waits until they would see the first message.
    pub(crate) async fn start(
        settings: &Settings,
        traffic: &Traffic,
        access: &Access,
        engine: &Engine,
        observer: &Observer<'_>,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let mut own = Self {
            published: Ledger::new(),
            pushed: Ledger::new(),
            readers: Vec::new(),
            groups: Vec::new(),
            subscribers: Vec::new(),
            verifiers: 0,
        };
        let scenario = &traffic.scenario;
        let verified = traffic.verify != Verify::Nobody;
        let listening = Listening { settings, traffic, access, engine, clock };
        for number in 0..scenario.subscribers {
            let desk =
                verified.then(|| own.reader("subscriber", &own.published.clone(), access.tenant(number)));
            own.subscribers.push(listening.subscriber("s", number, desk));
        }
        let devices = own.pushed.clone();
        let desk =
            (verified && scenario.devices > 0).then(|| own.reader("device", &devices, access.tenant(0)));
        for number in 0..scenario.devices {
            own.subscribers.push(listening.device(number, desk.clone()));
        }
        let everything = scenario.subscribers == 0 || traffic.verify == Verify::Group;
        if verified && everything && scenario.publishers() > 0 {
            let begun = own.whole(&listening).await;
            own.or_abandon(begun).await?;
        }
        let waited_for = scenario.subscribers + scenario.devices + own.verifiers;
        let subscribed = || engine.count(|tally| Counters::get(&tally.counters.subscribed));
        let limit = settings.connect_timeout;
        let all = reached(engine, &observer.interrupt, "subscribers", waited_for, limit, subscribed).await;
        own.or_abandon(all).await?;
        Ok(own)
    }

    /// Where the run can't go on: groups must not stay behind, they would hold what is stored.
    pub(crate) async fn or_abandon<T>(&mut self, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
        if outcome.is_err() {
            for group in self.groups.drain(..) {
                group.abandon().await;
            }
        }
        outcome
    }

    /// Readers of everything, one for each tenant.
    async fn whole(&mut self, listening: &Listening<'_>) -> anyhow::Result<()> {
        for tenant in listening.settings.tenants() {
            let ledger = self.published.clone();
            if let (Verify::Group, Some(doors)) = (listening.traffic.verify, &listening.traffic.doors) {
                let desk = self.reader("group", &ledger, &tenant);
                let group = listening.group(doors, &tenant, desk).await;
                let whose = || format!("the group that verifies {tenant}");
                let mut group = group.with_context(whose)?;
                // There from the beginning, or only for what is stored by then.
                let begun =
                    if listening.traffic.backlog { Ok(()) } else { listening.consume(&mut group).await };
                self.groups.push(group);
                begun.with_context(whose)?;
            } else {
                let desk = self.reader("subscriber", &ledger, &tenant);
                self.subscribers.push(listening.verifier(&tenant, self.verifiers, desk));
                self.verifiers += 1;
            }
        }
        Ok(())
    }

    fn reader(&mut self, by: &'static str, ledger: &Ledger, tenant: &str) -> Desk {
        let reader = ledger.reader(tenant);
        let first = !self
            .readers
            .iter()
            .any(|own| own.by == by && own.ledger.tenant(own.reader).as_deref() == Some(tenant));
        self.readers.push(Judging { by, ledger: ledger.clone(), reader, first });
        Desk { ledger: ledger.clone(), reader }
    }

    /// Clients that do nothing else.
    pub(crate) fn verifiers(&self) -> u64 {
        self.verifiers
    }

    /// Whether anybody verifies.
    pub(crate) fn verifies(&self) -> bool {
        !self.readers.is_empty()
    }

    /// Lets the groups consume what was stored before, and tells how fast they were; only when that was asked for.
    pub(crate) async fn drain(
        &mut self,
        settings: &Settings,
        traffic: &Traffic,
        engine: &Engine,
    ) -> anyhow::Result<Option<Drained>> {
        if !traffic.backlog {
            return Ok(None);
        }
        let received = || engine.count(|tally| Counters::get(&tally.counters.received));
        let (begun, before) = (Instant::now(), received());
        let mut started = Ok(());
        for group in &mut self.groups {
            let consuming = group.consume(engine.readers(), traffic.consumers, settings.connect_timeout);
            started = started.and(consuming.await);
        }
        self.or_abandon(started).await?;
        self.all_seen(traffic.settle).await;
        Ok(Some(Drained::new(traffic.consumers, received() - before, begun.elapsed())))
    }

    /// Waits until all is seen that was acknowledged, but no longer than that. Says whether it is.
    async fn all_seen(&self, limit: Duration) -> bool {
        let all = || self.readers.iter().all(|own| own.ledger.complete(own.reader));
        let end = Instant::now() + limit;
        while !all() && Instant::now() < end && !self.groups.iter().any(Group::has_lost_a_consumer) {
            sleep(LOOK).await;
        }
        all()
    }

    /// Waits until all is seen that was acknowledged, and judges.
    pub(crate) async fn judge(self, limit: Duration) -> anyhow::Result<Option<Judged>> {
        let complete = self.all_seen(limit).await;
        let mut ended = Ok(());
        for group in self.groups {
            ended = ended.and(group.end(limit).await);
        }
        ended?;
        self.subscribers.iter().for_each(AbortHandle::abort);
        let mut by: Vec<&'static str> = self.readers.iter().map(|own| own.by).collect();
        by.dedup();
        let verdict = self.readers.iter().fold(Verdict::default(), |sum, own| {
            let verdict = own.ledger.verdict(own.reader);
            sum.plus(&if own.first { verdict } else { Verdict { sent: 0, acked: 0, ..verdict } })
        });
        let verified_by = match by.as_slice() {
            [] => return Ok(None),
            [one] => *one,
            // Publishes and pushes.
            _ => "several",
        };
        Ok(Some(Judged { verified_by, complete, balanced: verdict.balanced(), verdict }))
    }
}

/// What all readers are started with.
struct Listening<'a> {
    settings: &'a Settings,
    traffic: &'a Traffic,
    access: &'a Access,
    engine: &'a Engine,
    clock: Clock,
}

impl Listening<'_> {
    fn interest(&self, kind: &str, users: Option<Vec<User>>, filter: String) -> Interest {
        let client_id = client_id(self.settings, kind);
        let users = users.unwrap_or_else(|| self.access.users.clone());
        Interest {
            access: Access { client_id, users, ..self.access.clone() },
            filters: vec![filter],
            qos: self.traffic.qos,
            repeats: Repeats::AreDuplicates,
            only_own: kind == "d",
            clock: self.clock,
        }
    }

    /// One of many that get everything.
    fn subscriber(&self, kind: &str, number: u64, desk: Option<Desk>) -> AbortHandle {
        let interest = self.interest(kind, None, filter(&self.traffic.topic));
        self.listen(self.engine.of_client(number), number, interest, desk)
    }

    fn device(&self, number: u64, desk: Option<Desk>) -> AbortHandle {
        let interest = self.interest("d", None, push_topic(self.settings));
        self.listen(self.engine.of_client(number), number, interest, desk)
    }

    /// The one that gets everything of its tenant, on the readers' thread.
    fn verifier(&self, tenant: &str, number: u64, desk: Desk) -> AbortHandle {
        let users =
            self.access.users.iter().filter(|user| user.tenant() == tenant).take(1).cloned().collect();
        let interest = self.interest("v", Some(users), filter(&self.traffic.topic));
        self.listen(self.engine.readers(), number, interest, Some(desk))
    }

    fn listen(
        &self,
        worker: &crate::engine::Worker,
        number: u64,
        interest: Interest,
        desk: Option<Desk>,
    ) -> AbortHandle {
        let interest = Arc::new(interest);
        let subscriber = Subscriber::new(number, &interest, desk, &worker.tally, worker.ticket());
        worker.spawn(subscriber.run()).abort_handle()
    }

    async fn consume(&self, group: &mut Group) -> anyhow::Result<()> {
        group.consume(self.engine.readers(), self.traffic.consumers, self.settings.connect_timeout).await
    }

    async fn group(&self, doors: &Doors, tenant: &str, desk: Desk) -> anyhow::Result<Group> {
        let name = format!("loadtest-{}", self.settings.run);
        Group::create(door(doors, tenant)?, name, filter(&self.traffic.topic), desk, self.clock).await
    }
}

/// The door of a tenant.
pub(crate) fn door(doors: &Doors, tenant: &str) -> anyhow::Result<Client> {
    let user = doors.users.iter().find(|user| user.tenant() == tenant);
    let user = user.with_context(|| format!("no user for the messaging door of {tenant}"))?;
    let builder = doors.servers.iter().fold(Client::builder(), |builder, server| builder.server(server));
    Ok(builder.credentials(&user.name, &user.password).connect_lazy()?)
}

/// Waits until a count has reached a number. Gives up early where nothing works at all.
pub(crate) async fn reached(
    engine: &Engine,
    interrupt: &Interrupt,
    what: &str,
    wanted: u64,
    limit: Duration,
    count: impl Fn() -> u64,
) -> anyhow::Result<()> {
    /// For a server that is just starting.
    const PATIENCE: Duration = Duration::from_secs(5);
    let begun = Instant::now();
    while count() < wanted {
        let errors = || {
            let errors = engine.take().errors;
            let kinds: Vec<String> =
                errors.iter().map(|(kind, count)| format!("{kind} {count} times")).collect();
            if kinds.is_empty() { "no answer".to_owned() } else { kinds.join(", ") }
        };
        ensure!(!interrupt.is_set(), "it was interrupted");
        let refused = engine.count(|tally| Counters::get(&tally.counters.refused));
        if count() == 0 && refused > 0 && begun.elapsed() > PATIENCE.min(limit) {
            bail!("none of {wanted} {what} could connect: {}", errors());
        }
        ensure!(begun.elapsed() < limit, "only {} of {wanted} {what} after {limit:?}: {}", count(), errors());
        sleep(LOOK).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_of_many_publishers_has_a_filter() {
        assert_eq!(filter("load/1f/{i}"), "load/1f/+");
        assert_eq!(filter("a/s-{i}/t"), "a/+/t");
        assert_eq!(filter("all"), "all");
    }
}
