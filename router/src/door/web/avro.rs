//! Messages as Avro: raw binary, one record, no container, in the two schemas that clients of this door use
//! (`docs/avro/`). Written by hand, because the shape is fixed and what comes from outside must not decide how much memory is
//! taken: nothing is reserved that was not received. Test vectors that another library made are in `docs/avro/vectors.json`.

use std::collections::HashMap;

use bytes::Bytes;

/// Which schema is written. Both are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Generation {
    /// `payload` and `metadata` are always there, `topic` is known.
    #[default]
    Newer,
    /// Every object is a union with null, there is no `topic`.
    Older,
}

/// What the payload is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadFormat {
    /// Any bytes.
    Unspecified,
    /// UTF-8.
    Utf8,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// What a device published, or is to get.
    pub payload: Bytes,
    /// About it.
    pub metadata: Metadata,
}

/// About a message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Who published it, or is to get it.
    pub client_id: Option<String>,
    /// Packet identifier; 0: unknown.
    pub message_id: i32,
    /// It may have come before.
    pub dup_flag: bool,
    /// Of MQTT 5.
    pub user_properties: Option<Vec<(String, String)>>,
    /// Of MQTT 5.
    pub payload_format: Option<PayloadFormat>,
    /// Of MQTT 5.
    pub content_type: Option<String>,
    /// Of MQTT 5.
    pub correlation_data: Option<Bytes>,
    /// Of MQTT 5.
    pub response_topic: Option<String>,
    /// Topic that it was published to; not in the older schema.
    pub topic: Option<String>,
}

/// The bytes are no message in either schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no Avro record of a message")]
pub struct Malformed;

impl Message {
    /// Its bytes in a schema.
    pub fn encode(&self, generation: Generation) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.payload.len() + 96);
        let metadata = &self.metadata;
        if generation == Generation::Older {
            some(&mut out);
        }
        data(&mut out, &self.payload);
        if generation == Generation::Older {
            some(&mut out);
        }
        optional(&mut out, metadata.client_id.as_ref(), |out, id| data(out, id.as_bytes()));
        long(&mut out, metadata.message_id.into());
        out.push(metadata.dup_flag.into());
        optional(&mut out, metadata.user_properties.as_ref(), map);
        optional(&mut out, metadata.payload_format.as_ref(), |out, format| {
            long(out, (*format == PayloadFormat::Utf8).into());
        });
        optional(&mut out, metadata.content_type.as_ref(), |out, text| data(out, text.as_bytes()));
        optional(&mut out, metadata.correlation_data.as_ref(), |out, bytes| data(out, bytes));
        optional(&mut out, metadata.response_topic.as_ref(), |out, text| data(out, text.as_bytes()));
        if generation == Generation::Newer {
            optional(&mut out, metadata.topic.as_ref(), |out, text| data(out, text.as_bytes()));
        }
        out
    }

    /// Reads either schema: `first` is tried first, and decides the rare bytes that are a message in both.
    pub fn decode(bytes: &Bytes, first: Generation) -> Result<Self, Malformed> {
        let second = match first {
            Generation::Newer => Generation::Older,
            Generation::Older => Generation::Newer,
        };
        Self::decode_as(bytes, first).or_else(|_| Self::decode_as(bytes, second))
    }

    fn decode_as(bytes: &Bytes, generation: Generation) -> Result<Self, Malformed> {
        let mut input = Input { bytes, at: 0 };
        let message = match generation {
            Generation::Newer => {
                Self { payload: input.data()?, metadata: input.metadata(Generation::Newer)? }
            }
            Generation::Older => {
                let payload = input.optional(Input::data)?.unwrap_or_default();
                let metadata = input.optional(|input| input.metadata(Generation::Older))?;
                Self { payload, metadata: metadata.unwrap_or_default() }
            }
        };
        if input.at == bytes.len() { Ok(message) } else { Err(Malformed) }
    }
}

/// Zigzag, then seven bits a byte.
fn long(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.push(rest.to_le_bytes()[0]);
}

fn data(out: &mut Vec<u8>, bytes: &[u8]) {
    long(out, i64::try_from(bytes.len()).unwrap_or(i64::MAX));
    out.extend_from_slice(bytes);
}

/// The second branch of a union with null.
fn some(out: &mut Vec<u8>) {
    long(out, 1);
}

fn optional<T>(out: &mut Vec<u8>, value: Option<&T>, write: impl Fn(&mut Vec<u8>, &T)) {
    match value {
        None => long(out, 0),
        Some(value) => {
            some(out);
            write(out, value);
        }
    }
}

fn map(out: &mut Vec<u8>, entries: &Vec<(String, String)>) {
    if !entries.is_empty() {
        long(out, i64::try_from(entries.len()).unwrap_or(i64::MAX));
        for (key, value) in entries {
            data(out, key.as_bytes());
            data(out, value.as_bytes());
        }
    }
    long(out, 0);
}

struct Input<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, Malformed> {
        let byte = self.bytes.get(self.at).copied().ok_or(Malformed)?;
        self.at += 1;
        Ok(byte)
    }

    fn long(&mut self) -> Result<i64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            // The tenth byte has one bit left.
            if shift == 63 && byte > 1 {
                return Err(Malformed);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
            }
        }
        Err(Malformed)
    }

    fn data(&mut self) -> Result<Bytes, Malformed> {
        let length = usize::try_from(self.long()?).map_err(|_| Malformed)?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len()).ok_or(Malformed)?;
        let data = self.bytes.slice(self.at..end);
        self.at = end;
        Ok(data)
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let data = self.data()?;
        std::str::from_utf8(&data).map(str::to_owned).map_err(|_| Malformed)
    }

    fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        match self.long()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(Malformed),
        }
    }

    fn boolean(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn format(&mut self) -> Result<PayloadFormat, Malformed> {
        match self.long()? {
            0 => Ok(PayloadFormat::Unspecified),
            1 => Ok(PayloadFormat::Utf8),
            _ => Err(Malformed),
        }
    }

    /// A later value of a key replaces an earlier one, as in every reader's map.
    fn map(&mut self) -> Result<Vec<(String, String)>, Malformed> {
        let mut entries: Vec<(String, String)> = Vec::new();
        let mut places = HashMap::new();
        loop {
            let mut left = self.long()?;
            if left < 0 {
                left = left.checked_neg().ok_or(Malformed)?;
                // How many bytes the block has: for readers that skip it.
                self.long()?;
            }
            if left == 0 {
                return Ok(entries);
            }
            for _ in 0..left {
                let (key, value) = (self.text()?, self.text()?);
                let place = *places.entry(key.clone()).or_insert(entries.len());
                match entries.get_mut(place) {
                    Some(entry) => entry.1 = value,
                    None => entries.push((key, value)),
                }
            }
        }
    }

    fn metadata(&mut self, generation: Generation) -> Result<Metadata, Malformed> {
        Ok(Metadata {
            client_id: self.optional(Self::text)?,
            message_id: i32::try_from(self.long()?).map_err(|_| Malformed)?,
            dup_flag: self.boolean()?,
            user_properties: self.optional(Self::map)?,
            payload_format: self.optional(Self::format)?,
            content_type: self.optional(Self::text)?,
            correlation_data: self.optional(Self::data)?,
            response_topic: self.optional(Self::text)?,
            topic: match generation {
                Generation::Newer => self.optional(Self::text)?,
                Generation::Older => None,
            },
        })
    }
}

#[cfg(test)]
mod tests;
