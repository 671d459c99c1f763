//! The groups that this router serves: one task per (partition, group), from its first consumer to its last. Finds or
//! starts the task that a consumer joins; what the task does is in [`super::run`].
//!
//! Invariant: at most one task of a (partition, group) of a home, and it reads its cursor only when it is the one: a task
//! that ends has written its cursor before the next one reads it.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use hashbrown::HashMap;
use penstock_common::{
    clock::Seams,
    name::PartitionKey,
    position::EntryId,
    registry::{Definitions, Group},
    store::{CommitError, CursorStart, GroupCursor, Store, StoreError, Totals},
};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::warn;

use super::{
    dispatch::Standing,
    home::{Holders, PartitionHome},
    metrics::GroupRecords,
    run::Run,
    served::{Command, Joining, Occupied, Seek, Served},
};

/// Commands that wait for one task.
const COMMANDS: usize = 256;
/// Joins are tried so often when the task ends at the same moment.
const JOIN_TRIES: usize = 8;

/// The groups that this router serves.
pub struct Serving {
    pub(super) store: Arc<dyn Store>,
    pub(super) definitions: watch::Receiver<Arc<Definitions>>,
    pub(super) seams: Seams,
    pub(super) holders: Arc<dyn Holders>,
    /// Counts of what is done with records.
    pub records: GroupRecords,
    tasks: Mutex<HashMap<(PartitionKey, String), Task>>,
}

struct Task {
    number: u64,
    commands: mpsc::Sender<Command>,
    home: Arc<dyn PartitionHome>,
    /// Why it could not begin.
    failed: Failed,
}

/// Set before the task ends, if it could not read its cursor.
pub(super) type Failed = Arc<OnceLock<StoreError>>;

impl Task {
    fn alive(&self) -> bool {
        !self.home.lost().is_cancelled() && !self.commands.is_closed()
    }
}

/// A consumer that can't be served here.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JoinError {
    /// The home is lost, or was while joining: find the present one.
    #[error("this router is not the home of the partition")]
    NotHome,
    /// There is no such group, or it is not active yet.
    #[error("there is no group of this name: create it first")]
    NoGroup,
    /// The group is for one consumer at a time, and has one.
    #[error("the group is for one consumer at a time and has one: close that first")]
    Occupied,
    /// The cursor can't be read: try again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Serving {
    /// Serves nothing yet.
    pub fn new(
        store: Arc<dyn Store>,
        definitions: watch::Receiver<Arc<Definitions>>,
        seams: Seams,
        holders: Arc<dyn Holders>,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            definitions,
            seams,
            holders,
            records: GroupRecords::default(),
            tasks: Mutex::default(),
        })
    }

    /// The group, if it is defined and active.
    pub fn group(&self, key: &PartitionKey, name: &str) -> Option<Arc<Group>> {
        active(&self.definitions.borrow(), key, name)
    }

    /// Serves a group of the home's partition to one more consumer.
    pub async fn join(
        self: &Arc<Self>,
        home: &Arc<dyn PartitionHome>,
        group: &str,
        joining: Joining,
    ) -> Result<Served, JoinError> {
        for _ in 0..JOIN_TRIES {
            if home.lost().is_cancelled() {
                return Err(JoinError::NotHome);
            }
            let definition = self.group(home.key(), group).ok_or(JoinError::NoGroup)?;
            let (commands, failed) = self.task(home, &definition);
            let (reply, served) = oneshot::channel();
            if commands.send(Command::Join { joining, reply }).await.is_ok()
                && let Ok(served) = served.await
            {
                return served.map_err(|Occupied| JoinError::Occupied);
            }
            if let Some(error) = failed.get() {
                return Err(JoinError::Store(error.clone()));
            }
        }
        Err(JoinError::NotHome)
    }

    /// Sets a group's cursor on the home's partition anew. While it is consumed, its consumers get records from there on.
    pub async fn seek(
        self: &Arc<Self>,
        home: &Arc<dyn PartitionHome>,
        group: &str,
        to: CursorStart,
    ) -> Result<(), JoinError> {
        for _ in 0..JOIN_TRIES {
            if home.lost().is_cancelled() {
                return Err(JoinError::NotHome);
            }
            let definition = self.group(home.key(), group).ok_or(JoinError::NoGroup)?;
            let (commands, failed) = self.task(home, &definition);
            let (reply, sought) = oneshot::channel();
            if commands.send(Command::Seek(Seek { to, reply })).await.is_ok()
                && let Ok(sought) = sought.await
            {
                return sought.map_err(|error| match error {
                    CommitError::Fenced => JoinError::NotHome,
                    CommitError::Store(error) => JoinError::Store(error),
                });
            }
            if let Some(error) = failed.get() {
                return Err(JoinError::Store(error.clone()));
            }
        }
        Err(JoinError::NotHome)
    }

    /// What a served group is doing; None: it has no consumers here.
    pub async fn standing(&self, key: &PartitionKey, group: &str) -> Option<Standing> {
        let commands = self.lock().get(&(key.clone(), group.to_owned()))?.commands.clone();
        let (reply, standing) = oneshot::channel();
        commands.send(Command::Standing(reply)).await.ok()?;
        standing.await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(PartitionKey, String), Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task that serves the group; starts one if there is none.
    fn task(
        self: &Arc<Self>,
        home: &Arc<dyn PartitionHome>,
        group: &Arc<Group>,
    ) -> (mpsc::Sender<Command>, Failed) {
        let slot = (home.key().clone(), group.name.clone());
        let mut tasks = self.lock();
        if let Some(task) = tasks.get(&slot).filter(|task| task.alive()) {
            return (task.commands.clone(), Arc::clone(&task.failed));
        }
        let (commands, received) = mpsc::channel(COMMANDS);
        let (number, failed) = (self.seams.number(), Failed::default());
        let weak = commands.downgrade();
        let run = Run::new(Arc::clone(self), number, Arc::clone(home), Arc::clone(group), received, weak);
        let task =
            Task { number, commands: commands.clone(), home: Arc::clone(home), failed: Arc::clone(&failed) };
        tasks.insert(slot, task);
        drop(tasks);
        tokio::spawn(Box::pin(run.run(Arc::clone(&failed))));
        (commands, failed)
    }

    /// A task ends, unless something has come for it.
    pub(super) fn forget(
        &self,
        key: &PartitionKey,
        group: &str,
        number: u64,
        idle: impl FnOnce() -> bool,
    ) -> bool {
        let slot = (key.clone(), group.to_owned());
        let mut tasks = self.lock();
        if !idle() {
            return false;
        }
        if tasks.get(&slot).is_some_and(|task| task.number == number) {
            tasks.remove(&slot);
        }
        true
    }

    /// A defined group's cursor is never absent for long; one that was lost begins at what is retained, never later.
    pub(super) async fn cursor(
        &self,
        home: &Arc<dyn PartitionHome>,
        group: &str,
    ) -> Result<(GroupCursor, (EntryId, Totals)), StoreError> {
        let mut cursors = home.cursors().await?;
        if let Some(cursor) = cursors.groups.remove(group) {
            return Ok((cursor, cursors.trimmed));
        }
        warn!(partition = %home.key(), group, "the group has no cursor: it begins at the oldest retained record");
        self.store.create_cursor(home.key(), group, CursorStart::Earliest).await?;
        let mut cursors = home.cursors().await?;
        Ok((cursors.groups.remove(group).unwrap_or_default(), cursors.trimmed))
    }
}

fn active(definitions: &Definitions, key: &PartitionKey, name: &str) -> Option<Arc<Group>> {
    let tenant = definitions.tenants.get(&key.tenant)?;
    tenant.groups.get(name).filter(|group| group.active).cloned()
}
