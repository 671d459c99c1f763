//! WebSocket frames as a stream of bytes: MQTT may begin and end anywhere in them [MQTT-6.0.0-1..4], so payloads pass
//! through as they come and no message is ever gathered. What is kept is a header that is half here, and the payload of a
//! control frame, at most 125 bytes.

use std::io::Cursor;

use bytes::{BufMut, BytesMut};
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{CloseCode, Control, Data, OpCode},
};

use super::fault::Fault;

/// Longest header: two bytes, eight of length, four of mask.
const HEADER_BYTES: usize = 14;
/// Longest payload of a control frame.
const CONTROL_BYTES: u64 = 125;

/// The client's side of a WebSocket, after the upgrade.
#[derive(Default)]
pub(super) struct Frames {
    header: Vec<u8>,
    /// The frame whose payload is not yet here.
    frame: Option<Frame>,
    /// A message has begun and not ended.
    in_message: bool,
    control: Vec<u8>,
    /// Answer to the newest ping; older ones need none (RFC 6455, 5.5.3).
    pong: Option<Vec<u8>>,
    /// The client has closed.
    closed: bool,
}

struct Frame {
    kind: OpCode,
    left: u64,
    mask: [u8; 4],
    /// Bytes of the payload that have passed.
    passed: u64,
}

impl Frames {
    pub(super) fn has_ended(&self) -> bool {
        self.closed
    }

    /// A pong's payload that is to be written.
    pub(super) fn take_pong(&mut self) -> Option<Vec<u8>> {
        self.pong.take()
    }

    /// Takes all of `input`; payloads go to `mqtt`. What comes after a close is thrown away.
    pub(super) fn open(&mut self, mut input: &[u8], mqtt: &mut BytesMut) -> Result<(), Fault> {
        while !self.closed {
            let Some(frame) = &mut self.frame else {
                match self.begin(&mut input)? {
                    true => continue,
                    false => return Ok(()),
                }
            };
            let here = usize::try_from(frame.left).unwrap_or(usize::MAX).min(input.len());
            let (payload, rest) = input.split_at_checked(here).unwrap_or_default();
            input = rest;
            match frame.kind {
                OpCode::Data(_) => {
                    let start = mqtt.len();
                    mqtt.extend_from_slice(payload);
                    unmask(mqtt.get_mut(start..).unwrap_or_default(), frame.mask, frame.passed);
                }
                OpCode::Control(_) => {
                    let start = self.control.len();
                    self.control.extend_from_slice(payload);
                    unmask(self.control.get_mut(start..).unwrap_or_default(), frame.mask, frame.passed);
                }
            }
            frame.left -= here as u64;
            frame.passed += here as u64;
            if frame.left > 0 {
                return Ok(());
            }
            if let Some(Frame { kind: OpCode::Control(kind), .. }) = self.frame.take() {
                self.obey(kind);
            }
        }
        Ok(())
    }

    /// Reads a header; false: the rest of it has not come.
    fn begin(&mut self, input: &mut &[u8]) -> Result<bool, Fault> {
        while let Some((next, rest)) = input.split_first() {
            *input = rest;
            self.header.push(*next);
            let mut cursor = Cursor::new(&self.header);
            let parsed = FrameHeader::parse(&mut cursor).map_err(|_| Fault::WebProtocol("opcode"))?;
            if let Some((header, length)) = parsed {
                self.header.clear();
                self.frame = Some(self.check(&header, length)?);
                return Ok(true);
            }
            if self.header.len() >= HEADER_BYTES {
                return Err(Fault::WebProtocol("header"));
            }
        }
        if self.header.is_empty() {
            // An idle connection holds no buffer.
            self.header = Vec::new();
        }
        Ok(false)
    }

    fn check(&mut self, header: &FrameHeader, length: u64) -> Result<Frame, Fault> {
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Fault::WebProtocol("an extension that was not agreed on"));
        }
        let mask = header.mask.ok_or(Fault::WebProtocol("a frame without a mask"))?;
        match header.opcode {
            OpCode::Control(_) if !header.is_final || length > CONTROL_BYTES => {
                return Err(Fault::WebProtocol("control frame"));
            }
            OpCode::Control(_) => {}
            OpCode::Data(Data::Text) => return Err(Fault::WebText),
            OpCode::Data(Data::Binary) if self.in_message => {
                return Err(Fault::WebProtocol("a message within a message"));
            }
            OpCode::Data(Data::Continue) if !self.in_message => {
                return Err(Fault::WebProtocol("a continuation of nothing"));
            }
            OpCode::Data(_) if length > i64::MAX as u64 => return Err(Fault::WebProtocol("length")),
            OpCode::Data(_) => self.in_message = !header.is_final,
        }
        Ok(Frame { kind: header.opcode, left: length, mask, passed: 0 })
    }

    fn obey(&mut self, kind: Control) {
        let payload = std::mem::take(&mut self.control);
        match kind {
            Control::Close => self.closed = true,
            Control::Ping => self.pong = Some(payload),
            Control::Pong | Control::Reserved(_) => {}
        }
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4], passed: u64) {
    let mut mask = mask;
    mask.rotate_left((passed % 4) as usize);
    // Whole words first: this loop is what big publishes pay.
    let mut words = payload.chunks_exact_mut(4);
    for word in &mut words {
        word.iter_mut().zip(mask).for_each(|(byte, key)| *byte ^= key);
    }
    words.into_remainder().iter_mut().zip(mask).for_each(|(byte, key)| *byte ^= key);
}

fn write(kind: OpCode, payload: &[u8], out: &mut BytesMut) {
    let header = FrameHeader { opcode: kind, ..FrameHeader::default() };
    // Memory takes everything.
    let _ = header.format(payload.len() as u64, &mut out.writer());
    out.extend_from_slice(payload);
}

/// Appends a binary frame.
pub(super) fn write_binary(payload: &[u8], out: &mut BytesMut) {
    write(OpCode::Data(Data::Binary), payload, out);
}

/// Appends a pong.
pub(super) fn write_pong(payload: &[u8], out: &mut BytesMut) {
    write(OpCode::Control(Control::Pong), payload, out);
}

/// Appends a close.
pub(super) fn write_close(code: CloseCode, out: &mut BytesMut) {
    write(OpCode::Control(Control::Close), &u16::from(code).to_be_bytes(), out);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MASK: [u8; 4] = [0x5A, 0xC3, 0x0F, 0x99];

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            short @ 0..=125 => frame.push(0x80 | u8::try_from(short).unwrap()),
            middle @ 126..=65_535 => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(middle).unwrap().to_be_bytes());
            }
            long => {
                frame.push(0x80 | 127);
                frame.extend((long as u64).to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }

    fn open_in_pieces(bytes: &[u8], piece: usize) -> Result<(Frames, Vec<u8>), Fault> {
        let (mut frames, mut mqtt) = (Frames::default(), BytesMut::new());
        for piece in bytes.chunks(piece) {
            frames.open(piece, &mut mqtt)?;
        }
        Ok((frames, mqtt.to_vec()))
    }

    #[test]
    fn payloads_pass_in_any_split_with_fragments_and_control_frames_between_them() {
        let long: Vec<u8> = (0..70_000u32).map(|n| n as u8).collect();
        let mut bytes = frame(0x82, b"one");
        bytes.extend(frame(0x82, b""));
        bytes.extend(frame(0x02, b"tw"));
        bytes.extend(frame(0x89, b"are you there"));
        bytes.extend(frame(0x00, b""));
        bytes.extend(frame(0x8A, b"unasked"));
        bytes.extend(frame(0x80, b"o"));
        bytes.extend(frame(0x82, &long[..300]));
        bytes.extend(frame(0x82, &long));
        let whole = [b"onetwo", &long[..300], &long[..]].concat();
        for piece in [1, 2, 3, 7, 64, 1_000, bytes.len()] {
            let (mut frames, mqtt) = open_in_pieces(&bytes, piece).unwrap();
            assert!(mqtt == whole, "in pieces of {piece}");
            assert_eq!(frames.take_pong().as_deref(), Some(&b"are you there"[..]));
            assert!(!frames.has_ended() && frames.header.capacity() == 0 && frames.control.capacity() == 0);
        }
    }

    #[test]
    fn only_the_newest_ping_is_answered_and_nothing_is_read_after_a_close() {
        let bytes = [frame(0x89, b"1"), frame(0x89, b"2"), frame(0x88, b"\x03\xe8"), frame(0x82, b"late")];
        let (mut frames, mqtt) = open_in_pieces(&bytes.concat(), 5).unwrap();
        assert_eq!(frames.take_pong().as_deref(), Some(&b"2"[..]));
        assert!(frames.has_ended() && mqtt.is_empty());
    }

    #[test]
    fn what_the_protocol_forbids_is_a_fault() {
        let unmasked = vec![0x82, 1, b'x'];
        let endless = [&[0x82, 0xFF, 0xFF][..], &[0; 7], &MASK].concat();
        for (bytes, fault) in [
            (frame(0x81, b"text"), Fault::WebText),
            (unmasked, Fault::WebProtocol("a frame without a mask")),
            (frame(0xC2, b"x"), Fault::WebProtocol("an extension that was not agreed on")),
            (frame(0x83, b"x"), Fault::WebProtocol("opcode")),
            (frame(0x80, b"x"), Fault::WebProtocol("a continuation of nothing")),
            (
                [frame(0x02, b"x"), frame(0x82, b"y")].concat(),
                Fault::WebProtocol("a message within a message"),
            ),
            (frame(0x09, b"x"), Fault::WebProtocol("control frame")),
            (frame(0x89, &[0; 126]), Fault::WebProtocol("control frame")),
            (endless, Fault::WebProtocol("length")),
        ] {
            let found = open_in_pieces(&bytes, 1).err();
            assert_eq!(found, Some(fault), "{bytes:x?}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_keep_more_than_a_control_frame() {
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let mut next = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..20_000 {
            let mut bytes =
                frame([0x82, 0x02, 0x89, 0x88, 0x80][next(5) as usize], &[7; 40][..next(40) as usize]);
            for _ in 0..next(3) {
                let at = next(bytes.len() as u64) as usize;
                bytes[at] = next(256) as u8;
            }
            bytes.extend(std::iter::repeat_with(|| next(256) as u8).take(32));
            if let Ok((frames, mqtt)) = open_in_pieces(&bytes, 1 + next(9) as usize) {
                assert!(mqtt.len() <= bytes.len() && frames.control.len() <= 125 && frames.header.len() < 14);
            }
        }
    }

    #[test]
    fn what_is_written_has_no_mask_and_the_right_length() {
        let mut out = BytesMut::new();
        write_binary(&[7; 200], &mut out);
        assert_eq!(out[..4], [0x82, 126, 0, 200]);
        out.clear();
        write_close(CloseCode::Normal, &mut out);
        assert_eq!(out[..], [0x88, 2, 0x03, 0xE8]);
    }
}
