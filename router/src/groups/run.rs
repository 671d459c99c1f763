//! The task that serves one group of one partition: reads the home's log, drives the [`Dispatch`], and writes the cursor
//! under the home's term, at most [`COMMIT_EVERY`] after an ack and once more when the last consumer has gone.
//!
//! Reads and writes of the store are one at a time each, beside the dispatch, so that a stalled store holds up neither acks
//! nor what is already read.

use std::{collections::VecDeque, future::Future, pin::Pin, sync::Arc, time::Duration};

use hashbrown::HashMap;
use penstock_common::{
    registry::{Group, GroupMode, GroupOptions},
    store::{CommitError, GroupCursor, StoreError, StoredEntry},
};
use penstock_proto::{messaging::Batch, peer::HeldHere};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tracing::{debug, error, warn};

use super::{
    clients::ConsumerId,
    dispatch::{Dispatch, HandOut, Rules},
    home::PartitionHome,
    serve::{Failed, Serving},
    served::{Command, Ended, Joining, Occupied, Say, Seek, Sending, Served, entry_of},
};
use crate::{consume::FIRST, pace::Backoff};

#[cfg(test)]
mod tests;

/// From an ack to its write.
pub const COMMIT_EVERY: Duration = Duration::from_millis(100);
/// The last write of a home that stops is given up after this.
const LAST_COMMIT: Duration = Duration::from_secs(1);
/// The log is looked at although nothing was appended.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// One read of the log.
const READ_ENTRIES: usize = 1_000;
const READ_BYTES: usize = 1 << 20;

fn fresh_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(2))
}

struct Consumer {
    joining: Joining,
    sending: Sending,
    /// Handed out, and no room in the channel yet: bounded by the consumer's credit and the look-ahead.
    waiting: VecDeque<Batch>,
}

type Reading = Pin<Box<dyn Future<Output = Result<Vec<Arc<StoredEntry>>, StoreError>> + Send>>;
type Writing = Pin<Box<dyn Future<Output = Result<(), CommitError>> + Send>>;

/// One task.
pub(super) struct Run {
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
    /// Something was appended after the read under way had begun: it may have missed it.
    appended_since_read: bool,
    reading: Option<Reading>,
    writing: Option<Writing>,
    /// After a failure of the store: nothing is read or written before.
    pause: Option<Instant>,
    backoff: Backoff,
    commit_at: Option<Instant>,
    /// Where the group is to go.
    seeking: Option<Seek>,
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
    pub(super) fn new(
        serving: Arc<Serving>,
        number: u64,
        home: Arc<dyn PartitionHome>,
        group: Arc<Group>,
        received: mpsc::Receiver<Command>,
        commands: mpsc::WeakSender<Command>,
    ) -> Self {
        Self {
            serving,
            number,
            home,
            group,
            dispatch: Dispatch::new(Vec::new(), GroupCursor::default()),
            consumers: HashMap::new(),
            received,
            commands,
            wake: Arc::new(Notify::new()),
            born: Instant::now(),
            caught_up: false,
            appended_since_read: false,
            reading: None,
            writing: None,
            pause: None,
            backoff: fresh_backoff(),
            commit_at: None,
            seeking: None,
        }
    }

    pub(super) async fn run(mut self, failed: Failed) {
        let (serving, home, group) =
            (Arc::clone(&self.serving), Arc::clone(&self.home), Arc::clone(&self.group));
        let held = holdings(&serving, &home, &group).await;
        match self.serving.cursor(&self.home, &self.group.name).await {
            Ok((cursor, trimmed)) => {
                self.dispatch = Dispatch::new(filters(&self.group), cursor);
                self.dispatch.set_rules(rules(&self.group));
                self.dispatch.pass(trimmed.0, trimmed.1.records);
                self.take_over(&held);
                self.serve().await;
            }
            Err(error) => {
                let _ = failed.set(error);
                self.end(Ended::Stopped).await;
            }
        }
    }

    fn take_over(&mut self, held: &HeldHere) {
        let now = self.now();
        for holder in &held.holders {
            for (range, left) in holder.ranges.iter().zip(&holder.left_ms) {
                let records = (range.index, range.count);
                self.dispatch.reserve(holder.consumer, entry_of(range), records, u64::from(*left), now);
            }
        }
        for range in &held.acked {
            self.dispatch.ack(entry_of(range), range.index, range.count);
        }
    }

    async fn serve(mut self) {
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
                Turn::Appended => {
                    self.caught_up = false;
                    self.appended_since_read = true;
                }
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
            if let Some(seek) = self.seeking.take() {
                self.seek(seek).await;
            }
            self.drop_gone();
            if self.consumers.is_empty() && self.close().await {
                return;
            }
        };
        self.end(ended).await;
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn deadline(&self) -> Option<Instant> {
        self.dispatch.deadline().map(|at| self.born + Duration::from_millis(at))
    }

    /// Whether it is still the same group; takes over what was set meanwhile.
    fn defined(&mut self) -> bool {
        let now = self.serving.group(self.home.key(), &self.group.name);
        let Some(group) = now.filter(|group| group.created_at == self.group.created_at) else { return false };
        self.dispatch.set_rules(rules(&group));
        self.group = group;
        true
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
        self.count();
        if self.pause.is_some_and(|until| until > Instant::now()) {
            return;
        }
        self.pause = None;
        if self.reading.is_none() && !self.caught_up && self.dispatch.wants() {
            let (home, after) = (Arc::clone(&self.home), self.dispatch.read_to());
            self.appended_since_read = false;
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

    /// Counts what was done with records since the last time.
    fn count(&mut self) {
        let tally = self.dispatch.take_tally();
        self.serving.records.add(tally);
        if tally.unreadable > 0 {
            error!(partition = %self.home.key(), group = self.group.name, records = tally.unreadable,
                "records that can't be read were passed");
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
            Command::Join { joining, reply } => self.join(joining, reply),
            Command::Say { consumer, say: Say::Credit(credit) } => {
                self.dispatch.set_credit(consumer, credit);
                if let Some(own) = self.consumers.get_mut(&consumer) {
                    own.joining.credit = credit;
                }
            }
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
            // Of two, the one that came later is the one that is wanted.
            Command::Seek(seek) => self.seeking = Some(seek),
            Command::Standing(reply) => {
                // Counts are never behind what is told.
                self.count();
                let _ = reply.send(self.dispatch.standing());
            }
        }
    }

    fn join(&mut self, joining: Joining, reply: oneshot::Sender<Result<Served, Occupied>>) {
        let Some(commands) = self.commands.upgrade() else { return };
        self.drop_gone();
        let mut others = self.consumers.keys().copied().filter(|id| *id != joining.consumer);
        if self.group.options.mode != GroupMode::Shared
            && let Some(other) = others.next()
        {
            if self.home.key().partition == FIRST {
                // The answer to one that has given up is nobody's.
                let _ = reply.send(Err(Occupied));
                return;
            }
            if let Some(replaced) = self.consumers.remove(&other) {
                let _ = replaced.sending.ended.set(Ended::Replaced);
            }
            self.dispatch.leave(other);
        }
        let (served, sending) = Served::new(joining.consumer, commands, &self.wake);
        if reply.send(Ok(served)).is_ok() {
            self.dispatch.join(joining.consumer, joining.credit, joining.ack_timeout_ms);
            let consumer = Consumer { joining, sending, waiting: VecDeque::new() };
            self.consumers.insert(joining.consumer, consumer);
        }
    }

    /// Sets the cursor anew and begins there, with the same consumers: what they hold can't be acknowledged any more.
    async fn seek(&mut self, seek: Seek) {
        if let Some(writing) = self.writing.take() {
            let wrote = writing.await;
            self.wrote(wrote);
        }
        let sought = async {
            self.home.seek(&self.group.name, seek.to).await?;
            Ok::<_, CommitError>(self.serving.cursor(&self.home, &self.group.name).await?)
        };
        let sought = match sought.await {
            Ok((cursor, _)) => {
                self.count();
                self.dispatch = Dispatch::sought(filters(&self.group), cursor);
                self.dispatch.set_rules(rules(&self.group));
                for consumer in self.consumers.values_mut() {
                    let Joining { consumer: id, credit, ack_timeout_ms } = consumer.joining;
                    consumer.waiting.clear();
                    self.dispatch.join(id, credit, ack_timeout_ms);
                }
                (self.reading, self.caught_up, self.commit_at) = (None, false, None);
                Ok(())
            }
            Err(error) => Err(error),
        };
        // Who asked may have gone.
        let _ = seek.reply.send(sought);
    }

    fn took_in(&mut self, read: Result<Vec<Arc<StoredEntry>>, StoreError>) {
        match read {
            Ok(entries) => {
                self.backoff = fresh_backoff();
                self.caught_up = entries.is_empty() && !self.appended_since_read;
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
        self.count();
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
        let mut late = None;
        let received = &mut self.received;
        let ended = self.serving.forget(self.home.key(), &self.group.name, self.number, || {
            late = received.try_recv().ok();
            late.is_none()
        });
        if let Some(command) = late {
            self.obey(command);
        }
        ended
    }

    /// Tells the consumers why, and goes. A home that stops, rather than being fenced, still takes the last acks.
    async fn end(mut self, ended: Ended) {
        self.count();
        for (_, consumer) in self.consumers.drain() {
            let _ = consumer.sending.ended.set(ended);
        }
        if self.writing.take().is_some() {
            self.dispatch.say_again();
        }
        let acked = if ended == Ended::Deleted { None } else { self.dispatch.change(&self.group.name) };
        if let Some(change) = acked {
            let _ = tokio::time::timeout(LAST_COMMIT, self.home.commit(vec![change])).await;
        }
        self.serving.forget(self.home.key(), &self.group.name, self.number, || true);
    }
}

/// What consumers hold since an earlier home. A group for one consumer at a time begins again with whoever has it now.
async fn holdings(serving: &Serving, home: &Arc<dyn PartitionHome>, group: &Group) -> HeldHere {
    match group.options.mode {
        GroupMode::Shared => serving.holders.holdings(home.key(), &group.name, home.term()).await,
        GroupMode::Exclusive | GroupMode::Failover => HeldHere::default(),
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

fn rules(group: &Group) -> Rules {
    let GroupOptions { max_deliveries, unordered, .. } = group.options;
    Rules { number: group.number(), max_deliveries, unordered }
}

fn filters(group: &Group) -> Vec<Vec<u8>> {
    group.filters.iter().map(|filter| filter.clone().into_bytes()).collect()
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
