//! Group commit: one thread owns the state of all partitions and is the only writer. It runs what waits, in order, makes
//! one batch of it, writes (and syncs) that once, and only then answers. While it writes, the next group gathers.
//!
//! Bounds: a queue of `QUEUE` jobs with `QUEUED_KIB` of entries; callers beyond wait. A write that fails ends the store:
//! what was in the batch is in doubt, and nothing is accepted until the process starts again and recovers.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::machine::Machine;
use crate::store::{AppendError, CommitError, SessionError, StoreError};

/// Jobs that wait.
const QUEUE: usize = 4_096;
/// Jobs in one batch.
const GROUP_JOBS: usize = 4_096;
/// KiB of entries that wait or are being written.
const QUEUED_KIB: u32 = 128 * 1024;
/// KiB that a job counts for beside its entry.
const JOB_KIB: u32 = 1;

/// Told to every job of a batch that could not be written, and to all later ones.
#[derive(Clone, Debug)]
pub(super) struct Failure(pub(super) String);

impl From<Failure> for StoreError {
    fn from(Failure(reason): Failure) -> Self {
        Self::Unavailable(reason)
    }
}

impl From<Failure> for AppendError {
    fn from(Failure(reason): Failure) -> Self {
        Self::Lost(reason)
    }
}

impl From<Failure> for SessionError {
    fn from(failure: Failure) -> Self {
        Self::Store(failure.into())
    }
}

impl From<Failure> for CommitError {
    fn from(failure: Failure) -> Self {
        Self::Store(failure.into())
    }
}

/// Runs on the state, puts what is to be written into the batch, and gives back who is to be told when it is.
type Job = Box<dyn FnOnce(&mut Machine) -> Answer + Send>;
type Answer = Box<dyn FnOnce(&Result<(), Failure>) + Send>;

/// The way to the committer.
pub(super) struct Committer {
    queue: mpsc::Sender<Job>,
    budget: Arc<Semaphore>,
}

impl Committer {
    /// Starts the thread; it ends when this is dropped.
    pub(super) fn start(
        machine: Machine,
        healthy: watch::Sender<bool>,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("store-commit".into())
            .spawn(move || run(machine, jobs, &healthy))?;
        let budget = Arc::new(Semaphore::new(QUEUED_KIB as usize));
        Ok((Self { queue, budget }, thread))
    }

    /// Runs `work`, which writes about `bytes`, in its turn, and answers when what it put into the batch is stored.
    pub(super) async fn submit<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&mut Machine) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let ended = || Failure("the store is closed".into());
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).saturating_add(JOB_KIB).min(QUEUED_KIB);
        let permit = Arc::clone(&self.budget).acquire_many_owned(kib).await.map_err(|_| ended())?;
        let (reply, answered) = oneshot::channel();
        let job: Job = Box::new(move |machine| {
            let result = work(machine);
            Box::new(move |stored| {
                drop(permit);
                // A caller that left needs no answer.
                let _ = reply.send(stored.clone().map(|()| result));
            })
        });
        self.queue.send(job).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

fn run(mut machine: Machine, mut jobs: mpsc::Receiver<Job>, healthy: &watch::Sender<bool>) {
    let mut answers = Vec::new();
    while let Some(first) = jobs.blocking_recv() {
        answers.push(first(&mut machine));
        while answers.len() < GROUP_JOBS && !machine.is_full() {
            let Ok(job) = jobs.try_recv() else { break };
            answers.push(job(&mut machine));
        }
        let stored = machine.flush();
        if let Err(Failure(reason)) = &stored
            && healthy.send_replace(false)
        {
            tracing::error!(reason, "the store can't write and needs a restart");
        }
        for answer in answers.drain(..) {
            answer(&stored);
        }
    }
}
