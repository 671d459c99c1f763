//! Verdicts on credentials that a shard remembers, so that a reconnect storm does not hash passwords again. Kept under a
//! keyed hash of tenant, user and password (nobody can look up a password in a dump without the key, and the key is the
//! process's own), for at most 5 minutes and only while the tenant's users have not changed. Only yes is remembered.

use std::collections::{HashMap, VecDeque};

use hmac::{Hmac, KeyInit, Mac};
use penstock_common::clock::Seams;
use penstock_mqtt::session::Millis;
use sha2::Sha256;

/// Tenant, user and password under the process's key.
pub(crate) type VerdictKey = [u8; 32];

struct Verdict {
    until: Millis,
    users_version: u64,
}

/// Remembered verdicts of one shard, bounded; the oldest goes first.
pub(crate) struct Verdicts {
    secret: [u8; 32],
    allowed: HashMap<VerdictKey, Verdict>,
    order: VecDeque<VerdictKey>,
    limit: usize,
}

impl Verdicts {
    pub(crate) fn new(seams: &Seams, limit: usize) -> Self {
        let mut secret = [0; 32];
        seams.fill(&mut secret);
        Self { secret, allowed: HashMap::new(), order: VecDeque::new(), limit }
    }

    /// The key of credentials. Parts are length-prefixed, so that no two triples are the same text.
    pub(crate) fn key(&self, tenant: &str, user: &[u8], password: &[u8]) -> Option<VerdictKey> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).ok()?;
        for part in [tenant.as_bytes(), user, password] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        Some(mac.finalize().into_bytes().into())
    }

    /// Whether a yes is remembered that is still good.
    pub(crate) fn allowed(&self, key: &VerdictKey, users_version: u64, now: Millis) -> bool {
        self.allowed.get(key).is_some_and(|it| it.users_version == users_version && now < it.until)
    }

    /// Remembers a yes.
    pub(crate) fn remember(&mut self, key: VerdictKey, users_version: u64, until: Millis) {
        if self.limit == 0 {
            return;
        }
        if self.allowed.insert(key, Verdict { until, users_version }).is_none() {
            self.order.push_back(key);
        }
        while self.allowed.len() > self.limit {
            let Some(oldest) = self.order.pop_front() else { break };
            self.allowed.remove(&oldest);
        }
    }

    /// Forgets what is over.
    pub(crate) fn sweep(&mut self, now: Millis) {
        let allowed = &mut self.allowed;
        self.order.retain(|key| {
            let good = allowed.get(key).is_some_and(|it| now < it.until);
            if !good {
                allowed.remove(key);
            }
            good
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_verdict_ends_with_time_with_a_change_of_users_and_with_the_bound() {
        let mut verdicts = Verdicts::new(&Seams::real(), 2);
        let key = |verdicts: &Verdicts, user: &[u8]| verdicts.key("acme", user, b"secret").unwrap();
        let (a, b, c) = (key(&verdicts, b"a"), key(&verdicts, b"b"), key(&verdicts, b"c"));
        verdicts.remember(a, 1, 100);
        assert!(verdicts.allowed(&a, 1, 99));
        assert!(!verdicts.allowed(&a, 2, 99), "the tenant's users have changed");
        assert!(!verdicts.allowed(&a, 1, 100));
        verdicts.remember(b, 1, 200);
        verdicts.remember(c, 1, 200);
        assert!(!verdicts.allowed(&a, 1, 0) && verdicts.allowed(&c, 1, 0));
        verdicts.sweep(300);
        assert!(verdicts.order.is_empty() && verdicts.allowed.is_empty());
    }

    #[test]
    fn parts_of_credentials_do_not_run_together() {
        let verdicts = Verdicts::new(&Seams::real(), 2);
        assert_ne!(verdicts.key("a", b"bc", b""), verdicts.key("a", b"b", b"c"));
    }
}
