//! Passwords to verifiers and back, on threads of their own with a bounded queue: hashing is slow on purpose, so that tenants,
//! and addresses within a tenant, have their turns ([`turns`]): a flood of guesses waits behind itself. Two kinds:
//! `$argon2id$…` for chosen passwords, `$ps1$<salt>$<hash>` (SHA-256) for generated secrets.

use std::{
    io,
    sync::{Arc, OnceLock},
    thread,
};

use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use penstock_common::{clock::Seams, name::TenantName};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::oneshot;

use self::turns::Turns;

mod turns;

/// Memory of one hash, KiB; passes; lanes.
const MEMORY_KIB: u32 = 19 * 1_024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Threads that hash.
const THREADS: usize = 2;
/// What a generated secret begins with; 32 random bytes in base64url follow.
const SECRET_PREFIX: &str = "ps1.";
const SECRET_BYTES: usize = 32;
const SALT_BYTES: usize = 16;
const FAST: &str = "$ps1$";

/// A password that can't be hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// Begins like a generated secret and is none.
    #[error("a password that begins with \"ps1.\" must be a generated secret")]
    Prefix,
    /// The hash function refused.
    #[error("the password can't be hashed")]
    Failed,
}

/// A job that was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Too many wait, for the tenant, the address, or at all.
    #[error("too many passwords wait to be checked")]
    Busy,
    /// The threads have ended, or the password can't be hashed.
    #[error("passwords can't be checked")]
    Stopped,
}

/// A new secret of 256 random bits.
pub fn generate_secret(seams: &Seams) -> String {
    let mut bytes = [0; SECRET_BYTES];
    seams.fill(&mut bytes);
    format!("{SECRET_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// A verifier for a password: slow for chosen ones, fast for generated secrets. Blocks for some 30 ms.
pub fn hash_password(password: &str, seams: &Seams) -> Result<String, HashError> {
    let mut salt = [0; SALT_BYTES];
    seams.fill(&mut salt);
    if !usable(password) {
        return Err(HashError::Prefix);
    }
    if is_secret(password.as_bytes()) {
        let hash = URL_SAFE_NO_PAD.encode(fast_hash(&salt, password.as_bytes()));
        return Ok(format!("{FAST}{}${hash}", URL_SAFE_NO_PAD.encode(salt)));
    }
    let hash = slow().and_then(|argon| argon.hash_password_with_salt(password.as_bytes(), &salt).ok());
    hash.map(|hash| hash.to_string()).ok_or(HashError::Failed)
}

/// Whether a password may be set: one that begins like a generated secret must be one.
pub fn usable(password: &str) -> bool {
    !password.starts_with(SECRET_PREFIX) || is_secret(password.as_bytes())
}

/// Whether it has the form of a generated secret: decides what verifying costs.
fn is_secret(password: &[u8]) -> bool {
    let body = password.strip_prefix(SECRET_PREFIX.as_bytes());
    body.and_then(|body| URL_SAFE_NO_PAD.decode(body).ok()).is_some_and(|bytes| bytes.len() == SECRET_BYTES)
}

fn slow() -> Option<Argon2<'static>> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).ok()?;
    Some(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn fast_hash(salt: &[u8], secret: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((salt.len() as u64).to_le_bytes());
    hash.update(salt);
    hash.update(secret);
    hash.finalize().into()
}

fn verify_fast(verifier: &str, password: &[u8]) -> bool {
    let parts = verifier.strip_prefix(FAST).and_then(|rest| rest.split_once('$'));
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    let Some((Some(salt), Some(hash))) = parts.map(|(salt, hash)| (decode(salt), decode(hash))) else {
        return false;
    };
    fast_hash(&salt, password).ct_eq(hash.as_slice()).into()
}

fn verify_slow(verifier: &str, password: &[u8]) -> bool {
    slow().is_some_and(|argon| PasswordVerifier::<str>::verify_password(&argon, password, verifier).is_ok())
}

/// For users that aren't there, and for those whose verifier is of the other kind: costs the same, matches nothing.
fn decoy(seams: &Seams) -> &'static str {
    static DECOY: OnceLock<String> = OnceLock::new();
    DECOY.get_or_init(|| {
        let mut unknown = [0; SECRET_BYTES];
        seams.fill(&mut unknown);
        hash_password(&URL_SAFE_NO_PAD.encode(unknown), seams).unwrap_or_default()
    })
}

enum Job {
    Verify { verifier: Option<String>, password: Vec<u8>, reply: oneshot::Sender<bool> },
    Hash { password: String, reply: oneshot::Sender<Option<String>> },
}

/// The threads and their queue.
pub(crate) struct Pool {
    jobs: Arc<Turns<Job>>,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs.end();
    }
}

impl Pool {
    pub(crate) fn start(seams: Seams) -> io::Result<Self> {
        let pool = Self { jobs: Arc::default() };
        for number in 0..THREADS {
            let (jobs, seams) = (Arc::clone(&pool.jobs), seams.clone());
            thread::Builder::new().name(format!("hash-{number}")).spawn(move || work(&jobs, &seams))?;
        }
        Ok(pool)
    }

    pub(crate) async fn verify(
        &self,
        tenant: &TenantName,
        address: &str,
        verifier: Option<String>,
        password: &[u8],
    ) -> Result<bool, PoolError> {
        if is_secret(password) {
            return Ok(verify_fast(verifier.as_deref().unwrap_or_default(), password));
        }
        let (reply, verdict) = oneshot::channel();
        self.post(tenant, address, Job::Verify { verifier, password: password.to_vec(), reply })?;
        verdict.await.map_err(|_| PoolError::Stopped)
    }

    pub(crate) async fn hash(&self, tenant: &TenantName, password: &str) -> Result<String, PoolError> {
        let (reply, hash) = oneshot::channel();
        self.post(tenant, "", Job::Hash { password: password.to_owned(), reply })?;
        hash.await.ok().flatten().ok_or(PoolError::Stopped)
    }

    fn post(&self, tenant: &TenantName, address: &str, job: Job) -> Result<(), PoolError> {
        if self.jobs.push(tenant, address, job) { Ok(()) } else { Err(PoolError::Busy) }
    }
}

fn work(jobs: &Turns<Job>, seams: &Seams) {
    while let Some(job) = jobs.next() {
        match job {
            // Whoever asked has gone.
            Job::Verify { reply, .. } if reply.is_closed() => {}
            Job::Verify { verifier, password, reply } => {
                let own = verifier.as_deref().filter(|verifier| !verifier.starts_with(FAST));
                let matches = verify_slow(own.unwrap_or_else(|| decoy(seams)), &password);
                let _ = reply.send(matches && own.is_some());
            }
            Job::Hash { password, reply } => drop(reply.send(hash_password(&password, seams).ok())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn both_kinds_verify_and_nothing_else_does() {
        let seams = Seams::real();
        let (pool, tenant) = (Pool::start(seams.clone()).unwrap(), TenantName::new("acme").unwrap());
        let secret = generate_secret(&seams);
        let chosen = hash_password("correct horse", &seams).unwrap();
        let fast = hash_password(&secret, &seams).unwrap();
        assert!(chosen.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{chosen}");
        assert!(fast.starts_with(FAST));
        let check = async |verifier: Option<&String>, password: &str| {
            pool.verify(&tenant, "1.2.3.4", verifier.cloned(), password.as_bytes()).await.unwrap()
        };
        assert!(check(Some(&chosen), "correct horse").await);
        assert!(check(Some(&fast), &secret).await);
        assert!(!check(Some(&chosen), "wrong").await);
        assert!(!check(Some(&chosen), &secret).await);
        assert!(!check(Some(&fast), &generate_secret(&seams)).await);
        assert!(!check(Some(&fast), "wrong").await);
        assert!(!check(None, "correct horse").await);
        assert!(!check(None, &secret).await);
        assert_eq!(hash_password("ps1.weak", &seams), Err(HashError::Prefix));
    }
}
