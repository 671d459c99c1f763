//! The threads of a run: some that carry clients, and one for those who verify and push. Each has its own runtime, alarm
//! and tally, so that a turn of one client touches nothing of another thread.

use std::{future::Future, io, sync::Arc, thread};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    task::JoinHandle,
};

use crate::{
    alarm::{Alarm, Ticket},
    generator::ThreadMeter,
    tally::{Tally, Timings},
};

/// Descriptors beside the clients' connections: runtimes, files, doors.
const OTHER_FILES: u64 = 64;

/// One thread.
pub(crate) struct Worker {
    handle: Handle,
    alarm: Alarm,
    pub(crate) tally: Arc<Tally>,
    pub(crate) meter: ThreadMeter,
    /// Dropped: the thread ends.
    _stop: oneshot::Sender<()>,
}

/// All threads of a run. Dropping it cuts every connection.
pub(crate) struct Engine {
    clients: Vec<Worker>,
    readers: Worker,
}

/// The run can't begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("cannot start threads: {0}")]
    Threads(#[from] io::Error),
    #[error(
        "{clients} clients need {needed} file descriptors, and this process may have {limit}: raise the limit \
         (ulimit -Hn {needed}, or LimitNOFILE of the unit), or use fewer clients"
    )]
    Files {
        /// Asked for.
        clients: u64,
        /// Descriptors.
        needed: u64,
        /// The hard limit.
        limit: u64,
    },
}

impl Engine {
    /// Starts threads for so many clients.
    pub(crate) fn start(threads: usize, clients: u64) -> Result<Self, EngineError> {
        allow_files(clients)?;
        let clients = (0..threads).map(|at| worker(format!("clients-{at}"))).collect::<Result<_, _>>()?;
        Ok(Self { clients, readers: worker("readers".to_owned())? })
    }

    /// The thread of those who verify and push.
    pub(crate) fn readers(&self) -> &Worker {
        &self.readers
    }

    /// The threads that carry clients.
    pub(crate) fn threads(&self) -> &[Worker] {
        &self.clients
    }

    /// The thread that carries the client of that number.
    pub(crate) fn of_client(&self, number: u64) -> &Worker {
        let at = number.checked_rem(self.clients.len() as u64).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.clients.get(at)).unwrap_or(&self.readers)
    }

    fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.clients.iter().chain([&self.readers])
    }

    /// Adds up a count over all threads.
    pub(crate) fn count(&self, counter: impl Fn(&Tally) -> u64) -> u64 {
        self.workers().map(|worker| counter(&worker.tally)).sum()
    }

    /// What was timed since the last time, over all threads.
    pub(crate) fn take(&self) -> Timings {
        let mut sum = Timings::default();
        self.workers().for_each(|worker| sum.add(&worker.tally.take()));
        sum
    }
}

impl Worker {
    /// Runs a task on this thread.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.handle.spawn(task)
    }

    /// A place at its alarm.
    pub(crate) fn ticket(&self) -> Ticket {
        self.alarm.ticket()
    }
}

fn worker(name: String) -> io::Result<Worker> {
    // One value, sent once.
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    let (stop, stopped) = oneshot::channel::<()>();
    thread::Builder::new().name(name).spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let handle = runtime.handle().clone();
        runtime.block_on(async move {
            let alarm = Alarm::start();
            let told = ready.send(alarm.map(|alarm| (handle, alarm, ThreadMeter::here())));
            if told.is_ok() {
                // An error is the end, too.
                let _ = stopped.await;
            }
        });
        // Connections are cut, not awaited.
        runtime.shutdown_background();
    })?;
    let gone = || io::Error::other("a thread ended while it started");
    let (handle, alarm, meter) = started.recv().map_err(|_| gone())??;
    Ok(Worker { handle, alarm, tally: Arc::default(), meter, _stop: stop })
}

/// Raises the soft limit of file descriptors as far as needed, and the hard one where that is allowed.
fn allow_files(clients: u64) -> Result<(), EngineError> {
    let needed = clients + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    let (current, maximum) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    if current >= needed {
        return Ok(());
    }
    let wanted = Rlimit { current: Some(needed), maximum: Some(maximum.max(needed)) };
    setrlimit(Resource::Nofile, wanted).map_err(|_| EngineError::Files { clients, needed, limit: maximum })
}
