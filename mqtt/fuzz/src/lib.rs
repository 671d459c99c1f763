//! What fuzzing does with its input, whoever makes the input: libFuzzer (`fuzz_targets/`), the soak (`src/bin/soak.rs`), the
//! ordinary test suite (`mqtt/tests/fuzz.rs`). Every judgement about what came out is made here, without the code under
//! test: packets are taken apart and put together by [`packets`].

pub mod decoder;
pub mod model;
pub mod packets;
pub mod random;
pub mod session;
