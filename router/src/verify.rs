//! Who a user is: verifies passwords against the store, away from the data path. Knows no gRPC and no link; both ask it.
//!
//! Invariants:
//! * Chosen passwords cost argon2id (19 MiB, 2 passes) whether the user exists or not, on threads of their own, with a
//!   bounded queue. Generated secrets (128 bits and more) cost one salted SHA-256. Which of the two it is depends on the
//!   password that was given alone, so that an answer's time says nothing about the user.
//! * A no is remembered for half a minute with the verifier that it was said against: another password makes it void.
//! * A cached yes lives for [`CACHED_FOR`] at most and only while the tenant's users version is the one it was given
//!   under, which is read before the user is.
//! * Passwords and verifiers are never printed and never leave.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hashbrown::HashMap;
use penstock_common::{
    clock::Seams,
    name::TenantName,
    registry::Definitions,
    store::{Role, Store},
};
use sha2::{Digest, Sha256};
use tokio::{sync::watch, time::Instant};
use tracing::warn;

use crate::hashing::{Pool, PoolError};
pub use crate::{
    bootstrap::{BootstrapError, bootstrap_admin},
    hashing::{HashError, generate_secret, hash_password},
};

/// How long a verdict may be used without asking again.
pub const CACHED_FOR: Duration = Duration::from_secs(300);
/// How long a no is remembered: devices with a wrong password try again and again.
const DENIED_FOR: Duration = Duration::from_secs(30);
/// Verdicts that are remembered, of each kind: guesses don't push out what is right.
const CACHED: usize = 10_000;
/// Shortest password that may be set, characters.
pub const PASSWORD_MIN: usize = 8;
/// Longest password, bytes.
pub const PASSWORD_MAX: usize = 1_024;
/// Longest user name, bytes.
pub const USER_MAX: usize = 128;

/// Answer to who somebody says to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is this user.
    Allowed {
        /// What it may do.
        role: Role,
        /// The tenant's users version that the verdict belongs to.
        users_version: u64,
    },
    /// It isn't: the tenant, the user or the password is wrong.
    Denied,
    /// The queue is full: try again later.
    Busy,
    /// The store doesn't answer.
    Unavailable,
}

struct Cached<T> {
    verdict: T,
    users_version: u64,
    until: Instant,
}

type Cache<T> = Mutex<HashMap<[u8; 32], Cached<T>>>;

/// See the module.
pub struct Verifier {
    store: Arc<dyn Store>,
    definitions: watch::Receiver<Arc<Definitions>>,
    pool: Pool,
    /// Keys the cache, so that its keys say nothing about passwords.
    key: [u8; 32],
    allowed: Cache<Role>,
    /// Not bound to a users version.
    denied: Cache<()>,
}

impl Verifier {
    /// Starts the threads.
    pub fn new(
        store: Arc<dyn Store>,
        definitions: watch::Receiver<Arc<Definitions>>,
        seams: &Seams,
    ) -> std::io::Result<Arc<Self>> {
        let mut key = [0; 32];
        seams.fill(&mut key);
        let pool = Pool::start(seams.clone())?;
        let (allowed, denied) = Default::default();
        Ok(Arc::new(Self { store, definitions, pool, key, allowed, denied }))
    }

    /// Whether this is the user's password. `address` is where the user calls from, without port, for limits.
    pub async fn verify(&self, tenant: &TenantName, user: &str, password: &[u8], address: &str) -> Verdict {
        if password.len() > PASSWORD_MAX || user.is_empty() || user.len() > USER_MAX {
            return Verdict::Denied;
        }
        let version = self.users_version(tenant);
        let key = self.cache_key([tenant.as_str().as_bytes(), user.as_bytes(), password, b""]);
        if let Some(users_version) = version
            && let Some(role) = cached(&self.allowed, &key, users_version)
        {
            return Verdict::Allowed { role, users_version };
        }
        let stored = match version {
            None => None,
            Some(_) => match self.store.user(tenant, user).await {
                Ok(stored) => stored,
                Err(error) => {
                    warn!(%tenant, %error, "a user can't be verified");
                    return Verdict::Unavailable;
                }
            },
        };
        let verifier = stored.as_ref().map(|user| user.verifier.clone());
        let against = verifier.as_deref().unwrap_or_default().as_bytes();
        let no = self.cache_key([tenant.as_str().as_bytes(), user.as_bytes(), password, against]);
        if cached(&self.denied, &no, 0).is_some() {
            return Verdict::Denied;
        }
        match self.pool.verify(tenant, address, verifier, password).await {
            Ok(true) => {}
            Ok(false) => {
                let until = Instant::now() + DENIED_FOR;
                remember(&self.denied, no, Cached { verdict: (), users_version: 0, until });
                return Verdict::Denied;
            }
            Err(PoolError::Busy) => return Verdict::Busy,
            Err(PoolError::Stopped) => return Verdict::Unavailable,
        }
        let (Some(user), Some(users_version)) = (stored, version) else { return Verdict::Denied };
        let until = Instant::now() + CACHED_FOR;
        remember(&self.allowed, key, Cached { verdict: user.role, users_version, until });
        Verdict::Allowed { role: user.role, users_version }
    }

    /// A verifier for a new password, made on the same threads as verdicts are.
    pub async fn hash(&self, tenant: &TenantName, password: &str) -> Result<String, PoolError> {
        self.pool.hash(tenant, password).await
    }

    /// The tenant's users version; None: there is no such tenant.
    pub fn users_version(&self, tenant: &TenantName) -> Option<u64> {
        self.definitions.borrow().tenants.get(tenant).map(|tenant| tenant.tenant.users_version)
    }

    fn cache_key(&self, parts: [&[u8]; 4]) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.key);
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        // Keyed at both ends: no extension.
        hash.update(self.key);
        hash.finalize().into()
    }
}

fn cached<T: Copy>(cache: &Cache<T>, key: &[u8; 32], users_version: u64) -> Option<T> {
    let cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    let found = cache.get(key)?;
    (found.users_version == users_version && found.until > Instant::now()).then_some(found.verdict)
}

fn remember<T>(cache: &Cache<T>, key: [u8; 32], verdict: Cached<T>) {
    let now = Instant::now();
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if cache.len() >= CACHED {
        cache.retain(|_, cached| cached.until > now);
    }
    if cache.len() >= CACHED {
        // Costs some their place, and them one verification.
        let mut drop_half = false;
        cache.retain(|_, _| {
            drop_half = !drop_half;
            drop_half
        });
    }
    cache.insert(key, verdict);
}
