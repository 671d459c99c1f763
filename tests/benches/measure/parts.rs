//! The processes under load: ours and the peers, each pinned to the first core, each ended by handle. What they cost is read
//! from /proc.

// Child processes live in real time: conditions are polled with a deadline.
#![allow(clippy::disallowed_methods)]

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// Core of everything that is measured.
const SERVER_CORE: &str = "0";

/// A child process that ends with this value.
pub struct Part {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Part {
    /// Starts a program on the server core, its output in a file.
    pub fn start(
        dir: &Path,
        name: &str,
        program: &Path,
        arguments: &[String],
        env: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let output = File::create(&log)?;
        let child = Command::new("taskset")
            .args(["-c", SERVER_CORE])
            .arg(program)
            .args(arguments)
            .envs(env.iter().copied())
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{name}: cannot start {}", program.display()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Waits until it accepts connections.
    pub fn wait_for(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}: {}", self.name, fs::read_to_string(&self.log)?);
            }
            if Instant::now() > until {
                bail!("{} does not listen on {address}: {}", self.name, fs::read_to_string(&self.log)?);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// CPU time used so far, seconds.
    pub fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let after = stat.rsplit(") ").next().unwrap_or_default();
        let field =
            |n: usize| after.split(' ').nth(n).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        // utime and stime, in ticks of 10 ms.
        (field(11) + field(12)) / 100.0
    }

    /// Resident memory, bytes.
    pub fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) * 1024
    }

    /// What it is.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address on loopback that was free a moment ago.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
