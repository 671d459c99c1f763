//! The letter of MQTT 3.1.1 over a socket, byte by byte: no client library stands between the test and `penstock`. What one
//! session does by itself is tested in `mqtt`; here is what needs routing, the store or the clock.

use std::time::Duration;

use penstock_tests::{standalone::Penstock, wait::alone};
use table::Reaction;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

// What it says for the test of `mqtt` alone.
#[allow(dead_code)]
#[path = "../../../mqtt/tests/malformed/table.rs"]
mod table;

const SOON: Duration = Duration::from_secs(30);
const PINGREQ: [u8; 2] = [0xc0, 0];
const PINGRESP: [u8; 2] = [0xd0, 0];
const DISCONNECT: [u8; 2] = [0xe0, 0];

fn field(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// A packet of less than 128 bytes.
fn packet(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    assert!(body.len() < 128);
    [&[first, body.len() as u8], &body[..]].concat()
}

fn publish(first: u8, topic: &str, id: u16, payload: &str) -> Vec<u8> {
    let id = if first & 6 == 0 { Vec::new() } else { id.to_be_bytes().to_vec() };
    packet(first, &[&field(topic.as_bytes()), &id, payload.as_bytes()])
}

fn subscribe(id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    let filters: Vec<_> =
        filters.iter().map(|(filter, qos)| [&field(filter.as_bytes())[..], &[*qos]].concat()).collect();
    packet(0x82, &[&id.to_be_bytes(), &filters.concat()])
}

/// A connection, and what is said on it.
struct Raw(TcpStream);

impl Raw {
    async fn dial(penstock: &Penstock) -> Self {
        Self(timeout(SOON, TcpStream::connect(penstock.target())).await.unwrap().unwrap())
    }

    /// CONNECT; the session present flag of its CONNACK. A will is on topic `w`, QoS 1.
    async fn connect(penstock: &Penstock, client: &str, flags: u8, keep_alive: u8, will: &str) -> (Self, u8) {
        let mut raw = Self::dial(penstock).await;
        let demo = penstock.demo();
        let (flags, will) = if will.is_empty() {
            (flags, vec![])
        } else {
            (flags | 0x0c, [field(b"w"), field(will.as_bytes())].concat())
        };
        let login = [field(demo.device().as_bytes()), field(demo.password.as_bytes())].concat();
        let head = [0, 4, b'M', b'Q', b'T', b'T', 4, 0xc0 | flags, 0, keep_alive];
        raw.send(&packet(0x10, &[&head, &field(client.as_bytes()), &will, &login])).await;
        let connack = raw.packet().await;
        assert_eq!((&connack[..2], connack[3]), (&[0x20, 2][..], 0), "{client} is refused");
        (raw, connack[2])
    }

    /// With a clean session, without a will.
    async fn open(penstock: &Penstock, client: &str) -> Self {
        Self::connect(penstock, client, 2, 0, "").await.0
    }

    /// What can't be sent any more because the server has closed is not missed.
    async fn send(&mut self, bytes: &[u8]) {
        let _ = timeout(SOON, self.0.write_all(bytes)).await.expect("the server reads");
    }

    async fn exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        timeout(SOON, self.0.read_exact(&mut bytes)).await.expect("an answer").expect("the connection lives");
        bytes
    }

    /// The next packet, of less than 16,384 bytes.
    async fn packet(&mut self) -> Vec<u8> {
        let mut bytes = self.exactly(2).await;
        let mut length = usize::from(bytes[1] & 0x7f);
        if bytes[1] >= 0x80 {
            let high = self.exactly(1).await;
            length += usize::from(high[0]) * 128;
            bytes.extend(high);
        }
        bytes.extend(self.exactly(length).await);
        bytes
    }

    async fn expect(&mut self, bytes: &[u8]) {
        assert_eq!(self.packet().await, bytes);
    }

    /// Sends, and gets this answer.
    async fn ask(&mut self, bytes: &[u8], answer: &[u8]) {
        self.send(bytes).await;
        self.expect(answer).await;
    }

    /// QoS 1, acknowledged.
    async fn publish(&mut self, topic: &str, payload: &str) {
        self.ask(&publish(0x32, topic, 7, payload), &[0x40, 2, 0, 7]).await;
    }

    /// The next PUBLISH must be this one; it is acknowledged.
    async fn message(&mut self, qos: u8, topic: &str, payload: &str) {
        let got = self.packet().await;
        let at = 4 + topic.len();
        let id = if qos == 0 { 0 } else { u16::from_be_bytes([got[at], got[at + 1]]) };
        assert_eq!(got, publish(0x30 | qos << 1, topic, id, payload), "{topic} {payload}");
        if qos > 0 {
            self.send(&packet(0x40, &[&id.to_be_bytes()])).await;
        }
    }

    /// What comes until the server closes.
    async fn end(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset is an end, too: the server had not read all that was sent.
        let _ = timeout(SOON, self.0.read_to_end(&mut bytes)).await.expect("the server closes");
        bytes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_table_has_its_reaction_over_tcp() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    let mut closed = 0;
    for (number, row) in table::rows().iter().enumerate() {
        let mut raw = match row.open {
            true => Raw::open(&penstock, &format!("row-{number}")).await,
            false => Raw::dial(&penstock).await,
        };
        raw.send(&row.bytes).await;
        match &row.reaction {
            Reaction::Closes(_) => {
                assert_eq!(raw.end().await, row.reply, "{}", row.line);
                closed += 1;
            }
            // Well-formed, but nobody's.
            Reaction::Fine if !row.open => assert_eq!(raw.end().await, [0x20, 2, 0, 5], "{}", row.line),
            Reaction::Fine => {
                raw.send(&PINGREQ).await;
                let mut pings = 1 + row.reply.len() / 2;
                while pings > 0 {
                    pings -= usize::from(raw.packet().await == PINGRESP);
                }
            }
            Reaction::Waits => {}
        }
    }
    assert!(closed > 200, "{closed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_are_not_passed_on_and_a_packet_identifier_may_be_used_again() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    let mut listener = Raw::open(&penstock, "listener").await;
    listener.ask(&subscribe(1, &[("a/#", 1)]), &[0x90, 3, 0, 1, 1]).await;
    let mut speaker = Raw::open(&penstock, "speaker").await;
    // DUP and retain; then the identifier once more: a new publication, whatever its DUP says.
    speaker.ask(&publish(0x3b, "a/b", 9, "one"), &[0x40, 2, 0, 9]).await;
    speaker.ask(&publish(0x3a, "a/b", 9, "two"), &[0x40, 2, 0, 9]).await;
    speaker.ask(&publish(0x32, "a/b", 9, "three"), &[0x40, 2, 0, 9]).await;
    speaker.send(&publish(0x31, "a/b", 0, "four")).await;
    for (qos, payload) in [(1, "one"), (1, "two"), (1, "three"), (0, "four")] {
        listener.message(qos, "a/b", payload).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_is_subscribed_again_is_replaced_and_overlapping_ones_deliver_once() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    let mut speaker = Raw::open(&penstock, "speaker").await;
    for clean in [2, 0] {
        let (mut listener, _) = Raw::connect(&penstock, "listener", clean, 0, "").await;
        for (id, qos) in [(1, 0), (2, 1), (3, 0)] {
            listener.ask(&subscribe(id, &[("a/+", qos)]), &[0x90, 3, 0, id as u8, qos]).await;
            speaker.publish("a/b", "again").await;
            listener.message(qos, "a/b", "again").await;
        }
        // Twice in one packet: as if one came after the other.
        listener.ask(&subscribe(4, &[("a/+", 0), ("a/+", 1)]), &[0x90, 4, 0, 4, 0, 1]).await;
        speaker.publish("a/b", "twice").await;
        listener.message(1, "a/b", "twice").await;
        listener.ask(&subscribe(5, &[("a/#", 0), ("a/b", 2), ("+/b", 0)]), &[0x90, 5, 0, 5, 0, 1, 0]).await;
        speaker.publish("a/b", "overlapping").await;
        speaker.publish("a/b/c", "only one matches").await;
        speaker.send(&publish(0x30, "a/b", 0, "overlapping")).await;
        // What a persistent session keeps and what it gets live are not ordered among each other.
        let mut got = [listener.packet().await, listener.packet().await, listener.packet().await];
        got.sort();
        let id = u16::from_be_bytes([got[2][7], got[2][8]]);
        let live = [publish(0x30, "a/b", 0, "overlapping"), publish(0x30, "a/b/c", 0, "only one matches")];
        assert_eq!(got, [&live[..], &[publish(0x32, "a/b", id, "overlapping")]].concat()[..]);
        listener.send(&packet(0x40, &[&id.to_be_bytes()])).await;
        listener.ask(&PINGREQ, &PINGRESP).await;
        listener.send(&DISCONNECT).await;
        assert!(listener.end().await.is_empty(), "nothing twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_before_unsubscribe_is_completed_and_nothing_new_comes() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    let mut speaker = Raw::open(&penstock, "speaker").await;
    let (mut keeper, present) = Raw::connect(&penstock, "keeper", 0, 0, "").await;
    assert_eq!(present, 0);
    keeper.ask(&subscribe(1, &[("a/#", 1), ("fence", 1)]), &[0x90, 4, 0, 1, 1, 1]).await;
    speaker.publish("a/b", "before").await;
    let first = keeper.packet().await;
    let id = u16::from_be_bytes([first[7], first[8]]);
    assert_eq!(first, publish(0x32, "a/b", id, "before"));
    // Another spelling of the filter is another filter.
    keeper.ask(&packet(0xa2, &[&[0, 2], &field(b"A/#"), &field(b"a/+")]), &[0xb0, 2, 0, 2]).await;
    speaker.publish("a/b", "still").await;
    keeper.message(1, "a/b", "still").await;
    keeper.ask(&packet(0xa2, &[&[0, 3], &field(b"a/#")]), &[0xb0, 2, 0, 3]).await;
    speaker.publish("a/b", "after").await;
    speaker.publish("fence", "1").await;
    keeper.message(1, "fence", "1").await;
    keeper.send(&DISCONNECT).await;
    assert!(keeper.end().await.is_empty());
    let (mut keeper, present) = Raw::connect(&penstock, "keeper", 0, 0, "").await;
    assert_eq!(present, 1);
    keeper.expect(&publish(0x3a, "a/b", id, "before")).await;
    keeper.send(&packet(0x40, &[&id.to_be_bytes()])).await;
    speaker.publish("fence", "2").await;
    keeper.message(1, "fence", "2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_compared_byte_by_byte() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    let mut speaker = Raw::open(&penstock, "speaker").await;
    let mut listener = Raw::open(&penstock, "listener").await;
    let filters = [("caf\u{e9}", 0), ("\u{feff}x", 0), ("/a", 0), ("A/b", 0), ("d//+", 0)];
    listener.ask(&subscribe(1, &filters), &[0x90, 7, 0, 1, 0, 0, 0, 0, 0]).await;
    for other in ["cafe\u{301}", "x", "a", "/a/", "a/b", "A/b ", "d/e", "d//"] {
        speaker.publish(other, "other").await;
    }
    for same in ["caf\u{e9}", "\u{feff}x", "/a", "A/b", "d//e"] {
        speaker.publish(same, "same").await;
    }
    listener.message(0, "d//", "other").await;
    for same in ["caf\u{e9}", "\u{feff}x", "/a", "A/b", "d//e"] {
        listener.message(0, same, "same").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_will_is_published_for_silence_a_protocol_error_and_a_takeover_but_not_after_disconnect() {
    let _alone = alone().await;
    let penstock = Penstock::start().await;
    let mut listener = Raw::open(&penstock, "listener").await;
    listener.ask(&subscribe(1, &[("w", 1)]), &[0x90, 3, 0, 1, 1]).await;
    let began = Instant::now();
    let (silent, _) = Raw::connect(&penstock, "silent", 2, 1, "silent").await;
    assert!(silent.end().await.is_empty());
    assert!(began.elapsed() >= Duration::from_millis(1_500), "keep alive × 1.5: {:?}", began.elapsed());
    listener.message(1, "w", "silent").await;
    // Retained: the flag is not passed on.
    let (mut wrong, _) = Raw::connect(&penstock, "wrong", 0x22, 0, "wrong").await;
    wrong.send(&[0x10, 0]).await;
    assert!(wrong.end().await.is_empty(), "a second CONNECT");
    listener.message(1, "w", "wrong").await;
    let (mut gone, _) = Raw::connect(&penstock, "gone", 2, 0, "not to be seen").await;
    gone.send(&DISCONNECT).await;
    assert!(gone.end().await.is_empty());
    let (twice, _) = Raw::connect(&penstock, "twice", 2, 0, "taken over").await;
    let mut newer = Raw::open(&penstock, "twice").await;
    assert!(twice.end().await.is_empty(), "the older connection is closed");
    listener.message(1, "w", "taken over").await;
    newer.publish("w", "alive").await;
    listener.message(1, "w", "alive").await;
}
