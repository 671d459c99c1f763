//! Joins the homes of a tenant's partitions for one consumer. Each partition is kept joined by a [`follower`]; which
//! consumer an exclusive or failover group belongs to is decided at one of them ([`lead`]). Which record goes to whom is
//! decided at the homes ([`crate::groups`]).
//!
//! Invariants: the consumer never has more records in its hands than its credit (a record that comes again while it is
//! there counts once); an ack goes to the partition's present home, also when an earlier one handed the record out.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use penstock_common::{
    name::{PartitionKey, TenantName},
    registry::GroupMode,
};
use penstock_proto::messaging::{Acks, Batch, Nacks};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tonic::Status;
use tracing::debug;

use crate::{door::Inside, groups::served::Say};

mod follower;
mod lead;

use follower::Follower;
pub(crate) use lead::FIRST;
use lead::Lead;

/// Batches of all partitions that wait for the consumer, beside the homes' own.
const EVENTS: usize = 64;
/// What the consumer says and one partition has not taken.
const SAYINGS: usize = 64;
/// For what a leaving consumer said last to reach all homes; what is later is forgotten: those records come again.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);

/// A consumer of one group of a tenant, on all partitions.
#[derive(Debug, Clone)]
pub struct Consumer {
    /// Whose records.
    pub tenant: TenantName,
    /// The tenant's partitions.
    pub partitions: u32,
    /// The group's name.
    pub group: String,
    /// How the group is shared.
    pub mode: GroupMode,
    /// Unique.
    pub consumer: u64,
    /// Records in its hands at most.
    pub credit: u32,
    /// After this time without an ack a record is handed out again, milliseconds.
    pub ack_timeout_ms: u32,
}

/// What comes from a partition.
#[derive(Debug, Clone)]
pub enum Event {
    /// Joined at the partition's home.
    Joined(u32),
    /// Its home is gone or has moved; it is being joined again.
    Left(u32),
    /// Records.
    Batch(Batch),
    /// The group is exclusive and another consumer has it: nothing follows.
    Occupied(Status),
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
        let lead = Arc::new(Lead::new(consumer.mode));
        for partition in 0..consumer.partitions {
            let (say, said) = mpsc::channel(SAYINGS);
            sayings.push(say);
            let key = PartitionKey { tenant: consumer.tenant.clone(), partition };
            let slot = (key.clone(), consumer.group.clone());
            let follower = Follower {
                inside: inside.clone(),
                key,
                entered: inside.holdings.enter(slot, consumer.consumer, consumer.ack_timeout_ms),
                consumer: consumer.clone(),
                lead: Arc::clone(&lead),
                window: window(consumer.credit, consumer.partitions),
                kept: VecDeque::new(),
                nacked: VecDeque::new(),
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
