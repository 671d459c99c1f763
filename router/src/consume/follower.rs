//! Keeps one partition joined for one consumer: finds its home, here or one hop away, joins the group there, and joins again
//! wherever the home has moved.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use penstock_common::{name::PartitionKey, position::Term, registry::Member, rendezvous};
use penstock_proto::{
    messaging::{Acks, Batch, Nacks},
    peer::{Join, ServeRequest, ServeResponse, serve_request, serve_response},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tracing::debug;

use super::{Consumer, Event, Range, SAYINGS, lead::Lead};
use crate::{
    door::{Inside, status},
    groups::served::{Joining, Say, Served},
    holdings::Entered,
    pace::Backoff,
};

/// Acks kept while a partition has no home, ranges. Beyond it the oldest are forgotten: their records come again.
const KEPT_RANGES: usize = 20_000;
const KEPT_NACKS: usize = 1_000;
/// A peer joins, or refuses, within this.
const JOIN_LIMIT: Duration = Duration::from_secs(5);

/// Keeps one partition joined.
pub(super) struct Follower {
    pub(super) inside: Inside,
    pub(super) key: PartitionKey,
    pub(super) consumer: Consumer,
    pub(super) lead: Arc<Lead>,
    pub(super) window: u32,
    /// What the consumer holds of the partition, for homes to come.
    pub(super) entered: Entered,
    /// Acks that were said while there was no home.
    pub(super) kept: VecDeque<Range>,
    /// And nacks: the next home may take their records for held.
    pub(super) nacked: VecDeque<Nacks>,
    pub(super) said: mpsc::Receiver<Say>,
    pub(super) events: mpsc::Sender<Event>,
}

/// A home that serves this consumer.
enum Source {
    Here(Served),
    There { say: mpsc::Sender<ServeRequest>, batches: Box<Streaming<ServeResponse>> },
}

impl Follower {
    pub(super) async fn run(mut self) {
        let fresh = || Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        let mut backoff = fresh();
        loop {
            if !self.may_join().await {
                return;
            }
            match self.find().await {
                Ok((source, term)) if self.entered.holding.joined(term) => {
                    backoff = fresh();
                    self.lead.joined(&self.key);
                    if self.events.send(Event::Joined(self.key.partition)).await.is_err() {
                        return;
                    }
                    self.follow(source).await;
                    self.lead.left(&self.key);
                    if self.said.is_closed() && self.said.is_empty() {
                        return;
                    }
                    if self.events.send(Event::Left(self.key.partition)).await.is_err() {
                        return;
                    }
                }
                Err(status) if status.code() == Code::AlreadyExists && self.lead.refuses() => {
                    let _ = self.events.send(Event::Occupied(status)).await;
                    return;
                }
                Ok(_) => debug!(partition = %self.key, group = self.consumer.group, "joined an earlier home"),
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

    /// Waits until the consumer has the partition that decides whose the group is. False: the consumer has left.
    async fn may_join(&mut self) -> bool {
        let mut lead = self.lead.of(&self.key);
        loop {
            tokio::select! {
                biased;
                () = lead.held() => return true,
                said = self.said.recv() => match said {
                    Some(say) => self.keep(say),
                    None => return false,
                },
            }
        }
    }

    /// Without a home: what is said waits for the next one.
    fn keep(&mut self, say: Say) {
        self.hear(&say);
        match say {
            Say::Acks(acks) => self.kept.extend(acks.ranges),
            Say::Credit(_) => {}
            Say::Nacks(nacks) => self.nacked.push_back(nacks),
        }
        while self.kept.len() > KEPT_RANGES {
            self.kept.pop_front();
        }
        while self.nacked.len() > KEPT_NACKS {
            self.nacked.pop_front();
        }
    }

    /// What is said is known here, too.
    fn hear(&mut self, say: &Say) {
        match say {
            Say::Acks(acks) => self.entered.holding.acked(&acks.ranges),
            Say::Nacks(nacks) => self.entered.holding.nacked(&nacks.ranges),
            Say::Credit(window) => self.window = *window,
        }
    }

    /// Joins the present home: here, at the router that rendezvous names, or at the holder that this one names.
    async fn find(&self) -> Result<(Source, Term), Status> {
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

    async fn at(&self, member: Option<&Member>, router: u64, take: bool) -> Result<(Source, Term), Status> {
        if router == self.inside.homes.incarnation() || self.inside.homes.get(&self.key).is_some() {
            let home = crate::peer::present_home(&self.inside, &self.key, take).await?;
            let joining = Joining {
                consumer: self.consumer.consumer,
                credit: self.window,
                ack_timeout_ms: u64::from(self.consumer.ack_timeout_ms),
            };
            let joined = self.inside.serving.join(&home, &self.consumer.group, joining).await;
            let served = joined.map_err(|error| status::of_join(&error))?;
            return Ok((Source::Here(served), home.term()));
        }
        let member = member.ok_or_else(|| Status::unavailable("the partition's router is gone"))?;
        let limited = timeout(JOIN_LIMIT, self.at_peer(member, take)).await;
        limited.unwrap_or_else(|_| Err(Status::unavailable("the partition's router does not answer")))
    }

    async fn at_peer(&self, member: &Member, take: bool) -> Result<(Source, Term), Status> {
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
        match batches.message().await? {
            Some(ServeResponse { kind: Some(serve_response::Kind::Joined(_)), term }) => {
                Ok((Source::There { say, batches: Box::new(batches) }, Term(term)))
            }
            _ => Err(Status::unavailable("the partition's router did not join the group")),
        }
    }

    /// Until the home is lost, or the consumer has left.
    async fn follow(&mut self, mut source: Source) {
        if !self.kept.is_empty() {
            let ranges = std::mem::take(&mut self.kept).into();
            source.say(Say::Acks(Acks { ranges })).await;
        }
        while let Some(nacks) = self.nacked.pop_front() {
            source.say(Say::Nacks(nacks)).await;
        }
        loop {
            tokio::select! {
                batch = source.next() => match batch {
                    // Of a home that is one no more.
                    Ok(batch) if !self.entered.holding.take(&batch) => return,
                    Ok(batch) => {
                        if self.hand_on(&mut source, batch).await.is_err() {
                            return self.leave(source).await;
                        }
                    }
                    Err(status) => {
                        if status.code() == Code::Aborted {
                            self.lead.doubt();
                        }
                        debug!(partition = %self.key, group = self.consumer.group, %status, "a home ended");
                        return;
                    }
                },
                said = self.said.recv() => match said {
                    Some(say) => self.pass(&mut source, say).await,
                    None => return self.leave(source).await,
                },
                () = self.lead.doubted(&self.key) => return,
                () = self.entered.holding.void() => return,
            }
        }
    }

    /// First the hands, then the home: it may end its task, and the task that the next consumer begins asks who holds what. What
    /// was still said to be held would wait for this consumer, which does not come.
    async fn leave(&self, source: Source) {
        self.entered.holding.left();
        source.finish().await;
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
        self.hear(&say);
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
