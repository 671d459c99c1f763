//! Membership in etcd: keeps this process's members registered, and shows who is registered. It judges nothing: whether a
//! member that vanished is dead is for the readers to decide, who see its links.
//!
//! A member's key hangs on a lease of its own. When etcd says that the lease is gone, a new one is granted and the key is
//! made again, create-only.

use std::sync::{Arc, Mutex, PoisonError};

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{CallError, Connection, kv_client},
    follow::View,
    keys::Keys,
    leases::Leases,
    unavailable,
};
use crate::registry::{Member, MemberKind, Members, RegistryError};

/// Who is registered, kept from the watch.
pub(super) struct MembersView {
    keys: Keys,
    members: Members,
    shown: watch::Sender<Arc<Members>>,
    listed: watch::Sender<i64>,
}

impl MembersView {
    pub fn new(keys: Keys, shown: watch::Sender<Arc<Members>>, listed: watch::Sender<i64>) -> Self {
        Self { keys, members: Members::default(), shown, listed }
    }
}

impl View for MembersView {
    fn clear(&mut self) {
        self.members = Members::default();
    }

    fn change(&mut self, key: &str, value: Option<&[u8]>) {
        let Some((kind, incarnation)) =
            key.strip_prefix(&self.keys.members()).and_then(|rest| rest.split_once('/'))
        else {
            return;
        };
        let Ok(incarnation) = incarnation.parse::<u64>() else { return };
        let map = match kind {
            "gateway" => &mut self.members.gateways,
            "router" => &mut self.members.routers,
            _ => return,
        };
        let Some(value) = value else {
            map.remove(&incarnation);
            return;
        };
        match serde_json::from_slice::<Member>(value) {
            Ok(member) if member.incarnation == incarnation && kind_of(&member) == kind => {
                map.insert(incarnation, member);
            }
            _ => tracing::warn!(key, "etcd holds a member that can't be read; it is passed over"),
        }
    }

    fn publish(&mut self, revision: i64) {
        self.shown.send_if_modified(|shown| {
            let changed = **shown != self.members;
            if changed {
                *shown = Arc::new(self.members.clone());
            }
            changed
        });
        self.listed.send_replace(revision);
    }
}

fn kind_of(member: &Member) -> &'static str {
    match member.kind {
        MemberKind::Gateway { .. } => "gateway",
        MemberKind::Router { .. } => "router",
    }
}

/// Registers members of this process.
pub(super) struct Presence {
    pub connection: Arc<Connection>,
    pub leases: Arc<Leases>,
    pub keys: Keys,
    pub stop: CancellationToken,
    /// Keys that are kept already: joining twice keeps one.
    pub joined: Mutex<Vec<String>>,
}

impl Presence {
    /// Registers, then keeps registered until `stop`.
    pub async fn join(self: &Arc<Self>, member: Member) -> Result<(), RegistryError> {
        let key = self.keys.member(kind_of(&member), member.incarnation);
        let value = serde_json::to_vec(&member).map_err(|error| RegistryError::Corrupt(error.to_string()))?;
        if self.joined().contains(&key) {
            return Err(RegistryError::Exists(format!("member {}", member.incarnation)));
        }
        let lease = self.leases.grant().await.map_err(|error| unavailable(&error))?;
        if let Err(error) = self.register(&key, &value, lease).await {
            self.leases.forget(lease);
            return Err(match error {
                Registration::Taken => RegistryError::Exists(format!("member {}", member.incarnation)),
                Registration::Failed(error) => unavailable(&error),
            });
        }
        self.joined().push(key.clone());
        let (keeper, stop) = (self.clone(), self.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = keeper.keep(key, value, lease) => {}
            }
        });
        Ok(())
    }

    async fn keep(&self, key: String, value: Vec<u8>, mut lease: i64) {
        loop {
            sleep(self.leases.interval()).await;
            match self.leases.renew(lease).await {
                Ok(()) => {}
                Err(CallError::LeaseGone) => {
                    tracing::warn!(%key, "membership lease lost; registering again");
                    lease = self.again(&key, &value).await;
                }
                Err(error) => tracing::debug!(%error, "membership lease not renewed"),
            }
        }
    }

    /// Until it is registered again.
    async fn again(&self, key: &str, value: &[u8]) -> i64 {
        loop {
            if let Ok(lease) = self.leases.grant().await {
                match self.register(key, value, lease).await {
                    Ok(()) => return lease,
                    Err(Registration::Taken) => {
                        tracing::error!(key, "another process registered under this incarnation");
                    }
                    Err(Registration::Failed(error)) => tracing::debug!(%error, "not registered yet"),
                }
                self.leases.forget(lease);
            }
            sleep(self.leases.interval()).await;
        }
    }

    /// Create-only; our own value under an older lease (a registration whose outcome was unknown) is moved to this one.
    async fn register(&self, key: &str, value: &[u8], lease: i64) -> Result<(), Registration> {
        let put = || TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
        let create = || {
            Txn::new()
                .when([Compare::create_revision(key, CompareOp::Equal, 0)])
                .and_then([put()])
                .or_else([TxnOp::get(key, None::<GetOptions>)])
        };
        let made = self.connection.call(|client| async move { kv_client(&client).txn(create()).await });
        let response = made.await?.value;
        if response.succeeded() {
            return Ok(());
        }
        let present = response.op_responses().into_iter().find_map(|answer| match answer {
            TxnOpResponse::Get(get) => get.kvs().first().cloned(),
            _ => None,
        });
        match present {
            Some(kv) if kv.lease() == lease => Ok(()),
            Some(kv) if kv.value() == value => {
                let revision = kv.mod_revision();
                let compare = || Compare::mod_revision(key, CompareOp::Equal, revision);
                let txn = || Txn::new().when([compare()]).and_then([put()]);
                let moved = self.connection.call(|client| async move { kv_client(&client).txn(txn()).await });
                if moved.await?.value.succeeded() { Ok(()) } else { Err(Registration::Taken) }
            }
            _ => Err(Registration::Taken),
        }
    }

    fn joined(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, thiserror::Error)]
enum Registration {
    #[error("taken")]
    Taken,
    #[error(transparent)]
    Failed(#[from] CallError),
}
