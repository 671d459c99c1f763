//! MQTT 3.1.1 once more, as simple as can be: what the client of a run writes, and how the server's bytes are taken apart.
//! Shares no code with `penstock-mqtt`, so that both can't be wrong together.

/// One packet: its first byte and its body.
pub struct Whole<'a> {
    pub first: u8,
    pub body: &'a [u8],
    /// Bytes of all of it.
    pub total: usize,
}

/// The packet at the front; `None`: not all of it is there, or its length has no end.
pub fn front(bytes: &[u8]) -> Option<Whole<'_>> {
    let (mut length, mut shift, mut at) = (0usize, 0, 1);
    loop {
        let byte = *bytes.get(at)?;
        length |= usize::from(byte & 0x7f) << shift;
        (shift, at) = (shift + 7, at + 1);
        if byte < 0x80 {
            break;
        }
        if shift == 28 {
            return None;
        }
    }
    let body = bytes.get(at..at + length)?;
    Some(Whole { first: bytes[0], body, total: at + length })
}

/// Puts a packet together.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut length = body.len();
    loop {
        let more = if length > 0x7f { 0x80 } else { 0 };
        out.push((length & 0x7f) as u8 | more);
        length >>= 7;
        if more == 0 {
            break;
        }
    }
    out.extend(body);
    out
}

/// Two bytes of length, and the bytes.
pub fn field(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// The two bytes at `at`.
pub fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// A PUBLISH's packet identifier: 0 with QoS 0.
pub fn publish_id(packet: &Whole<'_>) -> Option<u16> {
    if packet.first & 0x06 == 0 {
        return Some(0);
    }
    number(packet.body, 2 + usize::from(number(packet.body, 0)?))
}
