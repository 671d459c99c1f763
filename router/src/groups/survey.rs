//! Finds out every few seconds how far the groups are behind on the partitions whose home is this router, also those that
//! nobody consumes, and shows it in [`Lags`]. A survey does not count as use: a home that only it looks at is given up.
//!
//! Invariants: at most [`READS`] reads of the store a round, plus those of one partition, one at a time; what a round does
//! not get to keeps its place in the log and comes first in the next one. A store that fails ends the round.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use penstock_common::{
    clock::{Seams, UnixMillis},
    name::PartitionKey,
    position::EntryId,
    registry::Group,
    store::{Counts, Store, StoreError},
};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::{
    dispatch::Standing,
    home::PartitionHome,
    lag::standing_of,
    metrics::{Figures, GroupName, Lags},
    serve::Serving,
};

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(5);
/// Reads of the store in a round.
const READS: usize = 500;
/// A group's task or the store answers within this.
const ANSWER: Duration = Duration::from_secs(2);

/// The homes of this router.
pub type HomesNow = Box<dyn Fn() -> Vec<Arc<dyn PartitionHome>> + Send + Sync>;

/// See the module.
pub struct Survey {
    serving: Arc<Serving>,
    store: Arc<dyn Store>,
    seams: Seams,
    homes: HomesNow,
    lags: Lags,
    known: BTreeMap<PartitionKey, BTreeMap<String, Known>>,
    /// Where the last round stopped.
    stopped_at: Option<PartitionKey>,
}

/// Where a group stands on one partition.
#[derive(Debug, Clone, Copy)]
struct Known {
    created_at: UnixMillis,
    done: u64,
    done_up_to: EntryId,
    counts: Counts,
    /// When the first record above it was received; None: not looked up yet.
    oldest: Option<UnixMillis>,
}

type Found = BTreeMap<PartitionKey, (Arc<dyn PartitionHome>, Vec<Arc<Group>>)>;

impl Survey {
    /// Knows nothing yet.
    pub fn new(
        serving: Arc<Serving>,
        store: Arc<dyn Store>,
        seams: Seams,
        homes: HomesNow,
        lags: Lags,
    ) -> Self {
        Self { serving, store, seams, homes, lags, known: BTreeMap::new(), stopped_at: None }
    }

    /// Goes on until it is aborted.
    pub async fn run(mut self) {
        loop {
            self.round().await;
            sleep(EVERY).await;
        }
    }

    /// Looks at all partitions, or as many as [`READS`] allows, and shows what is known.
    pub async fn round(&mut self) {
        let mut found = self.find();
        let names = |(key, (_, groups)): (&PartitionKey, &(_, Vec<Arc<Group>>))| {
            let tenant = key.tenant.clone();
            groups.iter().map(move |group| (tenant.clone(), group.name.clone())).collect::<Vec<_>>()
        };
        self.lags.keep(&found.iter().flat_map(names).collect());
        let shown = self.lags.shown();
        found.retain(|key, (_, groups)| {
            groups.retain(|group| shown.contains(&(key.tenant.clone(), group.name.clone())));
            !groups.is_empty()
        });
        self.forget(&found);
        self.look(&found).await;
        self.show(&found);
    }

    /// Homes here with the groups of their tenant.
    fn find(&self) -> Found {
        let definitions = Arc::clone(&self.serving.definitions.borrow());
        let mut found = Found::new();
        for home in (self.homes)() {
            let Some(tenant) = definitions.tenants.get(&home.key().tenant) else { continue };
            let groups: Vec<_> = tenant.groups.values().filter(|group| group.active).cloned().collect();
            if !groups.is_empty() && !home.lost().is_cancelled() {
                found.insert(home.key().clone(), (home, groups));
            }
        }
        found
    }

    /// Forgets homes and groups that are gone, and groups that were made again.
    fn forget(&mut self, found: &Found) {
        self.known.retain(|key, known| {
            let Some((_, groups)) = found.get(key) else { return false };
            let same = |name: &String, known: &Known| {
                groups.iter().any(|group| group.name == *name && group.created_at == known.created_at)
            };
            known.retain(|name, known| same(name, known));
            true
        });
    }

    async fn look(&mut self, found: &Found) {
        let first = self.stopped_at.take();
        let later = |key: &PartitionKey| first.as_ref().is_none_or(|first| key > first);
        let (after, before): (Vec<_>, Vec<_>) = found.iter().partition(|(key, _)| later(key));
        let mut reads = READS;
        for (key, (home, groups)) in after.into_iter().chain(before) {
            let known = self.known.remove(key).unwrap_or_default();
            let mut visit = Visit { survey: self, home, known, reads };
            let outcome = visit.visit(groups).await;
            let Visit { known, reads: left, .. } = visit;
            reads = left;
            self.known.insert(key.clone(), known);
            if let Err(error) = &outcome {
                debug!(partition = %key, %error, "the lag of groups is not known for now");
            }
            if outcome.is_err() || reads == 0 {
                self.stopped_at = Some(key.clone());
                return;
            }
        }
    }

    fn show(&self, found: &Found) {
        let now = self.seams.now_ms();
        let mut figures: BTreeMap<GroupName, Option<Figures>> = BTreeMap::new();
        let mut unbalanced = 0;
        for (key, (home, groups)) in found {
            let stored = home.totals().records;
            for group in groups {
                let known = self.known.get(key).and_then(|known| known.get(&group.name));
                let sum = figures.entry((key.tenant.clone(), group.name.clone())).or_default();
                let Some(known) = known else { continue };
                let lag = stored.saturating_sub(known.done);
                let oldest = known.oldest.filter(|_| lag > 0).map_or(0, |since| now.saturating_sub(since));
                let before = sum.unwrap_or_default();
                *sum = Some(Figures {
                    lag: before.lag.saturating_add(lag),
                    oldest: before.oldest.max(Duration::from_millis(oldest)),
                    dropped: before.dropped.saturating_add(known.counts.dropped),
                    dead: before.dead.saturating_add(known.counts.dead),
                });
                let balanced = known.done.checked_sub(known.counts.began) == Some(known.counts.done());
                unbalanced += u64::from(!balanced);
            }
        }
        self.lags.set_unbalanced(unbalanced);
        for (group, figures) in figures {
            self.lags.set(&group, figures);
        }
    }
}

/// One partition in one round.
struct Visit<'a> {
    survey: &'a Survey,
    home: &'a Arc<dyn PartitionHome>,
    known: BTreeMap<String, Known>,
    reads: usize,
}

impl Visit<'_> {
    async fn visit(&mut self, groups: &[Arc<Group>]) -> Result<(), StoreError> {
        let serving = &self.survey.serving;
        let mut unserved = Vec::new();
        for group in groups {
            match within(async { Ok(serving.standing(self.home.key(), &group.name).await) }).await? {
                Some(standing) => self.learn(group, standing).await?,
                None => unserved.push(group),
            }
        }
        if unserved.is_empty() {
            return Ok(());
        }
        // Read after the tasks were asked: one that has ended meanwhile has written its cursor.
        self.reads = self.reads.saturating_sub(1);
        let cursors = within(self.home.cursors()).await?;
        for group in unserved {
            if cursors.groups.contains_key(&group.name) {
                self.learn(group, standing_of(&cursors, &group.name)).await?;
            }
        }
        Ok(())
    }

    async fn learn(&mut self, group: &Group, standing: Standing) -> Result<(), StoreError> {
        let before = self.known.get(&group.name).filter(|known| known.done_up_to == standing.done_up_to);
        let oldest = standing.oldest.or(before.and_then(|known| known.oldest));
        let mut known = Known {
            created_at: group.created_at,
            done: standing.done,
            done_up_to: standing.done_up_to,
            counts: standing.counts,
            oldest,
        };
        self.known.insert(group.name.clone(), known);
        if oldest.is_some() || self.home.totals().records <= standing.done || self.reads == 0 {
            return Ok(());
        }
        self.reads -= 1;
        let (store, key) = (&self.survey.store, self.home.key());
        // Not through the home: that would keep it, and its newest entries, for a reader.
        let entries = within(store.read(key, standing.done_up_to, 1, 1)).await?;
        known.oldest = entries.first().map(|entry| entry.entry.first_received_at);
        self.known.insert(group.name.clone(), known);
        Ok(())
    }
}

async fn within<T>(asked: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let late = |_| StoreError::Unavailable("no answer in time".to_owned());
    timeout(ANSWER, asked).await.map_err(late)?
}
