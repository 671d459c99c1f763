//! The HTTP request that opens a WebSocket, and the answer to it. One path, one subprotocol; nothing else of HTTP is here.

use tungstenite::{
    error::{Error, ProtocolError},
    handshake::{
        machine::TryParse,
        server::{Request, create_response, write_response},
    },
    http::HeaderValue,
};

use super::fault::Fault;

/// Longest request with its headers.
pub(super) const HEAD_BYTES: usize = 8_192;
/// [MQTT-6.0.0-3]; the subprotocol of MQTT 3.1, `mqttv3.1`, is not among it, as 3.1 is not offered.
const SUBPROTOCOL: &str = "mqtt";

/// A request that was read.
#[derive(Debug)]
pub(super) struct Upgrade {
    /// Bytes to take off.
    pub(super) bytes: usize,
    /// What to write.
    pub(super) response: Vec<u8>,
}

/// A request that is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) fault: Fault,
    /// What to write before closing; empty when the client does not speak HTTP.
    pub(super) response: Vec<u8>,
}

/// Reads a request; None while it is incomplete. `seen` bytes of it were looked at before.
pub(super) fn answer(head: &[u8], seen: usize, path: &str) -> Result<Option<Upgrade>, Refusal> {
    if super::is_tls(head) {
        return Err(Refusal { fault: Fault::UnexpectedTls, response: Vec::new() });
    }
    // Methods are upper case letters: other protocols need not wait for the deadline.
    if head.first().is_some_and(|first| !first.is_ascii_uppercase()) {
        return Err(Refusal { fault: Fault::Http("not HTTP"), response: Vec::new() });
    }
    let fresh = head.get(seen.saturating_sub(3)..).unwrap_or_default();
    if !fresh.windows(4).any(|end| end == b"\r\n\r\n") {
        let fits = head.len() <= HEAD_BYTES;
        return if fits {
            Ok(None)
        } else {
            Err(refuse(431, Fault::Http("too long"), "the request is too long"))
        };
    }
    match Request::try_parse(head) {
        Ok(Some((bytes, _))) if bytes > HEAD_BYTES => {
            Err(refuse(431, Fault::Http("too long"), "the request is too long"))
        }
        Ok(Some((bytes, request))) => {
            upgrade(&request, path).map(|response| Some(Upgrade { bytes, response }))
        }
        Ok(None) => Err(refuse(400, Fault::Http("malformed"), "this is not a request")),
        Err(error) => Err(protocol_refusal(&error)),
    }
}

fn upgrade(request: &Request, path: &str) -> Result<Vec<u8>, Refusal> {
    if request.uri().path() != path {
        return Err(refuse(404, Fault::WebPath, &format!("MQTT over WebSocket is at {path}")));
    }
    let mut response = create_response(request).map_err(|error| protocol_refusal(&error))?;
    let offered = request.headers().get_all("Sec-WebSocket-Protocol").into_iter();
    let mut offered = offered.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    if !offered.any(|name| name.trim() == SUBPROTOCOL) {
        return Err(refuse(
            400,
            Fault::WebSubprotocol,
            "the client must offer the WebSocket subprotocol mqtt (header Sec-WebSocket-Protocol)",
        ));
    }
    response.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(SUBPROTOCOL));
    let mut written = Vec::new();
    match write_response(&mut written, &response) {
        Ok(()) => Ok(written),
        Err(error) => Err(protocol_refusal(&error)),
    }
}

fn protocol_refusal(error: &Error) -> Refusal {
    match error {
        Error::Protocol(ProtocolError::WrongHttpMethod) => {
            refuse(405, Fault::Http("method"), "a WebSocket is opened with GET")
        }
        Error::Protocol(ProtocolError::WrongHttpVersion) => {
            refuse(505, Fault::Http("version"), "a WebSocket is opened with HTTP/1.1")
        }
        Error::Protocol(
            ProtocolError::MissingConnectionUpgradeHeader | ProtocolError::MissingUpgradeWebSocketHeader,
        ) => refuse(426, Fault::Http("no upgrade"), "this port speaks MQTT over WebSocket"),
        Error::Protocol(ProtocolError::MissingSecWebSocketVersionHeader) => {
            refuse(426, Fault::Http("WebSocket version"), "version 13 of WebSocket is spoken here")
        }
        Error::Protocol(ProtocolError::MissingSecWebSocketKey | ProtocolError::InvalidSecWebSocketKey) => {
            refuse(400, Fault::Http("no key"), "the header Sec-WebSocket-Key is missing or wrong")
        }
        _ => refuse(400, Fault::Http("malformed"), "this is not a request"),
    }
}

fn refuse(status: u16, fault: Fault, reason: &str) -> Refusal {
    let (phrase, extra) = match status {
        404 => ("Not Found", ""),
        405 => ("Method Not Allowed", "Allow: GET\r\n"),
        426 => ("Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
        431 => ("Request Header Fields Too Large", ""),
        505 => ("HTTP Version Not Supported", ""),
        _ => ("Bad Request", ""),
    };
    // [RFC 9110, 7.8]: who sends Upgrade names it in Connection.
    let connection = if status == 426 { "Upgrade, close" } else { "close" };
    let response = format!(
        "HTTP/1.1 {status} {phrase}\r\n{extra}Connection: {connection}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{reason}\n",
        reason.len() + 1
    );
    Refusal { fault, response: response.into_bytes() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "GET /mqtt HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: mqttv3.1, mqtt\r\n\r\n";

    #[test]
    fn a_request_is_answered_when_it_is_whole() {
        let head = GOOD.as_bytes();
        for end in 0..head.len() {
            assert!(answer(&head[..end], end.saturating_sub(1), "/mqtt").unwrap().is_none(), "{end}");
        }
        let followed = [head, b"\x82\x80"].concat();
        let upgrade = answer(&followed, head.len() - 1, "/mqtt").unwrap().unwrap();
        let response = String::from_utf8(upgrade.response).unwrap();
        assert_eq!(upgrade.bytes, head.len());
        assert!(response.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{response}");
        // The standard's own example of a key and its answer (RFC 6455, 1.3).
        assert!(response.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{response}");
        assert!(response.contains("sec-websocket-protocol: mqtt\r\n") && response.ends_with("\r\n\r\n"));
    }

    #[test]
    fn a_refusal_says_what_is_missing() {
        let long = GOOD.replace("Host: a", &format!("Host: {}", "a".repeat(9_000)));
        for (request, status, fault) in [
            (GOOD.replace("/mqtt ", "/ "), "404 ", "ws_path"),
            (GOOD.replace("mqttv3.1, mqtt", "mqttv3.1"), "400 ", "ws_subprotocol"),
            (GOOD.replace("GET", "POST"), "405 ", "http"),
            (GOOD.replace("HTTP/1.1", "HTTP/1.0"), "505 ", "http"),
            (GOOD.replace("Upgrade: websocket\r\n", ""), "426 ", "http"),
            (GOOD.replace(": 13", ": 8"), "426 ", "http"),
            (GOOD.replace("dGhl", ""), "400 ", "http"),
            ("GET / \x01\r\n\r\n".to_owned(), "400 ", "http"),
            (long.clone(), "431 ", "http"),
            (long.replace("\r\n\r\n", ""), "431 ", "http"),
            ("\x10\x0c".to_owned(), "", "http"),
        ] {
            let refusal = answer(request.as_bytes(), 0, "/mqtt").unwrap_err();
            let response = String::from_utf8(refusal.response).unwrap();
            assert_eq!(refusal.fault.label(), fault, "{request}");
            let expected = if status.is_empty() { String::new() } else { format!("HTTP/1.1 {status}") };
            assert!(response.starts_with(&expected), "{request} -> {response}");
            assert!(!status.is_empty() || response.is_empty());
        }
        assert!(answer(GOOD.replace("/mqtt ", "/mqtt?token=x ").as_bytes(), 0, "/mqtt").unwrap().is_some());
    }
}
