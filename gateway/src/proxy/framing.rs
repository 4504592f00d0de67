//! Strict reading of HTTP/1 requests: whatever two servers could understand differently is refused
//! before anything goes upstream (RFC 9112, sections 2.2, 3, 5 and 6.3; RFC 9110, section 5.6.2).
//!
//! Works on the raw header bytes; must not know pingora's parse of them, which is lenient.

/// Why a request header is refused. Each is one label of `gaitway_framing_refused_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    HeaderTooLarge,
    BareLineFeed,
    BareCarriageReturn,
    ControlCharacter,
    RequestLine,
    Version,
    ObsoleteFold,
    HeaderName,
    SpaceBeforeColon,
    ContentLengthRepeated,
    ContentLengthValue,
    TransferEncodingRepeated,
    TransferEncodingValue,
    TransferEncodingOnHttp10,
    BothFramings,
    HostMissing,
    HostRepeated,
    HostValue,
    AuthorityMismatch,
    Expect,
    Upgrade,
}

impl Fault {
    /// Metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::HeaderTooLarge => "header_too_large",
            Fault::BareLineFeed => "bare_lf",
            Fault::BareCarriageReturn => "bare_cr",
            Fault::ControlCharacter => "control_character",
            Fault::RequestLine => "request_line",
            Fault::Version => "version",
            Fault::ObsoleteFold => "obs_fold",
            Fault::HeaderName => "header_name",
            Fault::SpaceBeforeColon => "space_before_colon",
            Fault::ContentLengthRepeated => "content_length_repeated",
            Fault::ContentLengthValue => "content_length_value",
            Fault::TransferEncodingRepeated => "transfer_encoding_repeated",
            Fault::TransferEncodingValue => "transfer_encoding_value",
            Fault::TransferEncodingOnHttp10 => "transfer_encoding_http10",
            Fault::BothFramings => "both_framings",
            Fault::HostMissing => "host_missing",
            Fault::HostRepeated => "host_repeated",
            Fault::HostValue => "host_value",
            Fault::AuthorityMismatch => "authority_mismatch",
            Fault::Expect => "expect",
            Fault::Upgrade => "upgrade",
        }
    }

    pub fn status(self) -> u16 {
        match self {
            Fault::HeaderTooLarge => 431,
            Fault::Version => 505,
            Fault::Expect => 417,
            _ => 400,
        }
    }
}

/// Digits of the largest Content-Length taken seriously: 10^18 bytes.
const CONTENT_LENGTH_DIGITS_MAX: usize = 18;

/// Checks a raw HTTP/1 request header, from the request line to the empty line inclusive.
pub fn check(raw: &[u8], header_bytes_max: usize) -> Result<(), Fault> {
    if raw.len() > header_bytes_max {
        return Err(Fault::HeaderTooLarge);
    }
    let mut lines = Lines { rest: raw };
    let line = lines.next().ok_or(Fault::RequestLine)??;
    let request = request_line(line)?;
    let mut seen = Seen::default();
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        seen.add(line)?;
    }
    seen.conclude(&request)
}

struct RequestLine<'a> {
    method: &'a [u8],
    target: &'a [u8],
    http10: bool,
}

/// Lines ended by CRLF; anything else that looks like a line end is a fault.
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') else {
            self.rest = &[];
            return Some(Err(Fault::BareCarriageReturn));
        };
        let (line, rest) = (&self.rest[..end], &self.rest[end + 1..]);
        self.rest = rest;
        let Some(line) = line.strip_suffix(b"\r") else { return Some(Err(Fault::BareLineFeed)) };
        if line.contains(&b'\r') {
            return Some(Err(Fault::BareCarriageReturn));
        }
        // obs-text (0x80 and up) is legal in values; controls other than HTAB never are.
        if line.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
            return Some(Err(Fault::ControlCharacter));
        }
        Some(Ok(line))
    }
}

fn request_line(line: &[u8]) -> Result<RequestLine<'_>, Fault> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Fault::RequestLine);
    };
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) || target.is_empty() {
        return Err(Fault::RequestLine);
    }
    if target.contains(&b'\t') || target.contains(&b'#') {
        return Err(Fault::RequestLine);
    }
    let http10 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ => return Err(Fault::Version),
    };
    Ok(RequestLine { method, target, http10 })
}

#[derive(Default)]
struct Seen<'a> {
    content_length: Option<&'a [u8]>,
    transfer_encoding: Option<&'a [u8]>,
    host: Option<&'a [u8]>,
    expect: bool,
    upgrade: Option<&'a [u8]>,
    websocket_version: Option<&'a [u8]>,
    websocket_key: bool,
}

impl<'a> Seen<'a> {
    fn add(&mut self, line: &'a [u8]) -> Result<(), Fault> {
        if matches!(line[0], b' ' | b'\t') {
            return Err(Fault::ObsoleteFold);
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Fault::HeaderName)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if matches!(name.last(), Some(b' ' | b'\t')) {
            return Err(Fault::SpaceBeforeColon);
        }
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return Err(Fault::HeaderName);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.content_length.replace(value).is_some() {
                return Err(Fault::ContentLengthRepeated);
            }
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            if !digits || value.len() > CONTENT_LENGTH_DIGITS_MAX {
                return Err(Fault::ContentLengthValue);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.transfer_encoding.replace(value).is_some() {
                return Err(Fault::TransferEncodingRepeated);
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Fault::TransferEncodingValue);
            }
        } else if name.eq_ignore_ascii_case(b"host") {
            if self.host.replace(value).is_some() {
                return Err(Fault::HostRepeated);
            }
            if value.iter().any(|byte| !is_host_byte(*byte)) {
                return Err(Fault::HostValue);
            }
        } else if name.eq_ignore_ascii_case(b"expect") {
            if self.expect || !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(Fault::Expect);
            }
            self.expect = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            if self.upgrade.replace(value).is_some() {
                return Err(Fault::Upgrade);
            }
        } else if name.eq_ignore_ascii_case(b"sec-websocket-version") {
            if self.websocket_version.replace(value).is_some() {
                return Err(Fault::Upgrade);
            }
        } else if name.eq_ignore_ascii_case(b"sec-websocket-key") {
            if self.websocket_key {
                return Err(Fault::Upgrade);
            }
            self.websocket_key = true;
        }
        Ok(())
    }

    fn conclude(&self, request: &RequestLine<'_>) -> Result<(), Fault> {
        if self.transfer_encoding.is_some() {
            if self.content_length.is_some() {
                return Err(Fault::BothFramings);
            }
            if request.http10 {
                return Err(Fault::TransferEncodingOnHttp10);
            }
        }
        match self.host {
            None if !request.http10 => return Err(Fault::HostMissing),
            Some(b"") | None => {}
            Some(host) => {
                if let Some(authority) = absolute_authority(request.target)
                    && !authority.eq_ignore_ascii_case(host)
                {
                    return Err(Fault::AuthorityMismatch);
                }
            }
        }
        // A server that does not take the upgrade answers in HTTP while a lenient proxy already
        // tunnels: only a complete WebSocket handshake may ask for one.
        let websocket = self.upgrade.is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"));
        if websocket {
            let complete = self.websocket_version == Some(b"13")
                && self.websocket_key
                && request.method == b"GET"
                && !request.http10
                && self.content_length.is_none_or(|value| value == b"0")
                && self.transfer_encoding.is_none();
            if !complete {
                return Err(Fault::Upgrade);
            }
        }
        Ok(())
    }
}

fn absolute_authority(target: &[u8]) -> Option<&[u8]> {
    let scheme_end = target.windows(3).position(|window| window == b"://")?;
    if target.starts_with(b"/") {
        return None;
    }
    let authority = &target[scheme_end + 3..];
    let end = authority.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(authority.len());
    Some(&authority[..end])
}

/// `tchar` of RFC 9110.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Registered names, IPv4, bracketed IPv6 and a port; no user information, no list.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_lines(lines: &str, expect: Result<(), Fault>) {
        let raw = format!("{lines}\r\n\r\n");
        assert_eq!(check(raw.as_bytes(), 4096), expect, "{lines:?}");
    }

    #[test]
    fn ordinary_requests_pass() {
        check_lines("GET / HTTP/1.1\r\nHost: a.example", Ok(()));
        check_lines("GET / HTTP/1.0", Ok(()));
        check_lines("POST /x?y=1 HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 3", Ok(()));
        check_lines("POST / HTTP/1.1\r\nHost:a\r\nTransfer-Encoding: Chunked", Ok(()));
        check_lines("POST / HTTP/1.1\r\nHost:a\r\nExpect: 100-continue\r\nContent-Length: 3", Ok(()));
        check_lines("GET http://a/x HTTP/1.1\r\nHost: A", Ok(()));
        check_lines("GET /?u=http://b/x HTTP/1.1\r\nHost: A", Ok(()));
        check_lines(
            "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x",
            Ok(()),
        );
        check_lines("GET / HTTP/1.1\r\nHost: a\r\nX-Name: caf\u{e9}\tau lait", Ok(()));
        check_lines("OPTIONS * HTTP/1.1\r\nHost: a", Ok(()));
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        use Fault::*;
        let with = |header: &str, fault| {
            check_lines(&format!("POST / HTTP/1.1\r\nHost: a\r\n{header}"), Err(fault));
        };
        with("Content-Length: 3\r\nContent-Length: 3", ContentLengthRepeated);
        with("Content-Length: 3\r\ncontent-length: 4", ContentLengthRepeated);
        with("Content-Length: 3, 3", ContentLengthValue);
        with("Content-Length: +3", ContentLengthValue);
        with("Content-Length: 0x3", ContentLengthValue);
        with("Content-Length: -1", ContentLengthValue);
        with("Content-Length: 3 ;", ContentLengthValue);
        with("Content-Length:", ContentLengthValue);
        with("Content-Length: 9999999999999999999", ContentLengthValue);
        with("Content-Length: 3\r\nTransfer-Encoding: chunked", BothFramings);
        with("Transfer-Encoding: chunked\r\nContent-Length: 3", BothFramings);
        with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", TransferEncodingRepeated);
        with("Transfer-Encoding: identity", TransferEncodingValue);
        with("Transfer-Encoding: gzip, chunked", TransferEncodingValue);
        with("Transfer-Encoding: chunked, identity", TransferEncodingValue);
        with("Transfer-Encoding: xchunked", TransferEncodingValue);
        with("Transfer-Encoding: \"chunked\"", TransferEncodingValue);
        with("Transfer-Encoding:", TransferEncodingValue);
        with("Transfer-Encoding: chunked;q=1", TransferEncodingValue);
        with("Content-Length : 3", SpaceBeforeColon);
        with("Transfer-Encoding\t: chunked", SpaceBeforeColon);
        with("X: a\r\n folded", ObsoleteFold);
        with("Content-Length: 3\r\n\t4", ObsoleteFold);
        with("no colon here", HeaderName);
        with(": empty", HeaderName);
        with("Content Length: 3", HeaderName);
        with("X: a\nContent-Length: 3", BareLineFeed);
        with("X: a\rContent-Length: 3", BareCarriageReturn);
        with("X: a\0b", ControlCharacter);
        with("X: a\x7fb", ControlCharacter);
        with("Host: b", HostRepeated);
        with("Expect: 200-ok", Expect);
        with("Upgrade: websocket", Upgrade);
        check_lines("POST / HTTP/1.0\r\nTransfer-Encoding: chunked", Err(TransferEncodingOnHttp10));
    }

    #[test]
    fn incomplete_websocket_handshakes_are_refused() {
        let handshake = |change: fn(String) -> String| {
            let whole = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x";
            check_lines(&change(whole.into()), Err(Fault::Upgrade));
        };
        handshake(|s| s.replace("Version: 13", "Version: 777"));
        handshake(|s| s.replace("Sec-WebSocket-Key: x", "X: y"));
        handshake(|s| s.replace("GET", "POST"));
        handshake(|s| s + "\r\nContent-Length: 10");
        handshake(|s| s + "\r\nTransfer-Encoding: chunked");
        handshake(|s| s + "\r\nUpgrade: h2c");
    }

    #[test]
    fn malformed_request_lines_are_refused() {
        use Fault::*;
        check_lines("GET  / HTTP/1.1\r\nHost: a", Err(RequestLine));
        check_lines("GET / HTTP/1.1 \r\nHost: a", Err(RequestLine));
        check_lines("GET /a b HTTP/1.1\r\nHost: a", Err(RequestLine));
        check_lines("GET /a#b HTTP/1.1\r\nHost: a", Err(RequestLine));
        check_lines("G(T / HTTP/1.1\r\nHost: a", Err(RequestLine));
        check_lines("GET / HTTP/1.2\r\nHost: a", Err(Version));
        check_lines("GET / HTTP/1.1", Err(HostMissing));
        check_lines("GET / HTTP/1.1\r\nHost: a, b", Err(HostValue));
        check_lines("GET / HTTP/1.1\r\nHost: user@a", Err(HostValue));
        check_lines("GET http://b/ HTTP/1.1\r\nHost: a", Err(AuthorityMismatch));
    }

    #[test]
    fn a_header_over_the_limit_is_refused() {
        let raw = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(5000));
        assert_eq!(check(raw.as_bytes(), 4096), Err(Fault::HeaderTooLarge));
    }
}
