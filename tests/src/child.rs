//! One child process: its lines, its signals, its end. Killed when dropped.

use std::{
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child as Process, Command},
    time::timeout,
};

use crate::wait::eventually;

/// Lines kept of one process; older ones are dropped.
const LINES: usize = 20_000;
/// For a process to stop.
const STOP: Duration = Duration::from_secs(10);
/// What a panic shows of them.
const SHOWN: usize = 40;

type Lines = Arc<Mutex<Vec<String>>>;

/// A running process.
pub struct Child {
    name: String,
    process: Process,
    lines: Lines,
}

impl Child {
    /// Starts a command.
    ///
    /// # Panics
    /// When there is no such program.
    pub fn start(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let lines = Lines::default();
        collect(process.stdout.take(), Arc::clone(&lines));
        collect(process.stderr.take(), Arc::clone(&lines));
        Self { name: name.to_owned(), process, lines }
    }

    /// Memory of it that is resident, bytes; 0 when it has ended.
    pub fn resident_bytes(&self) -> u64 {
        let status =
            self.process.id().and_then(|id| std::fs::read_to_string(format!("/proc/{id}/status")).ok());
        let line =
            status.iter().flat_map(|status| status.lines()).find_map(|line| line.strip_prefix("VmRSS:"));
        let kib =
            line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<u64>().ok());
        kib.unwrap_or(0) * 1_024
    }

    /// Everything that it has printed.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("not poisoned").clone()
    }

    /// Its last lines, for messages.
    pub fn tail(&self) -> String {
        let lines = self.lines();
        let tail = &lines[lines.len().saturating_sub(SHOWN)..];
        format!("last lines of {}:\n  {}", self.name, tail.join("\n  "))
    }

    /// Waits for a line that `find` finds something in.
    ///
    /// # Panics
    /// When it ends or the limit is over.
    pub async fn line<T>(&mut self, what: &str, limit: Duration, find: impl Fn(&str) -> Option<T>) -> T {
        let end = tokio::time::Instant::now() + limit;
        loop {
            let ended = self.ended();
            if let Some(found) = self.lines().iter().find_map(|line| find(line)) {
                return found;
            }
            assert!(ended.is_none(), "{} ended ({ended:?}) before {what}; {}", self.name, self.tail());
            assert!(tokio::time::Instant::now() < end, "not within {limit:?}: {what}; {}", self.tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().expect("a child can be asked")
    }

    fn signal(&self, signal: Signal) {
        let id = self.process.id().unwrap_or_else(|| panic!("{} has ended; {}", self.name, self.tail()));
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(&mut self) {
        self.process.kill().await.unwrap_or_else(|error| panic!("cannot kill {}: {error}", self.name));
    }

    /// SIGSTOP, and waits until its last thread has stopped: it holds its sockets and does nothing.
    pub async fn pause(&self) {
        self.signal(Signal::STOP);
        eventually("all threads stop", STOP, || async {
            self.threads().iter().all(|state| *state == 'T').then_some(())
        })
        .await;
    }

    /// The states of its threads, as in proc(5).
    fn threads(&self) -> Vec<char> {
        let id = self.process.id().unwrap_or_else(|| panic!("{} has ended; {}", self.name, self.tail()));
        let threads = std::fs::read_dir(format!("/proc/{id}/task")).expect("a running process has threads");
        let stat = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("stat")).ok();
        // The name before the state may hold anything, brackets too.
        let state = |stat: String| stat.rsplit_once(") ")?.1.chars().next();
        threads.filter_map(|thread| state(stat(thread.ok()?)?)).collect()
    }

    /// SIGCONT.
    pub fn wake(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// SIGINT, as Ctrl-C sends it.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Waits for its end, and gives the exit code (None: ended by a signal).
    ///
    /// # Panics
    /// When the limit is over.
    pub async fn exit(&mut self, limit: Duration) -> Option<i32> {
        let Ok(status) = timeout(limit, self.process.wait()).await else {
            panic!("{} did not end within {limit:?}; {}", self.name, self.tail());
        };
        let code = status.expect("a child can be awaited").code();
        // The last lines are still in the pipe when the process is gone.
        let lines = Arc::clone(&self.lines);
        eventually("the end of the output", Duration::from_secs(5), || {
            let only_ours = Arc::strong_count(&lines) <= 2;
            async move { only_ours.then_some(()) }
        })
        .await;
        code
    }
}

impl Drop for Child {
    /// A test that fails shows what its processes said last.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}

fn collect(stream: Option<impl AsyncRead + Unpin + Send + 'static>, lines: Lines) {
    let Some(stream) = stream else { return };
    tokio::spawn(async move {
        let mut reader = BufReader::new(stream).lines();
        while let Ok(Some(line)) = reader.next_line().await {
            let mut lines = lines.lock().expect("not poisoned");
            if lines.len() >= LINES {
                lines.drain(..LINES / 2);
            }
            lines.push(line);
        }
    });
}
