//! Random programs for the session, and random bytes for the decoder, until a number of session steps is reached:
//! `soak [STEPS] [SEED]`. Says what it did; fails by a panic, with the seed of the program before it.

use std::time::{Duration, Instant};

use penstock_mqtt_fuzz::{decoder, random::Random, session};

/// A program that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(10);
/// What memory may grow by, KiB.
const GROWTH: u64 = 64 * 1_024;

/// Resident memory of this process, KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().expect("a number"));
    let (wanted, mut seed) = (arguments.next().unwrap_or(10_000_000), arguments.next().unwrap_or(1));
    let (began, mut steps, mut programs, mut before) = (Instant::now(), 0, 0u64, 0);
    while steps < wanted {
        let mut random = Random(seed);
        let length = 64 << (random.number() % 7);
        let program = random.bytes(length as usize);
        let one = Instant::now();
        let ran = std::panic::catch_unwind(|| {
            decoder::run(&program);
            session::run(&program)
        });
        let Ok(ran) = ran else { panic!("the program of seed {seed} broke it: soak 1 {seed}") };
        assert!(one.elapsed() < PATIENCE, "the program of seed {seed} took {:?}", one.elapsed());
        (steps, programs, seed) = (steps + ran, programs + 1, seed + 1);
        if programs == 1_000 {
            before = resident();
        }
    }
    let grown = resident().saturating_sub(before);
    assert!(before == 0 || grown <= GROWTH, "memory grew by {grown} KiB");
    println!(
        "{steps} session steps in {programs} programs, {:?}, memory grew by {grown} KiB",
        began.elapsed()
    );
}
