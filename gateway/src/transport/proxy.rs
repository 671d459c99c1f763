//! The PROXY protocol's header, v1 and v2: a proxy's first bytes, which tell whose connection it passes on. Whether a
//! header is expected at all is the listener's decision, from the peer's address; here is only how to read one.

use std::net::SocketAddr;

use ppp::{v1, v2};

use super::fault::Fault;

/// Longest v1 header with its line end, as the protocol says.
const TEXT_BYTES: usize = 107;
/// Longest v2 header that is read: addresses, and room for a proxy's extensions.
const BINARY_BYTES: usize = 4_096;
/// Signature, version, command, family and length of v2.
const BINARY_PREFIX: usize = 16;
const TEXT_PREFIX: &[u8] = b"PROXY ";

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    /// Bytes to take off.
    pub(super) bytes: usize,
    /// The client; None when the proxy speaks for itself (health checks) or does not know.
    pub(super) client: Option<SocketAddr>,
}

/// Reads the header; None while it is incomplete.
pub(super) fn parse(input: &[u8]) -> Result<Option<Header>, Fault> {
    let begins = |prefix: &[u8]| input.starts_with(prefix) || prefix.starts_with(input);
    if begins(v2::PROTOCOL_PREFIX) {
        parse_binary(input)
    } else if begins(TEXT_PREFIX) {
        parse_text(input)
    } else {
        Err(Fault::ProxyMissing)
    }
}

fn parse_text(input: &[u8]) -> Result<Option<Header>, Fault> {
    let window = input.get(..TEXT_BYTES).unwrap_or(input);
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if input.len() < TEXT_BYTES { Ok(None) } else { Err(Fault::ProxyMalformed) };
    };
    let line = input.get(..end + 2).unwrap_or_default();
    let header = v1::Header::try_from(line).map_err(|_| Fault::ProxyMalformed)?;
    let client = match header.addresses {
        v1::Addresses::Tcp4(ip) => Some(SocketAddr::from((ip.source_address, ip.source_port))),
        v1::Addresses::Tcp6(ip) => Some(SocketAddr::from((ip.source_address, ip.source_port))),
        v1::Addresses::Unknown => None,
    };
    Ok(Some(Header { bytes: line.len(), client }))
}

fn parse_binary(input: &[u8]) -> Result<Option<Header>, Fault> {
    let Some(&[high, low]) = input.get(BINARY_PREFIX - 2..BINARY_PREFIX) else { return Ok(None) };
    let bytes = BINARY_PREFIX + usize::from(u16::from_be_bytes([high, low]));
    if bytes > BINARY_BYTES {
        return Err(Fault::ProxyMalformed);
    }
    let Some(whole) = input.get(..bytes) else { return Ok(None) };
    let header = v2::Header::try_from(whole).map_err(|_| Fault::ProxyMalformed)?;
    let client = match (header.command, header.addresses) {
        (v2::Command::Local, _) => None,
        (v2::Command::Proxy, v2::Addresses::IPv4(ip)) => {
            Some(SocketAddr::from((ip.source_address, ip.source_port)))
        }
        (v2::Command::Proxy, v2::Addresses::IPv6(ip)) => {
            Some(SocketAddr::from((ip.source_address, ip.source_port)))
        }
        (v2::Command::Proxy, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
    };
    Ok(Some(Header { bytes, client }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = v2::PROTOCOL_PREFIX.to_vec();
        header.extend([0x20 | command, family]);
        header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        header.extend(body);
        header
    }

    #[test]
    fn headers_of_both_versions_are_read_from_any_split() {
        let four = [&[192, 0, 2, 7, 10, 0, 0, 1][..], &4_711u16.to_be_bytes(), &[0x22, 0xB3]].concat();
        let with_extension = [&four[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        let client = Some("192.0.2.7:4711".parse().unwrap());
        let six = b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 8883\r\n";
        for (header, client) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 8883\r\n".to_vec(), client),
            (six.to_vec(), Some("[2001:db8::7]:4711".parse().unwrap())),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN whatever it knows\r\n".to_vec(), None),
            (binary(1, 0x11, &four), client),
            (binary(1, 0x11, &with_extension), client),
            (binary(0, 0x00, &[]), None),
            (binary(0, 0x11, &four), None),
            (binary(1, 0x31, &[7; 216]), None),
        ] {
            let shown = String::from_utf8_lossy(&header).into_owned();
            for end in 0..header.len() {
                assert_eq!(parse(&header[..end]), Ok(None), "{end} bytes of {shown}");
            }
            let followed = [&header[..], b"\x10\x0c"].concat();
            assert_eq!(parse(&followed), Ok(Some(Header { bytes: header.len(), client })), "{shown}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x67, 0x22, 0xB3];
        let seeds = [
            b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 8883\r\n".to_vec(),
            b"PROXY TCP6 2001:db8::7 ::1 4711 8883\r\n".to_vec(),
            b"PROXY UNKNOWN \xc3\xa9\r\n".to_vec(),
            binary(1, 0x11, &four),
            binary(1, 0x21, &[7; 40]),
        ];
        // Any generator will do, as long as a failure comes again.
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let mut next = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for round in 0..20_000 {
            let mut header = seeds[round % seeds.len()].clone();
            for _ in 0..=next(3) {
                let at = next(header.len());
                header[at] = next(256) as u8;
            }
            header.truncate(next(header.len()) + 1);
            if let Ok(Some(parsed)) = parse(&header) {
                assert!(parsed.bytes <= header.len());
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused_as_soon_as_that_is_known() {
        assert_eq!(parse(b"\x10"), Err(Fault::ProxyMissing));
        assert_eq!(parse(b"\x16\x03\x01"), Err(Fault::ProxyMissing));
        assert_eq!(parse(b"PROXX"), Err(Fault::ProxyMissing));
        let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 120]].concat();
        for broken in [
            b"PROXY TCP4 192.0.2.7\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.700 10.0.0.1 4711 8883\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 99999 8883\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.7 10.0.0.1 4711 8883\r\n".to_vec(),
            b"PROXY \xff\xff\r\n".to_vec(),
            long,
            binary(2, 0x11, &[0; 12]),
            binary(1, 0x51, &[0; 12]),
            binary(1, 0x11, &[0; 4]),
            binary(1, 0x11, &[0; 5_000]),
        ] {
            assert_eq!(parse(&broken), Err(Fault::ProxyMalformed), "{}", String::from_utf8_lossy(&broken));
        }
        let mut old = binary(1, 0x11, &[0; 12]);
        old[12] = 0x11;
        assert_eq!(parse(&old), Err(Fault::ProxyMalformed));
    }
}
