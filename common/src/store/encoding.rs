//! Bytes of what both backends store beside the records: segments, the open entries of cursors, filters. Little endian, fixed
//! widths. These bytes are in people's stores: they can't change. Decoding never panics; None means unreadable.

use bytes::Bytes;

use super::{OpenEntry, Segment, SessionFilter};

/// Bytes of one segment.
pub(super) const SEGMENT_BYTES: usize = 20;

/// Takes integers and slices off the front of stored bytes.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*head))
    }

    pub(super) fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    /// A length in front of that many bytes.
    pub(super) fn prefixed(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.slice(usize::try_from(len).ok()?)
    }
}

/// Appends the bytes of segments.
pub(super) fn put_segments(out: &mut Vec<u8>, segments: &[Segment]) {
    out.reserve(segments.len() * SEGMENT_BYTES);
    for segment in segments {
        out.extend_from_slice(&segment.producer.to_le_bytes());
        out.extend_from_slice(&segment.first.to_le_bytes());
        out.extend_from_slice(&segment.count.to_le_bytes());
    }
}

/// The segments in exactly these bytes.
pub(super) fn segments(bytes: &[u8]) -> Option<Vec<Segment>> {
    let mut reader = Reader(bytes);
    let mut segments = Vec::with_capacity(bytes.len() / SEGMENT_BYTES);
    while !reader.0.is_empty() {
        segments.push(Segment { producer: reader.u64()?, first: reader.u64()?, count: reader.u32()? });
    }
    Some(segments)
}

/// Appends the bytes of an open entry: bitmap with its length, then pairs to the end.
pub(super) fn put_open(out: &mut Vec<u8>, open: &OpenEntry) {
    // A bitmap has a bit per record of an entry, at most some thousand.
    out.extend_from_slice(&u32::try_from(open.done.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&open.done);
    for (index, times) in &open.deliveries {
        out.extend_from_slice(&index.to_le_bytes());
        out.extend_from_slice(&times.to_le_bytes());
    }
}

/// The open entry in exactly these bytes.
pub(super) fn open(bytes: &[u8]) -> Option<OpenEntry> {
    let mut reader = Reader(bytes);
    let done = reader.prefixed()?.to_vec();
    let mut deliveries = Vec::with_capacity(reader.0.len() / 8);
    while !reader.0.is_empty() {
        deliveries.push((reader.u32()?, reader.u32()?));
    }
    Some(OpenEntry { done, deliveries })
}

/// Bytes of filters: QoS and length before each.
pub(super) fn filters(filters: &[SessionFilter]) -> Vec<u8> {
    let mut out = Vec::with_capacity(filters.iter().map(|it| it.filter.len() + 5).sum());
    for SessionFilter { filter, qos } in filters {
        out.push(*qos);
        out.extend_from_slice(&u32::try_from(filter.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(filter);
    }
    out
}

/// Appends a record, whose bytes come in parts, to a `RecordBatch`: field 1, length-delimited.
pub(super) fn put_frame(out: &mut Vec<u8>, parts: &[&[u8]]) {
    let mut length: usize = parts.iter().map(|part| part.len()).sum();
    out.reserve(length + 11);
    out.push(0x0a);
    while length >= 0x80 {
        out.push((length as u8 & 0x7f) | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// The filters in exactly these bytes.
pub(super) fn read_filters(bytes: &[u8]) -> Option<Vec<SessionFilter>> {
    let (mut reader, mut filters) = (Reader(bytes), Vec::new());
    while let Some((qos, rest)) = reader.0.split_first() {
        reader.0 = rest;
        filters.push(SessionFilter { filter: Bytes::copy_from_slice(reader.prefixed()?), qos: *qos });
    }
    Some(filters)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn segments_come_back_and_cut_bytes_do_not() {
        let written = vec![
            Segment { producer: u64::MAX, first: 1, count: 7 },
            Segment { producer: 2, first: 9, count: 1 },
        ];
        let mut bytes = Vec::new();
        put_segments(&mut bytes, &written);
        assert_eq!(bytes.len(), 2 * SEGMENT_BYTES);
        assert_eq!(segments(&bytes).unwrap(), written);
        for cut in (1..bytes.len()).filter(|n| n % SEGMENT_BYTES != 0) {
            assert_eq!(segments(&bytes[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn filters_come_back_and_cut_bytes_do_not() {
        let filter =
            |text: &'static str, qos| SessionFilter { filter: Bytes::from_static(text.as_bytes()), qos };
        let written = vec![filter("a/#", 1), filter("", 0), filter("+/b", 0)];
        let bytes = filters(&written);
        assert_eq!(read_filters(&bytes).unwrap(), written);
        assert_eq!(read_filters(&bytes[..bytes.len() - 1]), None);
        assert_eq!(read_filters(&[]).unwrap(), []);
    }

    #[test]
    fn open_entries_come_back_and_cut_bytes_do_not() {
        let written = OpenEntry { done: vec![0b101, 0], deliveries: vec![(1, 3), (9, 1)] };
        let mut bytes = Vec::new();
        put_open(&mut bytes, &written);
        assert_eq!(open(&bytes).unwrap(), written);
        assert_eq!(open(&bytes[..bytes.len() - 1]), None);
        assert_eq!(open(&[255, 255, 255, 255, 0]), None);
        assert_eq!(open(&[]), None);
    }
}
