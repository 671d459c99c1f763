//! MQTT 3.1.1 as a client speaks it, over plain byte slices: what is on the path of every message allocates nothing. It reads
//! only what servers send, and keeps no state.

/// A server sent something that no packet of MQTT 3.1.1 is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a malformed packet")]
pub(crate) struct Malformed;

/// A packet from a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Incoming<'a> {
    /// CONNACK with its code.
    ConnAck(u8),
    /// PUBACK of a packet identifier.
    PubAck(u16),
    /// PUBLISH. The identifier is there with QoS 1.
    Publish {
        payload: &'a [u8],
        id: Option<u16>,
        dup: bool,
    },
    /// SUBACK; whether every filter was granted.
    SubAck(bool),
    PingResp,
    /// Anything else that a server may send.
    Other,
}

/// The first packet and its length; None: there is not a whole one yet.
pub(crate) fn parse(input: &[u8]) -> Result<Option<(Incoming<'_>, usize)>, Malformed> {
    // Most of what a publisher gets.
    if let [0x40, 2, high, low, ..] = input {
        return Ok(Some((Incoming::PubAck(u16::from_be_bytes([*high, *low])), 4)));
    }
    let Some((&first, rest)) = input.split_first() else { return Ok(None) };
    let Some((length, digits)) = remaining_length(rest)? else { return Ok(None) };
    let total = 1 + digits + length;
    let Some(body) = input.get(1 + digits..total) else { return Ok(None) };
    Ok(Some((packet(first, body)?, total)))
}

fn remaining_length(input: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let mut length = 0;
    for (at, byte) in input.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((length, at + 1)));
        }
    }
    if input.len() >= 4 { Err(Malformed) } else { Ok(None) }
}

fn packet(first: u8, body: &[u8]) -> Result<Incoming<'_>, Malformed> {
    match (first >> 4, body) {
        (2, [_, code]) => Ok(Incoming::ConnAck(*code)),
        (3, body) => publish(first, body),
        (4, [high, low]) => Ok(Incoming::PubAck(u16::from_be_bytes([*high, *low]))),
        (9, [_, _, codes @ ..]) => Ok(Incoming::SubAck(codes.iter().all(|code| *code < 0x80))),
        (13, []) => Ok(Incoming::PingResp),
        (2 | 4 | 9 | 13, _) => Err(Malformed),
        (5 | 6 | 7 | 11, _) => Ok(Incoming::Other),
        _ => Err(Malformed),
    }
}

fn publish(first: u8, body: &[u8]) -> Result<Incoming<'_>, Malformed> {
    let (length, rest) = body.split_first_chunk::<2>().ok_or(Malformed)?;
    let rest = rest.get(usize::from(u16::from_be_bytes(*length))..).ok_or(Malformed)?;
    let dup = first & 8 != 0;
    match (first >> 1) & 3 {
        0 => Ok(Incoming::Publish { payload: rest, id: None, dup }),
        1 => {
            let (id, payload) = rest.split_first_chunk::<2>().ok_or(Malformed)?;
            Ok(Incoming::Publish { payload, id: Some(u16::from_be_bytes(*id)), dup })
        }
        // QoS 2 is never asked for.
        _ => Err(Malformed),
    }
}

fn header(out: &mut Vec<u8>, first: u8, mut length: usize) {
    out.push(first);
    loop {
        // Seven bits.
        let byte = (length & 0x7f) as u8;
        length >>= 7;
        out.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            return;
        }
    }
}

/// Longer ones are cut: MQTT has no way to write them. Settings refuse them before.
fn string(out: &mut Vec<u8>, text: &[u8]) {
    let text = text.get(..text.len().min(usize::from(u16::MAX))).unwrap_or_default();
    // At most u16::MAX.
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

/// CONNECT with a clean session.
pub(crate) fn connect(out: &mut Vec<u8>, client: &str, login: Option<(&str, &str)>, keep_alive: u16) {
    let login_length = login.map_or(0, |(user, password)| 4 + user.len() + password.len());
    header(out, 0x10, 10 + 2 + client.len() + login_length);
    out.extend_from_slice(b"\0\x04MQTT\x04");
    out.push(if login.is_some() { 0xc2 } else { 0x02 });
    out.extend_from_slice(&keep_alive.to_be_bytes());
    string(out, client.as_bytes());
    if let Some((user, password)) = login {
        string(out, user.as_bytes());
        string(out, password.as_bytes());
    }
}

/// PUBLISH but for its payload of that length, which the caller appends. QoS 1 with an identifier, else 0.
pub(crate) fn publish_head(out: &mut Vec<u8>, topic: &[u8], id: Option<u16>, dup: bool, payload: usize) {
    let first = 0x30 | u8::from(dup) << 3 | u8::from(id.is_some()) << 1;
    header(out, first, 2 + topic.len() + if id.is_some() { 2 } else { 0 } + payload);
    string(out, topic);
    if let Some(id) = id {
        out.extend_from_slice(&id.to_be_bytes());
    }
}

/// SUBSCRIBE.
pub(crate) fn subscribe(out: &mut Vec<u8>, id: u16, filters: &[String], qos: u8) {
    let length: usize = filters.iter().map(|filter| filter.len() + 3).sum();
    header(out, 0x82, 2 + length);
    out.extend_from_slice(&id.to_be_bytes());
    for filter in filters {
        string(out, filter.as_bytes());
        out.push(qos);
    }
}

/// PUBACK.
pub(crate) fn puback(out: &mut Vec<u8>, id: u16) {
    let [high, low] = id.to_be_bytes();
    out.extend_from_slice(&[0x40, 2, high, low]);
}

/// PINGREQ.
pub(crate) const PINGREQ: [u8; 2] = [0xc0, 0];
/// DISCONNECT.
pub(crate) const DISCONNECT: [u8; 2] = [0xe0, 0];

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use mqttbytes::{QoS, v4};

    use super::*;

    fn other_reads(bytes: &[u8]) -> v4::Packet {
        v4::read(&mut BytesMut::from(bytes), 1 << 20).expect("another implementation reads it")
    }

    #[test]
    fn another_implementation_reads_what_is_written() {
        let mut out = Vec::new();
        connect(&mut out, "c-1", Some(("demo/device", "pw")), 60);
        let v4::Packet::Connect(read) = other_reads(&out) else { panic!("{out:?}") };
        assert_eq!((read.client_id.as_str(), read.keep_alive, read.clean_session), ("c-1", 60, true));
        assert_eq!(
            read.login.map(|login| (login.username, login.password)),
            Some(("demo/device".into(), "pw".into()))
        );
        for (id, size) in [(None, 5), (Some(7), 64), (Some(9), 200), (Some(1), 20_000)] {
            let mut out = Vec::new();
            publish_head(&mut out, b"load/1", id, id == Some(9), size);
            out.resize(out.len() + size, b'.');
            let v4::Packet::Publish(read) = other_reads(&out) else { panic!("{out:?}") };
            assert_eq!(
                (read.topic.as_str(), read.pkid, read.dup),
                ("load/1", id.unwrap_or(0), id == Some(9))
            );
            assert_eq!(read.payload.len(), size);
            let (ours, length) = parse(&out).unwrap().unwrap();
            assert_eq!(length, out.len());
            assert!(
                matches!(ours, Incoming::Publish { payload, id: read, .. } if payload.len() == size && read == id)
            );
        }
        let mut out = Vec::new();
        subscribe(&mut out, 3, &["a/#".into(), "b".into()], 1);
        assert!(matches!(other_reads(&out), v4::Packet::Subscribe(read) if read.filters.len() == 2));
    }

    #[test]
    fn what_another_implementation_writes_is_read_in_any_pieces() {
        let mut out = BytesMut::new();
        v4::PubAck::new(77).write(&mut out).unwrap();
        v4::SubAck::new(1, vec![v4::SubscribeReasonCode::Success(QoS::AtLeastOnce)]).write(&mut out).unwrap();
        v4::SubAck::new(1, vec![v4::SubscribeReasonCode::Failure]).write(&mut out).unwrap();
        v4::ConnAck::new(v4::ConnectReturnCode::BadUserNamePassword, false).write(&mut out).unwrap();
        v4::PingResp.write(&mut out).unwrap();
        let expected = [
            Incoming::PubAck(77),
            Incoming::SubAck(true),
            Incoming::SubAck(false),
            Incoming::ConnAck(4),
            Incoming::PingResp,
        ];
        let mut at = 0;
        for packet in expected {
            let rest = &out[at..];
            let (read, length) = parse(rest).unwrap().unwrap();
            assert_eq!(read, packet);
            for cut in 0..length {
                assert_eq!(parse(&rest[..cut]), Ok(None));
            }
            at += length;
        }
        assert_eq!(at, out.len());
    }

    #[test]
    fn what_no_server_sends_is_malformed() {
        for bad in
            [&[0x10u8, 0][..], &[0x34, 5, 0, 1, b'a', 0, 1], &[0x30, 1, 0], &[0xd0, 0xff, 0xff, 0xff, 0xff]]
        {
            assert_eq!(parse(bad), Err(Malformed), "{bad:?}");
        }
    }
}
