//! Puts the collector's tag into HTML pages: decides by the headers, edits them, hands out the body's editor.
//!
//! Knows no session: the tag is one constant per configuration, so pages stay as cacheable as they were.
//!
//! Invariants: when in doubt the page passes untouched and a reason is given; headers are only edited once
//! nothing can stop the injection any more; what a client sends back (ETags, ranges) means to the app what it
//! meant when the app sent it.

mod body;
mod coding;
mod locate;
mod opening;
#[cfg(test)]
mod soup;

pub use body::{Injection, Outcome};
pub use coding::Coding;

use super::csp;
use crate::config::Collector;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use body::Brief;
use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING,
    CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HOST, HeaderName, HeaderValue, IF_MATCH,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE, TRANSFER_ENCODING, UPGRADE, VARY,
};
use http::{HeaderMap, Method, StatusCode, Version};
use locate::Markup;
use pingora_http::{RequestHeader, ResponseHeader};
use rand::RngCore;
use sha2::{Digest, Sha256};

/// Everything about injection that is the same for all responses.
pub struct Injector {
    is_enabled: bool,
    script: String,
    endpoints: String,
    html_tag: Bytes,
    xhtml_tag: Bytes,
    tags: TagCodec,
    bytes_max: usize,
}

/// What is remembered of a request until its response; small, kept per request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    is_navigation: bool,
}

/// What happens to a response.
pub enum Plan {
    /// Its body passes as it is.
    Untouched(Skip),
    /// Its header says what the client will get; its body goes through `Injection::feed`.
    Inject(Box<Injection>),
}

/// Why a response's body is left alone. Value of the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// `collector.inject` is off.
    Disabled,
    /// Not a page at all: the everyday case, not worth counting.
    NotHtml,
    /// HTML that a script asked for and will use as it likes.
    NotNavigation,
    /// No body is sent; the header was edited as for GET.
    Head,
    /// No body is sent; the header was made to fit the copy the client has.
    NotModified,
    /// Errors, redirects, parts: anything but a whole page.
    Status,
    /// `Content-Disposition` other than inline.
    Download,
    /// `Cache-Control: no-transform`.
    NoTransform,
    /// An encoding in which ASCII is not ASCII, or a name nobody knows.
    Charset,
    /// A content coding, or a stack of them, that cannot be undone.
    Coding,
    /// `Content-Length: 0`.
    Empty,
    /// Lengths that contradict each other.
    Length,
    /// A coded page has no known length any more, and HTTP/1.0 has no chunks.
    Protocol,
    /// The page is sandboxed away from scripts or from its own origin.
    Sandbox,
    /// The Content-Security-Policy is not legible.
    Csp,
}

impl Skip {
    pub fn as_str(self) -> &'static str {
        match self {
            Skip::Disabled => "disabled",
            Skip::NotHtml => "not_html",
            Skip::NotNavigation => "not_navigation",
            Skip::Head => "head",
            Skip::NotModified => "not_modified",
            Skip::Status => "status",
            Skip::Download => "download",
            Skip::NoTransform => "no_transform",
            Skip::Charset => "charset",
            Skip::Coding => "coding",
            Skip::Empty => "empty",
            Skip::Length => "length",
            Skip::Protocol => "protocol",
            Skip::Sandbox => "sandbox",
            Skip::Csp => "csp",
        }
    }
}

impl Injector {
    pub fn new(config: &Collector) -> Injector {
        let prefix = url_path(config.path_prefix.trim_end_matches('/'));
        let script = format!("{prefix}/c.js");
        let html_tag = tag(&script, Markup::Html, None);
        let xhtml_tag = tag(&script, Markup::Xhtml, None);
        Injector {
            is_enabled: config.inject,
            endpoints: format!("{prefix}/"),
            tags: TagCodec::new(&html_tag),
            script,
            html_tag,
            xhtml_tag,
            bytes_max: config.inject_bytes_max,
        }
    }

    /// Makes the upstream request safe to rewrite: codings we can undo, whole pages instead of ranges, and
    /// ETags as the app knows them. `client` is the request as it came, `upstream` the one about to be sent.
    pub fn prepare(&self, client: &RequestHeader, upstream: &mut RequestHeader) -> Prepared {
        if !self.is_enabled {
            return Prepared::default();
        }
        self.restore_if_match(upstream);
        if !is_navigation(client) {
            return Prepared::default();
        }
        // A partial page would dodge the tag, and a part must never be joined to a copy that has it.
        upstream.remove_header(&RANGE);
        upstream.remove_header(&IF_RANGE);
        narrow_codings(client, upstream);
        self.restore_if_none_match(upstream);
        Prepared { is_navigation: true }
    }

    /// Decides about a response and edits its header to fit. `scheme` is what the browser sees, `http` or
    /// `https`.
    pub fn plan(
        &self,
        prepared: &Prepared,
        client: &RequestHeader,
        scheme: &str,
        response: &mut ResponseHeader,
    ) -> Plan {
        match self.try_plan(prepared, client, scheme, response) {
            Ok(injection) => Plan::Inject(Box::new(injection)),
            Err(skip) => Plan::Untouched(skip),
        }
    }

    fn try_plan(
        &self,
        prepared: &Prepared,
        client: &RequestHeader,
        scheme: &str,
        response: &mut ResponseHeader,
    ) -> Result<Injection, Skip> {
        if !self.is_enabled {
            return Err(Skip::Disabled);
        }
        if response.status == StatusCode::NOT_MODIFIED {
            if prepared.is_navigation {
                self.adapt_not_modified(client, scheme, response);
            }
            return Err(Skip::NotModified);
        }
        let page = inspect(prepared, client, response)?;
        let policy = self.accommodate(client, scheme, &response.headers)?;
        // From here on nothing can stop the injection, so the header may change.
        let tag = match (page.markup, &policy.nonce) {
            (Markup::Html, None) => self.html_tag.clone(),
            (Markup::Xhtml, None) => self.xhtml_tag.clone(),
            (markup, Some(nonce)) => tag(&self.script, markup, Some(nonce)),
        };
        set_policies(response, &policy);
        set_length(response, client, &page, tag.len() as u64);
        self.set_validators(response, &page, policy.is_nonce_fresh);
        extend_vary(response, client);
        response.remove_header(&ACCEPT_RANGES);
        for name in BODY_DIGESTS {
            response.remove_header(name);
        }
        if client.method == Method::HEAD {
            return Err(Skip::Head);
        }
        Ok(Injection::new(Brief {
            tag,
            markup: page.markup,
            charset_known: page.has_charset,
            coding: page.coding,
            promised_bytes: page.length.filter(|_| page.coding.is_none()),
            bytes_max: self.bytes_max,
        }))
    }

    fn accommodate(
        &self,
        client: &RequestHeader,
        scheme: &str,
        headers: &HeaderMap,
    ) -> Result<csp::Accommodation, Skip> {
        let policies: Vec<&[u8]> =
            headers.get_all(CONTENT_SECURITY_POLICY).iter().map(HeaderValue::as_bytes).collect();
        let page =
            csp::Page { scheme, host: host_of(client), script: &self.script, endpoints: &self.endpoints };
        csp::accommodate(&policies, page, fresh_nonce).map_err(|refusal| match refusal {
            csp::Refusal::Sandboxed => Skip::Sandbox,
            csp::Refusal::Illegible => Skip::Csp,
        })
    }

    /// A 304 speaks about the copy the client has: it gets back the ETag it sent, and a policy that fits a
    /// page with the tag, because its header replaces the stored one.
    fn adapt_not_modified(&self, client: &RequestHeader, scheme: &str, response: &mut ResponseHeader) {
        if let Ok(policy) = self.accommodate(client, scheme, &response.headers)
            && !policy.is_nonce_fresh
        {
            set_policies(response, &policy);
        }
        let Some(etag) = single(&response.headers, &ETAG).and_then(EntityTag::parse) else { return };
        let theirs = list(&client.headers, &IF_NONE_MATCH);
        let sent = entity_tags(&theirs)
            .into_iter()
            .find(|sent| self.tags.restore(sent).is_some_and(|restored| restored.opaque == etag.opaque));
        if let Some(sent) = sent {
            let _ = response.insert_header(ETAG, sent.to_string());
            response.remove_header(&ACCEPT_RANGES);
            response.remove_header(&CONTENT_LENGTH);
        }
    }

    /// Gives the page's own ETag a mark, so that copies with and without the tag are told apart.
    fn set_validators(&self, response: &mut ResponseHeader, page: &Html, is_nonce_fresh: bool) {
        if is_nonce_fresh {
            // Header and body belong together by the nonce: the page must not be revalidated, where a new
            // header would meet the old body, nor shared, where others could read the nonce.
            response.remove_header(&ETAG);
            response.remove_header(&LAST_MODIFIED);
            let _ = response.append_header(CACHE_CONTROL, "private");
            return;
        }
        if !response.headers.contains_key(ETAG) {
            return;
        }
        let marked = single(&response.headers, &ETAG)
            .and_then(EntityTag::parse)
            // A body coded anew may differ in its bytes from one time to the next.
            .map(|etag| self.tags.mark(&etag, page.coding.is_some()));
        match marked {
            Some(etag) => {
                let _ = response.insert_header(ETAG, etag);
            }
            None => {
                response.remove_header(&ETAG);
            }
        }
    }

    /// Only our own tags go upstream, without their mark: a copy without the collector's tag must not be
    /// confirmed.
    fn restore_if_none_match(&self, upstream: &mut RequestHeader) {
        let sent = list(&upstream.headers, &IF_NONE_MATCH);
        if sent.is_empty() || sent.trim() == "*" {
            return;
        }
        let restored: Vec<String> = entity_tags(&sent)
            .iter()
            .filter_map(|tag| self.tags.restore(tag))
            .map(|tag| tag.to_string())
            .collect();
        if restored.is_empty() {
            upstream.remove_header(&IF_NONE_MATCH);
            // It was overruled by If-None-Match and must not come into force now.
            upstream.remove_header(&IF_MODIFIED_SINCE);
        } else {
            let _ = upstream.insert_header(IF_NONE_MATCH, restored.join(", "));
        }
    }

    fn restore_if_match(&self, upstream: &mut RequestHeader) {
        let sent = list(&upstream.headers, &IF_MATCH);
        let tags = entity_tags(&sent);
        if tags.iter().all(|tag| self.tags.restore(tag).is_none()) {
            return;
        }
        let restored: Vec<String> =
            tags.into_iter().map(|tag| self.tags.restore(&tag).unwrap_or(tag).to_string()).collect();
        let _ = upstream.insert_header(IF_MATCH, restored.join(", "));
    }
}

/// What an injectable response is like.
struct Html {
    markup: Markup,
    has_charset: bool,
    coding: Option<Coding>,
    length: Option<u64>,
}

fn inspect(prepared: &Prepared, client: &RequestHeader, response: &ResponseHeader) -> Result<Html, Skip> {
    let headers = &response.headers;
    let content_type = single(headers, &CONTENT_TYPE).ok_or(Skip::NotHtml)?;
    let (essence, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    let markup = match essence.trim().to_ascii_lowercase().as_str() {
        "text/html" => Markup::Html,
        "application/xhtml+xml" => Markup::Xhtml,
        _ => return Err(Skip::NotHtml),
    };
    if !prepared.is_navigation {
        return Err(Skip::NotNavigation);
    }
    let is_whole_page = response.status.is_success() && !matches!(response.status.as_u16(), 204..=206 | 226);
    if !is_whole_page || headers.contains_key(http::header::CONTENT_RANGE) {
        return Err(Skip::Status);
    }
    if is_download(headers) {
        return Err(Skip::Download);
    }
    if has_directive(headers, "no-transform") || has_directive(&client.headers, "no-transform") {
        return Err(Skip::NoTransform);
    }
    let charset = charset_parameter(parameters);
    if let Some(label) = &charset {
        let encoding = encoding_rs::Encoding::for_label(label.as_bytes()).ok_or(Skip::Charset)?;
        if !encoding.is_ascii_compatible() {
            return Err(Skip::Charset);
        }
    }
    let coding = content_coding(headers)?;
    let length = content_length(headers)?;
    if length == Some(0) {
        return Err(Skip::Empty);
    }
    if coding.is_some() && client.version <= Version::HTTP_10 {
        return Err(Skip::Protocol);
    }
    Ok(Html { markup, has_charset: charset.is_some(), coding, length })
}

/// Whether a browser loads a page or frame with this request, as far as its header tells.
fn is_navigation(client: &RequestHeader) -> bool {
    let headers = &client.headers;
    if !matches!(client.method, Method::GET | Method::HEAD | Method::POST) || headers.contains_key(UPGRADE) {
        return false;
    }
    // Libraries that fetch HTML to paste it somewhere announce themselves.
    if SCRIPTED_REQUESTS.iter().any(|name| headers.contains_key(*name)) {
        return false;
    }
    if let Some(destination) = headers.get("sec-fetch-dest") {
        return matches!(destination.as_bytes(), b"document" | b"iframe" | b"frame" | b"fencedframe");
    }
    // Browsers withhold Sec-Fetch-Dest on plain HTTP. There, pages are asked for by name; fetch and XHR say */*.
    let accept = list(headers, &ACCEPT).to_ascii_lowercase();
    accept.is_empty() || accept.contains("text/html") || accept.contains("application/xhtml+xml")
}

/// Keeps of the client's Accept-Encoding what we can undo.
fn narrow_codings(client: &RequestHeader, upstream: &mut RequestHeader) {
    if !client.headers.contains_key(ACCEPT_ENCODING) {
        return;
    }
    let wished = list(&client.headers, &ACCEPT_ENCODING);
    let is_usable = |member: &&str| {
        let token = member.split(';').next().unwrap_or_default().trim();
        token.eq_ignore_ascii_case("identity") || Coding::from_token(token).is_some()
    };
    let kept: Vec<&str> = wished.split(',').map(str::trim).filter(is_usable).collect();
    let kept = if kept.is_empty() || client.version <= Version::HTTP_10 {
        "identity".to_owned()
    } else {
        kept.join(", ")
    };
    let _ = upstream.insert_header(ACCEPT_ENCODING, kept);
}

fn set_policies(response: &mut ResponseHeader, policy: &csp::Accommodation) {
    let Some(headers) = &policy.headers else { return };
    response.remove_header(&CONTENT_SECURITY_POLICY);
    for header in headers {
        let _ = response.append_header(CONTENT_SECURITY_POLICY, header.as_str());
    }
}

/// A plain page keeps a known length; a coded one loses it.
fn set_length(response: &mut ResponseHeader, client: &RequestHeader, page: &Html, tag_bytes: u64) {
    let Some(length) = page.length else { return };
    if page.coding.is_none() {
        let _ = response.insert_header(CONTENT_LENGTH, (length + tag_bytes).to_string());
        return;
    }
    response.remove_header(&CONTENT_LENGTH);
    // The proxy adds chunking to length-less replies before this point, not after it.
    if client.version == Version::HTTP_11 && client.method != Method::HEAD {
        response.set_version(Version::HTTP_11);
        let _ = response.insert_header(TRANSFER_ENCODING, "chunked");
    }
}

/// Whether there is a tag depends on the request; a cache that keeps the page has to know.
fn extend_vary(response: &mut ResponseHeader, client: &RequestHeader) {
    if has_directive(&response.headers, "no-store") {
        return;
    }
    let name = if client.headers.contains_key("sec-fetch-dest") { "Sec-Fetch-Dest" } else { "Accept" };
    let vary = list(&response.headers, &VARY);
    let is_covered = |member: &str| member.trim() == "*" || member.trim().eq_ignore_ascii_case(name);
    if !vary.split(',').any(is_covered) {
        let _ = response.append_header(VARY, name);
    }
}

/// Marks ETags of pages with a tag, and reads the marks.
///
/// A marked tag ends in `-g`, how it was marked, and a digest of the collector's tag, so that copies with
/// an older tag are not confirmed.
struct TagCodec {
    digest: String,
}

impl TagCodec {
    fn new(tag: &[u8]) -> TagCodec {
        let hash = Sha256::digest(tag);
        TagCodec { digest: format!("{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2]) }
    }

    fn mark(&self, etag: &EntityTag<'_>, weaken: bool) -> String {
        let was_weakened = weaken && !etag.is_weak;
        let weak = if etag.is_weak || weaken { "W/" } else { "" };
        let how = if was_weakened { WEAKENED } else { KEPT };
        format!("{weak}\"{}-g{how}{}\"", etag.opaque, self.digest)
    }

    /// The app's own tag; `None` if this is not one of ours.
    fn restore<'t>(&self, etag: &EntityTag<'t>) -> Option<EntityTag<'t>> {
        let marked = etag.opaque.strip_suffix(self.digest.as_str())?;
        if let Some(opaque) = marked.strip_suffix(KEPT).and_then(|rest| rest.strip_suffix("-g")) {
            return Some(EntityTag { is_weak: etag.is_weak, opaque });
        }
        let opaque = marked.strip_suffix(WEAKENED)?.strip_suffix("-g")?;
        Some(EntityTag { is_weak: false, opaque })
    }
}

/// The mark left the tag as strong or weak as it was.
const KEPT: char = 'k';
/// The app's tag was strong.
const WEAKENED: char = 'w';

#[derive(Clone, Debug, PartialEq, Eq)]
struct EntityTag<'t> {
    is_weak: bool,
    /// Between the quotes.
    opaque: &'t str,
}

impl<'t> EntityTag<'t> {
    fn parse(text: &'t str) -> Option<EntityTag<'t>> {
        let text = text.trim();
        let (is_weak, quoted) = match text.strip_prefix("W/") {
            Some(quoted) => (true, quoted),
            None => (false, text),
        };
        let opaque = quoted.strip_prefix('"')?.strip_suffix('"')?;
        (!opaque.contains('"')).then_some(EntityTag { is_weak, opaque })
    }
}

impl std::fmt::Display for EntityTag<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\"{}\"", if self.is_weak { "W/" } else { "" }, self.opaque)
    }
}

/// The members of an entity-tag list. Commas may stand inside the quotes.
fn entity_tags(list: &str) -> Vec<EntityTag<'_>> {
    let mut is_quoted = false;
    list.split(|c: char| {
        is_quoted ^= c == '"';
        c == ',' && !is_quoted
    })
    .filter_map(EntityTag::parse)
    .collect()
}

fn is_download(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_DISPOSITION).iter().any(|value| {
        let Ok(value) = value.to_str() else { return true };
        let kind = value.split(';').next().unwrap_or_default().trim();
        // Browsers save whatever is not inline; a parameter without a kind counts as inline.
        !(kind.is_empty() || kind.eq_ignore_ascii_case("inline") || kind.contains('='))
    })
}

fn has_directive(headers: &HeaderMap, directive: &str) -> bool {
    list(headers, &CACHE_CONTROL).split(',').any(|member| member.trim().eq_ignore_ascii_case(directive))
}

fn charset_parameter(parameters: &str) -> Option<String> {
    parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches(['"', '\'']).to_owned())
    })
}

fn content_coding(headers: &HeaderMap) -> Result<Option<Coding>, Skip> {
    let codings = list(headers, &CONTENT_ENCODING);
    let mut members =
        codings.split(',').map(str::trim).filter(|m| !m.is_empty() && !m.eq_ignore_ascii_case("identity"));
    match (members.next(), members.next()) {
        (None, _) => Ok(None),
        (Some(token), None) => Coding::from_token(token).map(Some).ok_or(Skip::Coding),
        _ => Err(Skip::Coding),
    }
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Skip> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    let fits = length.is_some_and(|length| length <= u64::MAX / 2) && values.next().is_none();
    if fits { Ok(length) } else { Err(Skip::Length) }
}

/// The value of a header that must not come twice.
fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// All values of a list header as one list; values that are not text are left out.
fn list(headers: &HeaderMap, name: &HeaderName) -> String {
    let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    values.join(",")
}

fn host_of(client: &RequestHeader) -> &str {
    match single(&client.headers, &HOST) {
        Some(host) => host.trim(),
        None => client.uri.authority().map_or("", |authority| authority.as_str()),
    }
}

/// The tag. Its length is even, so that in UTF-16 as many spaces as it is long can stand in for it.
fn tag(script: &str, markup: Markup, nonce: Option<&str>) -> Bytes {
    let nonce = nonce.map(|nonce| format!(" nonce=\"{nonce}\"")).unwrap_or_default();
    let defer = if markup == Markup::Xhtml { "defer=\"defer\"" } else { "defer" };
    let mut tag = format!("<script src=\"{script}\" {defer}{nonce}></script>");
    if tag.len() % 2 == 1 {
        tag.insert(tag.len() - "></script>".len(), ' ');
    }
    Bytes::from(tag)
}

/// Leaves nothing in a path that would mean something in HTML or in a policy.
fn url_path(path: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_.~-%".contains(&byte);
    path.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// 128 bits from a cryptographic generator, always 22 characters.
fn fresh_nonce() -> String {
    let mut bits = [0; 16];
    rand::rng().fill_bytes(&mut bits);
    URL_SAFE_NO_PAD.encode(bits)
}

/// Headers by which page-patching libraries announce that they fetch HTML for a script: htmx, jQuery and
/// the like, Turbo, PJAX, Unpoly.
const SCRIPTED_REQUESTS: [&str; 5] =
    ["hx-request", "x-requested-with", "turbo-frame", "x-pjax", "x-up-version"];

/// Statements about the exact bytes of a body, untrue of a page with a tag.
const BODY_DIGESTS: [&str; 6] =
    ["content-md5", "digest", "repr-digest", "content-digest", "signature", "signature-input"];

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    const NAVIGATION: &str = "GET / HTTP/1.1\nhost: shop.example\nsec-fetch-dest: document";

    fn injector() -> Injector {
        Injector::new(&Collector::default())
    }

    /// First line `METHOD /path VERSION`, then one header a line.
    fn request(text: &str) -> RequestHeader {
        let mut lines = text.lines();
        let mut start = lines.next().unwrap().split(' ');
        let (method, path, version) = (start.next().unwrap(), start.next().unwrap(), start.next().unwrap());
        let mut request = RequestHeader::build(method, path.as_bytes(), None).unwrap();
        request.set_version(match version {
            "HTTP/1.0" => Version::HTTP_10,
            "HTTP/2" => Version::HTTP_2,
            _ => Version::HTTP_11,
        });
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            request.append_header(name.to_owned(), value).unwrap();
        }
        request
    }

    /// First line the status, then one header a line.
    fn response(text: &str) -> ResponseHeader {
        let mut lines = text.lines();
        let mut response =
            ResponseHeader::build(lines.next().unwrap().parse::<u16>().unwrap(), None).unwrap();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            response.append_header(name.to_owned(), value).unwrap();
        }
        response
    }

    fn print(headers: &HeaderMap) -> String {
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect();
        lines.sort();
        lines.concat()
    }

    fn passes(request_text: &str, response_text: &str) -> (RequestHeader, ResponseHeader, Plan) {
        let injector = injector();
        let client = request(request_text);
        let mut upstream = client.clone();
        let prepared = injector.prepare(&client, &mut upstream);
        let mut answer = response(response_text);
        let plan = injector.plan(&prepared, &client, "https", &mut answer);
        (upstream, answer, plan)
    }

    /// What the upstream is sent.
    #[track_caller]
    fn check_request(text: &str, expected: Expect) {
        let (upstream, _, _) = passes(text, "404");
        expected.assert_eq(&print(&upstream.headers));
    }

    /// What the client is sent for a page load, and for a body of `<html><head>`.
    #[track_caller]
    fn check(response_text: &str, expected: Expect) {
        check_for(NAVIGATION, response_text, expected);
    }

    #[track_caller]
    fn check_for(request_text: &str, response_text: &str, expected: Expect) {
        let (_, answer, plan) = passes(request_text, response_text);
        let body = match plan {
            Plan::Untouched(skip) => format!("-> {}\n", skip.as_str()),
            Plan::Inject(mut injection) => {
                let mut chunk = Some(Bytes::from_static(b"<html><head>"));
                injection.feed(&mut chunk, true);
                format!("-> {}\n", String::from_utf8_lossy(&chunk.unwrap()))
            }
        };
        expected.assert_eq(&(print(&answer.headers) + &body));
    }

    /// The response must pass as it is, for this reason.
    #[track_caller]
    fn untouched(request_text: &str, response_text: &str, expected: Skip) {
        let (_, answer, plan) = passes(request_text, response_text);
        match plan {
            Plan::Untouched(skip) => assert_eq!(skip, expected, "{request_text}\n{response_text}"),
            Plan::Inject(_) => panic!("injected: {request_text}\n{response_text}"),
        }
        assert_eq!(print(&answer.headers), print(&response(response_text).headers));
    }

    #[test]
    fn a_page_with_a_length_keeps_a_length() {
        check(
            "200\ncontent-type: text/html; charset=utf-8\ncontent-length: 12",
            expect![[r#"
                content-length: 56
                content-type: text/html; charset=utf-8
                vary: Sec-Fetch-Dest
                -> <html><head><script src="/_gaitway/c.js" defer></script>
            "#]],
        );
    }

    #[test]
    fn a_page_without_a_length_stays_without() {
        check(
            "200\ncontent-type: TEXT/HTML;Charset=\"ISO-8859-1\"\ntransfer-encoding: chunked\ncache-control: no-store",
            expect![[r#"
                cache-control: no-store
                content-type: TEXT/HTML;Charset="ISO-8859-1"
                transfer-encoding: chunked
                -> <html><head><script src="/_gaitway/c.js" defer></script>
            "#]],
        );
    }

    #[test]
    fn a_coded_page_is_chunked_on_http_1_only() {
        let page = "200\ncontent-type: text/html; charset=utf-8\ncontent-length: 12\ncontent-encoding: br";
        let (_, answer, plan) = passes(NAVIGATION, page);
        assert!(matches!(plan, Plan::Inject(_)));
        assert_eq!(answer.headers.get(CONTENT_LENGTH), None);
        assert_eq!(answer.headers[TRANSFER_ENCODING], "chunked");
        let (_, answer, plan) = passes(&NAVIGATION.replace("1.1", "2"), page);
        assert!(matches!(plan, Plan::Inject(_)));
        assert_eq!((answer.headers.get(CONTENT_LENGTH), answer.headers.get(TRANSFER_ENCODING)), (None, None));
        untouched(&NAVIGATION.replace("1.1", "1.0"), page, Skip::Protocol);
    }

    #[test]
    fn head_says_what_get_would_say() {
        for page in [
            "200\ncontent-type: text/html\ncontent-length: 12\netag: \"a\"\naccept-ranges: bytes",
            "200\ncontent-type: text/html\ncontent-length: 12\ncontent-security-policy: script-src 'nonce-12345'",
        ] {
            let (_, get, _) = passes(NAVIGATION, page);
            let (_, head, plan) = passes(&NAVIGATION.replace("GET", "HEAD"), page);
            assert_eq!(print(&get.headers), print(&head.headers));
            assert!(matches!(plan, Plan::Untouched(Skip::Head)));
        }
    }

    #[test]
    fn only_whole_html_pages_are_touched() {
        for (page, reason) in [
            ("200\ncontent-length: 5", Skip::NotHtml),
            ("200\ncontent-type: application/json", Skip::NotHtml),
            ("200\ncontent-type: text/event-stream", Skip::NotHtml),
            ("200\ncontent-type: text/html\ncontent-type: text/html", Skip::NotHtml),
            ("204\ncontent-type: text/html", Skip::Status),
            ("205\ncontent-type: text/html", Skip::Status),
            ("206\ncontent-type: text/html\ncontent-range: bytes 0-9/20", Skip::Status),
            ("302\ncontent-type: text/html\nlocation: /", Skip::Status),
            ("404\ncontent-type: text/html", Skip::Status),
            ("200\ncontent-type: text/html\ncontent-disposition: attachment; filename=x", Skip::Download),
            ("200\ncontent-type: text/html\ncontent-disposition: form-data", Skip::Download),
            ("200\ncontent-type: text/html\ncache-control: public, No-Transform", Skip::NoTransform),
            ("200\ncontent-type: text/html; charset=utf-16", Skip::Charset),
            ("200\ncontent-type: text/html; charset=utf-32", Skip::Charset),
            ("200\ncontent-type: text/html; charset=\"iso-2022-jp\"", Skip::Charset),
            ("200\ncontent-type: text/html\ncontent-encoding: compress", Skip::Coding),
            ("200\ncontent-type: text/html\ncontent-encoding: gzip, br", Skip::Coding),
            ("200\ncontent-type: text/html\ncontent-encoding: gzip\ncontent-encoding: gzip", Skip::Coding),
            ("200\ncontent-type: text/html\ncontent-length: 0", Skip::Empty),
            ("200\ncontent-type: text/html\ncontent-length: 5\ncontent-length: 6", Skip::Length),
            ("200\ncontent-type: text/html\ncontent-length: -5", Skip::Length),
            ("200\ncontent-type: text/html\ncontent-security-policy: sandbox", Skip::Sandbox),
        ] {
            untouched(NAVIGATION, page, reason);
        }
        untouched(
            &format!("{NAVIGATION}\ncache-control: no-transform"),
            "200\ncontent-type: text/html",
            Skip::NoTransform,
        );
    }

    #[test]
    fn only_page_loads_are_touched() {
        let plain = "GET / HTTP/1.1\nhost: shop.example";
        let page = "200\ncontent-type: text/html";
        for load in [
            NAVIGATION.to_owned(),
            NAVIGATION.replace("document", "iframe"),
            NAVIGATION.replace("GET", "POST"),
            format!("{plain}\naccept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"),
            plain.to_owned(),
        ] {
            assert!(matches!(passes(&load, page).2, Plan::Inject(_)), "{load}");
        }
        for other in [
            NAVIGATION.replace("document", "empty"),
            NAVIGATION.replace("document", "object"),
            NAVIGATION.replace("GET", "PUT"),
            format!("{NAVIGATION}\nhx-request: true"),
            format!("{NAVIGATION}\nx-requested-with: XMLHttpRequest"),
            format!("{NAVIGATION}\nupgrade: websocket"),
            format!("{plain}\naccept: */*"),
            format!("{plain}\naccept: text/html\nturbo-frame: cart"),
        ] {
            untouched(&other, page, Skip::NotNavigation);
        }
    }

    #[test]
    fn an_injector_that_is_off_touches_nothing() {
        let injector = Injector::new(&Collector { inject: false, ..Collector::default() });
        let client = request(&format!("{NAVIGATION}\nrange: bytes=0-\naccept-encoding: sdch"));
        let mut upstream = client.clone();
        let prepared = injector.prepare(&client, &mut upstream);
        assert_eq!(print(&upstream.headers), print(&client.headers));
        let mut answer = response("200\ncontent-type: text/html");
        let plan = injector.plan(&prepared, &client, "https", &mut answer);
        assert!(matches!(plan, Plan::Untouched(Skip::Disabled)));
    }

    #[test]
    fn page_loads_ask_for_whole_pages_in_codings_we_know() {
        check_request(
            &format!(
                "{NAVIGATION}\nrange: bytes=0-5\nif-range: \"a\"\naccept-encoding: gzip, deflate;q=0.5, br, zstd, dcb, *"
            ),
            expect![[r#"
                accept-encoding: gzip, deflate;q=0.5, br, zstd
                host: shop.example
                sec-fetch-dest: document
            "#]],
        );
        check_request(
            "GET / HTTP/1.0\nhost: shop.example\naccept: text/html\naccept-encoding: gzip",
            expect![[r#"
                accept-encoding: identity
                accept: text/html
                host: shop.example
            "#]],
        );
        check_request(
            "GET / HTTP/1.1\nhost: shop.example\nsec-fetch-dest: video\nrange: bytes=0-5\naccept-encoding: sdch\nif-none-match: \"a\"",
            expect![[r#"
                accept-encoding: sdch
                host: shop.example
                if-none-match: "a"
                range: bytes=0-5
                sec-fetch-dest: video
            "#]],
        );
    }

    #[test]
    fn statements_about_the_bytes_are_withdrawn() {
        check(
            "200\ncontent-type: text/html\naccept-ranges: bytes\ncontent-md5: x\ndigest: x\nrepr-digest: x\ncontent-digest: x\n\
             signature: x\nsignature-input: x\nlast-modified: Sat, 01 Jan 2022 00:00:00 GMT\ntrailer: x\nvary: Cookie\nvary: accept-encoding",
            expect![[r#"
                content-type: text/html
                last-modified: Sat, 01 Jan 2022 00:00:00 GMT
                trailer: x
                vary: Cookie
                vary: Sec-Fetch-Dest
                vary: accept-encoding
                -> <html><head><script src="/_gaitway/c.js" defer></script>
            "#]],
        );
    }

    #[test]
    fn vary_is_extended_only_where_it_says_something_new() {
        for vary in ["*", "Cookie, sec-fetch-dest", "SEC-FETCH-DEST"] {
            let (_, answer, _) = passes(NAVIGATION, &format!("200\ncontent-type: text/html\nvary: {vary}"));
            assert_eq!(answer.headers.get_all(VARY).iter().collect::<Vec<_>>(), [vary]);
        }
        let (_, answer, _) = passes("GET / HTTP/1.1\naccept: text/html", "200\ncontent-type: text/html");
        assert_eq!(answer.headers[VARY], "Accept");
    }

    #[test]
    fn a_marked_etag_comes_back_as_the_apps_own() {
        for (own, coding) in [
            ("\"abc\"", ""),
            ("W/\"abc\"", ""),
            ("\"a,b\"", ""),
            ("\"\"", ""),
            ("\"abc\"", "\ncontent-encoding: gzip"),
            ("W/\"abc\"", "\ncontent-encoding: zstd"),
        ] {
            let (_, answer, _) =
                passes(NAVIGATION, &format!("200\ncontent-type: text/html\netag: {own}{coding}"));
            let marked = answer.headers[ETAG].to_str().unwrap().to_owned();
            assert_ne!(marked, own);
            assert_eq!(marked.starts_with("W/"), own.starts_with("W/") || !coding.is_empty(), "{marked}");

            let again = format!("{NAVIGATION}\nif-none-match: \"other\", {marked}\nif-match: {marked}");
            let (upstream, answer, plan) = passes(&again, &format!("304\netag: {own}\naccept-ranges: bytes"));
            assert_eq!(upstream.headers[IF_NONE_MATCH], own);
            assert_eq!(upstream.headers[IF_MATCH], own);
            assert_eq!(answer.headers[ETAG], marked);
            assert_eq!(answer.headers.get(ACCEPT_RANGES), None);
            assert!(matches!(plan, Plan::Untouched(Skip::NotModified)));
        }
    }

    #[test]
    fn a_copy_without_the_tag_is_never_confirmed() {
        // From before the gateway, from a script's fetch, or with the tag of an older configuration.
        let older = TagCodec::new(b"an older tag").mark(&EntityTag { is_weak: false, opaque: "abc" }, false);
        for stale in ["\"abc\"", "W/\"abc\"", "abc", older.as_str()] {
            check_request(
                &format!(
                    "{NAVIGATION}\nif-none-match: {stale}\nif-modified-since: Sat, 01 Jan 2022 00:00:00 GMT"
                ),
                expect![[r#"
                    host: shop.example
                    sec-fetch-dest: document
                "#]],
            );
        }
        for kept in ["if-none-match: *", "if-modified-since: Sat, 01 Jan 2022 00:00:00 GMT"] {
            let (upstream, _, _) = passes(&format!("{NAVIGATION}\n{kept}"), "404");
            assert!(print(&upstream.headers).contains(kept));
        }
        // A script's copy is without the tag by right: its ETag is the app's business.
        let script = NAVIGATION.replace("document", "empty") + "\nif-none-match: \"abc\"";
        untouched(&script, "304\netag: \"abc\"", Skip::NotModified);
    }

    #[test]
    fn if_match_is_restored_for_every_request() {
        let marked =
            TagCodec::new(&injector().html_tag).mark(&EntityTag { is_weak: false, opaque: "abc" }, true);
        let put = format!("PUT / HTTP/1.1\nif-match: \"x\", {marked}");
        assert_eq!(passes(&put, "200").0.headers[IF_MATCH], "\"x\", \"abc\"");
        let foreign = "PUT / HTTP/1.1\nif-match: \"x\" ,W/\"y\"";
        assert_eq!(passes(foreign, "200").0.headers[IF_MATCH], "\"x\" ,W/\"y\"");
    }

    #[test]
    fn an_etag_that_is_none_is_dropped() {
        let (_, answer, _) = passes(NAVIGATION, "200\ncontent-type: text/html\netag: abc");
        assert_eq!(answer.headers.get(ETAG), None);
    }

    #[test]
    fn policies_are_met_in_tag_and_header() {
        check(
            "200\ncontent-type: text/html\ncontent-length: 12\ncontent-security-policy: script-src 'nonce-abcd' 'strict-dynamic'",
            expect![[r#"
                content-length: 70
                content-security-policy: script-src 'nonce-abcd' 'strict-dynamic'
                content-type: text/html
                vary: Sec-Fetch-Dest
                -> <html><head><script src="/_gaitway/c.js" defer nonce="abcd" ></script>
            "#]],
        );
        check(
            "200\ncontent-type: text/html\ncontent-security-policy: default-src 'none'\ncontent-security-policy: base-uri 'self'\n\
             content-security-policy-report-only: default-src 'none'",
            expect![[r#"
                content-security-policy-report-only: default-src 'none'
                content-security-policy: base-uri 'self'
                content-security-policy: default-src 'none'; script-src https://shop.example/_gaitway/c.js; connect-src https://shop.example/_gaitway/ wss://shop.example/_gaitway/
                content-type: text/html
                vary: Sec-Fetch-Dest
                -> <html><head><script src="/_gaitway/c.js" defer></script>
            "#]],
        );
    }

    #[test]
    fn a_fresh_nonce_is_random_of_one_length_and_not_revalidated() {
        let page = "200\ncontent-type: text/html\ncontent-length: 12\netag: \"a\"\nlast-modified: x\n\
                    content-security-policy: script-src 'strict-dynamic' 'sha256-x'";
        let (_, one, _) = passes(NAVIGATION, page);
        let (_, two, _) = passes(NAVIGATION, page);
        assert_eq!(one.headers[CONTENT_LENGTH], two.headers[CONTENT_LENGTH]);
        assert_ne!(one.headers[CONTENT_SECURITY_POLICY], two.headers[CONTENT_SECURITY_POLICY]);
        assert_eq!(one.headers.get(ETAG), None);
        assert_eq!(one.headers.get(LAST_MODIFIED), None);
        assert_eq!(one.headers[CACHE_CONTROL], "private");
        // Its 304 can only be about a copy without the tag, so the header stays the app's.
        let not_modified = "304\ncontent-security-policy: script-src 'strict-dynamic' 'sha256-x'";
        untouched(NAVIGATION, not_modified, Skip::NotModified);
    }

    #[test]
    fn a_304_carries_the_policy_that_the_page_had() {
        let policy = "content-security-policy: script-src 'none'; connect-src 'self'";
        let (_, page, _) = passes(NAVIGATION, &format!("200\ncontent-type: text/html\n{policy}"));
        let (_, again, _) = passes(NAVIGATION, &format!("304\n{policy}"));
        assert_eq!(page.headers[CONTENT_SECURITY_POLICY], again.headers[CONTENT_SECURITY_POLICY]);
    }

    #[test]
    fn xhtml_gets_a_well_formed_tag() {
        let page = "200\ncontent-type: application/xhtml+xml\ncontent-length: 60";
        let (_, answer, plan) = passes(NAVIGATION, page);
        let Plan::Inject(mut injection) = plan else { panic!("untouched") };
        let body = "<html xmlns=\"http://www.w3.org/1999/xhtml\"><head><title/></head>";
        let mut chunk = Some(Bytes::from_static(body.as_bytes()));
        injection.feed(&mut chunk, true);
        let tag = "<script src=\"/_gaitway/c.js\" defer=\"defer\"></script>";
        assert_eq!(chunk.unwrap(), body.replace("<title", &format!("{tag}<title")));
        assert_eq!(answer.headers[CONTENT_LENGTH], (60 + tag.len()).to_string());
    }

    #[test]
    fn nothing_in_a_prefix_can_leave_its_attribute_or_policy() {
        let prefix = "/a\"><b>;, é/%41/".to_owned();
        let injector = Injector::new(&Collector { path_prefix: prefix, ..Collector::default() });
        assert_eq!(injector.script, "/a%22%3E%3Cb%3E%3B%2C%20%C3%A9/%41/c.js");
        assert_eq!(injector.endpoints, "/a%22%3E%3Cb%3E%3B%2C%20%C3%A9/%41/");
        assert_eq!((injector.html_tag.len() % 2, injector.xhtml_tag.len() % 2), (0, 0));
    }
}
