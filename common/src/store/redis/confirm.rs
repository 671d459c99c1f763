//! `replicated:N`: appends whose answer means that N replicas have them. Everything that waits is sent together with one
//! WAIT behind it, on the same connection, for WAIT speaks of what its own connection wrote. It holds up whatever comes
//! behind it there, so there are two connections: while one waits for replicas, the other carries the next flush.
//!
//! Invariants: an answer is given only with the WAIT of its own flush, and a count below N is `Failure::Lost`: in doubt. So is
//! a connection that breaks between the two. Bounded: as many appends wait as there are partitions, one each, and a flush has
//! at most `FLUSH_COMMANDS` and about `FLUSH_BYTES`.

use std::{sync::Arc, time::Duration};

use redis::{Cmd, Pipeline, RedisResult, Value, aio::MultiplexedConnection};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{counts::Counts, live::Failure};

/// Appends that wait for the next flush; further callers wait.
const QUEUE: usize = 1_024;
const FLUSH_COMMANDS: usize = 512;
const FLUSH_BYTES: usize = 4 << 20;

struct Job {
    command: Cmd,
    bytes: usize,
    answer: oneshot::Sender<Result<Value, Failure>>,
}

/// Takes appends.
pub(super) struct Confirmer {
    jobs: mpsc::Sender<Job>,
}

/// One of the two connections.
struct Flusher {
    connection: MultiplexedConnection,
    jobs: Arc<Mutex<mpsc::Receiver<Job>>>,
    replicas: u32,
    within: Duration,
    cut: CancellationToken,
    counts: Counts,
}

impl Confirmer {
    /// Serves until `cut`, which it cancels itself when a connection fails.
    pub(super) fn start(
        connections: [MultiplexedConnection; 2],
        replicas: u32,
        within: Duration,
        cut: &CancellationToken,
        counts: &Counts,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let jobs = Arc::new(Mutex::new(receiver));
        for connection in connections {
            let (jobs, cut, counts) = (Arc::clone(&jobs), cut.clone(), counts.clone());
            let flusher = Flusher { connection, jobs, replicas, within, cut, counts };
            tokio::spawn(flusher.run());
        }
        Self { jobs: sender }
    }

    /// Sends a command once. The answer may be a `Value::ServerError`: it was refused.
    pub(super) async fn store(&self, command: Cmd) -> Result<Value, Failure> {
        let given_up = || Failure::Lost("the connection was given up".into());
        let bytes = command
            .args_iter()
            .map(|part| if let redis::Arg::Simple(part) = part { part.len() } else { 8 })
            .sum();
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job { command, bytes, answer }).await.map_err(|_| given_up())?;
        answered.await.map_err(|_| given_up())?
    }
}

impl Flusher {
    async fn run(mut self) {
        let cut = self.cut.clone();
        cut.run_until_cancelled(async { while self.flush().await {} }).await;
        // Whoever waits is told by the end of the channel.
        self.jobs.lock().await.close();
        cut.cancel();
    }

    /// What waits, and more of it if there is; None when nobody can send any more.
    async fn gather(&self) -> Option<Vec<Job>> {
        let mut jobs = self.jobs.lock().await;
        let first = jobs.recv().await?;
        let (mut bytes, mut gathered) = (first.bytes, vec![first]);
        while gathered.len() < FLUSH_COMMANDS && bytes < FLUSH_BYTES {
            let Ok(job) = jobs.try_recv() else { break };
            bytes += job.bytes;
            gathered.push(job);
        }
        Some(gathered)
    }

    /// False when the connection is not to be used any more.
    async fn flush(&mut self) -> bool {
        let Some(jobs) = self.gather().await else { return false };
        let mut pipeline = Pipeline::with_capacity(jobs.len() + 1);
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            pipeline.add_command(job.command);
            answers.push(job.answer);
        }
        let timeout = u64::try_from(self.within.as_millis()).unwrap_or(u64::MAX);
        pipeline.cmd("WAIT").arg(self.replicas).arg(timeout);
        let sent = self.connection.send_packed_commands(&pipeline, 0, answers.len() + 1).await;
        let verdict = verdict(sent, answers.len(), self.replicas);
        let fit = verdict.is_ok();
        let (mut values, short) = match verdict {
            Ok((values, confirmed)) => {
                let short = confirmed < u64::from(self.replicas);
                (values.into_iter(), short.then(|| self.too_few(confirmed)))
            }
            Err(reason) => (Vec::new().into_iter(), Some(reason)),
        };
        for answer in answers {
            let outcome = match (values.next(), &short) {
                // Refused is refused, whatever replicas say.
                (Some(refused @ Value::ServerError(_)), _) => Ok(refused),
                (Some(value), None) => Ok(value),
                (_, reason) => {
                    self.counts.unconfirmed.inc();
                    Err(Failure::Lost(reason.clone().unwrap_or_else(|| "an answer is missing".into())))
                }
            };
            // A caller that is gone needs no answer.
            let _ = answer.send(outcome);
        }
        fit
    }

    fn too_few(&self, confirmed: u64) -> String {
        format!("{confirmed} of {} replicas confirmed within {:?}", self.replicas, self.within)
    }
}

/// Answers of the commands, and how many replicas have them.
fn verdict(
    sent: RedisResult<Vec<Value>>,
    commands: usize,
    replicas: u32,
) -> Result<(Vec<Value>, u64), String> {
    let mut values = sent.map_err(|error| error.to_string())?;
    match values.pop() {
        Some(Value::Int(confirmed)) if values.len() == commands => {
            Ok((values, u64::try_from(confirmed).unwrap_or_default()))
        }
        // It is no primary any more, or does not know WAIT.
        Some(Value::ServerError(error)) => {
            Err(format!("WAIT {replicas}: {} {}", error.code(), error.details().unwrap_or("")))
        }
        _ => Err("answers are missing".into()),
    }
}
