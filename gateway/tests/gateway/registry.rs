//! A registry in memory whose answers a test can withhold.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use penstock_common::{
    epoch::Epoch,
    name::{ClientKey, TenantName},
    registry::{
        Claim, ClaimError, Definitions, Group, GroupChange, Limits, Member, MemberKind, Members, Owner,
        OwnershipEvent, Registry, RegistryError, SigningKeys, Tenant, TenantDefinition,
    },
};
use tokio::sync::{Notify, mpsc, watch};

pub struct TestRegistry {
    members: watch::Sender<Arc<Members>>,
    definitions: watch::Sender<Arc<Definitions>>,
    healthy: watch::Sender<bool>,
    revision: AtomicU64,
    owners: Mutex<HashMap<ClientKey, (Owner, Epoch)>>,
    adopted: Mutex<Vec<(ClientKey, Epoch, Option<Epoch>)>>,
    events: mpsc::Sender<OwnershipEvent>,
    receiver: Mutex<Option<mpsc::Receiver<OwnershipEvent>>>,
    /// Claims are answered with Unavailable.
    pub away: AtomicBool,
    /// Claims wait for `release_claims`.
    pub slow: AtomicBool,
    go: Notify,
    /// The next release takes this long: the shard's thread stands still as if the process was stopped.
    pub stop_ms: AtomicU64,
}

impl TestRegistry {
    pub fn new() -> Arc<Self> {
        let (events, receiver) = mpsc::channel(64);
        Arc::new(Self {
            members: watch::Sender::default(),
            definitions: watch::Sender::default(),
            healthy: watch::Sender::new(true),
            revision: AtomicU64::new(100),
            owners: Mutex::default(),
            adopted: Mutex::default(),
            events,
            receiver: Mutex::new(Some(receiver)),
            away: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            go: Notify::new(),
            stop_ms: AtomicU64::new(0),
        })
    }

    pub fn define(&self, tenant: &str, partitions: u32, connections: u32) {
        let name = TenantName::new(tenant).unwrap();
        let limits = Limits { connections, ..Limits::default() };
        let tenant =
            Tenant { partitions, limits, isolation: Default::default(), users_version: 1, created_at: 0 };
        let definition = TenantDefinition { name: name.clone(), tenant, groups: BTreeMap::new() };
        self.definitions.send_modify(|definitions| {
            let mut all = Definitions::clone(definitions);
            all.tenants.insert(name, Arc::new(definition));
            *definitions = Arc::new(all);
        });
    }

    pub fn delete(&self, tenant: &str) {
        let name = TenantName::new(tenant).unwrap();
        self.definitions.send_modify(|definitions| {
            let mut all = Definitions::clone(definitions);
            all.tenants.remove(&name);
            *definitions = Arc::new(all);
        });
    }

    pub fn add_router(&self, incarnation: u64, link: &str) {
        let kind = MemberKind::Router { link: link.to_owned(), grpc: String::new() };
        let member = Member { incarnation, node_id: format!("router-{incarnation}"), kind };
        self.members.send_modify(|members| {
            let mut all = Members::clone(members);
            all.routers.insert(incarnation, member);
            *members = Arc::new(all);
        });
    }

    pub fn remove_router(&self, incarnation: u64) {
        self.members.send_modify(|members| {
            let mut all = Members::clone(members);
            all.routers.remove(&incarnation);
            *members = Arc::new(all);
        });
    }

    pub fn gateway(&self) -> u64 {
        *self.members.borrow().gateways.keys().next().unwrap()
    }

    /// Makes somebody else the owner; returns the epoch.
    pub fn steal(&self, client: &ClientKey, owner: Owner) -> Epoch {
        let epoch = Epoch::real(self.revision.fetch_add(1, Ordering::SeqCst));
        self.owners.lock().unwrap().insert(client.clone(), (owner, epoch));
        epoch
    }

    pub fn owned(&self, client: &ClientKey) -> Option<(Owner, Epoch)> {
        self.owners.lock().unwrap().get(client).copied()
    }

    pub fn adopted(&self) -> Vec<(ClientKey, Epoch, Option<Epoch>)> {
        self.adopted.lock().unwrap().clone()
    }

    pub async fn tell(&self, event: OwnershipEvent) {
        self.events.send(event).await.unwrap();
    }

    pub fn release_claims(&self) {
        self.slow.store(false, Ordering::SeqCst);
        self.go.notify_waiters();
    }
}

#[async_trait]
impl Registry for TestRegistry {
    async fn join(&self, member: Member) -> Result<(), RegistryError> {
        self.members.send_modify(|members| {
            let mut all = Members::clone(members);
            all.gateways.insert(member.incarnation, member);
            *members = Arc::new(all);
        });
        Ok(())
    }

    async fn leave(&self) {}

    fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }

    async fn claim(&self, client: ClientKey, owner: Owner) -> Result<Claim, ClaimError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(ClaimError::Unavailable("it is away".into()));
        }
        // The registry has decided before its answer is on its way.
        let epoch = Epoch::real(self.revision.fetch_add(1, Ordering::SeqCst));
        let previous = self.owners.lock().unwrap().insert(client, (owner, epoch));
        let go = self.go.notified();
        if self.slow.load(Ordering::SeqCst) {
            go.await;
        }
        Ok(Claim { epoch, previous })
    }

    fn adopt(&self, client: ClientKey, _: Owner, provisional: Epoch, superseded: Option<Epoch>) {
        self.adopted.lock().unwrap().push((client, provisional, superseded));
    }

    #[expect(clippy::disallowed_methods, reason = "the thread has to stand still")]
    fn release(&self, client: ClientKey, epoch: Epoch) {
        let stop = self.stop_ms.swap(0, Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(stop));
        let mut owners = self.owners.lock().unwrap();
        if owners.get(&client).is_some_and(|(_, present)| *present == epoch) {
            owners.remove(&client);
        }
    }

    fn ownership_events(&self) -> Option<mpsc::Receiver<OwnershipEvent>> {
        self.receiver.lock().unwrap().take()
    }

    async fn owner(&self, client: &ClientKey) -> Result<Option<(Owner, Epoch)>, RegistryError> {
        Ok(self.owned(client))
    }

    fn definitions(&self) -> watch::Receiver<Arc<Definitions>> {
        self.definitions.subscribe()
    }

    async fn create_tenant(&self, _: &TenantName, _: &Tenant) -> Result<(), RegistryError> {
        unreachable!("not a gateway's business")
    }

    async fn set_limits(&self, _: &TenantName, _: Limits) -> Result<Tenant, RegistryError> {
        unreachable!("not a gateway's business")
    }

    async fn raise_users_version(&self, _: &TenantName) -> Result<(), RegistryError> {
        unreachable!("not a gateway's business")
    }

    async fn delete_tenant(&self, _: &TenantName) -> Result<(), RegistryError> {
        unreachable!("not a gateway's business")
    }

    async fn create_group(&self, _: &TenantName, _: &Group) -> Result<(), RegistryError> {
        unreachable!("not a gateway's business")
    }

    async fn activate_group(&self, _: &TenantName, _: &str) -> Result<(), RegistryError> {
        unreachable!("not a gateway's business")
    }

    async fn set_group(&self, _: &TenantName, _: &str, _: GroupChange) -> Result<Group, RegistryError> {
        unreachable!("not a gateway's business")
    }

    async fn delete_group(&self, _: &TenantName, _: &str) -> Result<(), RegistryError> {
        unreachable!("not a gateway's business")
    }

    fn signing_keys(&self) -> watch::Receiver<Option<Arc<SigningKeys>>> {
        unreachable!("not a gateway's business")
    }

    async fn replace_signing_keys(&self, _: &SigningKeys, _: &SigningKeys) -> Result<(), RegistryError> {
        unreachable!("not a gateway's business")
    }

    fn healthy(&self) -> watch::Receiver<bool> {
        self.healthy.subscribe()
    }

    fn describe(&self) -> String {
        "test".into()
    }
}
