//! Which device of the platform an external identifier is: looked up once, made when it is not there.
//!
//! Invariants:
//! * One look-up or creation a device at a time in this process: messages that come meanwhile wait for its result.
//! * A device that was made and could not be registered is registered at the next try, not made again.
//! * When another process was faster, its device counts and ours is deleted.
//!
//! What it can't rule out: a process that is killed after the platform made the device and before it was registered, or a
//! creation whose answer is lost, leaves a device without an external identifier, which nobody uses.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hyper::Method;
use serde_json::{Value, json};

use crate::{
    api::{Api, ApiError},
    cache::Cache,
    metrics::Metrics,
    outgoing::segment,
};

/// Devices that were made and wait to be registered, at most; more of them would be made again.
const HALF_MADE: usize = 10_000;

/// How devices are known.
#[derive(Debug, Clone)]
pub struct IdentityConfig {
    /// Type of the external identifiers.
    pub id_type: String,
    /// Type of the devices that are made.
    pub device_type: String,
    /// Devices remembered.
    pub cache: usize,
}

/// A device that is being looked up or made; the identifier of one that is made and not registered.
type Making = Arc<tokio::sync::Mutex<Option<String>>>;

/// See the module.
pub struct Identity {
    api: Api,
    config: IdentityConfig,
    metrics: Arc<Metrics>,
    known: Mutex<Cache>,
    making: Mutex<HashMap<Arc<str>, Making>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Identity {
    /// Knows nobody yet.
    pub fn new(api: Api, config: IdentityConfig, metrics: Arc<Metrics>) -> Self {
        let known = Mutex::new(Cache::new(config.cache));
        Self { api, config, metrics, known, making: Mutex::default() }
    }

    /// The platform's identifier of a device.
    pub async fn id(&self, external: &str) -> Result<Arc<str>, ApiError> {
        if let Some(id) = locked(&self.known).get(external) {
            self.metrics.identity("cached");
            return Ok(id);
        }
        let making = Arc::clone(locked(&self.making).entry(external.into()).or_default());
        let mut half_made = making.lock().await;
        // Whoever was before us may have found it.
        let found = locked(&self.known).get(external);
        let result = match found {
            Some(id) => Ok(id),
            None => self.find_or_make(external, &mut half_made).await.map(Arc::from),
        };
        if let Ok(id) = &result {
            locked(&self.known).put(external.into(), Arc::clone(id));
        }
        let keep = half_made.is_some();
        drop(half_made);
        self.leave(external, making, keep);
        result
    }

    /// Forgets a device whose identifier was refused.
    pub fn forget(&self, external: &str) {
        locked(&self.known).remove(external);
    }

    /// The last one who waits takes the entry away, unless it holds a device to be registered.
    fn leave(&self, external: &str, making: Making, keep: bool) {
        let mut all = locked(&self.making);
        drop(making);
        let alone = all.get(external).is_some_and(|making| Arc::strong_count(making) == 1);
        if alone && (!keep || all.len() > HALF_MADE) {
            all.remove(external);
        }
    }

    async fn find_or_make(&self, external: &str, half_made: &mut Option<String>) -> Result<String, ApiError> {
        if let Some(id) = self.look_up(external).await? {
            if let Some(ours) = half_made.take().filter(|ours| *ours != id) {
                self.delete(&ours).await;
            }
            self.metrics.identity("found");
            return Ok(id);
        }
        let id = match half_made {
            Some(id) => id.clone(),
            None => half_made.insert(self.make(external).await?).clone(),
        };
        match self.register(external, &id).await {
            Ok(()) => {}
            // Another process was faster: the look-up at the next try finds its device.
            Err(ApiError::Status { status: 409, .. }) => {
                let winner = self.look_up(external).await?;
                if let Some(ours) = half_made.take().filter(|ours| Some(ours) != winner.as_ref()) {
                    self.delete(&ours).await;
                }
                self.metrics.identity("found");
                return winner
                    .ok_or_else(|| ApiError::Unreadable(format!("{external} is taken, and by nobody")));
            }
            Err(error) => return Err(error),
        }
        *half_made = None;
        self.metrics.identity("created");
        tracing::info!(device = external, id, "device created");
        Ok(id)
    }

    async fn look_up(&self, external: &str) -> Result<Option<String>, ApiError> {
        let path = format!("/identity/externalIds/{}/{}", segment(&self.config.id_type), segment(external));
        match self.api.send(Method::GET, &path, &Value::Null).await {
            Ok(answer) => id_in(&answer["managedObject"]).map(Some),
            Err(ApiError::Status { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn make(&self, external: &str) -> Result<String, ApiError> {
        let device = json!({"name": external, "type": self.config.device_type, "c8y_IsDevice": {}});
        id_in(&self.api.send(Method::POST, "/inventory/managedObjects", &device).await?)
    }

    async fn register(&self, external: &str, id: &str) -> Result<(), ApiError> {
        let path = format!("/identity/globalIds/{}/externalIds", segment(id));
        let body = json!({"externalId": external, "type": self.config.id_type});
        self.api.send(Method::POST, &path, &body).await.map(drop)
    }

    /// A device that nobody can find. If it stays, it does no harm.
    async fn delete(&self, id: &str) {
        let path = format!("/inventory/managedObjects/{}", segment(id));
        if let Err(error) = self.api.send(Method::DELETE, &path, &Value::Null).await {
            tracing::warn!(id, %error, "a device that another process had made meanwhile could not be deleted");
        }
    }
}

/// A text or a number.
fn id_in(object: &Value) -> Result<String, ApiError> {
    match &object["id"] {
        Value::String(id) if !id.is_empty() => Ok(id.clone()),
        Value::Number(id) => Ok(id.to_string()),
        _ => Err(ApiError::Unreadable("it holds no id of the device".to_owned())),
    }
}
