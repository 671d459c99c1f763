//! One job: messages of some devices, mapped, sent in rounds, acknowledged when all of their requests are done.
//!
//! Invariants:
//! * A message is acknowledged only when each of its requests got a good answer, or it is kept as a dead letter.
//! * Of one device, nothing is sent after a request that is to come again.
//! * One device's failing measurement does not hold up those that were sent together with it: what fails together is sent
//!   apart.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use penstock_client::{Acker, Message, Position};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    api::{Api, ApiError, Verdict},
    dead_letters::DeadLetters,
    identity::Identity,
    metrics::Metrics,
    outgoing::{Kind, Outgoing},
    queues::Share,
    routes::{self, Route, Unmappable},
};

/// Devices whose measurements fail one after the other before the whole API counts as failing.
const FAILURES: usize = 3;

/// What all jobs work with.
pub struct Ground {
    /// What to map.
    pub routes: Vec<Route>,
    /// Where to send.
    pub api: Api,
    /// Whose identifiers.
    pub identity: Identity,
    /// Where to keep what can't be sent.
    pub dead_letters: DeadLetters,
    /// Settles messages.
    pub acker: Acker,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Measurements in one request, at most.
    pub batch: usize,
}

/// What became of one device's share.
#[derive(Debug)]
pub struct Outcome {
    /// Whose.
    pub client: Arc<str>,
    /// What has to go back, in order.
    pub returned: Vec<Position>,
    /// How often the first of them was handed out.
    pub deliveries: u32,
    /// Messages in the share.
    pub messages: usize,
}

/// Runs a job to its end.
pub async fn run(ground: Arc<Ground>, shares: Vec<Share>) -> Vec<Outcome> {
    let strands = shares.into_iter().map(|share| Strand::new(share, &ground)).collect();
    let mut job = Job { ground, strands, steps: VecDeque::new(), failures: 0 };
    while job.round().await {}
    job.strands.into_iter().map(Strand::outcome).collect()
}

/// A message and what is left of it.
struct Work {
    message: Message,
    requests: VecDeque<Outgoing>,
    unmappable: Option<Unmappable>,
    /// Some of its requests are done.
    sent: bool,
}

/// One device's share.
struct Strand {
    client: Arc<str>,
    works: VecDeque<Work>,
    /// The rest goes back.
    given_up: bool,
    messages: usize,
}

struct Job {
    ground: Arc<Ground>,
    strands: Vec<Strand>,
    /// What is sent next, because together it failed or was refused.
    steps: VecDeque<Step>,
    /// Strands that failed one after the other.
    failures: usize,
}

/// A part of what was sent together.
#[derive(Clone, Copy)]
struct Step {
    strand: usize,
    /// Requests, at most.
    bound: usize,
}

/// The next request of a strand.
struct Item {
    strand: usize,
    request: Outgoing,
    id: Option<Arc<str>>,
}

impl Strand {
    fn new(share: Share, ground: &Ground) -> Self {
        let messages = share.messages.len();
        let works = share.messages.into_iter().map(|message| Work::new(message, ground)).collect();
        Self { client: share.client, works, given_up: false, messages }
    }

    /// Acknowledges what is done.
    fn settle(&mut self, ground: &Ground) {
        while let Some(front) = self.works.front() {
            if front.unmappable.is_some() || !front.requests.is_empty() {
                return;
            }
            ground.acker.ack(front.message.position);
            if front.sent {
                ground.metrics.message("sent");
            }
            self.works.pop_front();
        }
    }

    /// The first request is done.
    fn advance(&mut self, ground: &Ground) {
        self.settle(ground);
        if let Some(front) = self.works.front_mut() {
            front.requests.pop_front();
            front.sent = true;
        }
        self.settle(ground);
    }

    /// Requests from the first on that are measurements.
    fn measurements(&self) -> impl Iterator<Item = &Outgoing> {
        let mappable = self.works.iter().take_while(|work| work.unmappable.is_none());
        let requests = mappable.flat_map(|work| &work.requests);
        requests.take_while(|request| request.target.kind == Kind::Measurement)
    }

    fn front(&self) -> Option<&Outgoing> {
        self.works.front().filter(|work| work.unmappable.is_none()).and_then(|work| work.requests.front())
    }

    fn outcome(self) -> Outcome {
        Outcome {
            client: self.client,
            deliveries: self.works.front().map_or(0, |work| work.message.delivery_count),
            returned: self.works.iter().map(|work| work.message.position).collect(),
            messages: self.messages,
        }
    }
}

impl Work {
    fn new(message: Message, ground: &Ground) -> Self {
        let (requests, unmappable) = match routes::map(&ground.routes, &message) {
            None => {
                ground.metrics.message("unmatched");
                (Vec::new(), None)
            }
            Some(Ok(requests)) => {
                if requests.is_empty() {
                    ground.metrics.message("skipped");
                }
                (requests, None)
            }
            Some(Err(unmappable)) => (Vec::new(), Some(unmappable)),
        };
        Self { message, requests: requests.into(), unmappable, sent: false }
    }
}

impl Job {
    /// Sends what can go now. False: nothing is left to do.
    async fn round(&mut self) -> bool {
        self.bury_unmappable().await;
        let mut items = self.next();
        if items.is_empty() {
            return !self.steps.is_empty();
        }
        self.resolve(&mut items).await;
        if items.is_empty() {
            return true;
        }
        let result = self.send(&items).await;
        self.ground
            .metrics
            .api_up
            .set(i64::from(!matches!(&result, Err(error) if error.verdict() == Verdict::Away)));
        match result {
            Ok(()) => self.succeeded(&items),
            Err(error) => self.failed(items, error).await,
        }
        true
    }

    /// Messages at the front that can't be mapped become dead letters.
    async fn bury_unmappable(&mut self) {
        for at in 0..self.strands.len() {
            loop {
                let ground = Arc::clone(&self.ground);
                let Some(strand) = self.strands.get_mut(at).filter(|strand| !strand.given_up) else { break };
                strand.settle(&ground);
                let Some(unmappable) = strand.works.front().and_then(|work| work.unmappable.clone()) else {
                    break;
                };
                self.bury(at, unmappable.why.label(), &unmappable.to_string(), None).await;
            }
        }
    }

    /// The first message of a strand becomes a dead letter, or goes back when it can't be kept.
    async fn bury(&mut self, at: usize, label: &'static str, reason: &str, request: Option<&Outgoing>) {
        let ground = Arc::clone(&self.ground);
        let Some(strand) = self.strands.get_mut(at) else { return };
        let Some(work) = strand.works.front() else { return };
        let message = &work.message;
        match ground.dead_letters.keep(message, reason, request).await {
            Ok(()) => {
                let (client, topic) = (&message.client_id, &message.topic);
                tracing::warn!(client, topic, position = %message.position, reason, "kept as a dead letter");
                ground.acker.ack(message.position);
                ground.metrics.message("dead");
                ground.metrics.dead_letter(label);
                strand.works.pop_front();
            }
            Err(error) => {
                tracing::error!(%error, reason, "a dead letter can't be kept: its message comes again");
                ground.metrics.unkept.inc();
                strand.given_up = true;
            }
        }
    }

    /// Measurements that go together, or else one request.
    fn next(&mut self) -> Vec<Item> {
        let step = self.steps.pop_front();
        let only = step.map(|step| step.strand);
        let bound = step.map_or(self.ground.batch, |step| step.bound);
        let live = || {
            let strands = self.strands.iter().enumerate().filter(|(_, strand)| !strand.given_up);
            strands.filter(|(at, _)| only.is_none_or(|only| only == *at))
        };
        let item = |strand: usize, request: &Outgoing| Item { strand, request: request.clone(), id: None };
        let together =
            live().flat_map(|(at, strand)| strand.measurements().map(move |request| item(at, request)));
        let together: Vec<_> = together.take(bound).collect();
        if !together.is_empty() {
            return together;
        }
        live().find_map(|(at, strand)| strand.front().map(|request| item(at, request))).into_iter().collect()
    }

    /// Finds the devices. Items whose device can't be had are taken out, with the later ones of their strand.
    async fn resolve(&mut self, items: &mut Vec<Item>) {
        let mut stopped = BTreeMap::new();
        for at in 0..items.len() {
            let Some(item) = items.get_mut(at) else { break };
            let Some(device) = item.request.device.as_deref().filter(|_| !stopped.contains_key(&item.strand))
            else {
                continue;
            };
            match self.ground.identity.id(device).await {
                Ok(id) => item.id = Some(id),
                Err(error) if error.verdict() == Verdict::Away => {
                    self.give_up_all(&error);
                    return items.clear();
                }
                Err(error) => drop(stopped.insert(item.strand, (at, error))),
            }
        }
        for (strand, (at, error)) in &stopped {
            let first = items.iter().position(|item| item.strand == *strand) == Some(*at);
            match (error.verdict(), items.get(*at)) {
                (Verdict::Refused, Some(item)) if first => {
                    let request = item.request.clone();
                    self.bury(
                        *strand,
                        "device",
                        &format!("the device can't be had: {error}"),
                        Some(&request),
                    )
                    .await;
                }
                // Those before it are sent first.
                (Verdict::Refused, _) => {}
                _ => self.give_up(*strand, error),
            }
        }
        let mut at = 0;
        items.retain(|item| {
            let keep = stopped
                .get(&item.strand)
                .is_none_or(|(from, error)| at < *from && error.verdict() == Verdict::Refused);
            at += 1;
            keep
        });
    }

    async fn send(&self, items: &[Item]) -> Result<(), ApiError> {
        let Some(first) = items.first() else { return Ok(()) };
        let (path, body) = if items.len() == 1 {
            first.request.resolved(first.id.as_deref())
        } else {
            let all: Vec<Value> =
                items.iter().map(|item| item.request.resolved(item.id.as_deref()).1).collect();
            (first.request.target.path.clone(), json!({"measurements": all}))
        };
        let (kind, method) = (first.request.target.kind, first.request.target.method.clone());
        let (metrics, begun) = (&self.ground.metrics, Instant::now());
        let result = self.ground.api.send(method, &path, &body).await.map(drop);
        metrics.request(kind, result.as_ref().map_or_else(ApiError::label, |()| "done"), begun.elapsed());
        if kind == Kind::Measurement && result.is_ok() {
            metrics.batched(items.len());
        }
        result
    }

    fn succeeded(&mut self, items: &[Item]) {
        self.failures = 0;
        let ground = Arc::clone(&self.ground);
        for item in items {
            if let Some(strand) = self.strands.get_mut(item.strand) {
                strand.advance(&ground);
            }
        }
    }

    async fn failed(&mut self, items: Vec<Item>, error: ApiError) {
        match (error.verdict(), items.as_slice()) {
            (Verdict::Away, _) => self.give_up_all(&error),
            (Verdict::Failed, [only]) => {
                self.give_up(only.strand, &error);
                self.failures += 1;
                if self.failures >= FAILURES {
                    self.give_up_all(&error);
                }
            }
            (Verdict::Failed, [first, rest @ ..]) if rest.iter().any(|item| item.strand != first.strand) => {
                let strands: BTreeSet<_> = items.iter().map(|item| item.strand).collect();
                let bound = self.ground.batch;
                self.first(strands.into_iter().map(|strand| Step { strand, bound }));
            }
            (Verdict::Refused, [_]) => {
                if let Some(item) = items.into_iter().next() {
                    self.refused(item, error).await;
                }
            }
            (Verdict::Failed | Verdict::Refused, all) => {
                self.first(all.iter().map(|item| Step { strand: item.strand, bound: 1 }));
            }
        }
    }

    /// Before all other steps.
    fn first(&mut self, steps: impl Iterator<Item = Step>) {
        let later = std::mem::take(&mut self.steps);
        self.steps.extend(steps.chain(later));
    }

    /// One request was refused. If its device is another one by now, it is sent once more.
    async fn refused(&mut self, mut item: Item, error: ApiError) {
        if let (Some(device), Some(before)) = (item.request.device.clone(), item.id.take()) {
            self.ground.identity.forget(&device);
            match self.ground.identity.id(&device).await {
                Ok(now) if now != before => {
                    item.id = Some(now);
                    let items = [item];
                    match self.send(&items).await {
                        Ok(()) => return self.succeeded(&items),
                        Err(error) if error.verdict() == Verdict::Refused => {
                            return self.bury_refused(&items[0], &error).await;
                        }
                        Err(error) => return self.give_up(items[0].strand, &error),
                    }
                }
                Ok(_) => {}
                Err(error) if error.verdict() == Verdict::Refused => {}
                Err(error) => return self.give_up(item.strand, &error),
            }
        }
        self.bury_refused(&item, &error).await;
    }

    async fn bury_refused(&mut self, item: &Item, error: &ApiError) {
        self.failures = 0;
        self.bury(item.strand, "refused", &error.to_string(), Some(&item.request)).await;
    }

    fn give_up(&mut self, at: usize, error: &ApiError) {
        if let Some(strand) = self.strands.get_mut(at) {
            tracing::warn!(client = &*strand.client, %error, "its messages go back and come again");
            strand.given_up = true;
        }
    }

    fn give_up_all(&mut self, error: &ApiError) {
        let left = self.strands.iter().filter(|strand| !strand.works.is_empty()).count();
        tracing::warn!(devices = left, %error, "their messages go back and come again");
        self.strands.iter_mut().for_each(|strand| strand.given_up = true);
        self.steps.clear();
    }
}
