//! Joins the homes of a tenant's partitions for one consumer: finds each home, here or one hop away, joins the group there,
//! and joins again wherever the home has moved. Which record goes to whom is decided at the homes ([`crate::groups`]).
//!
//! Invariants: the consumer never has more records in its hands than its credit (a record that comes again while it is
//! there counts once); an ack goes to the partition's present home, also when an earlier one handed the record out.

use std::{collections::VecDeque, time::Duration};

use penstock_common::{
    name::{PartitionKey, TenantName},
    registry::Member,
    rendezvous,
};
use penstock_proto::{
    messaging::{Acks, Batch, Nacks},
    peer::{Join, ServeRequest, ServeResponse, serve_request, serve_response},
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::debug;

use crate::{
    door::{Inside, status},
    groups::served::{Joining, Say, Served},
    pace::Backoff,
};

/// Batches of all partitions that wait for the consumer, beside the homes' own.
const EVENTS: usize = 64;
/// What the consumer says and one partition has not taken.
const SAYINGS: usize = 64;
/// Acks kept while a partition has no home, ranges. Beyond it the oldest are forgotten: their records come again.
const KEPT_RANGES: usize = 20_000;
/// For what a leaving consumer said last to reach all homes; what is later is forgotten: those records come again.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);
/// A peer joins, or refuses, within this.
const JOIN_LIMIT: Duration = Duration::from_secs(5);

/// A consumer of one group of a tenant, on all partitions.
#[derive(Debug, Clone)]
pub struct Consumer {
    /// Whose records.
    pub tenant: TenantName,
    /// The tenant's partitions.
    pub partitions: u32,
    /// The group's name.
    pub group: String,
    /// Unique.
    pub consumer: u64,
    /// Records in its hands at most.
    pub credit: u32,
    /// After this time without an ack a record is handed out again, milliseconds.
    pub ack_timeout_ms: u32,
}

/// What comes from a partition.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Joined at the partition's home.
    Joined(u32),
    /// Its home is gone or has moved; it is being joined again.
    Left(u32),
    /// Records.
    Batch(Batch),
}

/// The partitions of one consumer. Dropping it leaves all homes at once; what was said and not yet passed on is forgotten.
pub struct Partitions {
    events: mpsc::Receiver<Event>,
    sayings: Vec<mpsc::Sender<Say>>,
    tasks: JoinSet<()>,
}

impl Partitions {
    /// Begins to join all of them.
    pub fn join(inside: &Inside, consumer: &Consumer) -> Self {
        let (events, received) = mpsc::channel(EVENTS);
        let mut tasks = JoinSet::new();
        let mut sayings = Vec::new();
        for partition in 0..consumer.partitions {
            let (say, said) = mpsc::channel(SAYINGS);
            sayings.push(say);
            let follower = Follower {
                inside: inside.clone(),
                key: PartitionKey { tenant: consumer.tenant.clone(), partition },
                consumer: consumer.clone(),
                window: window(consumer.credit, consumer.partitions),
                kept: VecDeque::new(),
                said,
                events: events.clone(),
            };
            tasks.spawn(follower.run());
        }
        Self { events: received, sayings, tasks }
    }

    /// The next event of any partition.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Passes acks on, each to its partition.
    pub async fn ack(&self, acks: Acks) {
        for (partition, ranges) in by_partition(acks.ranges, self.sayings.len()) {
            self.say(partition, Say::Acks(Acks { ranges })).await;
        }
    }

    /// Passes nacks on, each to its partition.
    pub async fn nack(&self, nacks: Nacks) {
        let delay_ms = nacks.delay_ms;
        for (partition, ranges) in by_partition(nacks.ranges, self.sayings.len()) {
            self.say(partition, Say::Nacks(Nacks { ranges, delay_ms })).await;
        }
    }

    /// A new bound for records in the consumer's hands.
    pub async fn set_credit(&self, credit: u32) {
        let partitions = u32::try_from(self.sayings.len()).unwrap_or(u32::MAX);
        for partition in 0..self.sayings.len() {
            self.say(partition, Say::Credit(window(credit, partitions))).await;
        }
    }

    /// Leaves all homes when everything that was said is passed on.
    pub async fn leave(mut self) {
        self.sayings.clear();
        // Batches that still come are for nobody; they go to the group's other consumers.
        let passed = async {
            while self.events.recv().await.is_some() {}
            while self.tasks.join_next().await.is_some() {}
        };
        if timeout(LEAVE_LIMIT, passed).await.is_err() {
            debug!("a consumer left before everything that it said was passed on");
        }
    }

    async fn say(&self, partition: usize, say: Say) {
        if let Some(sender) = self.sayings.get(partition) {
            let _ = sender.send(say).await;
        }
    }
}

fn window(credit: u32, partitions: u32) -> u32 {
    (credit / partitions.max(1)).max(1)
}

type Range = penstock_proto::messaging::Range;

/// Ranges of partitions that don't exist are dropped.
fn by_partition(ranges: Vec<Range>, partitions: usize) -> impl Iterator<Item = (usize, Vec<Range>)> {
    let mut sorted = vec![Vec::new(); partitions];
    for range in ranges {
        if let Some(own) = sorted.get_mut(range.partition as usize) {
            own.push(range);
        }
    }
    sorted.into_iter().enumerate().filter(|(_, ranges)| !ranges.is_empty())
}

/// Keeps one partition joined.
struct Follower {
    inside: Inside,
    key: PartitionKey,
    consumer: Consumer,
    window: u32,
    /// Acks that were said while there was no home.
    kept: VecDeque<Range>,
    said: mpsc::Receiver<Say>,
    events: mpsc::Sender<Event>,
}

/// A home that serves this consumer.
enum Source {
    Here(Served),
    There { say: mpsc::Sender<ServeRequest>, batches: Box<Streaming<ServeResponse>> },
}

impl Follower {
    async fn run(mut self) {
        let fresh = || Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        let mut backoff = fresh();
        loop {
            match self.find().await {
                Ok(source) => {
                    backoff = fresh();
                    if self.events.send(Event::Joined(self.key.partition)).await.is_err() {
                        return;
                    }
                    self.follow(source).await;
                    if self.said.is_closed() && self.said.is_empty() {
                        return;
                    }
                    if self.events.send(Event::Left(self.key.partition)).await.is_err() {
                        return;
                    }
                }
                Err(status) => debug!(partition = %self.key, group = self.consumer.group, %status,
                    "a partition can't be joined for now"),
            }
            let pause = tokio::time::sleep(backoff.step(&self.inside.seams));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    said = self.said.recv() => match said {
                        Some(say) => self.keep(say),
                        None => return,
                    },
                }
            }
        }
    }

    /// Without a home: acks wait for the next one, the rest is void with the home that it was meant for.
    fn keep(&mut self, say: Say) {
        match say {
            Say::Acks(acks) => self.kept.extend(acks.ranges),
            Say::Credit(window) => self.window = window,
            Say::Nacks(_) => {}
        }
        while self.kept.len() > KEPT_RANGES {
            self.kept.pop_front();
        }
    }

    /// Joins the present home: here, at the router that rendezvous names, or at the holder that this one names.
    async fn find(&self) -> Result<Source, Status> {
        let members = self.inside.homes.members();
        let own = self.inside.homes.incarnation();
        self.inside.peers.keep(&members);
        let named = rendezvous::home(&self.key, members.routers.keys().copied()).unwrap_or(own);
        let refused = match self.at(members.routers.get(&named), named, false).await {
            Err(status) => status,
            joined => return joined,
        };
        let Some(holder) = status::holder_in(&refused) else { return Err(refused) };
        match holder.filter(|holder| *holder != named).and_then(|holder| members.routers.get(&holder)) {
            // Should the holder have forgotten that it is one, it becomes the home again.
            Some(member) => self.at(Some(member), member.incarnation, true).await,
            None => self.at(members.routers.get(&named), named, true).await,
        }
    }

    async fn at(&self, member: Option<&Member>, router: u64, take: bool) -> Result<Source, Status> {
        if router == self.inside.homes.incarnation() || self.inside.homes.get(&self.key).is_some() {
            let home = crate::peer::present_home(&self.inside, &self.key, take).await?;
            let joining = Joining {
                consumer: self.consumer.consumer,
                credit: self.window,
                ack_timeout_ms: u64::from(self.consumer.ack_timeout_ms),
            };
            let joined = self.inside.serving.join(&home, &self.consumer.group, joining).await;
            return joined.map(Source::Here).map_err(|error| status::of_join(&error));
        }
        let member = member.ok_or_else(|| Status::unavailable("the partition's router is gone"))?;
        let limited = timeout(JOIN_LIMIT, self.at_peer(member, take)).await;
        limited.unwrap_or_else(|_| Err(Status::unavailable("the partition's router does not answer")))
    }

    async fn at_peer(&self, member: &Member, take: bool) -> Result<Source, Status> {
        let mut client =
            self.inside.peers.client(member).map_err(|error| Status::unavailable(error.to_string()))?;
        let (say, stream) = mpsc::channel(SAYINGS);
        let join = Join {
            tenant: self.key.tenant.to_string(),
            partition: self.key.partition,
            group: self.consumer.group.clone(),
            consumer: self.consumer.consumer,
            credit: self.window,
            ack_timeout_ms: self.consumer.ack_timeout_ms,
            take,
        };
        let first = ServeRequest { kind: Some(serve_request::Kind::Join(join)) };
        let _ = say.try_send(first);
        let mut batches = client.serve(ReceiverStream::new(stream)).await?.into_inner();
        match batches.message().await?.and_then(|response| response.kind) {
            Some(serve_response::Kind::Joined(_)) => Ok(Source::There { say, batches: Box::new(batches) }),
            _ => Err(Status::unavailable("the partition's router did not join the group")),
        }
    }

    /// Until the home is lost, or the consumer has left.
    async fn follow(&mut self, mut source: Source) {
        if !self.kept.is_empty() {
            let ranges = std::mem::take(&mut self.kept).into();
            source.say(Say::Acks(Acks { ranges })).await;
        }
        loop {
            tokio::select! {
                batch = source.next() => match batch {
                    Ok(batch) => {
                        if self.hand_on(&mut source, batch).await.is_err() {
                            return source.finish().await;
                        }
                    }
                    Err(status) => {
                        debug!(partition = %self.key, group = self.consumer.group, %status, "a home ended");
                        return;
                    }
                },
                said = self.said.recv() => match said {
                    Some(say) => self.pass(&mut source, say).await,
                    None => return source.finish().await,
                },
            }
        }
    }

    /// Waits for the consumer, and takes what it says meanwhile: otherwise both would wait for each other.
    async fn hand_on(&mut self, source: &mut Source, batch: Batch) -> Result<(), Closed> {
        let events = self.events.clone();
        let send = events.send(Event::Batch(batch));
        tokio::pin!(send);
        loop {
            tokio::select! {
                sent = &mut send => return sent.map_err(|_| Closed),
                said = self.said.recv() => match said {
                    Some(say) => self.pass(source, say).await,
                    None => return Err(Closed),
                },
            }
        }
    }

    async fn pass(&mut self, source: &mut Source, say: Say) {
        if let Say::Credit(window) = say {
            self.window = window;
        }
        source.say(say).await;
    }
}

/// The consumer is gone.
struct Closed;

impl Source {
    async fn next(&mut self) -> Result<Batch, Status> {
        match self {
            Self::Here(served) => served.next().await.map_err(status::of_ended),
            Self::There { batches, .. } => loop {
                let response =
                    batches.message().await?.ok_or_else(|| Status::unavailable("the stream ended"))?;
                if let Some(serve_response::Kind::Batch(batch)) = response.kind {
                    return Ok(batch);
                }
            },
        }
    }

    /// Says that nothing follows, and waits until the home has heard everything.
    async fn finish(self) {
        if let Self::There { say, mut batches } = self {
            drop(say);
            while let Ok(Some(_)) = batches.message().await {}
        }
    }

    async fn say(&mut self, say: Say) {
        match self {
            Self::Here(served) => served.say(say).await,
            Self::There { say: sender, .. } => {
                let kind = match say {
                    Say::Acks(acks) => serve_request::Kind::Acks(acks),
                    Say::Nacks(nacks) => serve_request::Kind::Nacks(nacks),
                    Say::Credit(credit) => serve_request::Kind::Credit(credit),
                };
                let _ = sender.send(ServeRequest { kind: Some(kind) }).await;
            }
        }
    }
}
