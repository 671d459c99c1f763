//! Serves groups from the homes of this router: one task per (partition, group), from its first consumer to its last. It
//! reads the home's log, drives the [`Dispatch`], and writes the cursor under the home's term, at most
//! [`COMMIT_EVERY`] after an ack and once more at the end.
//!
//! Invariant: at most one task of a (partition, group) on this router, so a task that ends has written its cursor before
//! the next one reads it.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hashbrown::HashMap;
use penstock_common::{
    clock::Seams,
    name::PartitionKey,
    registry::{Definitions, Group},
    store::{CommitError, CursorStart, GroupCursor, Store, StoreError, StoredEntry},
};
use penstock_proto::messaging::Batch;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, error, warn};

use super::{
    clients::ConsumerId,
    dispatch::{Dispatch, HandOut, Standing},
    home::PartitionHome,
    served::{Command, Ended, Joining, Say, Sending, Served, entry_of},
};
use crate::pace::Backoff;

/// From an ack to its write.
pub const COMMIT_EVERY: Duration = Duration::from_millis(100);
/// The log is looked at although nothing was appended.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// Commands that wait for one task.
const COMMANDS: usize = 256;
/// One read of the log.
const READ_ENTRIES: usize = 1_000;
const READ_BYTES: usize = 1 << 20;
/// Joins are tried so often when the task ends at the same moment.
const JOIN_TRIES: usize = 8;

/// The groups that this router serves.
pub struct Serving {
    store: Arc<dyn Store>,
    definitions: watch::Receiver<Arc<Definitions>>,
    seams: Seams,
    tasks: Mutex<HashMap<(PartitionKey, String), Task>>,
}

struct Task {
    number: u64,
    commands: mpsc::Sender<Command>,
    home: Arc<dyn PartitionHome>,
}

impl Task {
    fn alive(&self) -> bool {
        !self.home.lost().is_cancelled() && !self.commands.is_closed()
    }
}

/// A consumer that can't be served here.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JoinError {
    /// The home is lost, or was while joining: find the present one.
    #[error("this router is not the home of the partition")]
    NotHome,
    /// There is no such group, or it is not active yet.
    #[error("there is no group of this name: create it first")]
    NoGroup,
    /// The cursor can't be read: try again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Serving {
    /// Serves nothing yet.
    pub fn new(
        store: Arc<dyn Store>,
        definitions: watch::Receiver<Arc<Definitions>>,
        seams: Seams,
    ) -> Arc<Self> {
        Arc::new(Self { store, definitions, seams, tasks: Mutex::default() })
    }

    /// The group, if it is defined and active.
    pub fn group(&self, key: &PartitionKey, name: &str) -> Option<Arc<Group>> {
        active(&self.definitions.borrow(), key, name)
    }

    /// Serves a group of the home's partition to one more consumer.
    pub async fn join(
        self: &Arc<Self>,
        home: &Arc<dyn PartitionHome>,
        group: &str,
        joining: Joining,
    ) -> Result<Served, JoinError> {
        for _ in 0..JOIN_TRIES {
            if home.lost().is_cancelled() {
                return Err(JoinError::NotHome);
            }
            let definition = self.group(home.key(), group).ok_or(JoinError::NoGroup)?;
            let commands = match self.task(home, group) {
                Some(commands) => commands,
                None => self.start(home, &definition).await?,
            };
            let (reply, served) = oneshot::channel();
            if commands.send(Command::Join { joining, reply }).await.is_ok()
                && let Ok(served) = served.await
            {
                return Ok(served);
            }
        }
        Err(JoinError::NotHome)
    }

    /// What a served group is doing; None: it has no consumers here.
    pub async fn standing(&self, key: &PartitionKey, group: &str) -> Option<Standing> {
        let commands = self.lock().get(&(key.clone(), group.to_owned()))?.commands.clone();
        let (reply, standing) = oneshot::channel();
        commands.send(Command::Standing(reply)).await.ok()?;
        standing.await.ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(PartitionKey, String), Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn task(&self, home: &Arc<dyn PartitionHome>, group: &str) -> Option<mpsc::Sender<Command>> {
        let tasks = self.lock();
        let task = tasks.get(&(home.key().clone(), group.to_owned()))?;
        task.alive().then(|| task.commands.clone())
    }

    async fn start(
        self: &Arc<Self>,
        home: &Arc<dyn PartitionHome>,
        group: &Arc<Group>,
    ) -> Result<mpsc::Sender<Command>, JoinError> {
        let cursor = self.cursor(home, &group.name).await?;
        let (commands, received) = mpsc::channel(COMMANDS);
        let number = self.seams.number();
        {
            let mut tasks = self.lock();
            let slot = (home.key().clone(), group.name.clone());
            // Somebody else may have started one while the cursor was read.
            if let Some(task) = tasks.get(&slot).filter(|task| task.alive()) {
                return Ok(task.commands.clone());
            }
            let task = Task { number, commands: commands.clone(), home: Arc::clone(home) };
            tasks.insert(slot, task);
        }
        let filters = group.filters.iter().map(|filter| filter.clone().into_bytes()).collect();
        let run = Run {
            serving: Arc::clone(self),
            number,
            home: Arc::clone(home),
            group: Arc::clone(group),
            dispatch: Dispatch::new(filters, cursor),
            consumers: HashMap::new(),
            received,
            commands: commands.downgrade(),
            wake: Arc::new(Notify::new()),
            born: Instant::now(),
            caught_up: false,
            reading: None,
            writing: None,
            pause: None,
            backoff: fresh_backoff(),
            commit_at: None,
        };
        tokio::spawn(run.run());
        Ok(commands)
    }

    /// A defined group's cursor is never absent for long; one that was lost begins at what is retained, never later.
    async fn cursor(&self, home: &Arc<dyn PartitionHome>, group: &str) -> Result<GroupCursor, StoreError> {
        if let Some(cursor) = home.cursors().await?.groups.remove(group) {
            return Ok(cursor);
        }
        warn!(partition = %home.key(), group, "the group has no cursor: it begins at the oldest retained record");
        self.store.create_cursor(home.key(), group, CursorStart::Earliest).await?;
        Ok(home.cursors().await?.groups.remove(group).unwrap_or_default())
    }
}

fn active(definitions: &Definitions, key: &PartitionKey, name: &str) -> Option<Arc<Group>> {
    let tenant = definitions.tenants.get(&key.tenant)?;
    tenant.groups.get(name).filter(|group| group.active).cloned()
}

fn fresh_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(2))
}

struct Consumer {
    sending: Sending,
    /// Handed out, and no room in the channel yet: bounded by the consumer's credit and the look-ahead.
    waiting: VecDeque<Batch>,
}

type Reading = Pin<Box<dyn Future<Output = Result<Vec<Arc<StoredEntry>>, StoreError>> + Send>>;
type Writing = Pin<Box<dyn Future<Output = Result<(), CommitError>> + Send>>;

/// One task.
struct Run {
    serving: Arc<Serving>,
    number: u64,
    home: Arc<dyn PartitionHome>,
    group: Arc<Group>,
    dispatch: Dispatch,
    consumers: HashMap<ConsumerId, Consumer>,
    received: mpsc::Receiver<Command>,
    commands: mpsc::WeakSender<Command>,
    wake: Arc<Notify>,
    born: Instant,
    /// Nothing was above the last read.
    caught_up: bool,
    reading: Option<Reading>,
    writing: Option<Writing>,
    /// After a failure of the store: nothing is read or written before.
    pause: Option<Instant>,
    backoff: Backoff,
    commit_at: Option<Instant>,
}

enum Turn {
    Command(Option<Command>),
    Read(Result<Vec<Arc<StoredEntry>>, StoreError>),
    Wrote(Result<(), CommitError>),
    Appended,
    Wake,
    Poll,
    Defined,
    Lost,
}

impl Run {
    async fn run(mut self) {
        let mut last = self.home.last();
        let mut definitions = self.serving.definitions.clone();
        let mut poll = Instant::now() + POLL_EVERY;
        // The first command is the join that started the task.
        let ended = loop {
            self.turn_work();
            // While the store is left alone its writes wait as well.
            let store = self.pause.or(self.commit_at);
            let wake = self.deadline().into_iter().chain(store).min();
            let wake = wake.map_or(poll, |at| at.min(poll));
            let turn = tokio::select! {
                biased;
                () = self.home.lost().cancelled() => Turn::Lost,
                command = self.received.recv() => Turn::Command(command),
                read = ready(&mut self.reading) => Turn::Read(read),
                wrote = ready(&mut self.writing) => Turn::Wrote(wrote),
                Ok(()) = last.changed() => Turn::Appended,
                changed = definitions.changed() => if changed.is_ok() { Turn::Defined } else { Turn::Lost },
                () = self.wake.notified() => Turn::Wake,
                () = sleep_until(wake) => Turn::Poll,
            };
            match turn {
                Turn::Command(Some(command)) => self.obey(command),
                Turn::Command(None) => break Ended::Stopped,
                Turn::Read(read) => self.took_in(read),
                Turn::Wrote(wrote) => self.wrote(wrote),
                Turn::Appended => self.caught_up = false,
                Turn::Poll if Instant::now() >= poll => {
                    poll = Instant::now() + POLL_EVERY;
                    self.caught_up = false;
                }
                Turn::Poll | Turn::Wake => {}
                Turn::Defined if self.defined() => {}
                Turn::Defined => break Ended::Deleted,
                Turn::Lost => break Ended::Lost,
            }
            // What a consumer said before it went is heard first: otherwise others get what is done.
            while let Ok(command) = self.received.try_recv() {
                self.obey(command);
            }
            self.drop_gone();
            if self.consumers.is_empty() && self.close().await {
                return;
            }
        };
        self.end(ended);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn deadline(&self) -> Option<Instant> {
        self.dispatch.deadline().map(|at| self.born + Duration::from_millis(at))
    }

    fn defined(&self) -> bool {
        let now = self.serving.group(self.home.key(), &self.group.name);
        now.is_some_and(|group| group.created_at == self.group.created_at)
    }

    /// Hands out, reads and writes as far as that is possible now.
    fn turn_work(&mut self) {
        self.flush();
        for hand_out in self.dispatch.pump(self.now()) {
            if let Some(consumer) = self.consumers.get_mut(&hand_out.consumer) {
                consumer.waiting.push_back(batch(self.home.key().partition, hand_out));
            }
        }
        self.flush();
        let unreadable = self.dispatch.take_unreadable();
        if unreadable > 0 {
            error!(partition = %self.home.key(), group = self.group.name, records = unreadable,
                "records that can't be read were passed");
        }
        if self.pause.is_some_and(|until| until > Instant::now()) {
            return;
        }
        self.pause = None;
        if self.reading.is_none() && !self.caught_up && self.dispatch.wants() {
            let (home, after) = (Arc::clone(&self.home), self.dispatch.read_to());
            self.reading = Some(Box::pin(async move { home.read(after, READ_ENTRIES, READ_BYTES).await }));
        }
        if self.commit_at.is_none() && self.writing.is_none() && self.dispatch.has_change() {
            self.commit_at = Some(Instant::now() + COMMIT_EVERY);
        }
        if self.writing.is_none() && self.commit_at.is_some_and(|at| at <= Instant::now()) {
            self.commit_at = None;
            if let Some(change) = self.dispatch.change(&self.group.name) {
                let home = Arc::clone(&self.home);
                self.writing = Some(Box::pin(async move { home.commit(vec![change]).await }));
            }
        }
    }

    /// Moves batches into the consumers' channels as far as there is room.
    fn flush(&mut self) {
        for (id, consumer) in &mut self.consumers {
            while let Some(batch) = consumer.waiting.pop_front() {
                if let Err(mpsc::error::TrySendError::Full(batch)) = consumer.sending.batches.try_send(batch)
                {
                    consumer.waiting.push_front(batch);
                    break;
                }
            }
            self.dispatch.set_blocked(*id, !consumer.waiting.is_empty());
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Join { joining, reply } => {
                let Some(commands) = self.commands.upgrade() else { return };
                let (served, sending) = Served::new(joining.consumer, commands, &self.wake);
                if reply.send(served).is_ok() {
                    self.dispatch.join(joining.consumer, joining.credit, joining.ack_timeout_ms);
                    self.consumers.insert(joining.consumer, Consumer { sending, waiting: VecDeque::new() });
                }
            }
            Command::Say { consumer, say: Say::Credit(credit) } => self.dispatch.set_credit(consumer, credit),
            Command::Say { say: Say::Acks(acks), .. } => {
                for range in &acks.ranges {
                    self.dispatch.ack(entry_of(range), range.index, range.count);
                }
            }
            Command::Say { say: Say::Nacks(nacks), .. } => {
                let (delay, now) = (u64::from(nacks.delay_ms), self.now());
                for range in &nacks.ranges {
                    self.dispatch.nack(entry_of(range), range.index, range.count, delay, now);
                }
            }
            Command::Standing(reply) => drop(reply.send(self.dispatch.standing())),
        }
    }

    fn took_in(&mut self, read: Result<Vec<Arc<StoredEntry>>, StoreError>) {
        match read {
            Ok(entries) => {
                self.backoff = fresh_backoff();
                self.caught_up = entries.is_empty();
                entries.iter().for_each(|entry| self.dispatch.offer(entry));
            }
            Err(error) => self.fail(&error),
        }
    }

    fn wrote(&mut self, wrote: Result<(), CommitError>) {
        if let Err(error) = wrote {
            self.dispatch.say_again();
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &dyn std::error::Error) {
        let pause = self.backoff.step(&self.serving.seams);
        warn!(partition = %self.home.key(), group = self.group.name, %error, again_ms = pause.as_millis(),
            "a group can't go on for now");
        self.pause = Some(Instant::now() + pause);
    }

    fn drop_gone(&mut self) {
        let dispatch = &mut self.dispatch;
        self.consumers.retain(|id, consumer| {
            let here = !consumer.sending.batches.is_closed();
            if !here {
                dispatch.leave(*id);
            }
            here
        });
    }

    /// Nobody is left: writes the cursor and ends, unless somebody joins meanwhile.
    async fn close(&mut self) -> bool {
        if let Some(writing) = self.writing.take() {
            let wrote = writing.await;
            self.wrote(wrote);
        }
        if let Some(change) = self.dispatch.change(&self.group.name)
            && let Err(error) = self.home.commit(vec![change]).await
        {
            // What is not written comes again: to the next consumer, as redelivered.
            debug!(partition = %self.home.key(), %error, "the last cursor was not written");
            self.dispatch.say_again();
        }
        let serving = Arc::clone(&self.serving);
        let mut tasks = serving.lock();
        if let Ok(command) = self.received.try_recv() {
            drop(tasks);
            self.obey(command);
            return false;
        }
        let slot = (self.home.key().clone(), self.group.name.clone());
        if tasks.get(&slot).is_some_and(|task| task.number == self.number) {
            tasks.remove(&slot);
        }
        true
    }

    /// Tells the consumers why, and goes.
    fn end(self, ended: Ended) {
        for consumer in self.consumers.values() {
            let _ = consumer.sending.ended.set(ended);
        }
        let slot = (self.home.key().clone(), self.group.name.clone());
        let mut tasks = self.serving.lock();
        if tasks.get(&slot).is_some_and(|task| task.number == self.number) {
            tasks.remove(&slot);
        }
    }
}

async fn ready<T>(slot: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match slot {
        Some(future) => {
            let outcome = future.await;
            *slot = None;
            outcome
        }
        None => std::future::pending().await,
    }
}

fn batch(partition: u32, hand_out: HandOut) -> Batch {
    Batch {
        partition,
        term: hand_out.entry.term.0,
        sequence: hand_out.entry.sequence,
        records: hand_out.records,
        indexes: hand_out.indexes,
        delivery_counts: hand_out.counts,
    }
}
