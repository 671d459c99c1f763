//! Encoder of what the server sends (3.1.1). Appends to a buffer; on an error nothing was appended. Retain is never set.

use bytes::{BufMut, BytesMut};

use crate::packet::{ConnectCode, QoS};

/// Largest value of a remaining length.
pub const REMAINING_MAX: usize = 268_435_455;

/// The message can't be written as a packet: topic above 65,535 bytes, or all of it above the standard's limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("topic or packet larger than MQTT allows")]
pub struct TooLarge;

/// CONNACK 0.
pub fn accept(out: &mut BytesMut, session_present: bool) {
    out.put_slice(&[0x20, 2, session_present.into(), 0]);
}

/// CONNACK with a refusal: session present is 0 then [MQTT-3.2.2-4].
pub fn refuse(out: &mut BytesMut, code: ConnectCode) {
    out.put_slice(&[0x20, 2, 0, code as u8]);
}

/// PUBACK.
pub fn puback(out: &mut BytesMut, packet_id: u16) {
    let [high, low] = packet_id.to_be_bytes();
    out.put_slice(&[0x40, 2, high, low]);
}

/// SUBACK with one code a filter. More than 65,535 codes don't fit a SUBSCRIBE either: the rest is left out.
pub fn suback(out: &mut BytesMut, packet_id: u16, codes: impl ExactSizeIterator<Item = u8>) {
    let count = codes.len().min(usize::from(u16::MAX));
    out.put_u8(0x90);
    put_length(out, 2 + count);
    out.put_u16(packet_id);
    out.extend(codes.take(count));
}

/// UNSUBACK.
pub fn unsuback(out: &mut BytesMut, packet_id: u16) {
    let [high, low] = packet_id.to_be_bytes();
    out.put_slice(&[0xb0, 2, high, low]);
}

/// PINGRESP.
pub fn pingresp(out: &mut BytesMut) {
    out.put_slice(&[0xd0, 0]);
}

/// Bytes of a PUBLISH with its header.
pub fn publish_len(topic: &[u8], payload: &[u8], qos: QoS) -> Result<usize, TooLarge> {
    let id = if qos == QoS::AtLeastOnce { 2 } else { 0 };
    let remaining = 2 + topic.len() + id + payload.len();
    if topic.len() > usize::from(u16::MAX) || remaining > REMAINING_MAX {
        return Err(TooLarge);
    }
    Ok(1 + length_len(remaining) + remaining)
}

/// PUBLISH without DUP and retain; `packet_id` counts with QoS 1 only and is not 0 then. Returns the offset of the packet
/// identifier from the packet's first byte (where it would be, with QoS 0).
pub fn publish(
    out: &mut BytesMut,
    topic: &[u8],
    payload: &[u8],
    qos: QoS,
    packet_id: u16,
) -> Result<usize, TooLarge> {
    let total = publish_len(topic, payload, qos)?;
    let topic_len = u16::try_from(topic.len()).map_err(|_| TooLarge)?;
    let id = if qos == QoS::AtLeastOnce { 2 } else { 0 };
    let remaining = 2 + topic.len() + id + payload.len();
    out.reserve(total);
    out.put_u8(0x30 | qos.number() << 1);
    put_length(out, remaining);
    out.put_u16(topic_len);
    out.put_slice(topic);
    if qos == QoS::AtLeastOnce {
        out.put_u16(packet_id);
    }
    out.put_slice(payload);
    Ok(total - payload.len() - id)
}

fn length_len(length: usize) -> usize {
    match length {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

fn put_length(out: &mut BytesMut, mut length: usize) {
    loop {
        let low = (length & 0x7f) as u8;
        length >>= 7;
        if length == 0 {
            return out.put_u8(low);
        }
        out.put_u8(low | 0x80);
    }
}
