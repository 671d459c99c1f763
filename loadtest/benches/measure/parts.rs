//! The processes under load: ours and the peers, pinned to the first core with all their children, ended by their number. What
//! they cost is read from /proc.

// Child processes live in real time: conditions are polled with a deadline.
#![allow(clippy::disallowed_methods)]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// Core of everything that is measured.
pub const SERVER_CORE: &str = "0";
/// For a program to listen.
const START: Duration = Duration::from_secs(60);
/// For a program to end on SIGTERM before it is killed.
const END: Duration = Duration::from_secs(5);
/// Clock ticks a second in /proc.
const TICKS: f64 = 100.0;

/// A process that ends with this value.
pub struct Part {
    /// For reports.
    pub name: String,
    child: Child,
    log: PathBuf,
    /// The command line, as a reader would type it.
    pub command: String,
}

/// What to start.
pub struct Launch<'a> {
    /// For reports and the log's name.
    pub name: &'a str,
    /// Path or name on PATH.
    pub program: &'a Path,
    /// Words of the command line.
    pub arguments: &'a [String],
    /// Added to the environment.
    pub env: &'a [(&'a str, &'a str)],
}

impl Part {
    /// Starts a program on the server core, its output in a file of `dir`.
    pub fn start(dir: &Path, launch: &Launch<'_>) -> anyhow::Result<Self> {
        let log = dir.join(format!("{}.log", launch.name));
        let output = File::create(&log)?;
        let child = Command::new("taskset")
            .args(["-c", SERVER_CORE])
            .arg(launch.program)
            .args(launch.arguments)
            .envs(launch.env.iter().copied())
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{}: cannot start {}", launch.name, launch.program.display()))?;
        Ok(Self { name: launch.name.to_owned(), child, log, command: shown(dir, launch) })
    }

    /// Waits until it accepts connections.
    pub fn wait_for(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let until = Instant::now() + START;
        while TcpStream::connect(address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}: {}", self.name, self.said());
            }
            if Instant::now() > until {
                bail!("{} does not listen on {address}: {}", self.name, self.said());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The end of its output.
    fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(12)..).unwrap_or_default().join("\n")
    }

    /// Its process and all that descend from it.
    fn tree(&self) -> Vec<u32> {
        let mut parents = BTreeMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            if let Some(parent) = stat(id).get(1).and_then(|text| text.parse::<u32>().ok()) {
                parents.insert(id, parent);
            }
        }
        let mut tree = vec![self.child.id()];
        let mut at = 0;
        while let Some(parent) = tree.get(at).copied() {
            tree.extend(parents.iter().filter(|(_, own)| **own == parent).map(|(id, _)| *id));
            at += 1;
        }
        tree
    }

    /// CPU time used so far by the process, its children, and those that ended; seconds.
    pub fn cpu(&self) -> f64 {
        let number = |fields: &[String], n: usize| fields.get(n).and_then(|text| text.parse::<f64>().ok());
        // utime, stime and, of children that were waited for, cutime and cstime.
        let of = |id: u32| {
            let fields = stat(id);
            (11..=14).filter_map(|n| number(&fields, n)).sum::<f64>()
        };
        self.tree().into_iter().map(of).sum::<f64>() / TICKS
    }

    /// Resident memory of the process and its children, bytes.
    pub fn rss(&self) -> u64 {
        let of = |id: u32| {
            let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
            line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) * 1_024
        };
        self.tree().into_iter().map(of).sum()
    }
}

/// Fields of /proc/ID/stat from the state on: 0 state, 1 parent, 11 utime, ….
fn stat(id: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let after = text.rsplit(") ").next().unwrap_or_default();
    after.split(' ').map(str::to_owned).collect()
}

/// The command without the machine's own places.
fn shown(dir: &Path, launch: &Launch<'_>) -> String {
    let program = launch.program.file_name().unwrap_or_default().to_string_lossy();
    let words = launch.arguments.iter().map(|word| match word.as_str() {
        "" => "''".to_owned(),
        word => word.replace(&dir.display().to_string(), "$DIR"),
    });
    let words: Vec<String> = words.collect();
    format!("taskset -c {SERVER_CORE} {program} {}", words.join(" ")).trim_end().to_owned()
}

impl Drop for Part {
    fn drop(&mut self) {
        let tree = self.tree();
        signal("TERM", &tree[..1]);
        let until = Instant::now() + END;
        while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(20));
        }
        // What is left of it; it may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let left: Vec<u32> = tree.into_iter().skip(1).filter(|id| !stat(*id).is_empty()).collect();
        signal("KILL", &left);
    }
}

/// Signals processes by their numbers.
fn signal(name: &str, ids: &[u32]) {
    if !ids.is_empty() {
        // Processes that ended in between make it complain: nothing to do.
        let _ = Command::new("kill")
            .arg(format!("-{name}"))
            .args(ids.iter().map(u32::to_string))
            .stderr(Stdio::null())
            .status();
    }
}

/// An address on loopback that was free a moment ago.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A program by the variable that names it, on PATH, or where the documented install command puts it.
pub fn find(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(PathBuf::from(path)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian puts servers where only root looks.
    let more = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let cache = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/penstock-peers/bin"));
    let dirs = std::env::split_paths(&path).chain(more).chain(cache);
    dirs.map(|dir| dir.join(name)).find(|path| path.is_file())
}
