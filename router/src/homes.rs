//! What all homes of this router share: the store, the registry, the links, the interest of subscribers, who is present;
//! and the table of the homes themselves.

use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use hashbrown::HashMap;
use penstock_common::{
    clock::Seams,
    name::{PartitionKey, TenantName},
    position::Term,
    registry::{BacklogPolicy, Definitions, Isolation, Registry, TenantDefinition},
    store::{Keep, Store, StoreError},
};
use tokio::sync::{OnceCell, mpsc, watch};

use crate::{
    config::RouterConfig, history::History, home::Home, home::lock, interest::Interest, kept::KeptFilters,
    lane::Held, link::Link, links::Links, metrics::Metrics, peers::Peers, presence::Presence,
};

/// Bytes of credit that a lane may have at most and at least.
const CREDIT_MOST: u64 = 2 << 20;
const CREDIT_LEAST: u64 = 64 << 10;

/// A partition that another router held, to be told that it is not the home any more.
#[derive(Debug, Clone)]
pub struct TookOver {
    /// Who held it.
    pub previous: u64,
    /// What was taken.
    pub key: PartitionKey,
    /// The new term.
    pub term: Term,
}

/// See the module.
pub struct Homes {
    /// This life of this router.
    pub incarnation: u64,
    /// Settings.
    pub config: RouterConfig,
    /// Where partitions and users are.
    pub store: Arc<dyn Store>,
    /// Members, owners, definitions.
    pub registry: Arc<dyn Registry>,
    /// Wall time and randomness.
    pub seams: Seams,
    /// Handles of all metrics.
    pub metrics: Metrics,
    /// Filters of live subscriptions.
    pub interest: Interest,
    /// Filters of persistent sessions.
    pub kept: KeptFilters,
    /// How connections ended.
    pub history: History,
    /// Other routers, once there are doors to them.
    pub peers: OnceLock<Arc<Peers>>,
    /// Links by number and shard.
    pub links: Links,
    /// Members by two witnesses.
    pub presence: Presence,
    definitions: watch::Receiver<Arc<Definitions>>,
    table: Mutex<HashMap<PartitionKey, Arc<OnceCell<Arc<Home>>>>>,
    took_over: mpsc::Sender<TookOver>,
    ingest: AtomicU64,
}

impl Homes {
    /// The second half goes to whoever tells other routers.
    pub fn new(
        config: RouterConfig,
        incarnation: u64,
        store: Arc<dyn Store>,
        registry: Arc<dyn Registry>,
        seams: Seams,
        metrics: Metrics,
    ) -> (Arc<Self>, mpsc::Receiver<TookOver>) {
        let (took_over, told) = mpsc::channel(1_024);
        let homes = Self {
            incarnation,
            config,
            presence: Presence::default(),
            definitions: registry.definitions(),
            store,
            registry,
            seams,
            metrics,
            interest: Interest::default(),
            kept: KeptFilters::default(),
            history: History::default(),
            peers: OnceLock::new(),
            links: Links::default(),
            table: Mutex::default(),
            took_over,
            ingest: AtomicU64::new(0),
        };
        (Arc::new(homes), told)
    }

    /// The home of a partition, if it is here.
    pub fn get(&self, key: &PartitionKey) -> Option<Arc<Home>> {
        let home = lock(&self.table).get(key)?.get().cloned()?;
        (!home.lost().is_cancelled()).then_some(home)
    }

    /// Becomes the home, unless it is: takes the term.
    pub async fn open(self: &Arc<Self>, key: &PartitionKey) -> Result<Arc<Home>, StoreError> {
        let cell = Arc::clone(lock(&self.table).entry(key.clone()).or_default());
        let home = cell.get_or_try_init(|| Home::open(self, key)).await?;
        if home.lost().is_cancelled() {
            self.forget(home);
            return Err(StoreError::Unavailable("the partition was lost while it was opened".to_owned()));
        }
        // Interest that was told while the home was being made did not find it.
        if self.any_filter(&key.tenant) && !home.fan_is_stored() {
            home.begin_fan_out().await.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        }
        Ok(Arc::clone(home))
    }

    /// A home is lost or closed.
    pub fn forget(&self, home: &Home) {
        let mut table = lock(&self.table);
        let same = |cell: &Arc<OnceCell<Arc<Home>>>| {
            cell.get().is_some_and(|own| std::ptr::eq(&raw const **own, home))
        };
        if table.get(&home.key).is_some_and(same) {
            table.remove(&home.key);
        }
    }

    /// All homes of this router, or those of a tenant.
    pub fn all(&self, tenant: Option<&TenantName>) -> Vec<Arc<Home>> {
        let table = lock(&self.table);
        let wanted = table.iter().filter(|(key, _)| tenant.is_none_or(|tenant| *tenant == key.tenant));
        wanted.filter_map(|(_, cell)| cell.get().cloned()).collect()
    }

    /// A tenant as defined now.
    pub fn tenant(&self, name: &TenantName) -> Option<Arc<TenantDefinition>> {
        self.definitions.borrow().tenants.get(name).cloned()
    }

    /// Whether anything of the tenant is to be fanned out.
    pub fn any_filter(&self, tenant: &TenantName) -> bool {
        (self.interest.any(tenant) || self.kept.any(tenant)) && !self.is_isolated(tenant)
    }

    /// Clients of the tenant receive nothing of each other's: subscriptions are for pushes.
    pub fn is_isolated(&self, tenant: &TenantName) -> bool {
        self.tenant(tenant).is_some_and(|it| it.tenant.isolation == Isolation::Device)
    }

    /// What a trim of a partition keeps, with so many of the newest entries.
    pub fn keep(&self, key: &PartitionKey, entries: u64) -> Keep {
        let Some(tenant) = self.tenant(&key.tenant) else {
            let all = u64::MAX;
            return Keep { entries, groups: 0, bytes: all, received_since: 0, yielding: Vec::new() };
        };
        let policies = tenant.groups.values().map(|group| (group.name.clone(), group.options.backlog));
        let age = u64::from(tenant.tenant.limits.backlog_seconds) * 1_000;
        Keep {
            entries,
            groups: tenant.groups.len(),
            bytes: self.backlog_limit(key),
            received_since: self.seams.now_ms().saturating_sub(age),
            yielding: policies.filter(|(_, policy)| *policy != BacklogPolicy::Block).collect(),
        }
    }

    /// Bytes that a partition may hold before groups' policies count: an equal part of the tenant's limit.
    pub fn backlog_limit(&self, key: &PartitionKey) -> u64 {
        let part = |tenant: Arc<TenantDefinition>| {
            tenant.tenant.limits.backlog_bytes / u64::from(tenant.tenant.partitions.max(1))
        };
        self.tenant(&key.tenant).map_or(u64::MAX, part)
    }

    /// Credit for one lane of one link: an equal part of the ingest budget, within bounds.
    pub fn credit(&self) -> u64 {
        let lanes = self.links.all().iter().map(|link| link.lanes() as u64).sum::<u64>().max(1);
        (self.config.ingest_bytes / lanes).clamp(CREDIT_LEAST, CREDIT_MOST)
    }

    /// Counts records that came; None while more than the budget is held: the caller gives the lane back, so that one
    /// tenant's stalled store stops nobody else's stream.
    pub fn ingest(self: &Arc<Self>, bytes: u64) -> Option<Held> {
        if self.ingest.load(Ordering::Acquire) >= self.config.ingest_bytes {
            return None;
        }
        self.ingest.fetch_add(bytes, Ordering::AcqRel);
        Some(Box::new(Share { homes: Arc::clone(self), bytes }))
    }

    /// The router that held a partition should know; it would find out by itself at its next write.
    pub fn tell_previous(&self, previous: u64, key: &PartitionKey, term: Term) {
        let _ = self.took_over.try_send(TookOver { previous, key: key.clone(), term });
    }

    /// A link is closed: everything that knew it lets go, and what it has not taken waits for its shard.
    pub fn link_closed(&self, link: &Arc<Link>) {
        if !link.shut() {
            return;
        }
        for home in self.all(None) {
            home.link_closed(link);
        }
        self.interest.forget(link.number);
        self.links.remove(link);
        self.metrics.links.set(i64::try_from(self.links.len()).unwrap_or(i64::MAX));
        self.presence.changed();
    }

    /// Lets every fan-out look again at who is present.
    pub fn wake_fan_outs(&self) {
        for home in self.all(None) {
            home.fan_wake.notify_one();
        }
    }
}

/// A share of the ingest budget.
struct Share {
    homes: Arc<Homes>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.homes.ingest.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
