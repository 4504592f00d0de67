//! What the app is told about the visitor, and whom we believe about it.
//!
//! Headers that name the visitor are written by us alone; a spoofed one, in any spelling an app
//! server might fold together, never reaches the app. A proxy in `proxy.trusted_proxies` is the
//! exception: its chain is kept and extended.

use ipnet::IpNet;
use pingora_http::RequestHeader;
use std::net::{IpAddr, SocketAddr};

/// Addresses read from one forwarding chain at most.
const CHAIN_MAX: usize = 32;

/// Headers that speak of the visitor. Compared with `_` read as `-`, as CGI-style apps do.
const OWNED: [&str; 8] = [
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-uri",
    "x-real-ip",
    "forwarded",
];

/// Every header of our own begins like this.
const OWN_PREFIX: &str = "x-gaitway-";

/// What is known of the visitor behind a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visitor {
    pub address: IpAddr,
    /// The browser spoke TLS, to us or to a trusted proxy.
    pub https: bool,
    /// The connection came from a trusted proxy.
    pub via_trusted: bool,
}

impl Visitor {
    /// Reads the chain from the right and stops at the first address that is not a trusted proxy.
    pub fn of(peer: SocketAddr, tls: bool, trusted: &[IpNet], request: &RequestHeader) -> Visitor {
        let peer_address = peer.ip().to_canonical();
        let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
        if trusted.is_empty() || !is_trusted(peer_address) {
            return Visitor { address: peer_address, https: tls, via_trusted: false };
        }
        let values: Vec<&str> = request
            .headers
            .get_all("x-forwarded-for")
            .iter()
            .map(|value| value.to_str().unwrap_or("unknown"))
            .collect();
        // From the right, because only the right end was written by those we trust; an entry that
        // is no address ends what can be believed.
        let mut address = peer_address;
        let entries = values.iter().rev().flat_map(|value| value.rsplit(','));
        for entry in entries.take(CHAIN_MAX) {
            let Ok(entry) = entry.trim().parse::<IpAddr>() else { break };
            address = entry.to_canonical();
            if !is_trusted(address) {
                break;
            }
        }
        let proto = request.headers.get("x-forwarded-proto").map(|value| value.as_bytes());
        let https = proto.map_or(tls, |value| value.eq_ignore_ascii_case(b"https"));
        Visitor { address, https, via_trusted: true }
    }

    pub fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }
}

/// Removes every spoofable header from `upstream` and writes ours.
pub fn apply(
    visitor: &Visitor,
    peer: SocketAddr,
    host: Option<&str>,
    upstream: &mut RequestHeader,
) -> Result<(), Box<pingora_core::Error>> {
    let chain = visitor.via_trusted.then(|| joined(upstream, "x-forwarded-for")).flatten();
    let kept_host = visitor.via_trusted.then(|| joined(upstream, "x-forwarded-host")).flatten();
    let spoofed: Vec<http::HeaderName> =
        upstream.headers.keys().filter(|name| is_owned(name.as_str())).cloned().collect();
    for name in &spoofed {
        upstream.remove_header(name);
    }
    let peer_address = peer.ip().to_canonical().to_string();
    let forwarded_for = match chain {
        Some(chain) => format!("{chain}, {peer_address}"),
        None => peer_address,
    };
    upstream.insert_header("X-Forwarded-For", forwarded_for)?;
    upstream.insert_header("X-Forwarded-Proto", visitor.scheme())?;
    let node = match visitor.address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("\"[{v6}]\""),
    };
    let mut forwarded = format!("for={node};proto={}", visitor.scheme());
    if let Some(host) = kept_host.as_deref().or(host) {
        upstream.insert_header("X-Forwarded-Host", host)?;
        // A quoted-string may not carry these two unescaped; no legal host has them.
        if !host.contains(['"', '\\']) {
            forwarded.push_str(&format!(";host=\"{host}\""));
        }
    }
    upstream.insert_header("Forwarded", forwarded)?;
    Ok(())
}

/// Takes cookies of ours out of what the app is sent: to the app they are nothing, to whoever reads its
/// logs a login.
pub fn withhold_cookies(
    upstream: &mut RequestHeader,
    is_ours: impl Fn(&str) -> bool,
) -> Result<(), Box<pingora_core::Error>> {
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().trim().to_owned();
    let sent: Vec<http::HeaderValue> =
        upstream.headers.get_all(http::header::COOKIE).iter().cloned().collect();
    let concerns = |value: &http::HeaderValue| {
        value.to_str().is_ok_and(|text| text.split(';').any(|pair| is_ours(&name(pair))))
    };
    if !sent.iter().any(concerns) {
        return Ok(());
    }
    upstream.remove_header(&http::header::COOKIE);
    for value in sent {
        let Ok(text) = value.to_str() else {
            upstream.append_header(http::header::COOKIE, value)?;
            continue;
        };
        let kept: Vec<&str> = text.split(';').map(str::trim).filter(|pair| !is_ours(&name(pair))).collect();
        if !kept.is_empty() {
            upstream.append_header(http::header::COOKIE, kept.join("; "))?;
        }
    }
    Ok(())
}

fn is_owned(name: &str) -> bool {
    let mut folded = String::new();
    let name = if name.contains('_') {
        folded.extend(name.chars().map(|c| if c == '_' { '-' } else { c }));
        folded.as_str()
    } else {
        name
    };
    OWNED.contains(&name) || name.starts_with(OWN_PREFIX)
}

fn joined(request: &RequestHeader, name: &str) -> Option<String> {
    let values: Vec<&str> =
        request.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    if values.is_empty() { None } else { Some(values.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "198.51.100.7:4000";

    fn request(headers: &[(&str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in headers {
            request.append_header((*name).to_owned(), *value).unwrap();
        }
        request
    }

    fn check(trusted: &str, headers: &[(&str, &str)], expect: &str) {
        let trusted: Vec<IpNet> = trusted.split_whitespace().map(|net| net.parse().unwrap()).collect();
        let peer: SocketAddr = PEER.parse().unwrap();
        let mut upstream = request(headers);
        let visitor = Visitor::of(peer, false, &trusted, &upstream);
        apply(&visitor, peer, Some("shop.example"), &mut upstream).unwrap();
        let mut lines: Vec<String> = upstream
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        assert_eq!(lines.join("\n"), expect);
    }

    #[test]
    fn nobody_is_believed_by_default() {
        let spoofed = [
            ("X-Forwarded-For", "10.0.0.1"),
            ("x_forwarded_for", "10.0.0.1"),
            ("X-Forwarded_For", "10.0.0.1"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Uri", "/admin"),
            ("X-Real-IP", "10.0.0.1"),
            ("Forwarded", "for=10.0.0.1"),
            ("X-Gaitway-Session", "s_admin"),
            ("Accept", "*/*"),
        ];
        check(
            "",
            &spoofed,
            "accept: */*\nforwarded: for=198.51.100.7;proto=http;host=\"shop.example\"\nx-forwarded-for: 198.51.100.7\nx-forwarded-host: shop.example\nx-forwarded-proto: http",
        );
        check(
            "192.0.2.0/24",
            &spoofed[..1],
            "forwarded: for=198.51.100.7;proto=http;host=\"shop.example\"\nx-forwarded-for: 198.51.100.7\nx-forwarded-host: shop.example\nx-forwarded-proto: http",
        );
    }

    #[test]
    fn our_cookies_stay_here_and_the_apps_go_through() {
        let mut upstream = request(&[
            ("Cookie", "a=1; login=secret; b=\"2\""),
            ("Cookie", "login=again"),
            ("Cookie", "login_x=1;loginfo=3"),
        ]);
        withhold_cookies(&mut upstream, |name| name == "login" || name.starts_with("login_")).unwrap();
        let left: Vec<&str> =
            upstream.headers.get_all("cookie").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(left, ["a=1; b=\"2\"", "loginfo=3"]);
    }

    #[test]
    fn a_trusted_proxy_chain_is_extended() {
        check(
            "198.51.100.0/24 192.0.2.1/32",
            &[("X-Forwarded-For", "10.9.9.9, 203.0.113.5, 192.0.2.1"), ("X-Forwarded-Proto", "https")],
            "forwarded: for=203.0.113.5;proto=https;host=\"shop.example\"\nx-forwarded-for: 10.9.9.9, 203.0.113.5, 192.0.2.1, 198.51.100.7\nx-forwarded-host: shop.example\nx-forwarded-proto: https",
        );
    }

    #[test]
    fn garbage_in_a_trusted_chain_falls_back_to_the_peer() {
        let trusted: Vec<IpNet> = vec!["198.51.100.0/24".parse().unwrap()];
        let peer: SocketAddr = PEER.parse().unwrap();
        let visitor = Visitor::of(peer, true, &trusted, &request(&[("X-Forwarded-For", "unknown")]));
        assert_eq!(visitor.address, peer.ip());
        assert!(visitor.https);
    }
}
