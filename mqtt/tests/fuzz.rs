//! What fuzzing does, within the ordinary suite and on a stable compiler: the corpus that libFuzzer made is replayed, and
//! random programs drive sessions. `make fuzz` runs more of them; `mqtt/fuzz` has the targets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path};

use fuzz::{decoder, random::Random, session};

// Not all of it is used by each of those who include it.
#[allow(dead_code)]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

/// Session steps of one test run.
const STEPS: u64 = 500_000;
/// Bytes of corpus that the repository takes.
const CORPUS_MAX: u64 = 500 * 1_024;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let inputs: Vec<Vec<u8>> = files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(inputs.len() > 50, "{target}: {} inputs", inputs.len());
    inputs
}

#[test]
fn the_corpus_is_replayed() {
    let (decoder_inputs, programs) = (corpus("decoder"), corpus("session"));
    decoder_inputs.iter().for_each(|input| decoder::run(input));
    let steps: u64 = programs.iter().map(|program| session::run(program)).sum();
    assert!(steps > 3_000, "{steps} steps");
    let bytes: usize = decoder_inputs.iter().chain(&programs).map(Vec::len).sum();
    assert!(bytes as u64 <= CORPUS_MAX, "{bytes} bytes of corpus: minimize it");
}

#[test]
fn random_programs_break_no_session() {
    let (mut steps, mut seed) = (0, 0);
    while steps < STEPS {
        let mut random = Random(seed);
        let length = 64 << (random.number() % 7);
        let program = random.bytes(length as usize);
        // A failure names its program: `make fuzz` takes the seed.
        let ran = std::panic::catch_unwind(|| session::run(&program));
        steps += ran.unwrap_or_else(|_| panic!("the program of seed {seed} broke it"));
        seed += 1;
    }
}

#[test]
fn random_packets_are_taken_as_they_are_written_or_not_at_all() {
    let mut random = Random(0);
    for _ in 0..50_000 {
        let number = random.number();
        let mut input = random.bytes((number % 60) as usize);
        // A true length lets the body be looked at.
        if let [first, length, body @ ..] = &mut input[..] {
            *first = [0x10, 0x30, 0x32, 0x40, 0x82, 0xa2, 0xc0, *first][(number >> 8) as usize % 8];
            *length = body.len() as u8;
            for byte in body.iter_mut().filter(|byte| **byte >= 0x20) {
                *byte = [0, 0, 1, 1, 2, b'a', b'/', b'+', b'#', 0xc3, 0xa9][usize::from(*byte) % 11];
            }
        }
        decoder::run(&input);
    }
}
