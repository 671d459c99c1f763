//! Pushes of one stream under way: bounded in number and bytes (then the stream is read no further), and handed over in
//! their order, client by client, while their receipts are waited for side by side.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use penstock_proto::messaging::PushRequest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::home::lock;

/// Pushes under way on one stream.
pub const PUSHES: usize = 1_024;
/// KiB of them.
const KIB: u32 = 16 * 1_024;
/// What a push counts for beside its payload.
const PUSH_KIB: u32 = 1;

/// Said when a push has its place: the next one of the same client may follow. Dropping it says the same.
#[derive(Default)]
pub struct Handed(Mutex<Option<oneshot::Sender<()>>>);

impl Handed {
    /// The push has its place.
    pub fn over(&self) {
        lock(&self.0).take();
    }
}

/// See the module.
pub struct Intake {
    places: Arc<Semaphore>,
    room: Arc<Semaphore>,
    /// By client: ends when the last push has its place.
    last: HashMap<String, oneshot::Receiver<()>>,
}

/// A push that may begin in its turn.
pub struct Place {
    before: Option<oneshot::Receiver<()>>,
    /// To be said when the push has its place.
    pub handed: Handed,
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Default for Intake {
    fn default() -> Self {
        let (places, room) = (Semaphore::new(PUSHES), Semaphore::new(KIB as usize));
        Self { places: Arc::new(places), room: Arc::new(room), last: HashMap::new() }
    }
}

impl Intake {
    /// Waits until there is room for a push. None: never.
    pub async fn enter(&mut self, tenant: &str, push: &PushRequest) -> Option<Place> {
        let bytes = push.payload.len() + push.topic.len();
        let kib = u32::try_from(bytes / 1_024).unwrap_or(u32::MAX).saturating_add(PUSH_KIB).min(KIB);
        let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
        let room = Arc::clone(&self.room).acquire_many_owned(kib).await.ok()?;
        if self.last.len() >= 2 * PUSHES {
            self.last.retain(|_, last| last.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        }
        let (sender, receiver) = oneshot::channel();
        let before = self.last.insert(format!("{tenant}/{}", push.client), receiver);
        let handed = Handed(Mutex::new(Some(sender)));
        Some(Place { before, handed, _permits: (place, room) })
    }
}

impl Place {
    /// Waits until all earlier pushes to the same client have their places.
    pub async fn turn(&mut self) {
        if let Some(before) = self.before.take() {
            // Only its end is waited for.
            let _ = before.await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::FutureExt;

    use super::*;

    fn push(client: &str, bytes: usize) -> PushRequest {
        PushRequest { client: client.into(), payload: vec![0; bytes].into(), ..PushRequest::default() }
    }

    #[tokio::test]
    async fn pushes_to_one_client_wait_for_each_other_and_others_do_not() {
        let mut intake = Intake::default();
        let mut first = intake.enter("t", &push("a", 1)).await.unwrap();
        let mut second = intake.enter("t", &push("a", 1)).await.unwrap();
        let mut other = intake.enter("t", &push("b", 1)).await.unwrap();
        assert!(first.turn().now_or_never().is_some() && other.turn().now_or_never().is_some());
        assert!(second.turn().now_or_never().is_none());
        first.handed.over();
        let mut third = intake.enter("t", &push("a", 1)).await.unwrap();
        assert!(third.turn().now_or_never().is_none());
        drop(second);
        drop(third);
    }

    #[tokio::test]
    async fn bytes_are_bounded_and_what_is_settled_makes_room() {
        let mut intake = Intake::default();
        let mut held = Vec::new();
        for number in 0..15 {
            held.push(intake.enter("t", &push(&number.to_string(), 1 << 20)).await.unwrap());
        }
        assert!(intake.enter("t", &push("x", 1 << 20)).now_or_never().is_none());
        held.pop();
        assert!(intake.enter("t", &push("x", 1 << 20)).now_or_never().is_some());
        drop(held);
        for number in 0..3 * PUSHES {
            drop(intake.enter("t", &push(&number.to_string(), 1)).await.unwrap());
        }
        assert!(intake.last.len() <= 2 * PUSHES);
    }
}
