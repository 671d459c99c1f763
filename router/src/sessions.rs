//! What the home of a client's partition does to its persistent session: open, wipe, new filters, a step of mail. Each is
//! repeated until the store has answered, for as long as the home and the link live.
//!
//! Invariants: what is done to one client is done one after the other, and only for its present owner; a session is in the
//! tenant's table before it is in its slot, and leaves in the other order; nothing is confirmed before every home of the
//! tenant knows the filters.

use std::{sync::Arc, time::Duration};

use hashbrown::HashSet;
use penstock_common::{
    epoch::Epoch,
    name::{PartitionKey, TenantName},
    store::{MailStep, PushStep, SessionError, SessionFilter, SessionFilters, StoreError},
};
use penstock_proto::link::{
    self, FiltersSet, Letter, Mail, OpenSession, Owner, SessionOpened, SetFilters, Step, StepResult,
    Unacknowledged, control_down as down, data_down,
};
use tokio::sync::{Mutex, MutexGuard};
use tracing::debug;

use crate::{home::Home, homes::Homes, link::Link, pace::Backoff};

/// Clients share turns by hash.
const TURNS: usize = 64;
/// A session lives at least this long: several times what its owner lets pass between steps.
const EXPIRY_LEAST_MS: u64 = 120_000;

/// See [`Home::turns`].
pub(crate) struct Turns(Vec<Mutex<()>>);

impl Default for Turns {
    fn default() -> Self {
        Self((0..TURNS).map(|_| Mutex::new(())).collect())
    }
}

impl Turns {
    async fn of(&self, client: &[u8]) -> Option<MutexGuard<'_, ()>> {
        let hash =
            client.iter().fold(0usize, |hash, byte| hash.wrapping_mul(31).wrapping_add((*byte).into()));
        Some(self.0.get(hash % TURNS)?.lock().await)
    }
}

/// Why something is not done.
enum Ended {
    /// The session is another connection's, or gone.
    Gone,
    /// Nobody waits for it: the home or the link is lost, or the client has another owner.
    Unwanted,
}

fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(20), Duration::from_secs(1))
}

impl Home {
    fn is_owner(&self, client: &[u8], epoch: u64) -> bool {
        self.owner(client).is_some_and(|owner| owner.epoch == Epoch(epoch))
    }

    /// Repeats a write to a session until it is answered.
    async fn until_done<T, F: Future<Output = Result<T, SessionError>>>(
        &self,
        link: &Link,
        mut write: impl FnMut() -> F,
    ) -> Result<T, Ended> {
        let mut backoff = backoff();
        loop {
            if self.lost().is_cancelled() || link.closed.is_cancelled() {
                return Err(Ended::Unwanted);
            }
            match write().await {
                Ok(done) => return Ok(done),
                Err(SessionError::Gone) => return Err(Ended::Gone),
                // A term that this router itself has raised meanwhile is no loss.
                Err(SessionError::Fenced) => self.check_holder().await,
                Err(SessionError::Store(error)) => debug!(%error, "a session waits for the store"),
            }
            backoff.pause(&self.homes.seams).await;
        }
    }

    /// Whether any of these clients has a session that is to be wiped.
    pub(crate) fn wipes(&self, owners: &[Owner]) -> bool {
        owners.iter().any(|owner| owner.wipe && self.homes.kept.has(&self.key.tenant, &owner.client))
    }

    /// Wipes the sessions of clients that have connected with clean session 1.
    pub(crate) async fn wipe_all(self: &Arc<Self>, link: &Arc<Link>, owners: &[Owner]) {
        for owner in owners.iter().filter(|owner| owner.wipe) {
            // Who is not wiped has a newer owner, or no home here any more: nobody waits for the confirmation.
            let _ = self.wipe(link, owner).await;
        }
    }

    async fn wipe(&self, link: &Link, owner: &Owner) -> Result<(), Ended> {
        let (store, tenant, client) = (&self.homes.store, &self.key.tenant, &owner.client);
        let _turn = self.turns.of(client).await;
        let Some(known) = self.homes.kept.of(tenant, client) else { return Ok(()) };
        self.until_done(link, || async {
            if !self.is_owner(client, owner.epoch) {
                return Err(SessionError::Gone);
            }
            let wiped = store.wipe_session(&self.key, self.term(), client).await?;
            store.withdraw_filters(tenant, client, wiped.unwrap_or(known.incarnation)).await?;
            Ok(self.homes.kept.follow(&**store, tenant).await?)
        })
        .await
    }

    /// Opens a session for its owner.
    pub(crate) async fn open_session(self: Arc<Self>, link: Arc<Link>, open: OpenSession) {
        match self.opened_session(&link, &open).await {
            Ok(opened) => link.tell(down::Kind::SessionOpened(SessionOpened { id: open.id, ..opened })),
            // The connection is being kicked, or asks the present home.
            Err(Ended::Gone | Ended::Unwanted) => {}
        }
    }

    async fn opened_session(&self, link: &Link, open: &OpenSession) -> Result<SessionOpened, Ended> {
        let (store, tenant, client) = (&self.homes.store, &self.key.tenant, &open.client);
        let _turn = self.turns.of(client).await;
        let (opened, known) = self
            .until_done(link, || async {
                if !self.is_owner(client, open.epoch) {
                    return Err(SessionError::Gone);
                }
                if !self.homes.kept.has(tenant, client) {
                    let filters = SessionFilters { incarnation: open.epoch, ..SessionFilters::default() };
                    store.publish_filters(tenant, client, &filters).await?;
                }
                let epoch = Epoch(open.epoch);
                let opened = store.open_session(&self.key, self.term(), client, epoch, self.expiry()).await?;
                let known = self.homes.kept.of(tenant, client);
                if known.as_ref() != Some(&opened.filters) {
                    store.publish_filters(tenant, client, &opened.filters).await?;
                }
                self.homes.kept.follow(&**store, tenant).await?;
                Ok((opened, known))
            })
            .await?;
        if !opened.filters.filters.is_empty() && known.as_ref() != Some(&opened.filters) {
            self.known_everywhere(link).await?;
        }
        self.homes.metrics.sessions_opened.inc();
        let filter = |it: SessionFilter| link::SessionFilter { filter: it.filter, qos: it.qos.into() };
        let sent = |(number, id)| Unacknowledged { number, packet_id: u32::from(id) };
        Ok(SessionOpened {
            id: open.id,
            present: opened.present,
            filters: opened.filters.filters.into_iter().map(filter).collect(),
            unacknowledged: opened.unacknowledged.into_iter().map(sent).collect(),
        })
    }

    /// Gives a session its filters.
    pub(crate) async fn set_filters(self: Arc<Self>, link: Arc<Link>, set: SetFilters) {
        let (store, tenant, client) = (&self.homes.store, &self.key.tenant, &set.client);
        let filter = |it: &link::SessionFilter| SessionFilter {
            filter: it.filter.clone(),
            qos: u8::try_from(it.qos).unwrap_or(1).min(1),
        };
        let filters: Vec<_> = set.filters.iter().map(filter).collect();
        let outcome = async {
            let _turn = self.turns.of(client).await;
            let epoch = Epoch(set.epoch);
            let write = || async {
                let written = store.set_filters(&self.key, self.term(), client, epoch, &filters).await?;
                Ok(store.publish_filters(tenant, client, &written).await?)
            };
            self.until_done(&link, write).await?;
            self.known_everywhere(&link).await
        };
        match outcome.await {
            Ok(()) => link.tell(down::Kind::FiltersSet(FiltersSet { id: set.id, gone: false })),
            Err(Ended::Gone) => link.tell(down::Kind::FiltersSet(FiltersSet { id: set.id, gone: true })),
            Err(Ended::Unwanted) => {}
        }
    }

    /// Waits until every home of the tenant goes by the filters that are stored now.
    async fn known_everywhere(&self, link: &Link) -> Result<(), Ended> {
        let known = || async { Ok(self.homes.spread_filters(&self.key.tenant).await?) };
        self.until_done(link, known).await
    }

    fn expiry(&self) -> u64 {
        let seconds = self.homes.tenant(&self.key.tenant).map_or(0, |it| it.tenant.limits.session_seconds);
        (u64::from(seconds) * 1_000).max(EXPIRY_LEAST_MS)
    }

    /// Takes a step for the owner of a session.
    pub(crate) async fn step(self: Arc<Self>, link: Arc<Link>, step: Step) {
        let clean = PushStep {
            acknowledged: step.acknowledged.clone(),
            received: step.received,
            // Who is not the owner any more tells what was acknowledged, and gets nothing.
            most: if self.is_owner(&step.client, step.epoch) { step.most } else { 0 },
            max_bytes: step.max_bytes,
        };
        let age = self.homes.tenant(&self.key.tenant).map_or(0, |it| it.tenant.limits.mailbox_seconds);
        let asked = MailStep {
            acknowledged: step.acknowledged,
            received: step.received,
            ids: step.packet_ids.into_iter().filter_map(|id| u16::try_from(id).ok()).collect(),
            max_bytes: step.max_bytes,
            age_ms: u64::from(age) * 1_000,
            expiry_ms: self.expiry(),
        };
        let epoch = Epoch(step.epoch);
        let answer = if step.clean {
            self.step_clean(&step.client, &clean).await
        } else {
            self.homes.store.step_mail(&self.key, self.term(), &step.client, epoch, &asked).await
        };
        let mut mail = Mail { id: step.id, ..Mail::default() };
        let result = match answer {
            Ok(stepped) => {
                self.waiting.acknowledged(&step.client, &clean.acknowledged);
                self.homes.metrics.mail_expired.inc_by(stepped.expired.into());
                let letter = |it: penstock_common::store::Mail| Letter {
                    number: it.number,
                    packet_id: it.packet_id.into(),
                    again: it.again,
                    record: it.record,
                };
                mail.letters = stepped.mail.into_iter().map(letter).collect();
                mail.more = stepped.more;
                StepResult::Done
            }
            Err(SessionError::Gone) => StepResult::Gone,
            Err(SessionError::Fenced) => {
                self.check_holder().await;
                StepResult::Later
            }
            Err(SessionError::Store(_)) => StepResult::Later,
        };
        mail.set_result(result);
        // A closed link: the shard asks again over the next one.
        let _ = link.data.send(data_down::Kind::Mail(mail));
    }
}

impl Homes {
    /// Follows the filters of a tenant's sessions, and makes every home of it here fan out by them.
    pub async fn follow_filters(&self, tenant: &TenantName) -> Result<(), StoreError> {
        self.kept.follow(&*self.store, tenant).await?;
        if !self.any_filter(tenant) {
            return Ok(());
        }
        for home in self.all(Some(tenant)) {
            if !home.lost().is_cancelled() && !home.fan_is_stored() {
                home.begin_fan_out().await.map_err(|error| StoreError::Unavailable(error.to_string()))?;
            }
        }
        Ok(())
    }

    /// Makes every home of the tenant go by the filters that are stored now: whoever holds a partition has followed them.
    /// A partition whose holder is gone is taken, so that it can't come back with older ones.
    async fn spread_filters(self: &Arc<Self>, tenant: &TenantName) -> Result<(), StoreError> {
        self.follow_filters(tenant).await?;
        let partitions = self.tenant(tenant).map_or(0, |it| it.tenant.partitions);
        let (members, mut told) = (self.presence.members(), HashSet::new());
        for partition in 0..partitions {
            let key = PartitionKey { tenant: tenant.clone(), partition };
            let Some((_, holder)) = self.store.holder(&key).await? else { continue };
            if holder == self.incarnation || told.contains(&holder) {
                continue;
            }
            let late = || StoreError::Unavailable(format!("router {holder:x} does not follow filters"));
            match (members.routers.get(&holder), self.peers.get()) {
                (Some(member), Some(peers)) => {
                    if !peers.follow_filters(member, tenant.as_str()).await {
                        return Err(late());
                    }
                    told.insert(holder);
                }
                (Some(_), None) => return Err(late()),
                (None, _) => drop(self.open(&key).await?),
            }
        }
        Ok(())
    }
}
