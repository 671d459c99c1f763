//! Which of the 16,384 slots of Redis Cluster a key is in: CRC16 of what stands between its first braces. Pure.

/// Slots of a cluster.
pub(super) const SLOTS: usize = 16_384;

const TABLE: [u16; 256] = table();

const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let (mut crc, mut bit) = ((byte as u16) << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// Slot of a key.
pub(super) fn slot(key: &[u8]) -> u16 {
    let crc = tag(key).iter().fold(0u16, |crc, byte| {
        let at = usize::from((crc >> 8) as u8 ^ byte);
        (crc << 8) ^ TABLE.get(at).copied().unwrap_or_default()
    });
    crc % SLOTS as u16
}

/// What is hashed: between the first `{` and the `}` after it, or all when that is nothing.
fn tag(key: &[u8]) -> &[u8] {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = key.get(open + 1..)?;
        rest.get(..rest.iter().position(|byte| *byte == b'}')?)
    });
    tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_what_redis_says() {
        // CLUSTER KEYSLOT of Redis 7.0.15.
        for (key, expected) in [
            ("123456789", 12_739),
            ("foo", 12_182),
            ("ps:{acme/3}:log", slot(b"acme/3")),
            ("{}:x", slot(b"{}:x")),
            ("", 0),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
        assert_eq!(tag(b"a{b}c{d}"), b"b");
        assert_eq!(tag(b"a{}c{d}"), b"a{}c{d}");
        assert_eq!(tag(b"a{b"), b"a{b");
    }
}
