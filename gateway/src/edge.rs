//! Gaitway's own endpoints on the app's origin: the collector, the telemetry doors and the pages a
//! person may be shown.
//!
//! Knows `http` types and byte streams, not the proxy in front of it. Judges nothing: telemetry is
//! decoded, bound to its session and handed to a shard.

mod login;
pub mod page_token;
pub mod pages;
pub mod sockets;

use crate::clock;
use crate::config::{Config, PrivacySignal};
use crate::proxy::identity::Caller;
use crate::proxy::identity::login::{LOGGED_OUT, Login, Presence, is_local_path};
use crate::secret::InstallSecret;
use crate::shards::Shards;
use crate::standing::{Standings, Verdict};
use bytes::Bytes;
use gaitway_models::event::BATCH_BYTES_MAX;
use gaitway_models::{Batch, Timestamp};
use gaitway_policies::{Identity, Input, SessionId};
use http::{HeaderMap, Method, Response, StatusCode, header};
use metrics::counter;
use page_token::PageToken;
use pages::{Page, Pages};
use sockets::{Sockets, Ticket};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Largest body any own endpoint reads: one telemetry batch.
pub const BODY_BYTES_MAX: usize = BATCH_BYTES_MAX;
/// How long a page may go on sending beacons with the token it opened its socket with.
const BEACON_TOKEN_AGE: Duration = Duration::from_secs(12 * 3600);
/// How long the page of a passed challenge waits for the shard before it sends the person back.
const CHALLENGE_WAIT: Duration = Duration::from_millis(500);
/// Caches revalidate the collector this often; an upgrade reaches browsers within it.
const ASSET_MAX_AGE_SECONDS: u32 = 300;

const COLLECTOR: &[u8] = include_bytes!("../../collector-js/dist/collector.js");

/// A request to an own endpoint, as the proxy read it.
pub struct EdgeRequest<'a> {
    pub method: &'a Method,
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    pub caller: &'a Caller,
    /// Who else the request proves to come from.
    pub others: &'a [Arc<Identity>],
    /// The browser spoke TLS.
    pub https: bool,
    /// Whose address it comes from, as far as it matters: one customer's network.
    pub network: Option<IpAddr>,
    /// The incident that revoked this caller, if one did.
    pub revoked: Option<&'a str>,
    /// Names of the cookies to expire when the caller is revoked.
    pub cookies_to_clear: &'a [String],
    /// What ended is named by the address alone, which anybody may have written: no cookie is cleared.
    pub by_link: bool,
    pub body: Bytes,
}

pub struct Edge {
    prefix: String,
    collector_gzip: Bytes,
    collector_etag: String,
    secret: Arc<InstallSecret>,
    shards: Arc<Shards>,
    standings: Arc<Standings>,
    pub sockets: Arc<Sockets>,
    page_token_age: Duration,
    privacy: PrivacySignal,
    pages: Pages,
    login: Option<Arc<Login>>,
    logouts: login::Turnstile,
}

impl Edge {
    pub fn new(
        config: &Config,
        secret: Arc<InstallSecret>,
        shards: Arc<Shards>,
        standings: Arc<Standings>,
        pages: Pages,
        login: Option<Arc<Login>>,
    ) -> Edge {
        let digest = secret.path(COLLECTOR);
        Edge {
            prefix: config.collector.path_prefix.clone(),
            collector_gzip: gzip(COLLECTOR),
            collector_etag: format!("\"{digest:016x}\""),
            sockets: Sockets::new(&config.limits, shards.clone(), config.collector.path_prefix.clone()),
            secret,
            shards,
            standings,
            page_token_age: Duration::from_secs(config.collector.page_token_seconds),
            privacy: config.collector.privacy_signal,
            pages,
            login,
            logouts: login::Turnstile::default(),
        }
    }

    /// The part of `path` below the own prefix, if it lies there.
    pub fn endpoint<'p>(&self, path: &'p str) -> Option<&'p str> {
        path.strip_prefix(self.prefix.as_str())?.strip_prefix('/')
    }

    /// Answers everything but the telemetry socket.
    pub async fn answer(&self, request: &EdgeRequest<'_>) -> Response<Bytes> {
        let endpoint = self.endpoint(request.path).unwrap_or_default();
        let read = matches!(*request.method, Method::GET | Method::HEAD);
        if let Some(login) = &self.login
            && let Some(answer) = self.login_door(login, endpoint, request).await
        {
            return answer;
        }
        match endpoint {
            "c.js" if read => self.collector(request),
            "token" if *request.method == Method::POST => self.token(request),
            "b" if *request.method == Method::POST => self.beacon(request),
            "bye" if read => self.bye(request),
            "challenge" if *request.method == Method::POST => self.challenge(request).await,
            "c.js" | "token" | "b" | "bye" | "challenge" | "t" => {
                plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n")
            }
            _ => plain(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    /// Checks a WebSocket handshake on `{prefix}/t`. `Err` carries the refusal. A revoked caller's ticket
    /// is ended by the proxy, which asks the board once more.
    pub fn open_socket(&self, request: &EdgeRequest<'_>) -> Result<Ticket, Box<Response<Bytes>>> {
        let refuse = |reason: &'static str, status: StatusCode| {
            counter!("gaitway_telemetry_refused_total", "reason" => reason).increment(1);
            Err(Box::new(plain(status, "refused\n")))
        };
        if !is_same_origin(request.headers) {
            return refuse("origin", StatusCode::FORBIDDEN);
        }
        if request.caller.known().is_none() {
            return refuse("session", StatusCode::UNAUTHORIZED);
        }
        let Some((identity, token)) = self.page_token(request, self.page_token_age) else {
            return refuse("page_token", StatusCode::UNAUTHORIZED);
        };
        match self.sockets.admit(identity.clone(), token.page) {
            Ok(ticket) => Ok(ticket),
            Err(limit) => refuse(limit, StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    fn collector(&self, request: &EdgeRequest<'_>) -> Response<Bytes> {
        let builder = Response::builder()
            .header(header::CONTENT_TYPE, "text/javascript; charset=utf-8")
            .header(header::CACHE_CONTROL, format!("public, max-age={ASSET_MAX_AGE_SECONDS}"))
            .header(header::ETAG, &self.collector_etag)
            .header(header::VARY, "Accept-Encoding")
            .header("X-Content-Type-Options", "nosniff")
            .header("Cross-Origin-Resource-Policy", "same-origin");
        let known = request.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        let built = if known.is_some_and(|tags| tags.contains(&self.collector_etag)) {
            builder.status(StatusCode::NOT_MODIFIED).body(Bytes::new())
        } else if accepts_gzip(request.headers) {
            builder.header(header::CONTENT_ENCODING, "gzip").body(self.collector_gzip.clone())
        } else {
            builder.body(Bytes::from_static(COLLECTOR))
        };
        built.unwrap_or_default()
    }

    /// A page asks for a token; with it, its telemetry is bound to this session and page view.
    fn token(&self, request: &EdgeRequest<'_>) -> Response<Bytes> {
        if !is_same_origin(request.headers) {
            return plain(StatusCode::FORBIDDEN, "refused\n");
        }
        let signalled = ["sec-gpc", "dnt"]
            .iter()
            .any(|name| request.headers.get(*name).is_some_and(|value| value.as_bytes() == b"1"));
        if self.privacy == PrivacySignal::Respect && signalled {
            counter!("gaitway_telemetry_refused_total", "reason" => "privacy_signal").increment(1);
            return empty(StatusCode::NO_CONTENT);
        }
        // A revoked caller gets one too: its socket is only told where to go (`Ticket::end`), and a page
        // that was on its way when its session ended does not stay.
        let Some(page) = PageToken::fresh(request.caller.identity().session, clock::now()) else {
            return empty(StatusCode::NO_CONTENT);
        };
        let mut response = plain(StatusCode::OK, &page.seal(&self.secret));
        if let Caller::New { set_cookie, .. } = request.caller {
            // Behind TLS the cookie must never travel without it.
            let set_cookie = if request.https && !set_cookie.contains("; Secure") {
                format!("{set_cookie}; Secure")
            } else {
                set_cookie.clone()
            };
            if let Ok(value) = set_cookie.parse() {
                response.headers_mut().insert(header::SET_COOKIE, value);
            }
        }
        response
    }

    /// One batch by POST: the fallback where no WebSocket gets through, and the last one of a page.
    fn beacon(&self, request: &EdgeRequest<'_>) -> Response<Bytes> {
        let reject = |reason: &'static str, status: StatusCode| {
            counter!("gaitway_telemetry_rejected_total", "reason" => reason).increment(1);
            plain(status, "rejected\n")
        };
        if !is_same_origin(request.headers) {
            return reject("origin", StatusCode::FORBIDDEN);
        }
        if request.caller.known().is_none() {
            return reject("session", StatusCode::UNAUTHORIZED);
        }
        if let Some(incident) = request.revoked {
            return json(StatusCode::OK, &self.go(incident));
        }
        let Some((identity, token)) = self.page_token(request, BEACON_TOKEN_AGE) else {
            return reject("page_token", StatusCode::UNAUTHORIZED);
        };
        if !self.sockets.allow_frame(identity.session, clock::now()) {
            return reject("rate", StatusCode::TOO_MANY_REQUESTS);
        }
        match Batch::decode(&request.body) {
            Ok(batch) => {
                counter!("gaitway_telemetry_batches_total", "door" => "beacon").increment(1);
                let input = Input::Batch { identity: Identity::clone(identity), page: token.page, batch };
                self.shards.offer(&identity.session, input);
                empty(StatusCode::NO_CONTENT)
            }
            Err(_) => reject("decode", StatusCode::BAD_REQUEST),
        }
    }

    /// Where a revoked browser is sent. Cookies are cleared only for a caller who really is
    /// revoked, so that nobody can log others out with a link.
    fn bye(&self, request: &EdgeRequest<'_>) -> Response<Bytes> {
        let named = request.query.and_then(|query| parameter(query, "i")).filter(|id| is_incident(id));
        match request.revoked {
            Some(incident) => self.logout_page(incident, request),
            None => html(StatusCode::OK, self.pages.logout(request.headers, named)),
        }
    }

    /// The page in place of whatever a revoked person asked for.
    pub fn logout_page(&self, incident: &str, request: &EdgeRequest<'_>) -> Response<Bytes> {
        let page = match incident {
            LOGGED_OUT => self.pages.logged_out(request.headers),
            incident => self.pages.logout(request.headers, Some(incident)),
        };
        let mut response = html(StatusCode::FORBIDDEN, page);
        if request.by_link {
            return response;
        }
        let headers = response.headers_mut();
        clear_cookies(headers, request.cookies_to_clear, request.https);
        // Browsers keep whole pages for their back button; the next person at this one must not see them.
        // Not for scripts, which may ask again and again.
        headers.insert("clear-site-data", header::HeaderValue::from_static("\"cookies\", \"cache\""));
        response
    }

    /// What a script gets instead.
    pub fn logout_problem(&self, incident: &str, request: &EdgeRequest<'_>) -> Response<Bytes> {
        let body = serde_json::json!({
            "type": "about:blank",
            "title": "Session ended",
            "status": 401,
            "detail": match incident {
                LOGGED_OUT => "You have logged out. Log in again to go on.",
                _ => "This session was ended for security reasons. Log in again to go on.",
            },
            "incident": incident,
        });
        let mut response = problem(StatusCode::UNAUTHORIZED, &body);
        let headers = response.headers_mut();
        headers.insert(
            header::WWW_AUTHENTICATE,
            header::HeaderValue::from_static("Bearer error=\"invalid_token\""),
        );
        if !request.by_link {
            clear_cookies(headers, request.cookies_to_clear, request.https);
        }
        response
    }

    /// The interstitial: one button, no puzzle; works with a keyboard and a screen reader.
    pub fn challenge_page(&self, identity: &Identity, request: &EdgeRequest<'_>) -> Response<Bytes> {
        let back = match request.query {
            Some(query) => format!("{}?{query}", request.path),
            None => request.path.to_owned(),
        };
        let Some(token) = PageToken::fresh(identity.session, clock::now()) else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "try again\n");
        };
        let action = format!("{}/challenge", self.prefix);
        let token = token.seal_challenge(&self.secret);
        html(StatusCode::FORBIDDEN, self.pages.challenge(request.headers, &action, &token, &back))
    }

    pub fn challenge_problem(&self) -> Response<Bytes> {
        let body = serde_json::json!({
            "type": "about:blank",
            "title": "Confirmation needed",
            "status": 403,
            "detail": "Open any page of this site in the browser and confirm, then try again.",
        });
        problem(StatusCode::FORBIDDEN, &body)
    }

    /// What a person gets who was too fast, or whose neighbour was.
    pub fn slow_down_page(&self, retry_after_seconds: u32, request: &EdgeRequest<'_>) -> Response<Bytes> {
        let page = self.pages.slow_down(request.headers, retry_after_seconds);
        retry_after(html(StatusCode::TOO_MANY_REQUESTS, page), retry_after_seconds)
    }

    /// What a script gets whose person must log in again (RFC 9470).
    pub fn step_up_problem(&self, acr_values: &str, max_age_seconds: u64) -> Response<Bytes> {
        let mut challenge = String::from(
            "Bearer error=\"insufficient_user_authentication\", error_description=\"A stronger or more recent login is needed\"",
        );
        let mut body = serde_json::json!({
            "type": "about:blank",
            "title": "Login needed again",
            "status": 401,
            "detail": "Open any page of this site in the browser and prove who you are, then try again.",
        });
        if !acr_values.is_empty() {
            let quoted = acr_values.replace('\\', "\\\\").replace('"', "\\\"");
            challenge.push_str(&format!(", acr_values=\"{quoted}\""));
            body["acr_values"] = acr_values.into();
        }
        if max_age_seconds > 0 {
            challenge.push_str(&format!(", max_age=\"{max_age_seconds}\""));
            body["max_age"] = max_age_seconds.into();
        }
        let mut response = problem(StatusCode::UNAUTHORIZED, &body);
        if let Ok(challenge) = challenge.parse() {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }

    async fn challenge(&self, request: &EdgeRequest<'_>) -> Response<Bytes> {
        let form = std::str::from_utf8(&request.body).unwrap_or_default();
        let back = parameter(form, "back").and_then(percent_decode).filter(|path| is_local_path(path));
        let back = back.unwrap_or_else(|| "/".to_owned());
        let passed = request.caller.known().is_some_and(|identity| {
            is_same_origin(request.headers)
                && parameter(form, "token")
                    .and_then(|token| PageToken::open_challenge(token, &self.secret))
                    .is_some_and(|token| {
                        token.session == identity.session
                            && token.age(clock::now()) <= self.page_token_age.max(Duration::from_secs(600))
                    })
        });
        if !passed {
            counter!("gaitway_challenges_total", "outcome" => "refused").increment(1);
            return plain(StatusCode::FORBIDDEN, "This page has expired. Go back and try again.\n");
        }
        counter!("gaitway_challenges_total", "outcome" => "passed").increment(1);
        let session = request.caller.identity().session;
        let now = clock::now();
        // Presence is the step up there is, and no proof, for sessions that no identity provider vouches for.
        let provided = match &self.login {
            Some(login) => !matches!(login.presence(request.headers, now).await, Presence::Absent),
            None => false,
        };
        let passed = match self.standings.verdict(&session, now) {
            Verdict::StepUp { .. } if !provided => Input::StepUpPassed { session, vouched: false },
            _ => Input::ChallengePassed { session },
        };
        self.shards.offer(&session, passed);
        self.until_unchallenged(&session).await;
        let mut response = empty(StatusCode::SEE_OTHER);
        if let Ok(location) = back.parse() {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }

    /// The shard clears the standing in a moment; sent back earlier, the person would see the same page
    /// again.
    async fn until_unchallenged(&self, session: &SessionId) {
        let deadline = tokio::time::Instant::now() + CHALLENGE_WAIT;
        while tokio::time::Instant::now() < deadline
            && matches!(
                self.standings.verdict(session, clock::now()),
                Verdict::Challenge | Verdict::StepUp { .. }
            )
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A page's token, and whose page it is: that one of the request's identities it was given to.
    fn page_token<'r>(
        &self,
        request: &EdgeRequest<'r>,
        age_max: Duration,
    ) -> Option<(&'r Arc<Identity>, PageToken)> {
        let sealed = parameter(request.query?, "p")?;
        let token = PageToken::open(sealed, &self.secret)?;
        let mut proved = request.caller.known().into_iter().chain(request.others);
        let identity = proved.find(|identity| identity.session == token.session)?;
        (token.age(clock::now()) <= age_max).then_some((identity, token))
    }

    fn go(&self, incident: &str) -> String {
        sockets::go_message(&self.prefix, incident)
    }
}

/// `Sec-Fetch-Site` says in words where a request comes from, and no page can forge it; it alone counts
/// where it is given, since a page whose referrer policy is strict sends `Origin: null` with its forms.
/// Else `Origin` names the page's origin, which must be ours. Neither present: not a browser's cross-site
/// request, and the token still guards.
fn is_same_origin(headers: &HeaderMap) -> bool {
    match headers.get("sec-fetch-site").map(|site| site.as_bytes()) {
        Some(b"same-origin") => return true,
        Some(b"none") | None => {}
        Some(_) => return false,
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let host = headers.get(header::HOST).map(|value| value.as_bytes()).unwrap_or_default();
    let origin = origin.as_bytes();
    // The scheme is not compared: behind a TLS-terminating proxy we do not trust, we cannot know it.
    let authority = origin.strip_prefix(b"https://").or_else(|| origin.strip_prefix(b"http://"));
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"))
                && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        })
}

fn gzip(bytes: &[u8]) -> Bytes {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default().into()
}

/// First value of a parameter in a query or form, still percent-encoded.
fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

/// Incident numbers are short and alphanumeric; nothing else is echoed into a page.
fn is_incident(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn clear_cookies(headers: &mut HeaderMap, names: &[String], https: bool) {
    headers.insert("clear-site-data", header::HeaderValue::from_static("\"cookies\""));
    for name in names {
        // Browsers take no word about a cookie with the prefix that does not say Secure.
        let secure = if https || name.starts_with("__Host-") { "; Secure" } else { "" };
        if let Ok(value) = format!("{name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax{secure}").parse() {
            headers.append(header::SET_COOKIE, value);
        }
    }
}

/// What a script gets instead; the type is that of draft-ietf-httpapi-ratelimit-headers.
pub fn slow_down_problem(limit: &str, retry_after_seconds: u32) -> Response<Bytes> {
    let body = serde_json::json!({
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Too many requests",
        "status": 429,
        "detail": format!("Try again in {retry_after_seconds} s."),
        "violated-policies": [limit],
    });
    retry_after(problem(StatusCode::TOO_MANY_REQUESTS, &body), retry_after_seconds)
}

fn retry_after(mut response: Response<Bytes>, seconds: u32) -> Response<Bytes> {
    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    response
}

/// A plain answer where a request cannot be served; names no cause and no software.
pub fn failure(status: u16) -> Response<Bytes> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    plain(status, &format!("{}\n", status.canonical_reason().unwrap_or("error").to_lowercase()))
}

pub(crate) fn plain(status: StatusCode, text: &str) -> Response<Bytes> {
    respond(status, "text/plain; charset=utf-8", Bytes::copy_from_slice(text.as_bytes()))
}

pub(crate) fn json(status: StatusCode, text: &str) -> Response<Bytes> {
    respond(status, "application/json", Bytes::copy_from_slice(text.as_bytes()))
}

/// RFC 9457.
fn problem(status: StatusCode, body: &serde_json::Value) -> Response<Bytes> {
    respond(status, "application/problem+json", body.to_string().into())
}

fn html(status: StatusCode, page: Page) -> Response<Bytes> {
    let mut response = respond(status, "text/html; charset=utf-8", page.html.into());
    let headers = response.headers_mut();
    if let Ok(policy) = page.policy.parse() {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    if let Some(language) = page.language.and_then(|language| language.parse().ok()) {
        headers.insert(header::CONTENT_LANGUAGE, language);
    }
    headers.insert(header::VARY, header::HeaderValue::from_static("accept-language"));
    // Not `no-referrer`: with it the challenge's own form would be sent with `Origin: null`.
    headers.insert(header::REFERRER_POLICY, header::HeaderValue::from_static("same-origin"));
    response
}

pub(crate) fn empty(status: StatusCode) -> Response<Bytes> {
    let mut response = respond(status, "text/plain", Bytes::new());
    response.headers_mut().remove(header::CONTENT_TYPE);
    response
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

impl Caller {
    /// The identity, if the caller presented one.
    pub fn known(&self) -> Option<&Arc<Identity>> {
        match self {
            Caller::Known(identity) => Some(identity),
            Caller::New { .. } => None,
        }
    }
}

impl PageToken {
    fn age(&self, now: Timestamp) -> Duration {
        now.since(self.issued_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn only_our_own_pages_may_speak_to_the_doors() {
        let check = |pairs: &[(&'static str, &str)], expect: bool| {
            assert_eq!(is_same_origin(&headers(pairs)), expect, "{pairs:?}");
        };
        check(&[("host", "a.example"), ("origin", "https://a.example")], true);
        check(&[("host", "a.example:8000"), ("origin", "http://A.example:8000")], true);
        check(&[("host", "a.example")], true);
        check(&[("host", "a.example"), ("origin", "https://evil.example")], false);
        check(&[("host", "a.example"), ("origin", "https://a.example.evil.example")], false);
        check(&[("host", "a.example"), ("origin", "null")], false);
        check(&[("host", "a.example"), ("origin", "null"), ("sec-fetch-site", "none")], false);
        check(&[("host", "a.example"), ("origin", "null"), ("sec-fetch-site", "same-origin")], true);
        check(&[("host", "a.example"), ("sec-fetch-site", "cross-site")], false);
        check(&[("host", "a.example"), ("sec-fetch-site", "same-site")], false);
        check(&[("origin", "https://a.example")], false);
    }

    #[test]
    fn a_challenge_never_sends_anybody_off_the_site() {
        for path in ["//evil.example", "https://evil.example", "/\\evil", "/a\r\nX: y", "", "/ä"] {
            assert!(!is_local_path(path), "{path:?}");
        }
        assert!(is_local_path("/cart?item=1&n=2"));
    }

    #[test]
    fn gzip_is_sent_only_to_those_who_take_it() {
        assert!(accepts_gzip(&headers(&[("accept-encoding", "br, gzip;q=0.5")])));
        assert!(!accepts_gzip(&headers(&[("accept-encoding", "br, gzip;q=0")])));
        assert!(!accepts_gzip(&headers(&[])));
    }

    #[test]
    fn percent_coding_is_undone_or_refused() {
        assert_eq!(percent_decode("%2Fcart%3Fa%3D1+b").as_deref(), Some("/cart?a=1 b"));
        assert_eq!(percent_decode("%2"), None);
        assert_eq!(percent_decode("%zz"), None);
        assert_eq!(percent_decode("%ff"), None);
    }
}
