//! Is the generator itself the bottleneck? What its threads cost, and how late they send where nothing but they are in the
//! way. A run whose figures are the generator's own says so.

use std::{fs, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::time::Instant;

use crate::engine::Engine;

/// A thread that is on a core, or waits for one, for this part of the time has none left.
const BUSY: f64 = 0.92;
/// Messages that leave so long after they were due, though window and socket were free, are late because of us.
const LATE_MILLIS: f64 = 10.0;

/// Where the kernel says what a thread used.
#[derive(Debug, Clone)]
pub(crate) struct ThreadMeter {
    path: String,
}

/// On a core, and waiting for one.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    running: Duration,
    waiting: Duration,
}

impl ThreadMeter {
    /// Of the calling thread.
    pub(crate) fn here() -> Self {
        let thread = rustix::thread::gettid().as_raw_nonzero();
        Self { path: format!("/proc/self/task/{thread}/schedstat") }
    }

    /// Zero where the kernel does not say.
    fn read(&self) -> Used {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let mut nanos = text.split_whitespace().map(|word| Duration::from_nanos(word.parse().unwrap_or(0)));
        Used { running: nanos.next().unwrap_or_default(), waiting: nanos.next().unwrap_or_default() }
    }
}

/// What the generator had used at some time.
#[derive(Debug)]
pub(crate) struct Usage {
    at: Instant,
    cpu: Duration,
    clients: Vec<Used>,
    readers: Used,
}

impl Usage {
    pub(crate) fn now(engine: &Engine) -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = u64::try_from(cpu.tv_sec).unwrap_or(0);
        Self {
            at: Instant::now(),
            cpu: Duration::new(seconds, u32::try_from(cpu.tv_nsec).unwrap_or(0)),
            clients: engine.threads().iter().map(|worker| worker.meter.read()).collect(),
            readers: engine.readers().meter.read(),
        }
    }
}

/// What the generator used, and whether that was all it had.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct GeneratorReport {
    pub(crate) threads: usize,
    /// Of all threads, in the measured part.
    pub(crate) cpu_seconds: f64,
    /// Part of the time that the busiest client thread was on a core.
    pub(crate) busy: f64,
    /// The same of the thread that verifies and pushes.
    pub(crate) readers_busy: f64,
    /// Of messages that nothing but the generator held up.
    pub(crate) send_lag_p99_ms: Option<f64>,
    /// Of this process, for each client; `connect` only.
    pub(crate) rss_bytes_per_connection: Option<f64>,
}

impl GeneratorReport {
    /// What was used between two readings, and why the generator was the bottleneck, if it was.
    pub(crate) fn between(
        before: &Usage,
        after: &Usage,
        send_lag_p99_ms: Option<f64>,
    ) -> (Self, Option<String>) {
        let wall = after.at.saturating_duration_since(before.at).as_secs_f64().max(1e-3);
        let part = |before: Duration, after: Duration| after.saturating_sub(before).as_secs_f64() / wall;
        let running = |before: &Used, after: &Used| part(before.running, after.running);
        let waiting = |before: &Used, after: &Used| part(before.waiting, after.waiting);
        let threads = || before.clients.iter().zip(&after.clients);
        let busiest = threads().map(|(before, after)| running(before, after)).fold(0.0, f64::max);
        let starved = threads()
            .map(|(before, after)| (running(before, after) + waiting(before, after), waiting(before, after)))
            .fold((0.0, 0.0), |worst: (f64, f64), one| if one.0 > worst.0 { one } else { worst });
        let readers_busy = running(&before.readers, &after.readers);
        let report = Self {
            threads: after.clients.len(),
            cpu_seconds: after.cpu.saturating_sub(before.cpu).as_secs_f64(),
            busy: busiest.min(1.0),
            readers_busy: readers_busy.min(1.0),
            send_lag_p99_ms,
            rss_bytes_per_connection: None,
        };
        let reason = report.reason(starved.0, starved.1);
        (report, reason)
    }

    fn reason(&self, wanted: f64, waited: f64) -> Option<String> {
        let percent = |part: f64| (part * 100.0).round().min(100.0);
        if let Some(late) = self.send_lag_p99_ms.filter(|late| *late > LATE_MILLIS) {
            return Some(format!(
                "1 % of the messages left {late:.1} ms or more after they were due, though nothing held them up: give it \
                 more cores or --threads, or a lower rate"
            ));
        }
        if self.busy >= BUSY {
            let busy = percent(self.busy);
            return Some(format!(
                "a thread of clients was busy {busy} % of the time: give it more --threads"
            ));
        }
        if wanted >= BUSY && waited > 0.2 {
            let waited = percent(waited);
            return Some(format!(
                "a thread of clients waited {waited} % of the time for a core: give it more cores"
            ));
        }
        if self.readers_busy >= BUSY {
            let busy = percent(self.readers_busy);
            return Some(format!(
                "the thread that verifies was busy {busy} % of the time: use --verify none, or a rate"
            ));
        }
        None
    }
}

/// Resident memory of this process, bytes; 0 where the kernel does not say.
pub(crate) fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1_024
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn usage(at: Instant, running: u64, waiting: u64) -> Usage {
        let used = Used { running: Duration::from_millis(running), waiting: Duration::from_millis(waiting) };
        Usage { at, cpu: Duration::ZERO, clients: vec![Used::default(), used], readers: Used::default() }
    }

    fn reason(running: u64, waiting: u64, lag: Option<f64>) -> Option<String> {
        let before = Instant::now();
        let after = usage(before + Duration::from_secs(1), running, waiting);
        GeneratorReport::between(&usage(before, 0, 0), &after, lag).1
    }

    #[test]
    fn a_generator_without_reserve_is_the_bottleneck() {
        assert_eq!(reason(700, 100, Some(1.0)), None);
        assert!(reason(970, 0, None).unwrap().contains("97 %"));
        assert!(reason(400, 560, None).unwrap().contains("waited 56 %"));
        assert!(reason(100, 0, Some(25.0)).unwrap().contains("25.0 ms"));
    }

    #[test]
    fn the_kernel_tells_what_a_thread_used() {
        let meter = ThreadMeter::here();
        let before = meter.read().running;
        let end = Instant::now() + Duration::from_secs(10);
        while meter.read().running < before + Duration::from_millis(5) && Instant::now() < end {}
        assert!(meter.read().running >= before + Duration::from_millis(5));
        assert!(resident_bytes() > 0);
    }
}
