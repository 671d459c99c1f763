//! `penstock`: a gateway and a router in one process, on the embedded registry and store.

mod credentials;
mod first_run;
mod program;
mod welcome;

pub use program::main;
