//! Packets as bytes. `decode` is strict and borrows from its input; `encode` writes what a server sends. Only here is
//! known how a protocol version writes a packet.

pub mod decode;
pub mod encode;

/// Most bytes that a fixed header takes: the first byte and four of length.
pub const HEADER_MAX: usize = 5;
