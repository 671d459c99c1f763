//! Bytes as one packet, and as a stream: nothing panics, and what is taken means what it says. MQTT 3.1.1 knows one way to
//! write each packet, so a strict decoder's answer, written again, is the input.

use penstock_mqtt::{
    codec::decode::{self, Bounds, Filters, Packet},
    topic,
};

use super::packets::{field, packet};

/// Takes the packets at the front of the input, one after the other, until one is not whole or not well-formed.
pub fn run(input: &[u8]) {
    let mut rest = input;
    while let Some(total) = one(rest) {
        rest = &rest[total..];
    }
}

/// Decodes the packet at the front; its size when it is whole and well-formed.
fn one(input: &[u8]) -> Option<usize> {
    let kind = decode::kind(*input.first()?).ok()?;
    let frame = decode::frame(input).ok()??;
    assert!((2..=5).contains(&frame.header) && frame.total <= 268_435_460, "{frame:?}");
    let whole = input.get(..frame.total)?;
    let bounds = Bounds { topic: 1_024, filters: 64 };
    let decoded = decode::body(kind, &whole[frame.header..], bounds).ok()?;
    // What the model leaves out: retain of a PUBLISH and of a will.
    if let Some(written) = write(&decoded, whole[0] & 1 == 1) {
        let retain = matches!(decoded, Packet::Connect(_)).then(|| frame.header + 7);
        let same = |(at, (a, b)): (usize, (&u8, &u8))| a == b || (Some(at) == retain && a ^ b == 0x20);
        assert!(
            written.len() == whole.len() && written.iter().zip(whole).enumerate().all(same),
            "{decoded:?}"
        );
    }
    Some(frame.total)
}

/// Writes a packet again; `None` where the model does not say enough.
fn write(decoded: &Packet<'_>, retain: bool) -> Option<Vec<u8>> {
    let written = match decoded {
        Packet::OtherVersion => return None,
        Packet::Connect(connect) => {
            text(connect.client);
            let mut flags = u8::from(connect.clean_session) << 1;
            let mut fields = field(connect.client);
            if let Some(will) = &connect.will {
                name(will.topic);
                flags |= 0x04 | will.qos << 3;
                fields.extend([field(will.topic), field(will.payload)].concat());
            }
            if let Some(username) = connect.username {
                text(username);
                flags |= 0x80;
                fields.extend(field(username));
            }
            if let Some(password) = connect.password {
                assert!(connect.username.is_some());
                flags |= 0x40;
                fields.extend(field(password));
            }
            let [high, low] = connect.keep_alive.to_be_bytes();
            packet(0x10, &[&b"\0\x04MQTT\x04"[..], &[flags, high, low], &fields].concat())
        }
        Packet::Publish(publish) => {
            name(publish.topic);
            assert!((publish.packet_id == 0) == (publish.qos == 0) && !(publish.dup && publish.qos == 0));
            let first = 0x30 | u8::from(publish.dup) << 3 | publish.qos << 1 | u8::from(retain);
            let id = publish.packet_id.to_be_bytes();
            let id = if publish.qos == 0 { &[][..] } else { &id };
            packet(first, &[&field(publish.topic), id, publish.payload].concat())
        }
        Packet::PubAck { packet_id } => packet(0x40, &packet_id.to_be_bytes()),
        Packet::Subscribe { packet_id, filters } => packet(0x82, &list(*packet_id, filters, true)),
        Packet::Unsubscribe { packet_id, filters } => packet(0xa2, &list(*packet_id, filters, false)),
        Packet::PingReq => packet(0xc0, &[]),
        Packet::Disconnect => packet(0xe0, &[]),
    };
    Some(written)
}

fn list(packet_id: u16, filters: &Filters<'_>, with_qos: bool) -> Vec<u8> {
    assert!(packet_id != 0 && (1..=64).contains(&filters.clone().count()));
    let mut body = packet_id.to_be_bytes().to_vec();
    for (filter, qos) in filters.clone() {
        text(filter);
        assert!(topic::validate_filter(filter, usize::from(u16::MAX)).is_ok());
        body.extend(field(filter));
        body.extend(with_qos.then_some(qos));
    }
    body
}

fn text(bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).expect("a string is UTF-8");
    assert!(!text.contains(char::is_control), "{text:?}");
}

fn name(bytes: &[u8]) {
    text(bytes);
    assert!(!bytes.is_empty() && bytes.len() <= 1_024 && !bytes.iter().any(|byte| b"+#".contains(byte)));
    assert!(topic::matches(bytes, bytes) && topic::matches(b"#", bytes) != bytes.starts_with(b"$"));
}
