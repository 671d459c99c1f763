//! A consumer's WebSocket: records of its group go out, acks come back. Joining the homes is [`crate::consume`]'s job, what the
//! frames look like [`super::frame`]'s.
//!
//! Invariants: at most [`CREDIT`] records are in the client's hands; a batch is taken only when the one before it is on the
//! wire, so a client that does not read holds up nobody but itself.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::FutureExt;
use penstock_common::registry::Group;
use penstock_proto::{
    messaging::{Acks, Batch, Range},
    record::{Properties, Record, RecordBatch},
};
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep, timeout},
};
use tracing::{error, warn};

use super::{
    Door,
    avro::{Message, Metadata, PayloadFormat},
    frame::{self, AckId},
    refusal::Refusal,
    socket::{End, PING, Socket, Step},
    subscription,
    token::Grant,
    unread::Unread,
};
use crate::{
    consume::{Consumer, Event, Partitions},
    hands::Hands,
};

/// Records in a client's hands. More would time out in the hands of clients that take them one by one.
pub const CREDIT: u32 = 256;
/// For all partitions to be joined before the request is answered.
const JOIN: Duration = Duration::from_secs(10);
/// Deletions of a group by others while it is joined.
const JOIN_TRIES: usize = 3;
/// Between two looks whether the consumer before is gone.
const LOOK: Duration = Duration::from_millis(100);
/// Between two pings at least.
const PING_LEAST: Duration = Duration::from_millis(50);
/// Texts of a client that are heard together.
const TEXTS: usize = 512;

/// Why a consumer's socket ends.
enum Over {
    /// The client, or the network.
    Client(End),
    /// The client deletes its group.
    Unsubscribed,
    /// It wanted to, and that failed.
    Kept,
    /// Somebody has deleted the group.
    Deleted,
    /// Another consumer has the group, after its home was away.
    Occupied,
    /// The router drains.
    Draining,
    /// A record can't be read.
    Broken,
}

impl Over {
    fn close(&self) -> Option<(u16, &'static str)> {
        match self {
            Self::Client(end) => end.close(),
            Self::Unsubscribed => Some((1000, "unsubscribed")),
            Self::Kept => Some((1013, "the subscription can't be deleted now: try again")),
            Self::Deleted => Some((1008, "the subscription was deleted")),
            Self::Occupied => Some((1008, "another consumer has the subscription")),
            Self::Draining => Some((1001, "the router drains: connect again")),
            Self::Broken => Some((1011, "a stored record can't be read")),
        }
    }
}

/// A consumer that has joined its group.
pub struct Consuming {
    door: Arc<Door>,
    grant: Grant,
    group: Arc<Group>,
    partitions: Partitions,
    /// Partitions that are not joined.
    missing: BTreeSet<u32>,
    hands: Hands,
    /// Came, and is beyond the credit.
    waiting: VecDeque<Batch>,
    /// Of the batch that is being sent.
    out: VecDeque<Outgoing>,
    /// On its way to the client.
    unread: Unread,
    /// The client has said what is no ackId.
    puzzling: bool,
}

struct Outgoing {
    id: AckId,
    record: Record,
    times: u32,
}

impl Consuming {
    /// Joins the group of a token on all partitions; makes the group if it is not there. A client that closes and connects
    /// again at once waits here until its first connection is gone.
    pub async fn join(door: &Arc<Door>, grant: Grant) -> Result<Self, Refusal> {
        let ack_timeout_ms = u32::try_from(door.config.ack_timeout.as_millis()).unwrap_or(u32::MAX);
        let until = Instant::now() + door.config.patience;
        let mut deleted = 0;
        let mut group = subscription::ensure(&door.inside, &grant, ack_timeout_ms, until).await?;
        while deleted < JOIN_TRIES {
            let mut own = Self::begin(door, &grant, &group)?;
            match timeout(JOIN, own.joined()).await {
                Ok(Ok(true)) => return Ok(own),
                // Deleted meanwhile: it is made anew.
                Ok(Ok(false)) => {
                    deleted += 1;
                    group = subscription::ensure(&door.inside, &grant, ack_timeout_ms, until).await?;
                }
                Ok(Err(_)) if Instant::now() < until => sleep(LOOK).await,
                Ok(Err(occupied)) => return Err(occupied),
                Err(_) => break,
            }
        }
        Err(Refusal::unavailable("not all partitions answer: try again"))
    }

    fn begin(door: &Arc<Door>, grant: &Grant, group: &Arc<Group>) -> Result<Self, Refusal> {
        let consumer = Consumer {
            tenant: grant.tenant.clone(),
            partitions: door.inside.tenant(&grant.tenant)?.tenant.partitions,
            group: group.name.clone(),
            mode: group.options.mode,
            consumer: door.inside.seams.number(),
            credit: CREDIT,
            ack_timeout_ms: group.options.ack_timeout_ms,
        };
        Ok(Self {
            partitions: Partitions::join(&door.inside, &consumer),
            door: Arc::clone(door),
            grant: grant.clone(),
            group: Arc::clone(group),
            missing: (0..consumer.partitions).collect(),
            hands: Hands::new(CREDIT, consumer.ack_timeout_ms),
            waiting: VecDeque::new(),
            out: VecDeque::new(),
            unread: Unread::default(),
            puzzling: false,
        })
    }

    /// Waits until all partitions are joined; false: the group was deleted meanwhile. Refused is what is occupied.
    async fn joined(&mut self) -> Result<bool, Refusal> {
        let mut definitions = self.door.inside.registry.definitions();
        // What has changed before is looked at too.
        definitions.mark_changed();
        while !self.missing.is_empty() {
            tokio::select! {
                event = self.partitions.next() => match event {
                    Some(event) => self.event(event)?,
                    None => return Ok(false),
                },
                changed = definitions.changed() => if changed.is_err() || !self.defined() {
                    return Ok(false);
                },
            }
        }
        Ok(true)
    }

    /// How often the client is pinged: its answers tell what it has read before that comes again.
    pub fn ping(&self) -> Duration {
        let ack_timeout = Duration::from_millis(u64::from(self.group.options.ack_timeout_ms));
        (ack_timeout / 3).clamp(PING_LEAST, PING)
    }

    /// Serves the client until it goes, or has to.
    pub async fn run<S: AsyncRead + AsyncWrite + Unpin>(mut self, mut socket: Socket<S>) {
        let mut over = self.serve(&mut socket).await;
        let door = Arc::clone(&self.door);
        if matches!(over, Over::Unsubscribed)
            // Before the answer: who connects again must not find what is about to go.
            && let Err(status) = subscription::delete(&door.inside, &self.grant).await
        {
            warn!(tenant = %self.grant.tenant, group = self.group.name, %status, "a subscription can't be deleted");
            over = Over::Kept;
        }
        if let Some((code, reason)) = over.close() {
            let mut last = Vec::new();
            socket.close(code, reason, |text| last.extend(text.parse::<AckId>().ok())).await;
            self.ack(last.iter().map(AckId::range).collect()).await;
        }
        drop(socket);
        self.partitions.leave().await;
        if self.grant.claims.volatile && !matches!(over, Over::Unsubscribed | Over::Deleted) {
            subscription::left(&door.inside, &self.grant).await;
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&mut self, socket: &mut Socket<S>) -> Over {
        let door = Arc::clone(&self.door);
        let mut definitions = door.inside.registry.definitions();
        // The group may have been deleted while the request was answered.
        definitions.mark_changed();
        loop {
            if let Err(over) = self.fill() {
                return over;
            }
            let (sends, full) = (!self.out.is_empty(), !self.waiting.is_empty());
            tokio::select! {
                step = socket.step(true, sends) => match step {
                    Step::Room => if let Err(end) = self.send(socket) {
                        return Over::Client(end);
                    },
                    Step::Text(text) => if let Err(over) = self.said(&text, socket).await {
                        return over;
                    },
                    Step::Pong => self.unread.ponged(socket.pongs()),
                    Step::End(end) => return Over::Client(end),
                },
                event = self.partitions.next(), if !sends && !full => match event.map(|event| self.event(event)) {
                    Some(Ok(())) => {}
                    Some(Err(_)) => return Over::Occupied,
                    None => return Over::Deleted,
                },
                () = self.hands.relief(), if full && !sends => {}
                changed = definitions.changed() => {
                    if changed.is_err() || !self.defined() {
                        return Over::Deleted;
                    }
                }
                () = door.draining.cancelled() => return Over::Draining,
            }
        }
    }

    fn defined(&self) -> bool {
        let Ok(tenant) = self.door.inside.tenant(&self.grant.tenant) else { return false };
        let same = |group: &Arc<Group>| group.active && group.created_at == self.group.created_at;
        tenant.groups.get(&self.group.name).is_some_and(same)
    }

    fn event(&mut self, event: Event) -> Result<(), Refusal> {
        match event {
            Event::Joined(partition) => drop(self.missing.remove(&partition)),
            Event::Left(partition) => drop(self.missing.insert(partition)),
            Event::Batch(batch) => self.waiting.push_back(batch),
            Event::Occupied(status) => return Err(Refusal::occupied(status.message())),
        }
        Ok(())
    }

    /// Takes the next batch apart, if the one before it is sent and it is within the credit.
    fn fill(&mut self) -> Result<(), Over> {
        if !self.out.is_empty()
            || !self.waiting.front().is_some_and(|batch| self.hands.take(batch, Instant::now()))
        {
            return Ok(());
        }
        let Some(batch) = self.waiting.pop_front() else { return Ok(()) };
        let records = match RecordBatch::decode(batch.records) {
            Ok(records) => records.records,
            Err(fault) => {
                let (tenant, group) = (&self.grant.tenant, &self.group.name);
                error!(%tenant, group, batch.partition, batch.term, batch.sequence, %fault,
                    "a stored entry can't be read");
                return Err(Over::Broken);
            }
        };
        let outgoing = |(at, record)| {
            let index =
                batch.indexes.get(at).copied().unwrap_or_else(|| u32::try_from(at).unwrap_or(u32::MAX));
            let id = AckId { partition: batch.partition, term: batch.term, sequence: batch.sequence, index };
            Outgoing { id, record, times: batch.delivery_counts.get(at).copied().unwrap_or(1) }
        };
        self.out.extend(records.into_iter().enumerate().map(outgoing));
        Ok(())
    }

    fn send<S: AsyncRead + AsyncWrite + Unpin>(&mut self, socket: &mut Socket<S>) -> Result<(), End> {
        while let Some(outgoing) = self.out.pop_front() {
            let id = outgoing.id;
            if self.unread.contains(&id) {
                // Should the client not ack the copy that it has, it comes once more.
                self.door.metrics.held.inc();
                continue;
            }
            let avro = message(outgoing.record, outgoing.times).encode(self.door.config.generation);
            socket.send(frame::to_consumer(&id, &avro))?;
            self.unread.written(id, socket.pings());
            self.door.metrics.consumed.inc();
            return Ok(());
        }
        Ok(())
    }

    /// Takes what the client says, and what else it has said already.
    async fn said<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        text: &str,
        socket: &mut Socket<S>,
    ) -> Result<(), Over> {
        let mut said = Said::default();
        let mut over = said.hear(text).err();
        while over.is_none() && said.texts < TEXTS {
            over = match socket.step(true, false).now_or_never() {
                Some(Step::Text(text)) => said.hear(&text).err(),
                Some(Step::End(end)) => Some(Over::Client(end)),
                Some(Step::Room | Step::Pong) | None => break,
            };
        }
        self.unread.ponged(socket.pongs());
        self.puzzle(said.unknown);
        self.ack(said.acks).await;
        over.map_or(Ok(()), Err)
    }

    /// A client whose texts are no ackIds gets its records again and again: its operator has to find out why.
    fn puzzle(&mut self, unknown: u64) {
        self.door.metrics.unknown.inc_by(unknown);
        if unknown > 0 && !std::mem::replace(&mut self.puzzling, true) {
            warn!(tenant = %self.grant.tenant, group = self.group.name,
                "a consumer says texts that are no ackIds: they acknowledge nothing");
        }
    }

    async fn ack(&mut self, ranges: Vec<Range>) {
        if ranges.is_empty() {
            return;
        }
        let before = self.hands.count();
        for range in &ranges {
            self.hands.give(range);
            self.unread.acked(range);
        }
        self.door.metrics.acked.inc_by(before - self.hands.count());
        self.partitions.ack(Acks { ranges }).await;
    }
}

/// What a client has said.
#[derive(Default)]
struct Said {
    acks: Vec<Range>,
    unknown: u64,
    texts: usize,
}

impl Said {
    /// One text. Blank ones mean nothing; some clients keep a connection alive with them.
    fn hear(&mut self, text: &str) -> Result<(), Over> {
        self.texts += 1;
        match text.trim() {
            "" => {}
            frame::UNSUBSCRIBE => return Err(Over::Unsubscribed),
            text => match text.parse::<AckId>() {
                Ok(id) => self.ack(&id),
                Err(_) => self.unknown += 1,
            },
        }
        Ok(())
    }

    fn ack(&mut self, id: &AckId) {
        match self.acks.last_mut().filter(|last| follows(last, id)) {
            Some(last) => last.count += 1,
            None => self.acks.push(id.range()),
        }
    }
}

fn follows(last: &Range, id: &AckId) -> bool {
    (last.partition, last.term, last.sequence) == (id.partition, id.term, id.sequence)
        && last.index.checked_add(last.count) == Some(id.index)
}

/// A record as its consumer sees it; `times`: how often it was handed out, this time included.
fn message(record: Record, times: u32) -> Message {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let metadata = Metadata {
        client_id: Some(text(&record.client)),
        message_id: 0,
        dup_flag: times > 1,
        topic: Some(text(&record.topic)),
        ..record.properties.map(of_properties).unwrap_or_default()
    };
    Message { payload: record.payload, metadata }
}

fn of_properties(properties: Properties) -> Metadata {
    let format = |format| if format == 1 { PayloadFormat::Utf8 } else { PayloadFormat::Unspecified };
    let user: Vec<_> =
        properties.user_properties.into_iter().map(|property| (property.key, property.value)).collect();
    Metadata {
        user_properties: Some(user).filter(|user| !user.is_empty()),
        payload_format: properties.payload_format.map(format),
        content_type: properties.content_type,
        correlation_data: properties.correlation_data,
        response_topic: properties.response_topic,
        ..Metadata::default()
    }
}
