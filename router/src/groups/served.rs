//! One consumer's side of a served group: batches come out, acks, nacks and credit go in. Dropping it gives up what the
//! consumer holds. The serving task is [`super::serve`].

use std::sync::{Arc, OnceLock};

use penstock_common::{
    position::EntryId,
    store::{CommitError, CursorStart},
};
use penstock_proto::messaging::{Acks, Batch, Nacks};
use tokio::sync::{Notify, mpsc, oneshot};

use super::{clients::ConsumerId, dispatch::Standing};

/// Batches on their way to one consumer.
pub(super) const BATCHES: usize = 64;

/// Why a consumer is served no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// This router is not the partition's home any more: join the present one.
    #[error("the partition's home has moved: join again")]
    Lost,
    /// The group was deleted.
    #[error("the group was deleted")]
    Deleted,
    /// Another consumer has the group, which is for one at a time.
    #[error("another consumer has taken the group")]
    Replaced,
    /// The router stops.
    #[error("the router stops: join again")]
    Stopped,
}

/// What a consumer says.
#[derive(Debug, Clone, PartialEq)]
pub enum Say {
    /// Records are done.
    Acks(Acks),
    /// Records come back.
    Nacks(Nacks),
    /// A new bound for records in its hands.
    Credit(u32),
}

/// How a consumer joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joining {
    /// Unique for the consumer.
    pub consumer: ConsumerId,
    /// Records in its hands at most, 1 and more.
    pub credit: u32,
    /// After this time without an ack a record is handed out again, milliseconds.
    pub ack_timeout_ms: u64,
}

pub(super) enum Command {
    Join { joining: Joining, reply: oneshot::Sender<Result<Served, Occupied>> },
    Say { consumer: ConsumerId, say: Say },
    Standing(oneshot::Sender<Standing>),
    Seek(Seek),
}

/// The group is to go elsewhere.
pub(super) struct Seek {
    pub(super) to: CursorStart,
    pub(super) reply: oneshot::Sender<Result<(), CommitError>>,
}

/// The group is for one consumer at a time, and has one.
pub(super) struct Occupied;

/// The task's end of a consumer.
pub(super) struct Sending {
    pub(super) batches: mpsc::Sender<Batch>,
    pub(super) ended: Arc<OnceLock<Ended>>,
}

/// See the module.
pub struct Served {
    consumer: ConsumerId,
    batches: mpsc::Receiver<Batch>,
    commands: mpsc::Sender<Command>,
    wake: Arc<Notify>,
    ended: Arc<OnceLock<Ended>>,
}

impl Served {
    pub(super) fn new(
        consumer: ConsumerId,
        commands: mpsc::Sender<Command>,
        wake: &Arc<Notify>,
    ) -> (Self, Sending) {
        let (sender, batches) = mpsc::channel(BATCHES);
        let ended = Arc::new(OnceLock::new());
        let sending = Sending { batches: sender, ended: Arc::clone(&ended) };
        (Self { consumer, batches, commands, wake: Arc::clone(wake), ended }, sending)
    }

    /// The next batch; an error when there will be none.
    pub async fn next(&mut self) -> Result<Batch, Ended> {
        let batch = self.batches.recv().await;
        // There is room for another one.
        self.wake.notify_one();
        batch.ok_or_else(|| self.ended.get().copied().unwrap_or(Ended::Stopped))
    }

    /// Passes on what the consumer says. Waits while the task is busy; what is said after the end is forgotten.
    pub async fn say(&self, say: Say) {
        let _ = self.commands.send(Command::Say { consumer: self.consumer, say }).await;
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.batches.close();
        self.wake.notify_one();
    }
}

/// The entry that a range of the contract names.
pub fn entry_of(range: &penstock_proto::messaging::Range) -> EntryId {
    EntryId::new(range.term, range.sequence)
}
