//! MQTT without I/O: packets, a strict codec, topics, a trie of filters, and the server's session machine. Knows no
//! sockets, clocks, threads or random numbers: bytes, verdicts and the time go in, events and bytes come out.
//!
//! The way in: [`session::Session::receive`] → [`codec::decode`] → [`session::Event::Publish`], settled by
//! [`session::Session::settle`]. The way out: [`trie::Trie::matches`] → [`session::Session::deliver`] →
//! [`session::Session::transmit`].

pub mod codec;
pub mod packet;
pub mod reserved;
pub mod session;
pub mod topic;
pub mod trie;
