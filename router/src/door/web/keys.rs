//! The keys that sign tokens, and when one follows another. All routers share them through the registry; a router that
//! signs makes the next one when the present one is old, create-only.
//!
//! Invariants:
//! * A key verifies as long as a token that it signed can live.
//! * A key that follows another signs only when it is [`KNOWN_AFTER`] old: by then every router knows it. The very first
//!   one signs at once, so a router without any waits for it.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use penstock_common::{
    clock::{Seams, UnixMillis},
    registry::{Registry, RegistryError, SigningKey, SigningKeys},
    secret::Secret,
};
use tokio::{sync::watch, time::timeout};
use tracing::{info, warn};

use super::token::LIFE_MOST;

/// A key signs for so long.
const SIGNS_FOR: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Longest that a router may need to learn of a new key, and to differ from the others in its clock.
const KNOWN_AFTER: Duration = Duration::from_secs(60);
/// For the registry to show what was just written, or written by another router.
const SHOWN: Duration = Duration::from_secs(2);
/// Other routers that make a key at the same time.
const TRIES: usize = 8;

/// See the module.
pub struct KeyRing {
    registry: Arc<dyn Registry>,
    seams: Seams,
    shown: watch::Receiver<Option<Arc<SigningKeys>>>,
}

impl KeyRing {
    /// Keys of this registry.
    pub fn new(registry: Arc<dyn Registry>, seams: Seams) -> Self {
        let shown = registry.signing_keys();
        Self { registry, seams, shown }
    }

    /// The key to sign with now. Makes the first one, and the next one when it is time.
    pub async fn signer(&self) -> Result<SigningKey, RegistryError> {
        for _ in 0..TRIES {
            let seen = self.seen(|_| true).await?;
            let now = self.seams.now_ms();
            let Some(next) = successors(&seen, now, || self.fresh(now)) else {
                return signer(&seen, now).cloned().ok_or_else(late);
            };
            match self.registry.replace_signing_keys(&seen, &next).await {
                Ok(()) => info!(keys = next.keys.len(), "made a key that signs tokens of the WebSocket door"),
                Err(RegistryError::Exists(_)) => {}
                // The old one is good enough until the registry answers again.
                Err(error) => match signer(&seen, now) {
                    Some(key) => {
                        warn!(%error, "the next key that signs tokens can't be made for now");
                        return Ok(key.clone());
                    }
                    None => return Err(error),
                },
            }
            self.seen(|shown| *shown != *seen).await?;
        }
        Err(late())
    }

    /// The key of this name. While this router knows none at all, it waits a little for the first.
    pub async fn verifier(&self, id: &str) -> Option<SigningKey> {
        let seen = self.seen(|keys| !keys.keys.is_empty()).await.ok()?;
        seen.keys.iter().find(|key| key.id == id).cloned()
    }

    async fn seen(&self, fits: impl Fn(&SigningKeys) -> bool) -> Result<Arc<SigningKeys>, RegistryError> {
        let mut shown = self.shown.clone();
        let fits = |keys: &Option<Arc<SigningKeys>>| keys.as_deref().is_some_and(&fits);
        match timeout(SHOWN, shown.wait_for(fits)).await {
            Ok(Ok(keys)) => keys.clone().ok_or_else(late),
            Ok(Err(_)) | Err(_) => Err(late()),
        }
    }

    fn fresh(&self, now: UnixMillis) -> SigningKey {
        let (mut id, mut secret) = ([0; 9], [0; 32]);
        self.seams.fill(&mut id);
        self.seams.fill(&mut secret);
        let secret = Secret::new(URL_SAFE_NO_PAD.encode(secret));
        SigningKey { id: URL_SAFE_NO_PAD.encode(id), secret, created_at: now }
    }
}

fn late() -> RegistryError {
    RegistryError::Unavailable("it has not shown the keys that sign tokens".to_owned())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What the keys are to be; None: what they are.
fn successors(
    present: &SigningKeys,
    now: UnixMillis,
    fresh: impl FnOnce() -> SigningKey,
) -> Option<SigningKeys> {
    let old = present.keys.last().is_none_or(|last| last.created_at.saturating_add(millis(SIGNS_FOR)) <= now);
    if !old {
        return None;
    }
    // From when its successor signed until the last token of it has ended.
    let kept = millis(LIFE_MOST) + 2 * millis(KNOWN_AFTER);
    let successors = present.keys.iter().skip(1).map(|key| key.created_at).chain([now]);
    let mut keys: Vec<_> = present.keys.iter().zip(successors).collect();
    keys.retain(|(_, succeeded)| succeeded.saturating_add(kept) > now);
    let mut keys: Vec<_> = keys.into_iter().map(|(key, _)| key.clone()).collect();
    keys.push(fresh());
    Some(SigningKeys { keys })
}

fn signer(keys: &SigningKeys, now: UnixMillis) -> Option<&SigningKey> {
    let known = |key: &&SigningKey| key.created_at.saturating_add(millis(KNOWN_AFTER)) <= now;
    keys.keys.iter().rev().find(known).or_else(|| keys.keys.first())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU64, Ordering};

    use penstock_common::registry::embedded::EmbeddedRegistry;

    use super::*;

    const DAY: u64 = 24 * 3_600_000;

    fn key(id: &str, created_at: u64) -> SigningKey {
        SigningKey { id: id.to_owned(), secret: Secret::new(id), created_at }
    }

    fn ids(keys: &SigningKeys) -> Vec<&str> {
        keys.keys.iter().map(|key| key.id.as_str()).collect()
    }

    #[test]
    fn a_key_verifies_until_its_last_token_has_ended() {
        let mut keys = SigningKeys::default();
        let life = u64::try_from(LIFE_MOST.as_millis()).unwrap();
        for week in 0..60 {
            let now = week * 7 * DAY;
            assert!(successors(&keys, now.saturating_sub(1), || key("early", 0)).is_none_or(|_| week == 0));
            keys = successors(&keys, now, || key(&week.to_string(), now)).unwrap();
            // A week's key signs until a minute into the next one.
            let ends = |id: u64| (id + 1) * 7 * DAY + millis(KNOWN_AFTER) + life;
            let missing: Vec<_> = (0..=week).filter(|id| !ids(&keys).contains(&&*id.to_string())).collect();
            assert!(missing.iter().all(|id| ends(*id) <= now), "{missing:?} at {week}");
            assert!(week == 0 || signer(&keys, now).unwrap().id == (week - 1).to_string());
            assert_eq!(signer(&keys, now + millis(KNOWN_AFTER)).unwrap().id, week.to_string());
        }
        assert!(keys.keys.len() < 60, "the oldest are forgotten");
    }

    #[tokio::test]
    async fn two_routers_agree_on_the_first_key_and_on_the_next() {
        let clock = Arc::new(AtomicU64::new(DAY));
        let read = Arc::clone(&clock);
        let seams = Seams::seeded(move || read.load(Ordering::SeqCst), 7);
        let registry: Arc<dyn Registry> = EmbeddedRegistry::open(None, seams.clone()).unwrap();
        let rings = [(); 2].map(|()| KeyRing::new(Arc::clone(&registry), seams.clone()));
        let (one, other) = tokio::join!(rings[0].signer(), rings[1].signer());
        let first = one.unwrap();
        assert_eq!(first, other.unwrap());
        clock.fetch_add(8 * DAY, Ordering::SeqCst);
        let (one, other) = tokio::join!(rings[0].signer(), rings[1].signer());
        assert_eq!(
            (&one.unwrap(), &other.unwrap()),
            (&first, &first),
            "the next one is not known to all yet"
        );
        clock.fetch_add(millis(KNOWN_AFTER), Ordering::SeqCst);
        let next = rings[0].signer().await.unwrap();
        assert_ne!(next, first);
        assert_eq!(rings[1].verifier(&next.id).await, Some(next));
        assert_eq!(rings[1].verifier(&first.id).await, Some(first));
        assert_eq!(rings[1].verifier("k").await, None);
    }
}
